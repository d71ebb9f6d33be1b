"""After training: how the localizer's signals are combined, and where the thresholds lie.

The combination is chosen on validation frames, the thresholds on calibration frames; neither ever sees a test image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.batches import FrameStore, masks_at
from training.metrics import image_auroc
from training.options import Recipe
from training.synthesis import add_defect
from vision.decision import OperatingPoint, conformal_threshold
from vision.errors import DataError
from vision.model.detector import Detector, pool
from vision.postprocess import ANOMALY

# Asked of the operating point unless `calibrate` is told otherwise: how many good parts may be rejected, and how many
# may be rejected or sent to review.
MAX_OVERKILL, MAX_REVIEW = 0.02, 0.05
# All signals are standardised; without real defects nothing speaks for one of them.
SYNTHETIC_MASK_WEIGHT = 1.0
SUBSPACE_WEIGHT = 1.0
_MASK_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
# With fewer real defects than this among the validation frames, choosing by them is choosing by chance.
_ENOUGH_DEFECTS = 8
_BATCH = 16


@dataclass(frozen=True)
class Calibration:
    """The outcome: operating point, sorted anomaly scores of good calibration frames, and figures for people."""

    point: OperatingPoint
    scores: tuple[float, ...]
    figures: dict[str, Any]


def calibrate(detector: Detector, recipe: Recipe, validation: FrameStore, calibration: FrameStore) -> Calibration:
    """Set the detector's combination and find the operating point.

    Raises:
        DataError: the model has a good class, but no good image was left for calibration.
    """
    good = detector.config.good_class
    if good is None:
        text = (
            "The training data hold no good part: the model tells defect classes apart and has no anomaly score; it "
            "can reject or send to review, but never pass a part."
        )
        return Calibration(OperatingPoint(None, None, None, evidence=text), (), {})
    if not any(sample.label == good for sample in calibration.samples):
        raise DataError("no good image is left for calibration; at least 8 good training images are needed")
    weight = _combine(detector, recipe, validation)
    scores = np.sort(np.array([row.score for row in _rows(detector, calibration)], np.float32))
    threshold, source = _pixel_threshold(detector, validation), "best pixel F1 on validation masks"
    if threshold is None and recipe.synthetic:
        threshold = _pixel_threshold(detector, _Damaged(validation, good))
        source = "best pixel F1 on validation frames with synthetic defects"
    point = _operating_point(scores, threshold, source)
    figures = {"mask_weight": weight, "calibration_images": len(scores)}
    return Calibration(point, tuple(float(score) for score in scores), figures)


class _Damaged:
    """The good frames of a store, each with a synthetic defect; the same ones every time."""

    def __init__(self, store: FrameStore, good: str) -> None:
        self._store = store
        self._good = [index for index, sample in enumerate(store.samples) if sample.label == good]
        # Any path will do: what matters is that the mask is known.
        self.samples = tuple(
            replace(store.samples[index], label=ANOMALY, mask=store.samples[index].path) for index in self._good
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        other = self._good[(index + 1) % len(self._good)]
        rng = np.random.default_rng((11, index))
        return add_defect(self._store[self._good[index]][0], self._store[other][0], rng)


@dataclass(frozen=True, slots=True)
class _Row:
    """One frame: its pooled signals, score, map ``[h, w]`` and mask at the map's grid."""

    is_defect: bool
    reconstruction: float
    mask: float
    subspace: float
    score: float
    anomaly_map: NDArray[np.float32]
    truth: NDArray[np.bool_] | None


