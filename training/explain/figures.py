"""How good a map is as an explanation: pure functions, and what follows from them over many frames.

Everything is measured on the frame at the model's input size, as the overlay shows it: maps are stretched bilinearly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from training.metrics import F64, bootstrap_draws, percentile_interval
from vision.explanations import Estimate, evidence
from vision.postprocess import resize_map
from vision.types import FloatArray

Flags = NDArray[np.bool_]
Verdict = Literal["best", "tied", "worse"]

RESAMPLES = 2000
_POINTING_TOLERANCE = 15
"""Pixels by which the largest value may miss the mask, as in Zhang et al. 2018, whose frames had about our size."""


def mass_in_mask(values: FloatArray, mask: Flags) -> float:
    """The share of a map's positive values that lies inside the mask, 0..1; 0 where there is no positive value.

    Source: *relevance mass accuracy*, Arras, Osman, Samek, *CLEVR-XAI*, Information Fusion 2022, eq. 3.

    Args:
        values: ``[h, w]``, on any grid; stretched to the mask.
        mask: ``[H, W]``.
    """
    seen = evidence(resize_map(values, *mask.shape)).astype(np.float64)
    total = float(seen.sum())
    return float(seen[mask].sum()) / total if total > 0 else 0.0


def points_at(values: FloatArray, mask: Flags) -> bool:
    """The pointing game: whether the largest value lies in the mask, or within 15 px of it (Zhang et al. 2018)."""
    seen = resize_map(values, *mask.shape)
    side = 2 * _POINTING_TOLERANCE + 1
    near = cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return bool(near.ravel()[int(np.argmax(seen))])


def area_under_curve(shares: FloatArray, scores: FloatArray) -> float:
    """Mean score over the share of patches, by trapezoids; ``shares`` ascend from 0 to 1."""
    return float(np.trapezoid(scores.astype(np.float64), shares.astype(np.float64)))


def rank_correlation(one: FloatArray, other: FloatArray) -> float:
    """Spearman's: Pearson's of the ranks, ties sharing theirs; 0 where a map is the same everywhere."""
    ranks = [_ranks(values.ravel()) for values in (one, other)]
    spread = [float(np.std(values)) for values in ranks]
    if min(spread) == 0.0:
        return 0.0
    return float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / (spread[0] * spread[1]))


def _ranks(values: FloatArray) -> F64:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], np.float64)


def mean_with_interval(values: F64, seed: int) -> Estimate | None:
    """The mean over frames and its 95 % bootstrap interval; None without a frame."""
    if not len(values):
        return None
    low, high = percentile_interval(resampled_means(values, seed))
    return Estimate(float(values.mean()), low, high)


def resampled_means(values: F64, seed: int) -> F64:
    """The means of resamples ``[RESAMPLES]``: the same seed and number of frames draw the same frames (paired)."""
    return bootstrap_draws(len(values), seed, RESAMPLES) @ values / len(values)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a method stands on one metric: its figure, its paired difference to the best method, and the verdict."""

    figure: Estimate
    behind: Estimate
    verdict: Verdict


def standings(means: dict[str, float], draws: dict[str, F64], *, higher_is_better: bool) -> dict[str, Standing]:
    """Compare methods on one metric, all on the same frames.

    The method with the best mean is ``best`` if every other one is significantly behind, else ``tied`` with those that
    are not. Significantly: the 95 % interval of the paired difference excludes 0. ``behind`` is positive where a method
    is worse than the best.

    Args:
        means: by method.
        draws: by method, the figure of the same resamples of the frames.
    """
    sign = 1.0 if higher_is_better else -1.0
    known = {name: value for name, value in means.items() if np.isfinite(value)}
    if not known:
        return {}
    best = max(known, key=lambda name: sign * known[name])
    result: dict[str, Standing] = {}
    for name, value in known.items():
        low, high = percentile_interval(sign * (draws[best] - draws[name]))
        behind = Estimate(sign * (known[best] - value), low, high)
        figure = Estimate(value, *percentile_interval(draws[name]))
        result[name] = Standing(figure, behind, "worse" if low > 0 else "tied")
    alone = all(standing.verdict == "worse" for name, standing in result.items() if name != best)
    if alone:
        result[best] = Standing(result[best].figure, result[best].behind, "best")
    return result
