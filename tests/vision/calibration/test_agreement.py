from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from vision.calibration.agreement import cohens_kappa


@pytest.mark.parametrize("words", [2, 4])
def test_kappa_is_that_of_scikit_learn(words: int) -> None:
    rng = np.random.default_rng(words)
    first = rng.integers(0, words, 300)
    second = np.where(rng.random(300) < 0.7, first, rng.integers(0, words, 300))
    found = cohens_kappa(Counter(zip(first.tolist(), second.tolist(), strict=True)))
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second))
    assert (found.agreed, found.of) == (int((first == second).sum()), 300)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Against the kappa of the very distribution that the pairs are drawn from."""
    shares = np.array([[0.45, 0.08], [0.12, 0.35]])
    true = (0.8 - (0.53 * 0.57 + 0.47 * 0.43)) / (1 - (0.53 * 0.57 + 0.47 * 0.43))
    rng = np.random.default_rng(0)
    covered = 0
    for counts in rng.multinomial(400, shares.ravel(), 500):
        found = cohens_kappa({(i // 2, i % 2): int(count) for i, count in enumerate(counts)})
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= true <= found.high
    assert 0.92 <= covered / 500 <= 0.98


def test_full_agreement_is_one() -> None:
    found = cohens_kappa({("good", "good"): 5, ("defect", "defect"): 3})
    assert (found.kappa, found.low, found.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("pairs", [{}, {("good", "good"): 9}, {("good", "good"): 9, ("good", "defect"): 2}])
def test_a_judge_who_always_says_the_same_tells_nothing(pairs: dict[tuple[str, str], int]) -> None:
    found = cohens_kappa(pairs)
    assert found.kappa is None
    assert found.of == sum(pairs.values())
