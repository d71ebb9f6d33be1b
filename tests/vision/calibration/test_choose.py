from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision.calibration.choose import About, Asked, Classes, MaxOverkill, MinRecall, choose_point
from vision.calibration.cost import Costs
from vision.calibration.evidence import Evidence
from vision.calibration.images import ScoredImages
from vision.calibration.pixels import PixelThresholds
from vision.decision import OperatingPoint
from vision.errors import DataError, SettingsError, TooFewImagesError

ABOUT = About("made up", "0" * 64)
CLASSES = Classes({"crack": 0.5, "fray": 0.7}, unknown_below=0.5)


def images(
    good: Any, bad: Any = (), *, sure: dict[int, float] | None = None, lots: list[str] | None = None
) -> ScoredImages:
    """Good and defective images by their scores; ``sure``: place to its probability of a crack."""
    scores = np.array([*good, *bad], np.float32)
    probabilities = np.zeros((len(scores), 2))
    for place, probability in (sure or {}).items():
        probabilities[place, 0] = probability
    return ScoredImages(
        names=tuple(f"{index}.png" for index in range(len(scores))),
        scores=scores,
        is_defect=np.arange(len(scores)) >= len(good),
        defect_classes=("crack", "fray"),
        probabilities=probabilities,
        lots=None if lots is None else tuple(lots),
    )


def choose(found: ScoredImages, asked: Asked, **options: Any) -> OperatingPoint:
    return choose_point(found, asked, classes=CLASSES, pixels=PixelThresholds(0.25), about=ABOUT, **options)


def stops(point: OperatingPoint, one: ScoredImages) -> tuple[bool, bool]:
    """Whether the one image is stopped, and whether it is rejected."""
    score = float(one.combined(point.class_thresholds)[0])
    assert point.review_threshold is not None
    assert point.image_threshold is not None
    return score >= point.review_threshold, score >= point.image_threshold


@settings(max_examples=300)
@given(
    parts=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.0, 0.0, 0.6, 0.95, 0.995, 1.0])), min_size=4, max_size=24
    ),
    bound=st.sampled_from([0.1, 0.2, 0.25, 0.4, 0.5]),
    max_review=st.sampled_from([None, 0.05, 0.1, 0.2]),
)
def test_the_bound_holds_exactly_whatever_the_classes_say(
    parts: list[tuple[int, float]], bound: float, max_review: float | None
) -> None:
    """Against brute force: of n + 1 exchangeable good parts each is left out in turn, and judged by the rest."""
    everything = images([score for score, _ in parts], sure={place: sure for place, (_, sure) in enumerate(parts)})
    stopped = rejected = 0
    promised = 0.0
    for index in range(len(parts)):
        chosen = np.arange(len(parts)) == index
        try:
            point = choose(everything.only(~chosen), MaxOverkill(bound), max_review=max_review)
        except TooFewImagesError:
            continue
        assert point.basis is not None
        promised = point.basis.rejected_bound or 0.0
        one, other = stops(point, everything.only(chosen))
        stopped, rejected = stopped + one, rejected + other
    assert stopped <= bound * len(parts) + 1e-9
    assert rejected <= promised * len(parts) + 1e-9


def test_a_review_band_takes_its_share_of_the_good_parts() -> None:
    good = images(range(99))
    point = choose(good, MaxOverkill(0.05), max_review=0.03)
    assert (point.review_threshold, point.image_threshold) == pytest.approx((94, 97), abs=1e-3)
    assert point.basis is not None
    assert point.basis.measured["overkill_rate"].hits == 4
    assert point.basis.measured["good_rejected"].hits == 1
    assert point.basis.measured["good_to_review"].hits == 3
    without = choose(good, MaxOverkill(0.05))
    assert without.image_threshold == without.review_threshold == point.review_threshold
    wide = choose(good, MaxOverkill(0.05), max_review=0.5)
    assert wide.image_threshold == pytest.approx(98, abs=1e-3)
    assert wide.basis is not None
    assert wide.basis.rejected_bound == pytest.approx(0.01)


