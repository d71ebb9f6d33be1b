from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vision.calibration.bounds import (
    allowed_mass,
    good_scores,
    kept_bound,
    require_units,
    threshold_for,
    units_needed,
)
from vision.errors import SettingsError, TooFewImagesError


def conformal_threshold(scores: np.ndarray, bound: float) -> float:
    """The textbook's: just above the ⌈(n+1)(1−α)⌉-th smallest of n scores."""
    rank = math.ceil((len(scores) + 1) * (1.0 - bound) - 1e-9)
    if rank > len(scores):
        raise ValueError("too few scores")
    return float(np.nextafter(np.sort(scores)[rank - 1], np.float32(np.inf), dtype=np.float32))


def _threshold(scores: np.ndarray, bound: float, confidence: float | None, lots: list[str] | None = None) -> float:
    goods = good_scores(scores.astype(np.float32), lots, confidence)
    require_units(goods, bound, confidence)
    return threshold_for(goods, allowed_mass(goods.units, bound, confidence))


@given(
    scores=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    bound=st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.25, 0.5, 0.9]),
)
def test_images_give_the_conformal_threshold(scores: list[int], bound: float) -> None:
    good = np.array(scores, np.float32)
    try:
        expected = conformal_threshold(good, bound)
    except ValueError:
        with pytest.raises(TooFewImagesError):
            _threshold(good, bound, None)
        return
    assert _threshold(good, bound, None) == expected


@given(
    lots=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=2, max_size=12),
    bound=st.sampled_from([0.1, 0.2, 0.25, 0.5]),
)
def test_by_lots_the_bound_holds_for_exchangeable_lots(lots: list[list[int]], bound: float) -> None:
    """Against brute force: leave each lot out in turn, and count the share of its parts that are hit."""
    if len(lots) - 1 < units_needed(bound, None):
        return
    share_hit = 0.0
    for index, left_out in enumerate(lots):
        rest = [(score, str(lot)) for lot, scores in enumerate(lots) if lot != index for score in scores]
        threshold = _threshold(np.array([score for score, _ in rest]), bound, None, [lot for _, lot in rest])
        share_hit += float(np.mean(np.array(left_out) >= threshold))
    assert share_hit / len(lots) <= bound + 1e-9


def test_lots_of_one_image_are_images() -> None:
    scores = np.random.default_rng(0).random(60)
    names = [str(index) for index in range(60)]
    for confidence in (None, 0.9):
        assert _threshold(scores, 0.05, confidence, names) == _threshold(scores, 0.05, confidence)


@pytest.mark.parametrize(("bound", "confidence", "needed"), [(0.01, None, 99), (0.01, 0.95, 299), (0.05, 0.99, 90)])
def test_the_smallest_sample(bound: float, confidence: float | None, needed: int) -> None:
    assert units_needed(bound, confidence) == needed
    assert allowed_mass(needed, bound, confidence) >= 0 > allowed_mass(needed - 1, bound, confidence)
    goods = good_scores(np.zeros(needed - 7, np.float32), None, confidence)
    with pytest.raises(
        TooFewImagesError, match=f"at least {needed} good calibration images; got {needed - 7}, 7 more"
    ) as caught:
        require_units(goods, bound, confidence)
    assert caught.value.missing == 7
    lots = good_scores(np.zeros(4, np.float32), ["a", "a", "b", "c"], confidence)
    with pytest.raises(TooFewImagesError, match=f"{needed} lots of good parts; got 3, {needed - 3} more are missing"):
        require_units(lots, bound, confidence)


@pytest.mark.parametrize(("count", "bound", "confidence"), [(299, 0.01, 0.95), (500, 0.02, 0.9), (80, 0.1, 0.5)])
def test_the_confident_bound_is_a_beta_quantile(count: int, bound: float, confidence: float) -> None:
    allowed = int(allowed_mass(count, bound, confidence))
    # Above the (n − k)-th smallest of n lies a share of Beta(k + 1, n − k).
    assert stats.beta.cdf(bound, allowed + 1, count - allowed) >= confidence
    assert stats.beta.cdf(bound, allowed + 2, count - allowed - 1) < confidence
    assert kept_bound(allowed, count, confidence) <= bound < kept_bound(allowed + 1, count, confidence)


def test_the_confident_bound_holds_in_simulation() -> None:
    """Scores are uniform, so that the share of good parts above a threshold is known exactly."""
    random = np.random.default_rng(4)
    realised = [1 - _threshold(random.random(200), 0.05, 0.9) for _ in range(2000)]
    kept = np.mean(np.array(realised) <= 0.05)
    assert 0.9 - 3 * math.sqrt(0.09 / 2000) <= kept < 0.96
    on_average = [1 - _threshold(random.random(200), 0.05, None) for _ in range(2000)]
    assert np.mean(on_average) <= 0.05 < np.max(on_average)


def test_one_image_of_each_lot_is_drawn_for_the_confident_bound() -> None:
    scores = np.arange(30, dtype=np.float32)
    goods = good_scores(scores, [str(index // 3) for index in range(30)], 0.9)
    assert goods.units == len(goods.scores) == 10
    assert sorted({int(score) // 3 for score in goods.scores}) == list(range(10))
    again = good_scores(scores, [str(index // 3) for index in range(30)], 0.9)
    np.testing.assert_array_equal(goods.scores, again.scores)


@pytest.mark.parametrize("bound", [0.0, 1.0, -1.0, math.nan])
def test_impossible_bounds(bound: float) -> None:
    with pytest.raises(SettingsError, match="between 0 and 1"):
        units_needed(bound, None)


@pytest.mark.parametrize("confidence", [0.0, 0.3, 1.0, 95.0])
def test_impossible_confidences(confidence: float) -> None:
    with pytest.raises(SettingsError, match="confidence"):
        allowed_mass(10, 0.1, confidence)
