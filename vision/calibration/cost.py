"""The thresholds of least expected cost, and how far to trust the figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision.calibration.images import F64, ScoredImages
from vision.errors import SettingsError
from vision.types import FloatArray

_RESAMPLES = 1000
_SEED = 0


@dataclass(frozen=True, slots=True)
class Costs:
    """What mistakes cost, in any one unit: only their ratios matter.

    Args:
        overkill: a good part rejected.
        escape: a defective part passed.
        review: a part that a person has to look at, good or not; None for no review band.
        defect_rate: share of defective parts in production, 0..1; None takes that of the calibration images.
    """

    overkill: float
    escape: float
    review: float | None = None
    defect_rate: float | None = None

    def __post_init__(self) -> None:
        given = [self.overkill, self.escape, *([] if self.review is None else [self.review])]
        if not all(0 <= value < float("inf") for value in given) or not (self.overkill > 0 and self.escape > 0):
            raise SettingsError(f"costs of overkill and escape are above 0, that of review is at least 0; got {self}")
        if self.defect_rate is not None and not 0 < self.defect_rate < 1:
            raise SettingsError(f"a defect rate lies between 0 and 1, both excluded; got {self.defect_rate:g}")


class Cheapest(NamedTuple):
    """``figures``: ``expected_cost`` a part at these thresholds on the images that chose them, with the bounds of its
    95 % bootstrap interval, and ``cost_left_out``: the mean over resamples that choose anew and are charged on the
    images that they left out, which is what to expect of new parts.
    """

    image_threshold: float
    review_threshold: float
    figures: dict[str, float]


def cheapest(images: ScoredImages, combined: FloatArray, costs: Costs) -> Cheapest:
    """Thresholds on ``combined`` (see ``ScoredImages.combined``) with the least expected cost.

    Raises:
        SettingsError: good or defective images are missing.
    """
    if images.is_defect.all() or not images.is_defect.any():
        raise SettingsError(
            "costs weigh good parts against defective ones: both kinds of calibration images are needed"
        )
    share = float(images.is_defect.mean()) if costs.defect_rate is None else costs.defect_rate
    curve = _Curve(images, combined, costs, share)
    ones = np.ones(len(images))
    reject, review = curve.choose(ones)
    charged, left_out = [], []
    for weights in _resamples(images):
        charged.append(curve.cost(weights, reject, review))
        rest = (weights == 0).astype(np.float64)
        if rest[images.is_defect].any() and rest[~images.is_defect].any():
            left_out.append(curve.cost(rest, *curve.choose(weights)))
    low, high = np.quantile(charged, [0.025, 0.975])
    figures = {
        "expected_cost": curve.cost(ones, reject, review),
        "expected_cost_low": float(low),
        "expected_cost_high": float(high),
        "cost_left_out": float(np.mean(left_out)),
        "defect_rate": share,
    }
    return Cheapest(float(curve.thresholds[reject]), float(curve.thresholds[review]), figures)


class _Curve:
    """Cost of every pair of thresholds, which is a sum of a term of each."""

    def __init__(self, images: ScoredImages, combined: FloatArray, costs: Costs, defect_rate: float) -> None:
        finite = np.unique(combined[np.isfinite(combined)].astype(np.float64))
        if not len(finite):
            finite = np.zeros(1)
        # Between two scores every threshold costs the same: the middle is farthest from both.
        between = (finite[1:] + finite[:-1]) / 2
        above = np.nextafter(np.float32(finite[-1]), np.float32(np.inf))
        self.thresholds = np.concatenate([finite[:1], between, [above]]).astype(np.float32)
        self._costs, self._rate = costs, defect_rate
        self._defect = images.is_defect
        self._place = np.searchsorted(self.thresholds, combined, side="right")  # thresholds that an image reaches

    def choose(self, weights: F64) -> tuple[int, int]:
        """Places of the image and the review threshold with the least cost, the lower ones of equals: safer."""
        by_reject, by_review = self._terms(weights)
        if self._costs.review is None:
            best = int(np.argmin(by_reject + by_review))
            return best, best
        # Of all image thresholds from each review threshold upwards, the cheapest.
        suffix = len(by_reject) - 1 - np.maximum.accumulate(_arg_of_running_min(by_reject[::-1]))[::-1]
        review = int(np.argmin(by_review + by_reject[suffix]))
        return int(suffix[review]), review

    def cost(self, weights: F64, reject: int, review: int) -> float:
        by_reject, by_review = self._terms(weights)
        return float(by_reject[reject] + by_review[review] + self._rate * self._costs.escape)

    def _terms(self, weights: F64) -> tuple[F64, F64]:
        good, bad = (self._reached(weights * kind) for kind in (~self._defect, self._defect))
        review = self._costs.review
        handled = self._costs.overkill if review is None else review
        rest = 1 - self._rate
        if review is None:
            return np.zeros(len(good)), rest * handled * good - self._rate * self._costs.escape * bad
        by_reject = rest * (self._costs.overkill - review) * good - self._rate * review * bad
        by_review = rest * review * good - self._rate * (self._costs.escape - review) * bad
        return by_reject, by_review

    def _reached(self, weights: F64) -> F64:
        """Share of the weight at or above each threshold."""
        counts = np.bincount(self._place, weights, minlength=len(self.thresholds) + 1)
        found: F64 = (counts[::-1].cumsum()[::-1])[1:] / max(float(weights.sum()), 1e-12)
        return found


def _arg_of_running_min(values: F64) -> NDArray[np.intp]:
    """Where a new minimum (or an equal one, later) is met, its place; 0 elsewhere."""
    running = np.minimum.accumulate(values)
    return np.where(values <= running, np.arange(len(values)), 0)


def _resamples(images: ScoredImages) -> list[F64]:
    """How often each image is drawn in each resample: good and defective ones apart, and whole lots where there are."""
    rng = np.random.default_rng(_SEED)
    units = np.arange(len(images)) if images.lots is None else np.unique(images.lots, return_inverse=True)[1]
    found = []
    for _ in range(_RESAMPLES):
        weights = np.zeros(len(images))
        for kind in (images.is_defect, ~images.is_defect):
            inside = np.unique(units[kind])
            drawn = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)))
            weights[kind] = drawn[np.searchsorted(inside, units[kind])]
        found.append(weights)
    return found
