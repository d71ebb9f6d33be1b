"""Maps and curves of every subject, kept frame by frame, so that an interrupted measurement goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.explain.methods import METHODS, engine_maps, torch_maps
from training.explain.perturb import PATCH, Curves, Score, curves, feature_score, picture_score
from training.explain.subjects import Subject
from training.predictor import FrameEngine
from training.torch_engine import TorchEngine
from vision.batching import run_all
from vision.bundle import Bundle
from vision.checks import read_arrays
from vision.console import track
from vision.errors import BundleError, SettingsError
from vision.model.detector import Detector
from vision.parity import SCORE_TOLERANCE, compare_outputs
from vision.preprocess import InputSpec
from vision.types import FloatArray

PROGRESS = "progress"


@dataclass(frozen=True)
class Measured:
    """Of one subject: by method its map ``[h, w]`` and its curves; ``logits`` ``[C]`` of the frame as it is."""

    subject: Subject
    logits: FloatArray
    maps: dict[str, FloatArray]
    curves: dict[str, Curves]


def check_run(detector: Detector, bundle: Bundle) -> None:
    """Raise SettingsError unless ``detector`` is the model of ``bundle``: it must give the golden outputs.

    Also if it looks at frames in tiles: their inner values are no maps of the frame.
    """
    frames, expected = bundle.golden()
    config = detector.config
    if config.tiles is not None:
        raise SettingsError(
            f"the run looks at frames in {config.tiles}; Grad-CAM, rollout and heads are for frames in one piece; "
            "leave --run away to measure what the bundle itself gives"
        )
    if (config.height, config.width, config.classes) != (*frames.shape[1:3], bundle.manifest.classes):
        raise SettingsError(
            f"the run is of another model than the bundle: {config.width}x{config.height} px and classes "
            f"{', '.join(config.classes)}, not {frames.shape[2]}x{frames.shape[1]} px and "
            f"{', '.join(bundle.manifest.classes)}; give the run that the bundle was exported from"
        )
    differences = compare_outputs(expected, run_all(TorchEngine(detector).run, frames))
    worst = max(differences, key=lambda name: differences[name])
    if differences[worst] > SCORE_TOLERANCE:
        raise SettingsError(
            f"the run is of another model than the bundle: its {worst} differs by {differences[worst]:.3g} from the "
            "bundle's golden outputs; give the run that the bundle was exported from"
        )


def measure(
    subjects: Sequence[Subject],
    engine: FrameEngine,
    detector: Detector | None,
    out: Path,
    identity: dict[str, Any],
    *,
    seed: int,
) -> list[Measured]:
    """Explain every subject by every method, and take each explanation's patches away.

    Args:
        engine: runs the graph in fp32.
        detector: the torch model of the same weights; without it gradient methods are left out.
        out: where ``progress/`` is kept until ``forget_progress``.
        identity: what makes two measurements the same one.

    Raises:
        SettingsError: ``out`` holds the progress of another measurement.
    """
    folder = _open_progress(out / PROGRESS, identity)
    result = []
    for index, subject in enumerate(track(subjects, "Explaining", unit="frames")):
        path = folder / f"{index:04d}.npz"
        measured = _read(path, subject)
        if measured is None:
            measured = measure_one(subject, engine, detector, seed + index)
            _write(path, measured)
        result.append(measured)
    return result


def forget_progress(out: Path) -> None:
    """Once the report is written."""
    shutil.rmtree(out / PROGRESS, ignore_errors=True)


def measure_one(subject: Subject, engine: FrameEngine, detector: Detector | None, seed: int) -> Measured:
    """One subject; see ``measure``."""
    frame, reference = subject.frame, subject.reference
    outputs = engine.run(frame[None])
    maps = engine_maps(outputs, [subject.target], seed)
    if detector is not None:
        maps |= torch_maps(detector, frame[None], reference[None], [subject.target])
    planes = {name: maps[name][0] for name in METHODS if name in maps}
    grid = (frame.shape[0] // PATCH, frame.shape[1] // PATCH)
    batch = InputSpec(*frame.shape[:2]).inference_batch
    score: Score
    if detector is not None and detector.reconstruction is not None:
        score = feature_score(detector, frame, reference, batch)
    else:
        score = picture_score(lambda frames: engine.run(frames).class_logits, frame, reference, batch)
    return Measured(subject, outputs.class_logits[0], planes, curves(planes, score, grid, subject.target))


def identity_of(
    bundle: Bundle, data_digest: str, subjects: Sequence[Subject], *, seed: int, run: bool
) -> dict[str, Any]:
    """What makes two measurements the same one."""
    frames = hashlib.sha256()
    for subject in subjects:
        frames.update(subject.frame.tobytes() + subject.reference.tobytes())
    return {
        "model_digest": bundle.manifest.model_digest,
        "data_digest": data_digest,
        "frames": frames.hexdigest(),
        "seed": seed,
        "run": run,
    }


def _open_progress(folder: Path, identity: dict[str, Any]) -> Path:
    path = folder / "identity.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != identity:
        raise SettingsError(
            f"{folder} holds an unfinished measurement of another model, other images or other settings; "
            "remove it or give another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(identity), encoding="utf-8")
    return folder


def _write(path: Path, measured: Measured) -> None:
    arrays = {"logits": measured.logits}
    for name, values in measured.maps.items():
        curve = measured.curves[name]
        arrays |= {
            f"{name}.map": values,
            f"{name}.shares": curve.shares,
            f"{name}.insertion": curve.insertion,
            f"{name}.deletion": curve.deletion,
        }
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    os.replace(part, path)  # noqa: PTH105


def _read(path: Path, subject: Subject) -> Measured | None:
    try:
        arrays = read_arrays(path)
    except BundleError:  # not measured yet
        return None
    names = [name for name in METHODS if f"{name}.map" in arrays]
    parts = ("shares", "insertion", "deletion")
    found = {name: Curves(*(arrays[f"{name}.{part}"] for part in parts)) for name in names}
    return Measured(subject, arrays["logits"], {name: arrays[f"{name}.map"] for name in names}, found)
