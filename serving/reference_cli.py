"""The command ``reference``: what cameras are compared with, made of good frames and put into a new bundle."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from serving.sources import FileSource, open_source
from vision.batching import stacked
from vision.bundle import Bundle, check_new, load_bundle, new_bundle, write_manifest
from vision.console import exits_cleanly, finish, json_option, say, track
from vision.drift.reference import Reference, bundle_reference, make_reference, write_reference
from vision.engine import EngineOptions
from vision.errors import SettingsError
from vision.preprocess import decode_image, to_model_input
from vision.types import FloatArray

_BATCH = 8


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path, file_okay=False), required=True, help="Stays as it is.")
@click.option("--frames", required=True, help="Folder or quoted glob of good frames, from the camera as it should be.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The new bundle.")
@json_option
@exits_cleanly
def reference(bundle: Path, frames: str, out: Path, as_json: bool) -> None:
    """Give a bundle a reference for drift: what good frames look like to the camera that is to be watched.

    A bundle of `defectlens export` has one already, of its training images. Make a new one of some 200 good frames when
    a camera is set up, or after a change that is meant to stay. Take frames that the model was not trained with. The
    model stays the same, byte for byte, and so do its thresholds.

    \b
    Example:
      defectlens inspect --server 127.0.0.1:50051 --source 0 --out answers      # or any other way to good frames
      defectlens reference --bundle bundles/parts --frames good_frames/ --out bundles/parts-left
    """
    source = load_bundle(bundle)
    check_new(out)
    files = open_source(frames)
    if not isinstance(files, FileSource):
        raise SettingsError(f"a reference is made of image files; {frames} is none and no folder of any")
    found = _measure(source, _Frames(files.files, source))
    made = write_with(source, found, out)
    signals = [signal.name for signal in found.signals]
    figures = {"bundle": out, "digest": made.digest, "model_digest": made.manifest.model_digest}
    say(f"watches {', '.join(signals)}")
    finish({**figures, "frames": found.frames, "signals": signals if as_json else len(signals)}, as_json=as_json)


def write_with(source: Bundle, found: Reference, out: Path) -> Bundle:
    """A copy of a bundle with another reference; appears whole or not at all."""
    with new_bundle(out) as folder:
        shutil.copytree(source.path, folder)
        write_reference(folder, found)
        write_manifest(folder, source.manifest)
        load_bundle(folder)
    made = load_bundle(out)
    bundle_reference(made)
    return made


class _Frames:
    """Image files at the model's input size, decoded when they are looked at."""

    def __init__(self, files: Sequence[Path], bundle: Bundle) -> None:
        self._files = files
        self._spec = bundle.manifest.input

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        frame = decode_image(self._files[index].read_bytes(), white_level=self._spec.white_level)
        return to_model_input(frame, self._spec)


def _measure(bundle: Bundle, frames: _Frames) -> Reference:
    scores = bundle.manifest.calibration_array if bundle.manifest.has_anomaly_score else None
    return make_reference(frames, anomaly_scores=scores, embeddings=_embeddings(bundle, frames))


def _embeddings(bundle: Bundle, frames: _Frames) -> FloatArray | None:
    """None for a model of an earlier version, which gives none."""
    engine = bundle.engine(provider="cpu", options=EngineOptions())
    found: list[FloatArray] = []
    most = bundle.manifest.input.most_frames(_BATCH)
    batches = math.ceil(len(frames) / most)
    for batch in track(stacked(frames, most), "reference", total=batches, unit="batches"):
        outputs = engine.run(batch)
        if outputs.embedding is None:
            return None
        found.append(outputs.embedding)
    return np.concatenate(found)
