"""Pixel metrics over a whole test set, in bounded memory.

The four million highest scores are kept as they are; they decide nearly everything. All lower ones are counted in
65,536 bins whose edges are quantiles of all scores, closer together towards the highest. Equal scores always share a
bin, so ties are exact, and so is everything of a test set with fewer pixels. Otherwise a metric moves by less than
``BIN_ERROR``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.metrics import (
    F64,
    area_under_precision_recall,
    area_under_roc,
    bootstrap_draws,
    percentile_interval,
)
from vision.types import FloatArray

BIN_ERROR = 1e-4
"""Documented and tested bound of the difference to exact sorting."""
MAX_FPR = 0.3
"""AUPRO's usual limit (Bergmann et al., CVPR 2020)."""

_EDGES = 65_536
_EXACT_PIXELS = 4_000_000
_COARSE = 1024
"""Bins that are kept for every image, for the intervals alone."""


@dataclass(frozen=True, slots=True)
class PixelFigures:
    """Metrics of the pooled pixels with 95 % bootstrap intervals (low, high); NaN where not defined."""

    auroc: float
    average_precision: float
    aupro: float
    intervals: dict[str, tuple[float, float]]
    regions: int


@dataclass(frozen=True, slots=True)
class ScoreBins:
    """Bin i has the scores ``>=`` edge i − 1 and below edge i (ascending); from ``exact_bin`` on, scores are kept."""

    edges: FloatArray
    exact_bin: int


