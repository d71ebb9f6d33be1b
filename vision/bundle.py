"""The bundle: the only thing that passes from training to serving.

A folder with ``model.onnx``, ``bundle.json`` (``vision.manifest``), golden frames with their expected outputs,
check frames with labels and expected scores (bundles of earlier versions have none and serve in fp32 alone), models of
fewer bits where ``defectlens export --quantize`` made some, and a licence note. ``bundle.json`` lists every file with
its size and SHA-256 and carries its own digest, so that a damaged, truncated or edited bundle is refused before
anything of it is used. No pickle is ever read.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vision.batching import run_all
from vision.checks import CHECK_EXPECTED, CHECK_FRAMES, CheckFrames, read_arrays, read_check, read_stack, write_stack
from vision.engine import Engine, EngineOptions, Precision, Provider, open_engine, reduced_file
from vision.errors import BundleError, ParityError, SettingsError
from vision.manifest import (
    GOLDEN_FRAMES,
    GOLDEN_OUTPUTS,
    MANIFEST,
    MODEL,
    Manifest,
    read_manifest,
    write_manifest,
)
from vision.parity import (
    Accuracy,
    check_spread,
    check_tolerance,
    compare_outputs,
    compare_spread,
)
from vision.preprocess import InputSpec
from vision.seen import Seen, read_seen
from vision.types import OUTPUT_NAMES, ModelOutputs

__all__ = [
    "GOLDEN_FRAMES",
    "GOLDEN_OUTPUTS",
    "MANIFEST",
    "MODEL",
    "Bundle",
    "Manifest",
    "check_new",
    "load_bundle",
    "new_bundle",
    "read_golden",
    "write_golden",
    "write_manifest",
]


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
        """Open the model; ``threads`` stands for ``EngineOptions(threads=...)``. They are made to fit the
        size of the frames. See ``open_engine``.

        ``replay_golden`` says whether it may answer.
        """
        options = (options or EngineOptions(threads=threads)).fitting(self.manifest.input)
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

    def seen(self) -> Seen | None:
        """Which images the model has seen, and for what; None in bundles of earlier versions."""
        return read_seen(self.path)

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
            differences = compare_outputs(expected, run_all(engine.run, frames))
            check_tolerance(differences, what)
            return differences
        check = self.check_frames()
        differences = compare_spread(expected, run_all(engine.run, frames))
        check_spread(differences, engine.precision, f"{what} in {engine.precision}")
        accuracy = self.measure(engine, check)
        accuracy.check(engine.precision, f"check frames of {self.path.name} on {engine.provider}")
        return {**differences, "image_auroc_loss": accuracy.auroc_loss, "verdict_flips": accuracy.flips}

    def measure(self, engine: Engine, check: CheckFrames) -> Accuracy:
        """How an engine does on check frames at this bundle's operating point."""
        return check.measure(engine, self.manifest)


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


def check_new(out: Path) -> None:
    """Refuse a folder that is there already: a bundle is never overwritten.

    Raises:
        SettingsError: as said.
    """
    if out.exists():
        raise SettingsError(f"{out} is already there; a bundle is never overwritten, give another --out")


@contextmanager
def new_bundle(out: Path) -> Iterator[Path]:
    """A path to make a bundle's folder at; it becomes ``out`` at the end of the block, whole or not at all.

    Raises:
        SettingsError: ``out`` is there already.
    """
    check_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary) / "bundle"
        yield folder
        shutil.move(folder, out)


def load_bundle(folder: Path) -> Bundle:
    """Read and verify a bundle.

    Raises:
        BundleError: no bundle, another format version, or any file missing, added to, cut off or changed.
    """
    manifest, digest = read_manifest(folder)
    return Bundle(folder, manifest, digest)
