"""The bundle: the only thing that passes from training to serving.

A folder with ``model.onnx``, ``bundle.json`` (this module's ``Manifest``), golden frames with their expected outputs,
check frames with labels and expected scores (bundles of earlier versions have none and serve in fp32 alone), models of
fewer bits where ``defectlens export --quantize`` made some, and a licence note. ``bundle.json`` lists every file with
its size and SHA-256 and carries its own digest, so that a damaged, truncated or edited bundle is refused before
anything of it is used. No pickle is ever read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.checks import CHECK_EXPECTED, CHECK_FRAMES, CheckFrames, read_arrays, read_check, read_stack, write_stack
from vision.decision import OperatingPoint
from vision.engine import Engine, EngineOptions, Precision, Provider, open_engine, reduced_file
from vision.errors import BundleError, DefectLensError, ParityError
from vision.explanations import Explanations
from vision.parity import (
    Accuracy,
    check_spread,
    check_tolerance,
    compare_outputs,
    compare_spread,
)
from vision.preprocess import InputSpec
from vision.types import OUTPUT_NAMES, FloatArray, ModelOutputs

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
MODEL = "model.onnx"
GOLDEN_FRAMES = "golden/frames.png"
GOLDEN_OUTPUTS = "golden/outputs.npz"
# Entries of bundle.json around the manifest itself.
_ENVELOPE = {"format", "format_version", "manifest_sha256"}


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What ``bundle.json`` says.

    ``classes`` in the order of the graph's logits. ``good_class`` is None for a model that never saw a good part; it
    then has no anomaly score. ``predicts_by_anomaly_score``: no labelled defect was seen in training, so the predicted
    label comes from the image threshold and not from the class scores. ``calibration_scores``: anomaly scores of good
    calibration images, ascending. ``metrics``, ``parity``, ``provenance``: figures and origin, for people to read.
    ``explanations``: what the maps add up with, and how good they are; bundles of earlier versions have none.
    """

    name: str
    version: str
    created: str
    input: InputSpec
    classes: tuple[str, ...]
    good_class: str | None
    predicts_by_anomaly_score: bool
    operating_point: OperatingPoint
    calibration_scores: tuple[float, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    explanations: Explanations | None = None
    files: dict[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or not self.version:
            raise BundleError(f"a bundle needs a name and a version; got {self.name!r} and {self.version!r}")
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise BundleError(f"classes must be distinct and at least one; got {self.classes}")
        if self.good_class is not None and (self.good_class not in self.classes or len(self.classes) < 2):
            raise BundleError(f"the good class {self.good_class!r} and one defect class must be in {self.classes}")
        if list(self.calibration_scores) != sorted(self.calibration_scores):
            raise BundleError("calibration scores must be in ascending order")
        if self.explanations is not None:
            self.explanations.check_classes(self.classes)

    @property
    def has_anomaly_score(self) -> bool:
        return self.good_class is not None

    @property
    def defect_classes(self) -> tuple[str, ...]:
        return tuple(name for name in self.classes if name != self.good_class)

    @property
    def model_digest(self) -> str:
        """SHA-256 of ``model.onnx``: stays the same when only the operating point changes."""
        return self.files[MODEL].sha256

    @cached_property
    def calibration_array(self) -> FloatArray:
        return np.asarray(self.calibration_scores, np.float32)


@dataclass(frozen=True)
class Bundle:
    """A loaded and verified bundle. ``digest`` is the SHA-256 of ``bundle.json``."""

    path: Path
    manifest: Manifest
    digest: str

    def engine(
        self,
        *,
        provider: Provider = "auto",
        precision: Precision = "fp32",
        strict: bool = False,
        options: EngineOptions | None = None,
        threads: int = 0,
    ) -> Engine:
        """Open the model; ``threads`` stands for ``EngineOptions(threads=...)``. See ``open_engine``.

        ``replay_golden`` says whether it may answer.
        """
        options = options or EngineOptions(threads=threads)
        return open_engine(self.path / MODEL, provider=provider, precision=precision, strict=strict, options=options)

    def golden(self) -> tuple[NDArray[np.uint8], ModelOutputs]:
        """Golden frames, uint8 ``[N, H, W, 3]`` RGB at input size, and the outputs that torch gave for them."""
        return read_golden(self.path, self.manifest.input)

    @property
    def has_check_frames(self) -> bool:
        """Whether precisions below fp32 can prove themselves. Bundles of earlier versions have none."""
        return CHECK_FRAMES in self.manifest.files and CHECK_EXPECTED in self.manifest.files

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """fp32, and those that the model was reduced to when it was exported."""
        names: tuple[Precision, ...] = ("fp32", "fp16", "int8")
        return tuple(name for name in names if reduced_file(Path(MODEL), name).name in self.manifest.files)

    def check_frames(self) -> CheckFrames:
        """Labelled frames with the scores that torch gave for them.

        Raises:
            ParityError: there are none.
        """
        if not self.has_check_frames:
            raise ParityError(
                f"{self.path.name} has no check frames, so nothing below fp32 can show that its verdicts are as good; "
                "train and export again with this version, or use fp32"
            )
        return read_check(self.path, self.manifest.input)

    def replay_golden(self, engine: Engine) -> dict[str, float]:
        """The gate before an engine may answer. Below fp32 it runs the check frames too.

        Returns:
            By output name the largest difference (below fp32 root mean square, as a share of the output's spread), and
            below fp32 ``image_auroc_loss`` and ``verdict_flips``, 0..1.

        Raises:
            ParityError: a figure is above what ``vision.parity`` publishes for the engine's precision.
        """
        frames, expected = self.golden()
        what = f"golden frames of {self.path.name} on {engine.provider}"
        if engine.precision == "fp32":
            differences = compare_outputs(expected, engine.run(frames))
            check_tolerance(differences, what)
            return differences
        check = self.check_frames()
        differences = compare_spread(expected, engine.run(frames))
        check_spread(differences, engine.precision, f"{what} in {engine.precision}")
        accuracy = self.measure(engine, check)
        accuracy.check(engine.precision, f"check frames of {self.path.name} on {engine.provider}")
        return {**differences, "image_auroc_loss": accuracy.auroc_loss, "verdict_flips": accuracy.flips}

    def measure(self, engine: Engine, check: CheckFrames) -> Accuracy:
        """How an engine does on check frames at this bundle's operating point."""
        classes = self.manifest.classes
        defects = [index for index, name in enumerate(classes) if name != self.manifest.good_class]
        return check.measure(engine, self.manifest.operating_point, defects)


def write_golden(folder: Path, frames: NDArray[np.uint8], outputs: ModelOutputs) -> None:
    """Frames as one lossless PNG, outputs as ``.npz`` without pickles."""
    write_stack(folder / GOLDEN_FRAMES, frames)
    arrays = {name: value for name in OUTPUT_NAMES if (value := getattr(outputs, name)) is not None}
    np.savez_compressed(folder / GOLDEN_OUTPUTS, **arrays)


def read_golden(folder: Path, spec: InputSpec) -> tuple[NDArray[np.uint8], ModelOutputs]:
    """The inverse of ``write_golden``.

    Raises:
        BundleError: the files are not what ``write_golden`` writes.
    """
    frames, arrays = read_stack(folder / GOLDEN_FRAMES, spec), read_arrays(folder / GOLDEN_OUTPUTS)
    try:
        outputs = ModelOutputs(**arrays)
    except TypeError as error:
        raise BundleError(f"golden outputs of {folder} cannot be used: {error}; export the bundle again") from error
    if len(frames) != len(outputs):
        raise BundleError(f"{folder}: {len(frames)} golden frames but {len(outputs)} expected outputs")
    return frames, outputs


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Digest every file of ``folder``, write ``bundle.json`` and return its SHA-256."""
    entries = {
        path.relative_to(folder).as_posix(): FileEntry(path.stat().st_size, _sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    content = {key: value for key, value in asdict(manifest).items() if key != "files"}
    document: dict[str, Any] = {"format": "defectlens-bundle", "format_version": FORMAT_VERSION, **content}
    document["files"] = {name: asdict(entry) for name, entry in entries.items()}
    document = json.loads(json.dumps(document))  # what a reader will see: keys of numbers become strings, for one
    document["manifest_sha256"] = _document_digest(document)
    data = json.dumps(document, indent=2, ensure_ascii=False).encode()
    (folder / MANIFEST).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def load_bundle(folder: Path) -> Bundle:
    """Read and verify a bundle.

    Raises:
        BundleError: no bundle, another format version, or any file missing, added to, cut off or changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is no bundle: it has no {MANIFEST}; make one with `defectlens export`")
    data = path.read_bytes()
    try:
        document = json.loads(data)
        if document.get("format") != "defectlens-bundle":
            raise BundleError(f"{path} is not a defectlens bundle (format {document.get('format')!r})")
        if document.get("format_version") != FORMAT_VERSION:
            raise BundleError(
                f"{path} has format version {document.get('format_version')!r}, this program reads {FORMAT_VERSION}; "
                "export the bundle again or update the program"
            )
        if document.get("manifest_sha256") != _document_digest(document):
            raise BundleError(f"{path} was changed after it was written (its own digest does not fit)")
        manifest = _parse(document)
    except BundleError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, DefectLensError) as error:
        raise BundleError(f"{path} cannot be read: {error}; it may be cut off or damaged") from error
    _verify_files(folder, manifest)
    return Bundle(folder, manifest, hashlib.sha256(data).hexdigest())


def _parse(document: dict[str, Any]) -> Manifest:
    values = {key: value for key, value in document.items() if key not in _ENVELOPE}
    if unknown := values.keys() - {entry.name for entry in fields(Manifest)}:
        raise BundleError(f"unknown entries in {MANIFEST}: {', '.join(sorted(unknown))}; another program wrote it")
    values["input"] = InputSpec(**values["input"])
    values["operating_point"] = OperatingPoint(**values["operating_point"])
    values["classes"] = tuple(values["classes"])
    values["calibration_scores"] = tuple(values["calibration_scores"])
    if values.get("explanations") is not None:
        values["explanations"] = Explanations.from_dict(values["explanations"])
    values["files"] = {name: FileEntry(**entry) for name, entry in values["files"].items()}
    return Manifest(**values)


def _verify_files(folder: Path, manifest: Manifest) -> None:
    required = (MODEL, GOLDEN_FRAMES, GOLDEN_OUTPUTS)
    problems = [f"{name} is not listed" for name in required if name not in manifest.files]
    for name, entry in manifest.files.items():
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            problems.append(f"{name} points outside the bundle")
            continue
        path = folder / relative
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry.bytes:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {entry.bytes}")
        elif _sha256(path) != entry.sha256:
            problems.append(f"{name} was changed (its SHA-256 does not fit)")
    if problems:
        raise BundleError(f"{folder} is refused: {'; '.join(problems)}; copy or export it again")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _document_digest(document: dict[str, Any]) -> str:
    content = {key: value for key, value in document.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
