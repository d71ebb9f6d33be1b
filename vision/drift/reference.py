"""What good frames look like: made once, when a model is calibrated, and kept in its bundle as ``drift/reference.npz``.

An optional file: bundles without it serve as before and watch nothing. No frame can be made out in it but the mean
picture, 64x64 and blurred by being a mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vision.batching import Frames
from vision.bundle import Bundle
from vision.checks import read_arrays
from vision.drift.signals import (
    BLOCK,
    GRID,
    IMAGE_SIGNALS,
    Eyes,
    Look,
    Signal,
    dirt,
    log_of,
    small_picture,
    speck_picture,
    to_grey,
)
from vision.errors import BundleError, SettingsError
from vision.types import FloatArray

REFERENCE = "drift/reference.npz"
FEWEST_FRAMES = 40
"""Ten looks at dirt; below them, nothing can be unusual enough."""
_MOST_FRAMES = 1000
ANOMALY = Signal(
    "anomaly_score", "higher anomaly scores", "lower anomaly scores", "look at the rejected parts and at the process"
)
EMBEDDING = Signal(
    "embedding",
    "further from what the model was calibrated with",
    "closer to the middle of what the model was calibrated with",
    "look at recent frames: a new kind of part, material or dirt? Then train with it",
)
SIGNALS = {signal.name: signal for signal in (*IMAGE_SIGNALS, ANOMALY, EMBEDDING)}
CAMERA_SIGNALS = frozenset(signal.name for signal in IMAGE_SIGNALS)
# Spread of the mean picture, in log units, and of specks, as a share of the light: what a camera's noise makes.
_LEAST_SPREAD, _LEAST_SPECK_SPREAD = 0.02, 0.003
# Distances of the frames that make the mean and the covariance, each measured by the others.
_FOLDS = 5
# How much of the covariance is replaced by the same variance in all directions.
_SHRINK = 0.2


@dataclass(frozen=True)
class Cloud:
    """Where embeddings of good frames lie: ``mean`` ``[D]`` and ``precision`` ``[D, D]``, float32."""

    mean: FloatArray
    precision: FloatArray

    @classmethod
    def around(cls, embeddings: FloatArray) -> Cloud:
        """``[n, D]``; the covariance is shrunk towards a multiple of the identity (Ledoit and Wolf 2004), by a fixed
        share.
        """
        mean = embeddings.mean(axis=0, dtype=np.float64)
        covariance = np.cov(embeddings.T.astype(np.float64)).reshape(len(mean), len(mean))
        even = max(float(np.trace(covariance)) / len(mean), 1e-12)
        shrunk = (1.0 - _SHRINK) * covariance + _SHRINK * even * np.eye(len(mean))
        return cls(mean.astype(np.float32), np.linalg.inv(shrunk).astype(np.float32))

    def distance(self, embedding: FloatArray) -> float:
        """Mahalanobis distance of one embedding ``[D]``, as a share of what is usual in D dimensions."""
        difference = embedding - self.mean
        return float(np.sqrt(max(0.0, float(difference @ self.precision @ difference)) / len(difference)))


@dataclass(frozen=True)
class Reference:
    """``values``: of each signal on good frames, ascending, float32. ``frames``: how many pictures they are from.

    ``cloud`` is None where the model has no embedding.
    """

    eyes: Eyes
    values: dict[str, FloatArray]
    frames: int
    cloud: Cloud | None = None

    @property
    def signals(self) -> tuple[Signal, ...]:
        """What can be watched with it, in the order of ``SIGNALS``."""
        return tuple(signal for name, signal in SIGNALS.items() if name in self.values)


def make_reference(
    frames: Frames,
    *,
    anomaly_scores: FloatArray | None = None,
    embeddings: FloatArray | None = None,
) -> Reference:
    """Measure good frames.

    Args:
        frames: uint8 ``[H, W, 3]`` RGB at the model's input size, in any order; beyond 1000, every so many-th.
        anomaly_scores: of good parts that the model never saw.
        embeddings: ``[n, D]``, likewise.

    Raises:
        SettingsError: too few frames.
    """
    count = len(frames)
    if count < FEWEST_FRAMES:
        raise SettingsError(
            f"a reference for drift needs at least {FEWEST_FRAMES} good frames; got {count}, "
            f"{FEWEST_FRAMES - count} more are missing"
        )
    places = np.unique(np.linspace(0, count - 1, min(count, _MOST_FRAMES)).astype(int))
    # What is dark in all frames of a block must not be so because neighbours show the same part.
    places = np.random.default_rng(0).permutation(places)
    eyes = open_eyes(frames[place] for place in places)
    looks = [eyes.look(frames[place]) for place in places]
    values = _image_values(looks)
    if anomaly_scores is not None and len(anomaly_scores):
        values[ANOMALY.name] = np.sort(anomaly_scores.astype(np.float32))
    cloud = None
    if embeddings is not None and len(embeddings) >= 2 * _FOLDS:
        cloud = Cloud.around(embeddings)
        values[EMBEDDING.name] = np.sort(_crossed_distances(embeddings))
    return Reference(eyes, values, len(places), cloud)


def open_eyes(frames: Iterable[NDArray[np.uint8]]) -> Eyes:
    """Mean picture and its spread; medians and median absolute deviations, which a defect does not move.

    Looks at one frame after the other: a thousand large ones would not fit into memory.
    """
    pictures = [(log_of(small_picture(grey)), speck_picture(grey)) for grey in map(to_grey, frames)]
    logs, specks = (np.stack(kind) for kind in zip(*pictures, strict=True))
    logs -= np.median(logs, axis=(1, 2), keepdims=True)
    return Eyes(*_middle(logs, _LEAST_SPREAD), *_middle(specks, _LEAST_SPECK_SPREAD))


def _middle(pictures: FloatArray, least: float) -> tuple[FloatArray, FloatArray]:
    middle = np.median(pictures, axis=0)
    # 1.4826: of a normal distribution, the standard deviation over the median absolute deviation.
    spread = 1.4826 * np.median(np.abs(pictures - middle), axis=0) + least
    return middle.astype(np.float32), spread.astype(np.float32)


def _image_values(looks: Sequence[Look]) -> dict[str, FloatArray]:
    rows = np.stack([look.values for look in looks])
    names = [signal.name for signal in IMAGE_SIGNALS if signal.period == 1]
    # A grey camera has no colour to watch.
    values = {name: np.sort(column) for name, column in zip(names, rows.T, strict=True) if np.ptp(column) > 0.0}
    blocks = [looks[start : start + BLOCK] for start in range(0, len(looks) - BLOCK + 1, BLOCK)]
    marks = [dirt(np.stack([look.specks for look in block])) for block in blocks]
    values["dirt"] = np.sort(np.array(marks, np.float32))
    return values


def _crossed_distances(embeddings: FloatArray) -> FloatArray:
    """Of each embedding by the others' cloud: by its own it would look closer than a new one does."""
    turns = np.arange(len(embeddings)) % _FOLDS
    distances = np.empty(len(embeddings), np.float32)
    for turn in range(_FOLDS):
        cloud = Cloud.around(embeddings[turns != turn])
        distances[turns == turn] = [cloud.distance(one) for one in embeddings[turns == turn]]
    return distances