def test_the_evidence_says_everything_a_signature_needs() -> None:
    point = choose(images(np.linspace(0, 1, 400), [2.0, 3.0]), MaxOverkill(0.02, 0.95))
    basis = point.basis
    assert basis is not None
    assert Evidence.from_dict(_through_json(basis)) == basis
    assert (basis.rule, basis.asked, basis.confidence) == ("max-overkill", {"max_overkill": 0.02}, 0.95)
    assert (basis.good_images, basis.defective_images, basis.lots) == (400, 2, None)
    assert "at most 2 % of good parts are not passed, with 95 % confidence" in point.evidence
    assert "400 good calibration images (tolerance limit)" in point.evidence
    assert "exchangeable" in point.evidence
    assert "promises nothing about escapes" in point.evidence
    assert OperatingPoint.from_dict(_through_json(point)) == point


def _through_json(value: Any) -> Any:
    import json
    from dataclasses import asdict

    return json.loads(json.dumps(asdict(value)))


def test_class_hits_of_good_parts_count_for_the_bound() -> None:
    scores = np.arange(199)
    plain = choose(images(scores), MaxOverkill(0.05))
    # One of ten places is taken by a part of low score that a class stops: nine are left for the anomaly score.
    point = choose(images(scores, sure={0: 0.9}), MaxOverkill(0.05))
    assert point.class_thresholds == plain.class_thresholds == {"crack": 0.5, "fray": 0.7}
    assert (plain.review_threshold, point.review_threshold) == pytest.approx((189, 190), abs=1e-3)
    assert point.basis is not None
    assert point.basis.measured["good_class_hits"].hits == 1
    assert point.basis.measured["overkill_rate"].hits == 9


def test_too_many_class_hits_raise_the_class_thresholds_together() -> None:
    sure = {**dict.fromkeys(range(6), 0.8), 6: 0.95}
    point = choose(images(np.arange(199), sure=sure), MaxOverkill(0.05))
    assert point.class_thresholds == {"crack": 0.9, "fray": 0.9}
    assert point.basis is not None
    # Of ten places two are given up for having looked, and one is the remaining class hit's.
    assert point.basis.measured["overkill_rate"].hits == 7
    assert "were raised to 0.9 or more" in point.evidence
    assert point.basis.class_policy == CLASSES.thresholds
    none = choose(images(np.arange(199), sure=dict.fromkeys(range(6), 1.0)), MaxOverkill(0.05))
    assert none.class_thresholds == {}
    assert "there are none now" in none.evidence


@pytest.mark.parametrize(
    ("asked", "lots"), [(MaxOverkill(0.02, 0.95), None), (MaxOverkill(0.008), None), (MaxOverkill(0.02), "each")]
)
def test_class_hits_without_room_are_an_error_that_names_the_images(asked: MaxOverkill, lots: str | None) -> None:
    names = None if lots is None else [str(index) for index in range(199)]
    found = images(np.arange(199), sure=dict.fromkeys(range(5), 0.99), lots=names)
    with pytest.raises(TooFewImagesError, match=r"5 good calibration images .* such as 0\.png.*--class-threshold none"):
        choose(found, asked)


def test_recall_is_a_lower_bound() -> None:
    bad = np.arange(100, 400)
    point = choose(images(np.arange(150), bad), MinRecall(0.98, 0.95))
    # P(Bin(300, 0.02) <= 1) = 1.7 %, P(<= 2) = 5.9 %: one may be missed.
    assert point.review_threshold == point.image_threshold == 101
    assert point.basis is not None
    assert point.basis.recall_bound == 0.98
    assert point.basis.measured["escape_rate"].hits == 1
    # 49 of 150 good parts reach 101: at most 39.5 % of all, with the same confidence.
    assert point.basis.not_passed_bound == pytest.approx(0.3952, abs=1e-3)
    banded = choose(images(np.arange(150), bad), MinRecall(0.98, 0.95), max_review=0.2)
    assert banded.review_threshold == 101
    assert banded.basis is not None
    assert banded.basis.measured["good_to_review"].hits == 30


def test_a_defect_that_its_class_stops_is_not_missed() -> None:
    bad = [0.0, *range(100, 399)]
    missed = choose(images(range(50), bad), MinRecall(0.98, 0.95))
    assert missed.review_threshold == 100
    caught = choose(images(range(50), bad, sure={50: 0.9}), MinRecall(0.98, 0.95))
    assert caught.review_threshold == 101
    everything = choose(images(range(50), bad, sure=dict.fromkeys(range(50, 350), 0.9)), MinRecall(0.98, 0.95))
    assert everything.review_threshold == 398


