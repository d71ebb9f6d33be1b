"""What a count says about a share: exact bounds of Clopper and Pearson, for any sample however small.

Source: Clopper, Pearson, *The use of confidence or fiducial limits illustrated in the case of the binomial*,
Biometrika 26 (1934). They cover at least as often as they promise, which is why they stand here and not Wilson's
interval, whose coverage is right on average only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CONFIDENCE = 0.95
"""Of every interval, unless it says otherwise."""

# Halvings of 0..1: below the resolution of a double near 1e-6, where the smallest rates of a factory lie.
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Rate:
    """``hits`` of ``of`` things, with the exact two-sided interval for the share behind it, 0..1.

    Without a thing to count (``of`` is 0) nothing is known: the interval is 0..1 and the value NaN.
    """

    hits: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.hits / self.of if self.of else math.nan


def rate(hits: int, of: int, confidence: float = CONFIDENCE) -> Rate:
    """Count to rate with its interval."""
    return Rate(hits, of, *exact_interval(hits, of, confidence))


def exact_interval(hits: int, of: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The two-sided interval: each end is passed with a probability of at most (1 − confidence) / 2."""
    if of == 0:
        return 0.0, 1.0
    one_sided = (1 + confidence) / 2
    return lower_bound(hits, of, one_sided), upper_bound(hits, of, one_sided)


@lru_cache(maxsize=65536)
def upper_bound(hits: int, of: int, confidence: float = CONFIDENCE) -> float:
    """The smallest share that ``hits`` or fewer of ``of`` exclude with this confidence (one-sided)."""
    if hits >= of:
        return 1.0
    return _where(lambda share: binomial_cdf(hits, of, share) <= 1 - confidence)


@lru_cache(maxsize=65536)
def lower_bound(hits: int, of: int, confidence: float = CONFIDENCE) -> float:
    """The largest share that ``hits`` or more of ``of`` exclude with this confidence (one-sided)."""
    if hits <= 0:
        return 0.0
    return 1.0 - upper_bound(of - hits, of, confidence)


def binomial_cdf(hits: int, trials: int, share: float) -> float:
    """P(X <= hits) for X ~ Bin(trials, share), summed from the logarithms of its terms."""
    if hits < 0:
        return 0.0
    if hits >= trials or share <= 0.0:
        return 1.0
    if share >= 1.0:
        return 0.0
    counts = np.arange(1, hits + 1, dtype=np.float64)
    odds = math.log(share) - math.log1p(-share)
    logs = np.concatenate([[0.0], np.cumsum(np.log((trials - counts + 1) / counts) + odds)])
    logs += trials * math.log1p(-share)
    top = float(logs.max())
    return min(1.0, math.exp(top) * float(np.exp(logs - top).sum()))


def _where(is_reached: Callable[[float], bool]) -> float:
    """The smallest share in 0..1 from which on ``is_reached`` holds; it holds at 1."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_reached(middle) else (middle, high)
    return high