def score_bins(maps: Iterable[FloatArray], pixels: int, *, exact_pixels: int = _EXACT_PIXELS) -> ScoreBins:
    """Bins for the scores of ``maps``, or of maps that are interpolated from them.

    Args:
        maps: all maps, on whatever grid they have.
        pixels: that will be counted, in all images together.
        exact_pixels: about how many of them are kept as they are.
    """
    values = np.sort(np.concatenate([np.zeros(0, np.float32), *(np.ravel(one) for one in maps)]).astype(np.float32))
    count = len(values)
    if not count:
        return ScoreBins(values, 0)
    even = np.linspace(0, count - 1, _EDGES // 2).astype(np.intp)
    from_the_top = count - np.geomspace(1, count, _EDGES // 2).astype(np.intp)
    kept = min(count, int(count * exact_pixels / max(pixels, 1)))
    # Whole ties only: a map that is zero nearly everywhere must not be kept nearly everywhere.
    first = count - kept
    if 0 < first < count and values[first - 1] == values[first]:
        first = int(np.searchsorted(values, values[first], side="right"))
    edges = np.unique(np.concatenate([values[even], values[from_the_top], values[first : first + 1]]))
    if first == 0:
        return ScoreBins(edges, 0)
    exact = int(np.searchsorted(edges, values[first], side="right")) if first < count else len(edges) + 1
    return ScoreBins(edges, exact)


class PixelCounter:
    """Counts the scores of image after image; see the module.

    Args:
        score_bins: see the function of that name.
        max_fpr: the false positive rate up to which the PRO curve is integrated.
    """

    def __init__(self, score_bins: ScoreBins, max_fpr: float = MAX_FPR) -> None:
        self._bins = score_bins
        self._max_fpr = max_fpr
        bins = len(score_bins.edges) + 1
        # Rows: good pixels, defective pixels, and defective pixels weighted by 1 / (pixels of their region).
        self._fine: F64 = np.zeros((3, bins))
        self._group = -(-bins // _COARSE)
        self._coarse: list[FloatArray] = []
        self._kept: list[tuple[FloatArray, F64]] = []
        self._regions: list[int] = []

    def add(self, scores: FloatArray, mask: NDArray[np.bool_] | None) -> None:
        """One image: ``scores`` ``[H, W]``, and ``mask`` ``[H, W]``, None for a good image."""
        values = np.asarray(scores, np.float32).ravel()
        place = np.searchsorted(self._bins.edges, values, side="right")
        exact = place >= self._bins.exact_bin
        bins = self._fine.shape[1]
        counts = np.zeros_like(self._fine)
        weights = np.zeros(int(exact.sum()))  # of the region, 0 for good pixels
        regions = 0
        if mask is None or not mask.any():
            counts[0] = np.bincount(place, minlength=bins)
        else:
            # The 8-neighbourhood, as in the evaluation code that MVTec publishes with its data set.
            regions, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
            regions -= 1
            flat = labels.ravel()
            inside = flat > 0
            share = np.concatenate([[0.0], 1.0 / np.bincount(flat)[1:]])
            weights = share[flat[exact]]
            counts[0] = np.bincount(place[~inside], minlength=bins)
            counts[1] = np.bincount(place[inside], minlength=bins)
            counts[2] = np.bincount(place[inside], share[flat[inside]], minlength=bins)
        self._fine += counts
        self._kept.append((values[exact], weights))
        self._regions.append(regions)
        starts = np.arange(0, bins, self._group)
        self._coarse.append(np.add.reduceat(counts, starts, axis=1).astype(np.float32))

    def figures(self, seed: int = 0, resamples: int = 1000) -> PixelFigures:
        """The metrics of all images added so far, with the intervals of ``resampled``."""
        auroc, ap, aupro = (float(value) for value in self._areas(self._all_counts()))
        intervals: dict[str, tuple[float, float]] = {}
        for name, values in self.resampled(seed, resamples).items():
            low, high = percentile_interval(values)
            intervals[name] = (float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))
        return PixelFigures(auroc, ap, aupro, intervals, sum(self._regions))

    def resampled(self, seed: int, resamples: int) -> dict[str, F64]:
        """The metrics of resamples of the images, each ``[resamples]``; empty without an image.

        They are taken on some 1,024 bins and moved by the difference that these make to the metric itself. Counters of
        as many images draw the same ones for the same seed, so that their differences are paired.
        """
        if not self._coarse:
            return {}
        coarse = np.stack(self._coarse).reshape(len(self._coarse), -1)
        draws = bootstrap_draws(len(coarse), seed, resamples).astype(np.float32)
        drawn = (draws @ coarse).astype(np.float64).reshape(resamples, 3, -1)
        pooled = coarse.sum(axis=0, dtype=np.float64).reshape(3, -1)
        areas = zip(self._areas(self._all_counts()), self._areas(pooled), self._areas(drawn), strict=True)
        moved = [values + (float(exact) - float(binned)) for exact, binned, values in areas]
        return dict(zip(("pixel_auroc", "pixel_ap", "aupro"), moved, strict=True))

    def _all_counts(self) -> F64:
        """``[3, distinct scores]``, ascending: bins as far as they reach, then every kept score on its own."""
        values = np.concatenate([np.zeros(0, np.float32), *(values for values, _ in self._kept)])
        weights = np.concatenate([np.zeros(0), *(weights for _, weights in self._kept)])
        distinct, place = np.unique(values, return_inverse=True)
        is_defect = weights > 0
        kept = [np.bincount(place, row, minlength=len(distinct)) for row in (~is_defect, is_defect, weights)]
        return np.concatenate([self._fine[:, : self._bins.exact_bin], np.stack(kept)], axis=1)

    def _areas(self, counts: F64) -> tuple[F64, F64, F64]:
        """AUROC, AP and AUPRO of ``[..., 3, bins]``.

        The PRO curve is the mean over regions of the share of each that is found (Bergmann et al., *Uninformed
        Students*, CVPR 2020, section 4.1): a ROC curve in which each region weighs the same.
        """
        good, defective, by_region = np.moveaxis(np.cumsum(counts[..., ::-1], axis=-1), -2, 0)
        return (
            area_under_roc(defective, good),
            area_under_precision_recall(defective, good),
            area_under_roc(by_region, good, self._max_fpr),
        )


def pixel_figures(
    maps: Sequence[FloatArray], masks: Sequence[NDArray[np.bool_] | None], max_fpr: float = MAX_FPR
) -> PixelFigures:
    """All pixel metrics of anomaly maps and masks of the same sizes; a mask of None is a good image."""
    counter = PixelCounter(score_bins(maps, sum(one.size for one in maps)), max_fpr)
    for scores, mask in zip(maps, masks, strict=True):
        counter.add(scores, mask)
    return counter.figures()


def pixel_auroc(maps: Sequence[FloatArray], masks: Sequence[NDArray[np.bool_] | None]) -> float:
    """Area under the ROC curve of all pixels (Hanley, McNeil, 1982)."""
    return pixel_figures(maps, masks).auroc


def pixel_ap(maps: Sequence[FloatArray], masks: Sequence[NDArray[np.bool_] | None]) -> float:
    """Average precision of all pixels (Davis, Goadrich, 2006)."""
    return pixel_figures(maps, masks).average_precision


def aupro(maps: Sequence[FloatArray], masks: Sequence[NDArray[np.bool_] | None], max_fpr: float = MAX_FPR) -> float:
    """Area under the per-region-overlap curve up to ``max_fpr``, divided by it (Bergmann et al., 2020)."""
    return pixel_figures(maps, masks, max_fpr).aupro
