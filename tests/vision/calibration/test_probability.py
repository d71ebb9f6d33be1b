from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from vision.calibration.probability import (
    ClassCalibration,
    chance_error,
    expected_calibration_error,
    fit_class_calibration,
    reliability,
    top_label,
)
from vision.errors import SettingsError

CLASSES = ("good", "crack", "fray")


def draw(count: int, scale: float, bias: tuple[float, ...] = (0, 0, 0), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from softmax(scale · logits + bias): the calibration that is to be found."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (count, 3))
    values = np.exp(scale * logits + np.array(bias))
    chances = values / values.sum(axis=1, keepdims=True)
    return logits, np.array([rng.choice(3, p=chance) for chance in chances])


def fit(
    logits: np.ndarray, labels: np.ndarray, good: str | None = "good", *, biases: bool = True
) -> ClassCalibration | None:
    return fit_class_calibration(logits, labels.tolist(), CLASSES, good, "a test", biases=biases)


def test_a_model_that_is_too_sure_is_cooled_down() -> None:
    logits, labels = draw(600, scale=0.3)
    found = fit(logits, labels)
    assert found is not None
    assert found.method == "temperature"
    assert found.scale == pytest.approx((0.3,) * 3, abs=0.05)
    assert len(found.scale) / sum(found.scale) == pytest.approx(1 / 0.3, rel=0.15)
    assert found.figures["ece_before"] > 2 * found.figures["ece_after"]
    assert found.figures["nll_after"] < found.figures["nll_before"]
    assert sum(found.mix.values()) == pytest.approx(1)


def test_classes_that_are_off_each_in_its_own_way_get_a_scale_and_a_bias_each() -> None:
    logits, labels = draw(800, scale=0.5, bias=(2.0, 0.0, -1.0))
    found = fit(logits, labels)
    assert found is not None
    assert found.method == "vector"
    assert found.bias[0] - found.bias[1] == pytest.approx(2.0, abs=0.5)
    assert found.bias[2] - found.bias[1] == pytest.approx(-1.0, abs=0.5)
    fresh, truth = draw(4000, 0.5, (2.0, 0.0, -1.0), seed=9)
    assert expected_calibration_error(*top_label(found.of_many(fresh), truth)) < 0.05


def test_a_model_that_goes_on_learning_keeps_the_order_of_its_classes() -> None:
    logits, labels = draw(800, scale=0.5, bias=(2.0, 0.0, -1.0))
    found = fit(logits, labels, biases=False)
    assert found is not None
    assert found.method == "temperature"
    assert found.bias == (0.0, 0.0, 0.0)


def test_a_few_images_of_a_class_keep_to_the_temperature() -> None:
    logits, labels = draw(800, scale=0.5, bias=(2.0, 0.0, -1.0))
    few = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:10]])
    found = fit(logits[few], labels[few])
    assert found is not None
    assert found.method == "temperature"


def test_no_mistake_among_few_images_is_no_certainty() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    logits = rng.normal(0, 0.1, (60, 3)) + 5 * np.eye(3)[labels]
    found = fit(logits, labels)
    assert found is not None
    highest = found.of_many(logits).max()
    assert 0.95 < highest < 0.9999


@pytest.mark.parametrize(("count", "defects"), [(39, 20), (100, 7), (100, 0)])
def test_too_few_labels_give_no_probability(count: int, defects: int) -> None:
    logits = np.random.default_rng(0).normal(size=(count, 3))
    labels = np.where(np.arange(count) < defects, 1, 0)
    assert fit(logits, labels) is None


def test_a_model_without_a_good_class() -> None:
    logits, labels = draw(200, scale=0.5)
    assert fit(logits, labels, good=None) is not None
    assert fit(logits, np.zeros(200, np.intp), good=None) is None, "one class alone tells nothing"


def test_one_frame_and_many_agree() -> None:
    found = ClassCalibration("vector", (0.5, 0.6, 0.7), (0.1, 0.0, -0.3), 50, {}, "a test")
    logits = np.random.default_rng(1).normal(0, 300, (20, 3))
    for row, expected in zip(logits, found.of_many(logits), strict=True):
        assert found.probabilities(row.tolist()) == pytest.approx(expected.tolist(), abs=1e-12)
    assert np.isnan(found.probabilities([float("nan"), 0.0, 1.0])).all()
    assert ClassCalibration.from_dict(json.loads(json.dumps(asdict(found)))) == found


@pytest.mark.parametrize(
    ("scale", "bias"), [((1.0, 1.0), (0.0,)), ((0.0, 1.0), (0.0, 0.0)), ((float("nan"), 1.0), (0.0, 0.0))]
)
def test_impossible_calibrations(scale: tuple[float, ...], bias: tuple[float, ...]) -> None:
    with pytest.raises(SettingsError):
        ClassCalibration("temperature", scale, bias, 50, {}, "a test")


def test_the_error_is_what_was_said_less_what_came_true() -> None:
    stated = np.repeat([0.6, 0.9], 50)
    true = np.concatenate([np.arange(50) < 20, np.arange(50) < 45])  # 40 % and 90 %
    assert expected_calibration_error(stated, true, bins=2) == pytest.approx(0.5 * 0.2)
    bins = reliability(stated, true, bins=2)
    assert [(one.count, one.hits) for one in bins] == [(50, 20), (50, 45)]
    assert [(one.stated, one.true) for one in bins] == [pytest.approx((0.6, 0.4)), pytest.approx((0.9, 0.9))]
    assert len(reliability(stated[:7], true[:7])) == 1, "bins of fewer than five frames say nothing"
    assert reliability([], []) == []
    mixed = np.random.default_rng(0).permutation(100)
    assert reliability(stated[mixed], true[mixed]) == reliability(stated, true)
    assert len(reliability(stated, true)) == 2, "what was said alike cannot be cut"
    assert np.isnan(expected_calibration_error([], []))


def test_even_perfect_probabilities_have_an_error_on_few_images() -> None:
    rng = np.random.default_rng(3)
    stated = rng.uniform(0.4, 1.0, 150)
    errors = [expected_calibration_error(stated, rng.random(150) < stated) for _ in range(300)]
    assert chance_error(stated) == pytest.approx(float(np.mean(errors)), rel=0.1)
    assert chance_error(rng.uniform(0.4, 1.0, 15_000)) < 0.015 < chance_error(stated)