def test_too_few_defects_say_what_they_can_show() -> None:
    with pytest.raises(
        TooFewImagesError, match=r"at least 598 defective .*; got 40, 558 more are missing\. 40 can show 92\.8 %"
    ) as caught:
        choose(images(range(9), range(40)), MinRecall(0.995))
    assert caught.value.missing == 558
    with pytest.raises(TooFewImagesError, match="got 0, 598 more are missing"):
        choose(images(range(9)), MinRecall(0.995))


def cost(found: ScoredImages, image: float, review: float, share: float, price: float) -> float:
    """Of rejecting from ``image`` and reviewing from ``review``, part by part."""
    combined = found.combined(CLASSES.thresholds)
    rejected, stopped = combined >= np.float32(image), combined >= np.float32(review)
    each = np.where(found.is_defect, 5.0 * ~stopped, 1.0 * rejected) + price * (stopped & ~rejected)
    return float((1 - share) * each[~found.is_defect].mean() + share * each[found.is_defect].mean())


@pytest.mark.parametrize("review", [None, 0.0, 0.3, 2.0])
@pytest.mark.parametrize("share", [None, 0.02, 0.9])
def test_least_cost_against_trying_every_pair(review: float | None, share: float | None) -> None:
    random = np.random.default_rng(2)
    for _ in range(5):
        good, bad = random.normal(0, 1, 40).round(1), random.normal(1.5, 1, 25).round(1)
        found = images(good, bad, sure={3: 0.9, 45: 0.9})
        point = choose(found, Costs(1.0, 5.0, review, share))
        about = (25 / 65 if share is None else share, review or 0.0)
        values = [*np.unique(found.scores), 99.0]
        pairs = [(one, two) for one in values for two in values if two == one or (two < one and review is not None)]
        assert point.image_threshold is not None
        assert point.review_threshold is not None
        got = cost(found, point.image_threshold, point.review_threshold, *about)
        assert got == pytest.approx(min(cost(found, *pair, *about) for pair in pairs))
        assert point.basis is not None
        figures = point.basis.figures
        assert figures["expected_cost"] == pytest.approx(got)
        assert figures["expected_cost_low"] <= got <= figures["expected_cost_high"]
        assert (point.image_threshold == point.review_threshold) or review is not None


def test_the_cost_on_images_left_out_is_no_flattery() -> None:
    """Scores that tell nothing: choosing on 20 images finds a threshold that seems to pay, and does not."""
    random = np.random.default_rng(0)
    found = images(random.random(10), random.random(10))
    point = choose(found, Costs(1.0, 1.0))
    assert point.basis is not None
    assert point.basis.figures["expected_cost"] < 0.45 < point.basis.figures["cost_left_out"]


def test_costs_need_both_kinds_and_no_bound_for_the_band() -> None:
    with pytest.raises(SettingsError, match="both kinds"):
        choose(images(range(9)), Costs(1, 50))
    with pytest.raises(SettingsError, match="review=PRICE"):
        choose(images(range(9), range(9)), Costs(1, 50), max_review=0.1)


@pytest.mark.parametrize(
    "values", [(0, 1), (1, 0), (-1, 5), (math.inf, 1), (1, 1, -0.1), (1, 1, None, 0.0), (1, 1, None, 1.0)]
)
def test_impossible_costs(values: tuple[float, ...]) -> None:
    with pytest.raises(SettingsError):
        Costs(*values)


def test_a_score_that_is_no_number_is_named() -> None:
    with pytest.raises(DataError, match=r"1 images have no finite anomaly score.*\n.*1\.png"):
        images([0.0, math.nan, 1.0])


def test_lots_are_counted_and_said() -> None:
    lots = [str(index // 4) for index in range(160)]
    point = choose(images(np.random.default_rng(0).random(160), lots=lots), MaxOverkill(0.05))
    assert point.basis is not None
    assert point.basis.lots == 40
    assert "from 40 lots (the bound counts lots)" in point.evidence
    assert "parts within a lot may be alike" in point.evidence
