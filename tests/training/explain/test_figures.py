"""Figures of single maps by hand and against scipy, and what is said about methods side by side."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from training.explain.figures import (
    area_under_curve,
    mass_in_mask,
    mean_with_interval,
    points_at,
    rank_correlation,
    resampled_means,
    standings,
)


def mask(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


def test_mass_in_mask_is_the_share_of_what_speaks_for_the_class() -> None:
    values = np.array([[3.0, 1.0], [-5.0, 0.0]], np.float32)
    assert mass_in_mask(values, mask("#.", "..")) == pytest.approx(0.75)
    assert mass_in_mask(values, mask("..", "#.")) == 0.0
    assert mass_in_mask(-np.abs(values), mask("#.", "..")) == 0.0


def test_mass_is_measured_where_the_overlay_shows_it() -> None:
    """A coarse map is stretched to the mask as the overlay stretches it, so its blur counts against it."""
    coarse = np.zeros((2, 2), np.float32)
    coarse[0, 0] = 1.0
    truth = np.zeros((64, 64), bool)
    truth[:16, :16] = True
    assert mass_in_mask(coarse, truth) == pytest.approx(0.25, abs=0.05)
    fine = np.zeros((64, 64), np.float32)
    fine[:16, :16] = 1.0
    assert mass_in_mask(fine, truth) == 1.0


def test_pointing_forgives_fifteen_pixels() -> None:
    truth = np.zeros((100, 100), bool)
    truth[50, 50] = True
    for distance, hit in ((0, True), (15, True), (16, False)):
        values = np.zeros((100, 100), np.float32)
        values[50, 50 + distance] = 1.0
        assert points_at(values, truth) is hit


def test_area_under_a_curve() -> None:
    shares = np.array([0.0, 0.5, 1.0], np.float32)
    assert area_under_curve(shares, np.array([1.0, 0.0, 0.0], np.float32)) == pytest.approx(0.25)


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(9, 7)).round(1).astype(np.float32)  # rounded: with ties
    other = (one + rng.normal(size=one.shape)).astype(np.float32)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one.ravel(), other.ravel()).statistic)
    assert rank_correlation(one, np.zeros_like(one)) == 0.0


def test_an_interval_holds_the_mean() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 50)
    found = mean_with_interval(values, seed=0)
    assert found is not None
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(4 * 0.1 / 50**0.5, rel=0.2)
    assert mean_with_interval(np.zeros(0), seed=0) is None


def stand(higher_is_better: bool, **columns: np.ndarray) -> dict[str, str]:
    means = {name: float(values.mean()) for name, values in columns.items()}
    draws = {name: resampled_means(values, 0) for name, values in columns.items()}
    found = standings(means, draws, higher_is_better=higher_is_better)
    return {name: standing.verdict for name, standing in found.items()}


def test_methods_are_compared_frame_by_frame() -> None:
    """A small difference that every frame shows is found, however much the frames differ among themselves."""
    frames = np.random.default_rng(0).uniform(0, 1, 40)
    noise = np.random.default_rng(1).normal(0, 0.3, 40)
    assert stand(True, a=frames + 0.01, b=frames) == {"a": "best", "b": "worse"}
    assert stand(False, a=frames + 0.01, b=frames) == {"a": "worse", "b": "best"}
    assert stand(True, a=frames, b=frames + noise - noise.mean() - 0.01) == {"a": "tied", "b": "tied"}
    assert stand(True, a=frames, b=frames.copy(), c=frames - 1) == {"a": "tied", "b": "tied", "c": "worse"}
