from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.calibration.bounds import allowed_mass, good_scores, require_units, threshold_for
from vision.decision import OperatingPoint, calibrated_score, decide
from vision.errors import SettingsError
from vision.types import Verdict

POINT = OperatingPoint(image_threshold=0.8, review_threshold=0.6, pixel_threshold=0.5)
CLASSES_ONLY = OperatingPoint(None, None, None, class_threshold=0.7)
WITH_MASKS = replace(CLASSES_ONLY, pixel_threshold=-0.3, class_pixel_thresholds={"scratch": 0.2})


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.59, Verdict.PASS),
        (0.6, Verdict.REVIEW),
        (0.79, Verdict.REVIEW),
        (0.8, Verdict.REJECT),
        (9.0, Verdict.REJECT),
        (-1.0, Verdict.PASS),
        (math.nan, Verdict.NO_VERDICT),
        (math.inf, Verdict.NO_VERDICT),
        (None, Verdict.NO_VERDICT),
    ],
)
def test_the_anomaly_score_decides(score: float | None, verdict: Verdict) -> None:
    got, reason = decide(POINT, score, "scratch", 0.99)
    assert got is verdict
    assert reason


@pytest.mark.parametrize(
    ("score", "verdict"), [(0.7, Verdict.REJECT), (0.69, Verdict.REVIEW), (math.nan, Verdict.NO_VERDICT)]
)
@pytest.mark.parametrize("point", [CLASSES_ONLY, WITH_MASKS])
def test_without_a_good_class_nothing_passes(point: OperatingPoint, score: float, verdict: Verdict) -> None:
    assert decide(point, None, "scratch", score)[0] is verdict


@pytest.mark.parametrize(
    "values",
    [
        (0.8, None, 0.5),
        (None, 0.6, 0.5),
        (0.8, 0.6, None),
        (None, None, math.nan),
        (0.5, 0.6, 0.5),
        (math.nan, 0.1, 0.1),
        (math.inf, 0.1, 0.1),
    ],
)
def test_impossible_operating_points(values: tuple[float | None, ...]) -> None:
    with pytest.raises(SettingsError):
        OperatingPoint(*values)  # type: ignore[arg-type]


@pytest.mark.parametrize("class_threshold", [-0.1, 1.1, math.nan])
def test_impossible_class_thresholds(class_threshold: float) -> None:
    with pytest.raises(SettingsError, match="class_threshold"):
        OperatingPoint(None, None, None, class_threshold=class_threshold)


def conformal_threshold(scores: np.ndarray, max_overkill: float) -> float:
    """As the product finds it from images."""
    goods = good_scores(scores, None, None)
    require_units(goods, max_overkill, None)
    return threshold_for(goods, allowed_mass(goods.units, max_overkill, None))


@given(
    scores=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    max_overkill=st.sampled_from([0.05, 0.1, 0.2, 0.25, 0.5, 0.9]),
)
def test_the_threshold_is_the_smallest_that_keeps_the_bound(scores: list[int], max_overkill: float) -> None:
    """Against brute force: leave each of n + 1 exchangeable scores out in turn and count those that are hit."""
    good = np.array(scores, np.float32)
    needed = math.ceil(1 / max_overkill - 1e-9) - 1
    if len(good) < needed:
        with pytest.raises(SettingsError, match=f"{needed - len(good)} more are missing"):
            conformal_threshold(good, max_overkill)
        return
    threshold = conformal_threshold(good, max_overkill)
    for new in range(8):
        everything = np.append(good, np.float32(new))
        hits = 0
        for index in range(len(everything)):
            rest = np.delete(everything, index)
            hits += bool(everything[index] >= conformal_threshold(rest, max_overkill))
        assert hits / len(everything) <= max_overkill + 1e-9
    # A lower threshold would hit the k-th smallest score itself, and with it too many of n + 1 distinct scores.
    below = np.nextafter(np.float32(threshold), np.float32(-np.inf))
    assert below in good
    assert (np.sum(good >= below) + 1) / (len(good) + 1) > max_overkill - 1e-9


@pytest.mark.parametrize(("count", "max_overkill"), [(99, 0.01), (199, 0.05), (19, 0.05)])
def test_the_promise_holds_in_simulation(count: int, max_overkill: float) -> None:
    random = np.random.default_rng(3)
    runs = 20_000
    scores = random.normal(size=(runs, count + 1)).astype(np.float32)
    hits = sum(bool(row[-1] >= conformal_threshold(row[:-1], max_overkill)) for row in scores)
    exact = (count + 1 - math.ceil((count + 1) * (1 - max_overkill) - 1e-9)) / (count + 1)
    spread = math.sqrt(exact * (1 - exact) / runs)
    assert exact <= max_overkill
    assert abs(hits / runs - exact) < 4 * spread


def test_the_smallest_sample() -> None:
    scores = np.arange(99, dtype=np.float32)
    assert conformal_threshold(scores, 0.01) > 98
    with pytest.raises(SettingsError, match=r"at least 99 good calibration images; got 98, 1 more are missing"):
        conformal_threshold(scores[:-1], 0.01)
    with pytest.raises(SettingsError, match="got 0, 1 more"):
        conformal_threshold(np.empty(0, np.float32), 0.5)


@pytest.mark.parametrize("max_overkill", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_impossible_bounds(max_overkill: float) -> None:
    with pytest.raises(SettingsError, match="between 0 and 1"):
        conformal_threshold(np.arange(9, dtype=np.float32), max_overkill)


def test_a_tie_with_the_threshold_passes() -> None:
    tied = np.full(20, 0.5, np.float32)
    threshold = conformal_threshold(tied, 0.05)
    assert threshold > 0.5
    assert np.float32(threshold) == np.nextafter(np.float32(0.5), np.float32(1))


def test_the_threshold_does_not_depend_on_order() -> None:
    scores = np.random.default_rng(0).random(50).astype(np.float32)
    assert conformal_threshold(scores, 0.1) == conformal_threshold(scores[::-1], 0.1)


def test_calibrated_scores() -> None:
    calibration = np.array([1, 2, 2, 3], np.float32)
    assert calibrated_score(0.5, calibration) == pytest.approx(0.0)
    assert calibrated_score(2.0, calibration) == pytest.approx(1 - 4 / 5)
    assert calibrated_score(2.5, calibration) == pytest.approx(1 - 2 / 5)
    assert calibrated_score(9.0, calibration) == pytest.approx(1 - 1 / 5)
    assert calibrated_score(9.0, np.empty(0, np.float32)) == 0.0
