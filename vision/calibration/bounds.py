"""How many good calibration images may lie at or above a threshold that is to keep a bound on new good parts.

Three promises, from the weakest to the strongest sample that they need; each counts *units*, which are images, or lots
where the images of a lot are alike:

- **on average** (no confidence): a new good part reaches the threshold with a probability of at most α, averaged over
  everything that could have been drawn for calibration. Split conformal prediction: Vovk, Gammerman, Shafer,
  *Algorithmic Learning in a Random World* (2005); Lei et al., *Distribution-Free Predictive Inference for
  Regression*, JASA 2018.
- **on average, by lots**: the same for a part of a new lot. Every lot weighs the same, its images share its weight:
  Lee, Barber, Willett, *Distribution-free inference with hierarchical data* (2023).
- **with confidence 1 − δ**: the calibration that was really drawn keeps α, except for a share δ of unlucky draws. The
  share of good parts above an order statistic follows a Beta distribution: Wilks, *Determination of sample sizes for
  setting tolerance limits* (1941); Vovk, *Conditional validity of inductive conformal predictors* (2012). By
  lots, one image of each is drawn, so that the drawn ones are independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.calibration.intervals import binomial_cdf, upper_bound
from vision.errors import SettingsError, TooFewImagesError
from vision.types import FloatArray

# Rounding must not move a rank: 100 × 0.01 is 1.0000000000000009 on some ways.
_ROUNDING = 1e-9
_DRAW = 0
"""Seed of the draw of one image from each lot: the same images give the same bound."""


@dataclass(frozen=True)
class GoodScores:
    """Scores of good calibration images, and what they count for.

    ``scores`` float32 ``[n]``: higher is worse, infinite for an image that is hit whatever the threshold. ``weights``
    float64 ``[n]`` add up to ``units``, the number of images or of lots.
    """

    scores: FloatArray
    weights: NDArray[np.float64]
    units: int
    by_lot: bool = False

    def mass_from(self, threshold: float) -> float:
        """Units at or above a threshold."""
        return float(self.weights[self.scores >= np.float32(threshold)].sum())

    @property
    def mass_always_hit(self) -> float:
        return float(self.weights[np.isposinf(self.scores)].sum())


def good_scores(scores: FloatArray, lots: Sequence[str] | None, confidence: float | None) -> GoodScores:
    """Count by images, or by lots where every image has the name of its lot."""
    if lots is None:
        return GoodScores(scores, np.ones(len(scores)), len(scores))
    names, places, sizes = np.unique(np.asarray(lots), return_inverse=True, return_counts=True)
    if confidence is None:
        return GoodScores(scores, 1.0 / sizes[places], len(names), by_lot=True)
    rng = np.random.default_rng(_DRAW)
    drawn = [int(rng.choice(np.flatnonzero(places == lot))) for lot in range(len(names))]
    return GoodScores(scores[drawn], np.ones(len(names)), len(names), by_lot=True)


def units_needed(bound: float, confidence: float | None) -> int:
    """The fewest images (or lots) with which a bound can be kept at all: 99 for 1 % on average, 299 with 95 %."""
    check_bound(bound, confidence)
    if confidence is None:
        return math.ceil(1.0 / bound - _ROUNDING) - 1
    return math.ceil(math.log(1 - confidence) / math.log1p(-bound) - _ROUNDING)


def allowed_mass(units: int, bound: float, confidence: float | None) -> float:
    """How many units may lie at or above the threshold; below 0 where there are too few units for the bound."""
    check_bound(bound, confidence)
    if confidence is None:
        return bound * (units + 1) - 1 + _ROUNDING
    low, high = -1, units
    while high - low > 1:  # P(Bin(units, bound) <= k) rises with k
        middle = (low + high) // 2
        low, high = (middle, high) if binomial_cdf(middle, units, bound) <= 1 - confidence else (low, middle)
    return float(low)


def kept_bound(mass: float, units: int, confidence: float | None) -> float:
    """The bound that ``mass`` units at or above the threshold keep: the inverse of ``allowed_mass``."""
    if confidence is None:
        return min(1.0, round((mass + 1) / (units + 1), 8))
    return upper_bound(math.floor(mass + _ROUNDING), units, confidence)


def threshold_for(goods: GoodScores, mass: float) -> float:
    """The smallest float32 threshold that at most ``mass`` units reach; just above a score, so that a tie passes."""
    order = np.argsort(-goods.scores, kind="stable")
    reached = np.cumsum(goods.weights[order])
    # The first score, from above, that would make it too many; with equal ones, the sum over all of them counts.
    too_many = np.flatnonzero(reached > mass + _ROUNDING)
    highest_allowed = goods.scores[order][too_many[0]] if len(too_many) else np.float32(-np.inf)
    return float(np.nextafter(np.float32(highest_allowed), np.float32(np.inf), dtype=np.float32))


def require_units(goods: GoodScores, bound: float, confidence: float | None, what: str = "an overkill bound") -> None:
    """Raise ``TooFewImagesError`` where the bound needs more images (or lots) than there are."""
    needed = units_needed(bound, confidence)
    if allowed_mass(goods.units, bound, confidence) >= 0:
        return
    word = "lots of good parts" if goods.by_lot else "good calibration images"
    sure = "" if confidence is None else f" with {confidence:.4g} confidence"
    reach = kept_bound(0, goods.units, confidence)
    raise TooFewImagesError(
        f"{what} of {bound:g}{sure} needs at least {needed} {word}; got {goods.units}, {needed - goods.units} more are "
        f"missing. With {goods.units} the smallest bound is {reach:.3g}",
        missing=needed - goods.units,
    )


def check_bound(bound: float, confidence: float | None) -> None:
    """Raise ``SettingsError`` for shares that are none."""
    if not 0.0 < bound < 1.0:
        raise SettingsError(f"a bound lies between 0 and 1, both excluded; got {bound:g}")
    if confidence is not None and not 0.5 <= confidence < 1.0:
        raise SettingsError(f"a confidence is at least 0.5 and below 1, such as 0.95; got {confidence:g}")
