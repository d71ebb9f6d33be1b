"""Metrics against scikit-learn, against slow definitions written out, and at the edges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from training import metrics
from training.pixel_metrics import BIN_ERROR, PixelCounter, aupro, pixel_ap, pixel_auroc, pixel_figures, score_bins

# A busy machine is no failure.
patient = settings(suppress_health_check=[HealthCheck.too_slow])
# Few distinct values, so that ties are the rule.
scored = st.lists(
    st.tuples(st.integers(0, 12).map(lambda value: value / 4 - 1), st.booleans()), min_size=2, max_size=60
)


@pytest.mark.slow
@patient
@given(scored)
def test_curves_agree_with_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    scores, truth = np.array([score for score, _ in pairs]), np.array([defect for _, defect in pairs])
    assume(truth.any() and not truth.all())
    assert metrics.image_auroc(scores, truth) == pytest.approx(reference.roc_auc_score(truth, scores), abs=1e-12)
    assert metrics.average_precision(scores, truth) == pytest.approx(
        reference.average_precision_score(truth, scores), abs=1e-12
    )
    best, threshold = metrics.f1_max(scores, truth)
    every = [reference.f1_score(truth, scores >= value) for value in np.unique(scores)]
    assert best == pytest.approx(max(every), abs=1e-12)
    assert reference.f1_score(truth, scores >= threshold) == pytest.approx(best, abs=1e-12)


@patient
@given(scored, st.integers(0, 2**31))
def test_a_weight_counts_as_so_many_images(pairs: list[tuple[float, bool]], seed: int) -> None:
    weights = np.random.default_rng(seed).integers(0, 4, len(pairs))
    scores, truth = np.array([score for score, _ in pairs]), np.array([defect for _, defect in pairs])
    repeated = np.repeat(scores, weights), np.repeat(truth, weights)
    assume(repeated[1].any() and not repeated[1].all())
    for metric in (metrics.image_auroc, metrics.average_precision, lambda *args: metrics.f1_max(*args)[0]):
        assert metric(scores, truth, weights) == pytest.approx(metric(*repeated), abs=1e-12)


@patient
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=40))
def test_classes_agree_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = [one for one, _ in pairs], [other for _, other in pairs]
    labels = list("abcd")
    counts = metrics.confusion_matrix(truth, predicted, labels)
    assert (counts == reference.confusion_matrix(truth, predicted, labels=labels)).all()
    assert metrics.accuracy(truth, predicted) == pytest.approx(reference.accuracy_score(truth, predicted))
    expected = reference.precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=np.nan)
    for index, figures in enumerate(metrics.per_class(counts, labels).values()):
        got = (figures.precision, figures.recall, figures.f1, figures.support)
        assert got == pytest.approx([column[index] for column in expected], nan_ok=True)


@pytest.mark.parametrize("truth", [[], [True], [False], [True, True], [False, False]])
def test_one_kind_only_is_not_a_number_and_not_an_error(truth: list[bool]) -> None:
    scores = np.linspace(0, 1, len(truth))
    assert math.isnan(metrics.image_auroc(scores, truth))
    assert math.isnan(metrics.average_precision(scores, truth))
    assert math.isnan(metrics.f1_max(scores, truth)[0])
    low, high = metrics.bootstrap_interval(lambda weights: metrics.image_auroc(scores, truth, weights), len(truth), 0)
    assert math.isnan(low)
    assert math.isnan(high)


def test_accuracy_of_nothing() -> None:
    assert math.isnan(metrics.accuracy([], []))


class TestMiou:
    def test_pooled_by_hand(self) -> None:
        # 8 background pixels of 10 found, 2 called dent; 3 dent pixels found, 1 missed.
        counts = np.array([[8, 2], [1, 3]])
        assert metrics.miou(counts) == pytest.approx((8 / 11 + 3 / 6) / 2)

    def test_agrees_with_scikit_learn_and_leaves_absent_classes_out(self) -> None:
        rng = np.random.default_rng(0)
        truth, predicted = rng.integers(0, 3, 500), rng.integers(0, 3, 500)
        counts = metrics.confusion_matrix(truth.astype(str), predicted.astype(str), list("0123"))
        assert metrics.miou(counts) == pytest.approx(reference.jaccard_score(truth, predicted, average="macro"))

    def test_a_class_that_is_only_predicted_counts_as_zero(self) -> None:
        assert metrics.miou(np.array([[5, 5], [0, 0]])) == pytest.approx(0.25)

    def test_nothing(self) -> None:
        assert math.isnan(metrics.miou(np.zeros((3, 3), np.int64)))


class TestBootstrap:
    def test_reproducible_and_around_the_figure(self) -> None:
        rng = np.random.default_rng(0)
        truth = np.arange(300) % 3 == 0
        scores = rng.normal(truth * 1.5)
        value = metrics.image_auroc(scores, truth)

        def metric(weights: NDArray[np.float64]) -> float:
            return metrics.image_auroc(scores, truth, weights)

        interval = metrics.bootstrap_interval(metric, 300, 1)
        assert interval == metrics.bootstrap_interval(metric, 300, 1)
        assert interval != metrics.bootstrap_interval(metric, 300, 2)
        assert interval[0] < value < interval[1]
        assert 0.03 < interval[1] - interval[0] < 0.15

    def test_it_covers_the_truth_about_as_often_as_it_says(self) -> None:
        """AUROC of N(1, 1) against N(0, 1) is Φ(1/√2) = 0.7602; 60 data sets, 95 % intervals."""
        covered = 0
        for seed in range(60):
            rng = np.random.default_rng(seed)
            truth = np.arange(120) % 2 == 0
            scores = rng.normal(truth * 1.0)
            low, high = metrics.bootstrap_interval(
                lambda weights, s=scores, t=truth: metrics.image_auroc(s, t, weights),  # type: ignore[misc]
                120,
                seed,
                resamples=200,
            )
            covered += low <= 0.7602 <= high
        assert covered >= 52

    def test_draws_are_resamples_of_images(self) -> None:
        draws = metrics.bootstrap_draws(7, 0, 50)
        assert draws.shape == (50, 7)
        assert (draws.sum(axis=1) == 7).all()

    def test_share(self) -> None:
        low, high = metrics.share_interval(np.arange(200) < 40, 0)
        assert low == pytest.approx(0.145, abs=0.02)
        assert high == pytest.approx(0.255, abs=0.02)

    def test_no_overkill_in_a_few_parts_is_no_certainty(self) -> None:
        assert metrics.share_interval(np.zeros(100, bool), 0) == (0.0, pytest.approx(0.0362, abs=1e-4))
        assert metrics.share_interval(np.ones(100, bool), 0) == (pytest.approx(0.9638, abs=1e-4), 1.0)
        assert all(math.isnan(end) for end in metrics.share_interval(np.zeros(0, bool), 0))


def images(seed: int, count: int = 6, side: int = 24, levels: int = 40) -> tuple[list[NDArray[np.float32]], list]:
    """Maps with ties and masks of one to three regions; every third image is good."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for index in range(count):
        mask = np.zeros((side, side + 4), bool)
        for _ in range(rng.integers(1, 4)):
            row, column, size = rng.integers(0, side - 2), rng.integers(0, side - 2), rng.integers(1, 8)
            mask[row : row + size, column : column + size] = True
        good = index % 3 == 0
        scores = rng.integers(0, levels, mask.shape) + (0 if good else 1) * mask * rng.integers(0, levels)
        maps.append((scores / levels).astype(np.float32))
        masks.append(None if good else mask)
    return maps, masks