@torch.no_grad()
def _rows(detector: Detector, store: FrameStore | _Damaged) -> Iterator[_Row]:
    device = next(detector.parameters()).device
    detector.eval()
    for start in range(0, len(store), _BATCH):
        indices = range(start, min(start + _BATCH, len(store)))
        outputs = detector(torch.from_numpy(np.stack([store[index][0] for index in indices])).to(device))
        if outputs.mask_logits is None or outputs.anomaly_map is None or outputs.anomaly_score is None:
            return
        mask = pool(outputs.mask_logits[:, 0])
        rebuilt = torch.zeros_like(mask)
        size = (outputs.mask_logits.shape[-2], outputs.mask_logits.shape[-1])
        if outputs.distances is not None:
            rebuilt = pool(detector.reconstruction_map(outputs.distances, size))
        left = torch.zeros_like(mask) if outputs.subspace_map is None else pool(outputs.subspace_map)
        for row, index in enumerate(indices):
            sample = store.samples[index]
            is_defect = sample.label != detector.config.good_class
            truth = None
            if sample.mask is not None or not is_defect:
                truth = masks_at(store[index][1][None], size)[0]
            yield _Row(
                is_defect,
                float(rebuilt[row]),
                float(mask[row]),
                float(left[row]),
                float(outputs.anomaly_score[row]),
                outputs.anomaly_map[row].float().cpu().numpy(),
                truth,
            )


def _combine(detector: Detector, recipe: Recipe, validation: FrameStore) -> float:
    """Set the combination; the weight of the mask signal."""
    if not recipe.reconstruction and not recipe.subspace:
        detector.set_combination((0.0, 1.0), (0.0, 0.0), (1.0, 1.0))
        return 1.0
    rows = list(_rows(detector, validation))
    truth = np.array([row.is_defect for row in rows])
    signals = np.array([[row.reconstruction, row.mask, row.subspace] for row in rows])[:, : len(detector.map_weight)]
    center = signals[~truth].mean(axis=0)
    scale = np.maximum(signals[~truth].std(axis=0), 1e-3)
    weights = np.array([float(recipe.reconstruction), SYNTHETIC_MASK_WEIGHT, SUBSPACE_WEIGHT])[: signals.shape[1]]
    if truth.sum() >= _ENOUGH_DEFECTS:
        scaled = (signals - center) / scale
        weights[1] = max(
            _MASK_WEIGHTS,
            key=lambda candidate: image_auroc(
                scaled @ np.where(np.arange(len(weights)) == 1, candidate, weights), truth
            ),
        )
    detector.set_combination(weights.tolist(), center.tolist(), scale.tolist())
    return float(weights[1])


def _pixel_threshold(detector: Detector, validation: FrameStore | _Damaged) -> float | None:
    """The map value with the best pixel F1 on the masks; None where there are too few."""
    rows = [row for row in _rows(detector, validation) if row.truth is not None]
    masked = [row for row in rows if row.is_defect and row.truth is not None and row.truth.any()]
    if len(masked) < _ENOUGH_DEFECTS:
        return None
    values = np.concatenate([row.anomaly_map.ravel() for row in rows])
    truth = np.concatenate([row.truth.ravel() for row in rows if row.truth is not None])
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    return float(values[order[int(np.argmax(f1))]])


def _operating_point(scores: NDArray[np.float32], pixel_threshold: float | None, source: str) -> OperatingPoint:
    smallest = 1.0 / (len(scores) + 1)
    overkill, review = (max(bound, smallest) for bound in (MAX_OVERKILL, MAX_REVIEW))
    image = conformal_threshold(scores, overkill)
    missing = math.ceil(1 / MAX_OVERKILL) - 1 - len(scores)
    short = f" (asked: {MAX_OVERKILL:.0%}, which needs {missing} more good images)" if missing > 0 else ""
    return OperatingPoint(
        image_threshold=image,
        review_threshold=min(image, conformal_threshold(scores, review)),
        pixel_threshold=image if pixel_threshold is None else pixel_threshold,
        evidence=(
            f"Split-conformal bound on {len(scores)} good calibration images: at most {overkill:.1%} of good parts "
            f"rejected{short}, at most {review:.1%} rejected or sent to review; holds on average while good parts stay "
            "exchangeable with the calibration images. It promises nothing about escapes. Pixel threshold: "
            + ("the image threshold." if pixel_threshold is None else f"{source}.")
        ),
    )
