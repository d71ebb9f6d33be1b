"""``bundle.json``: what a bundle says about itself, read and written so that a changed byte anywhere is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vision.calibration.probability import ClassCalibration
from vision.decision import OperatingPoint
from vision.errors import BundleError, DefectLensError
from vision.explanations import Explanations
from vision.preprocess import InputSpec
from vision.types import FloatArray

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
    calibration images, ascending. ``class_calibration`` makes probabilities of class logits; None where no labelled
    images were left to fit it, and there is then no probability. ``metrics``, ``parity``, ``provenance``: figures and
    origin, for people to read. ``explanations``: what the maps add up with, and how good they are; None in bundles of
    earlier versions.
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
    class_calibration: ClassCalibration | None = None
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
        self._check_classes()
        if self.explanations is not None:
            self.explanations.check_classes(self.classes)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """From what ``dataclasses.asdict`` and JSON made of it; entries that earlier versions did not know may miss."""
        calibration, explanations = values.get("class_calibration"), values.get("explanations")
        known = {
            "input": InputSpec(**values["input"]),
            "operating_point": OperatingPoint.from_dict(values["operating_point"]),
            "classes": tuple(values["classes"]),
            "calibration_scores": tuple(values["calibration_scores"]),
            "class_calibration": None if calibration is None else ClassCalibration.from_dict(calibration),
            "explanations": None if explanations is None else Explanations.from_dict(explanations),
            "files": {name: FileEntry(**entry) for name, entry in values["files"].items()},
        }
        return cls(**{**values, **known})

    def _check_classes(self) -> None:
        calibration, point = self.class_calibration, self.operating_point
        if calibration is not None and len(calibration.scale) != len(self.classes):
            raise BundleError(f"a class calibration of {len(calibration.scale)} classes does not fit {self.classes}")
        named = point.class_thresholds.keys() | point.class_pixel_thresholds.keys()
        if unknown := named - set(self.defect_classes):
            raise BundleError(f"class thresholds name {', '.join(sorted(unknown))}, which is no defect class")
        if calibration is None and (point.class_thresholds or point.unknown_below is not None):
            raise BundleError("class_thresholds and unknown_below are on probabilities, and nothing calibrates them")

    @property
    def has_anomaly_score(self) -> bool:
        return self.good_class is not None

    @property
    def defect_classes(self) -> tuple[str, ...]:
        return tuple(name for name in self.classes if name != self.good_class)

    @cached_property
    def defect_places(self) -> tuple[int, ...]:
        """Where the defect classes stand among the classes."""
        return tuple(place for place, name in enumerate(self.classes) if name != self.good_class)

    @property
    def model_digest(self) -> str:
        """SHA-256 of ``model.onnx``: stays the same when only the operating point changes."""
        return self.files[MODEL].sha256

    @cached_property
    def calibration_array(self) -> FloatArray:
        return np.asarray(self.calibration_scores, np.float32)


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


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of a folder whose every file is as it was written, and the SHA-256 of ``bundle.json``.

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
    return manifest, hashlib.sha256(data).hexdigest()


def _parse(document: dict[str, Any]) -> Manifest:
    values = {key: value for key, value in document.items() if key not in _ENVELOPE}
    if unknown := values.keys() - {entry.name for entry in fields(Manifest)}:
        raise BundleError(f"unknown entries in {MANIFEST}: {', '.join(sorted(unknown))}; another program wrote it")
    return Manifest.from_dict(values)


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