def write_reference(folder: Path, reference: Reference) -> None:
    """Into the folder of a bundle that is being made, or of a run."""
    path = folder / REFERENCE
    path.parent.mkdir(parents=True, exist_ok=True)
    eyes = reference.eyes
    arrays = {"mean": eyes.mean, "spread": eyes.spread, "frames": np.array(reference.frames)}
    arrays |= {"speck_mean": eyes.speck_mean.astype(np.float16), "speck_spread": eyes.speck_spread.astype(np.float16)}
    arrays |= {f"values.{name}": column for name, column in reference.values.items()}
    if reference.cloud is not None:
        arrays |= {"cloud.mean": reference.cloud.mean, "cloud.precision": reference.cloud.precision}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def bundle_reference(bundle: Bundle) -> Reference | None:
    """The reference of a verified bundle; None where it has none.

    Raises:
        BundleError: it cannot be used.
    """
    return read_reference(bundle.path) if REFERENCE in bundle.manifest.files else None


def read_reference(folder: Path) -> Reference:
    """The inverse of ``write_reference``.

    Raises:
        BundleError: the file is not what ``write_reference`` writes.
    """
    arrays = read_arrays(folder / REFERENCE)
    try:
        names = ("mean", "spread", "speck_mean", "speck_spread")
        eyes = Eyes(*(np.asarray(arrays[name], np.float32) for name in names))
        if eyes.mean.shape != (GRID, GRID) or eyes.spread.shape != (GRID, GRID):
            raise BundleError(f"the mean picture of {folder / REFERENCE} is {eyes.mean.shape}, not {GRID}x{GRID}")
        cloud = Cloud(arrays["cloud.mean"], arrays["cloud.precision"]) if "cloud.mean" in arrays else None
        # Signals of a later version are left alone.
        values = {name: arrays[f"values.{name}"] for name in SIGNALS if f"values.{name}" in arrays}
        return Reference(eyes, values, int(arrays["frames"]), cloud)
    except (KeyError, ValueError, TypeError) as error:
        raise BundleError(f"{folder / REFERENCE} cannot be used: {error}; make the reference again") from error