def slow_aupro(maps: Sequence[NDArray[np.float32]], masks: Sequence, max_fpr: float) -> float:
    """The definition, threshold by threshold and region by region."""
    points = [(0.0, 0.0)]
    good = np.concatenate(
        [(one if mask is None else one[~mask]).ravel() for one, mask in zip(maps, masks, strict=True)]
    )
    for threshold in np.unique(np.concatenate([one.ravel() for one in maps]))[::-1]:
        overlaps = []
        for one, mask in zip(maps, masks, strict=True):
            if mask is None:
                continue
            number, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
            overlaps += [(one[labels == index] >= threshold).mean() for index in range(1, number)]
        points.append((float((good >= threshold).mean()), float(np.mean(overlaps))))
    fpr, pro = np.array(points).T
    inside = fpr < max_fpr
    fpr_cut = np.append(fpr[inside], max_fpr)
    pro_cut = np.append(pro[inside], np.interp(max_fpr, fpr, pro))
    return float(np.trapezoid(pro_cut, fpr_cut) / max_fpr)


class TestPixels:
    @pytest.mark.parametrize("seed", range(5))
    def test_agree_with_scikit_learn_with_ties_and_good_images(self, seed: int) -> None:
        maps, masks = images(seed)
        flat = np.concatenate([one.ravel() for one in maps])
        truth = np.concatenate(
            [np.zeros(one.size, bool) if mask is None else mask.ravel() for one, mask in zip(maps, masks, strict=True)]
        )
        assert pixel_auroc(maps, masks) == pytest.approx(reference.roc_auc_score(truth, flat), abs=1e-9)
        assert pixel_ap(maps, masks) == pytest.approx(reference.average_precision_score(truth, flat), abs=1e-9)

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
    def test_aupro_is_its_definition(self, seed: int, max_fpr: float) -> None:
        maps, masks = images(seed)
        assert aupro(maps, masks, max_fpr) == pytest.approx(slow_aupro(maps, masks, max_fpr), abs=1e-9)

    @pytest.mark.slow
    def test_bins_stay_within_the_documented_error(self) -> None:
        """Skewed scores, millions of distinct values, tiny defects: what bins are worst at."""
        rng = np.random.default_rng(0)
        maps, masks, small = [], [], []
        for index in range(24):
            coarse = rng.gamma(1.5, 0.02, (40, 40)).astype(np.float32)
            mask = np.zeros((320, 320), bool)
            row, column, size = (*rng.integers(0, 300, 2), int(rng.integers(2, 14)))
            mask[row : row + size, column : column + size] = True
            coarse[row // 8, column // 8] += 0.0 if index % 3 == 0 else rng.gamma(2, 0.1)
            small.append(coarse)
            maps.append(cv2.resize(coarse, (320, 320)))
            masks.append(None if index % 3 == 0 else mask)
        small[5][0, 0] = maps[5][0, 0] = 50.0  # an outlier must not squeeze all others into a few bins
        # 50,000 of 2.4 million are kept: as few as of the largest test sets.
        counter = PixelCounter(score_bins(small, 24 * 320 * 320, exact_pixels=50_000))
        for one, mask in zip(maps, masks, strict=True):
            counter.add(one, mask)
        flat = np.concatenate([one.ravel() for one in maps])
        truth = np.concatenate(
            [np.zeros(one.size, bool) if mask is None else mask.ravel() for one, mask in zip(maps, masks, strict=True)]
        )
        figures = counter.figures()
        assert figures.auroc == pytest.approx(reference.roc_auc_score(truth, flat), abs=BIN_ERROR)
        assert figures.average_precision == pytest.approx(reference.average_precision_score(truth, flat), abs=BIN_ERROR)

    def test_a_map_that_is_zero_nearly_everywhere_is_not_kept_nearly_everywhere(self) -> None:
        scores = np.zeros((100, 100), np.float32)
        scores[:5, :5] = np.random.default_rng(0).random((5, 5))
        bins = score_bins([scores], scores.size, exact_pixels=1000)
        assert bins.edges[bins.exact_bin - 1] > 0
        counter = PixelCounter(bins)
        mask = np.zeros((100, 100), bool)
        mask[:4, :7] = True
        counter.add(scores, mask)
        expected = reference.average_precision_score(mask.ravel(), scores.ravel())
        assert counter.figures().average_precision == pytest.approx(expected, abs=1e-9)

    def test_a_map_that_says_nothing(self) -> None:
        """All pixels equal: the PRO curve is the diagonal, whose normalised area is max_fpr / 2."""
        maps, masks = images(0)
        figures = pixel_figures([np.full_like(one, 0.5) for one in maps], masks)
        assert figures.auroc == pytest.approx(0.5)
        assert figures.aupro == pytest.approx(0.15)

    def test_a_perfect_map(self) -> None:
        _, masks = images(1)
        perfect = [np.zeros((24, 28), np.float32) if mask is None else mask.astype(np.float32) for mask in masks]
        figures = pixel_figures(perfect, masks)
        assert (figures.auroc, figures.average_precision, figures.aupro) == pytest.approx((1.0, 1.0, 1.0))

    def test_small_regions_weigh_as_much_as_large_ones(self) -> None:
        mask = np.zeros((40, 40), bool)
        mask[:20, :20] = True  # 400 pixels, found
        mask[30, 30] = True  # 1 pixel, missed
        found = mask.copy()
        found[30, 30] = False
        scores = found.astype(np.float32)
        assert aupro([scores], [mask], 1e-9) == pytest.approx(0.5)
        assert pixel_auroc([scores], [mask]) > 0.99

    def test_corners_that_touch_are_one_region(self) -> None:
        mask = np.zeros((8, 8), bool)
        mask[0, 0] = mask[1, 1] = True
        assert pixel_figures([mask.astype(np.float32)], [mask]).regions == 1

    def test_false_alarms_on_good_images_count(self) -> None:
        maps, masks = images(2)
        worse = [one + 1 if mask is None else one for one, mask in zip(maps, masks, strict=True)]
        assert aupro(worse, masks) < aupro(maps, masks)
        assert pixel_auroc(worse, masks) < pixel_auroc(maps, masks)

    @pytest.mark.parametrize("kind", ["good", "nothing", "all"])
    def test_one_kind_of_pixels_only(self, kind: str) -> None:
        scores = np.random.default_rng(0).random((8, 8)).astype(np.float32)
        cases = {"good": ([scores], [None]), "nothing": ([], []), "all": ([scores], [np.ones((8, 8), bool)])}
        figures = pixel_figures(*cases[kind])
        assert math.isnan(figures.auroc)
        assert math.isnan(figures.average_precision)
        assert math.isnan(figures.aupro)
        assert all(math.isnan(end) for interval in figures.intervals.values() for end in interval)

    def test_images_that_are_all_alike_leave_nothing_to_chance(self) -> None:
        """Every resample is the test set itself, so that the interval is the figure, without the coarse bins' error."""
        rng = np.random.default_rng(0)
        mask = np.zeros((100, 100), bool)
        mask[:3, :5] = True
        scores = (rng.random((100, 100)) + 0.3 * mask).astype(np.float32)
        counter = PixelCounter(score_bins([scores], 8 * 10_000))
        for _ in range(8):
            counter.add(scores, mask)
        figures = counter.figures()
        assert figures.intervals["pixel_ap"] == pytest.approx((figures.average_precision,) * 2, abs=1e-6)
        assert figures.intervals["aupro"] == pytest.approx((figures.aupro,) * 2, abs=1e-6)

    def test_intervals_resample_images(self) -> None:
        maps, masks = images(3, count=60)
        bins = score_bins(maps, 60 * 24 * 28)

        def figures(repeat: int, seed: int = 0):  # type: ignore[no-untyped-def]
            counter = PixelCounter(bins)
            for _ in range(repeat):
                for one, mask in zip(maps, masks, strict=True):
                    counter.add(one, mask)
            return counter.figures(seed)

        once, again, four = figures(1), figures(1), figures(4)
        assert once == again
        for name, value in (("pixel_auroc", once.auroc), ("pixel_ap", once.average_precision), ("aupro", once.aupro)):
            low, high = once.intervals[name]
            assert 0 <= low < value < high <= 1
            narrow = four.intervals[name]
            # Four times the images: about half the width.
            assert 0.3 < (narrow[1] - narrow[0]) / (high - low) < 0.75
