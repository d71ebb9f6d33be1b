from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from vision.calibration.intervals import binomial_cdf, exact_interval, lower_bound, rate, upper_bound

CASES = [(0, 1), (1, 1), (0, 20), (3, 20), (19, 20), (20, 20), (7, 1000), (999, 1000), (12, 40_000)]


@pytest.mark.parametrize(("hits", "of"), CASES)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_the_interval_is_that_of_clopper_and_pearson(hits: int, of: int, confidence: float) -> None:
    expected = stats.binomtest(hits, of).proportion_ci(confidence, method="exact")
    assert exact_interval(hits, of, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_one_sided_bounds_are_beta_quantiles() -> None:
    assert upper_bound(3, 50, 0.95) == pytest.approx(stats.beta.ppf(0.95, 4, 47), abs=1e-9)
    assert lower_bound(47, 50, 0.95) == pytest.approx(stats.beta.ppf(0.05, 47, 4), abs=1e-9)
    assert (lower_bound(0, 9), upper_bound(9, 9)) == (0.0, 1.0)


def test_the_sum_of_terms_is_exact_far_out() -> None:
    for hits, trials, share in [(0, 10, 0.3), (5, 10, 0.5), (40, 5000, 0.01), (60_000, 120_000, 0.5), (3, 9, 1e-12)]:
        assert binomial_cdf(hits, trials, share) == pytest.approx(stats.binom.cdf(hits, trials, share), rel=1e-8)
    assert binomial_cdf(-1, 5, 0.5) == 0.0
    assert (binomial_cdf(4, 5, 0.0), binomial_cdf(4, 5, 1.0), binomial_cdf(5, 5, 1.0)) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5])
def test_it_covers_as_often_as_it_promises(share: float) -> None:
    """Summed exactly over every count that can come out, not drawn."""
    of = 120
    counts = np.arange(of + 1)
    inside = [low <= share <= high for low, high in (exact_interval(int(count), of) for count in counts)]
    assert stats.binom.pmf(counts, of, share)[inside].sum() >= 0.95


def test_nothing_counted_is_nothing_known() -> None:
    none = rate(0, 0)
    assert math.isnan(none.value)
    assert (none.low, none.high) == (0.0, 1.0)
    assert rate(3, 4).value == 0.75
