"""Scored calibration images, and what thresholds make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vision.calibration.intervals import Rate, rate
from vision.errors import DataError
from vision.types import FloatArray

F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ScoredImages:
    """N images with their anomaly scores and, where the bundle can calibrate them, class probabilities.

    ``scores`` float32 ``[N]``, raw; ``is_defect`` bool ``[N]``; ``probabilities`` float64 ``[N, D]`` of the defect
    classes ``defect_classes``, or None. ``lots``: the lot of each image, or None where each stands for itself.
    """

    names: tuple[str, ...]
    scores: FloatArray
    is_defect: Flags
    defect_classes: tuple[str, ...]
    probabilities: F64 | None = None
    lots: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        broken = [name for name, score in zip(self.names, self.scores, strict=True) if not math.isfinite(score)]
        if broken:
            raise DataError(
                f"{len(broken)} images have no finite anomaly score; look at them, or leave them out", broken[:20]
            )

    def __len__(self) -> int:
        return len(self.names)

    def only(self, chosen: Flags) -> ScoredImages:
        """The images where ``chosen`` ``[N]`` is true."""
        kept = np.flatnonzero(chosen)
        return replace(
            self,
            names=tuple(self.names[index] for index in kept),
            scores=self.scores[kept],
            is_defect=self.is_defect[kept],
            probabilities=None if self.probabilities is None else self.probabilities[kept],
            lots=None if self.lots is None else tuple(self.lots[index] for index in kept),
        )

    @property
    def good(self) -> ScoredImages:
        return self.only(~self.is_defect)

    @property
    def defective(self) -> ScoredImages:
        return self.only(self.is_defect)

    def class_hits(self, thresholds: Mapping[str, float]) -> Flags:
        """Which images reach the threshold of some defect class, ``[N]``."""
        hits = np.zeros(len(self), np.bool_)
        if self.probabilities is not None:
            for place, name in enumerate(self.defect_classes):
                hits |= self.probabilities[:, place] >= thresholds.get(name, math.inf)
        return hits

    def combined(self, thresholds: Mapping[str, float]) -> FloatArray:
        """Anomaly scores ``[N]``, infinite where a class is a hit: at any image threshold, this is who is hit."""
        return np.where(self.class_hits(thresholds), np.float32(np.inf), self.scores).astype(np.float32)


def measure(
    images: ScoredImages,
    image_threshold: float,
    review_threshold: float,
    class_thresholds: Mapping[str, float],
    unknown_below: float | None = None,
) -> dict[str, Rate]:
    """What the thresholds do on these very images: rates with exact intervals, which treat images as independent.

    ``overkill_rate``: good parts not passed (of them ``good_rejected`` and ``good_to_review``); ``escape_rate``:
    defective parts passed; ``defects_to_review``; ``review_rate`` of all; ``good_class_hits``: good parts that reach a
    class threshold; ``defects_unknown``: defective ones of which is said that no class explains them. What has no
    image to be measured on is left out.
    """
    combined = images.combined(class_thresholds)
    rejected = combined >= np.float32(image_threshold)
    stopped = rejected | (combined >= np.float32(review_threshold))
    good, bad = ~images.is_defect, images.is_defect
    found = {
        "overkill_rate": (stopped, good),
        "good_rejected": (rejected, good),
        "good_to_review": (stopped & ~rejected, good),
        "escape_rate": (~stopped, bad),
        "defects_to_review": (stopped & ~rejected, bad),
        "review_rate": (stopped & ~rejected, np.ones(len(images), np.bool_)),
    }
    if class_thresholds:
        found["good_class_hits"] = (images.class_hits(class_thresholds), good)
    if unknown_below is not None and images.probabilities is not None:
        explained = images.probabilities.sum(axis=1) >= unknown_below
        by_score = images.scores >= np.float32(image_threshold)
        found["defects_unknown"] = (by_score & ~explained & ~np.isposinf(combined), bad)
    return {
        name: rate(int((flags & among).sum()), int(among.sum()))
        for name, (flags, among) in found.items()
        if among.any()
    }
