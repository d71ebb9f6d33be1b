from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vision.calibration.escapes import count_interval, count_reviews, estimate_escapes
from vision.errors import DataError, SettingsError


def test_without_an_end_of_parts_it_is_the_binomial_interval() -> None:
    found = estimate_escapes(500, 2)
    expected = stats.binomtest(2, 500).proportion_ci(0.95, method="exact")
    assert (found.share.low, found.share.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.share.value == 0.004
    assert (found.count, found.escape_rate) == (None, None)


@pytest.mark.parametrize(
    ("checked", "found", "passed"), [(10, 1, 40), (30, 0, 60), (25, 25, 50), (50, 3, 50), (1, 1, 9)]
)
def test_among_a_number_of_parts_it_is_the_hypergeometric_interval(checked: int, found: int, passed: int) -> None:
    """Against trying every number of defective parts that there can be."""
    possible = [
        number
        for number in range(found, passed - (checked - found) + 1)
        if stats.hypergeom.sf(found - 1, passed, number, checked) > 0.025
        and stats.hypergeom.cdf(found, passed, number, checked) > 0.025
    ]
    assert count_interval(checked, found, passed) == (min(possible), max(possible))


def test_checking_everything_leaves_no_doubt() -> None:
    assert count_interval(300, 4, 300) == (4, 4)
    found = estimate_escapes(300, 4, passed=300)
    assert found.share.low == found.share.high == found.share.value
    assert found.more_checks is None or found.more_checks == 0


@pytest.mark.parametrize("defective", [0, 3, 40])
def test_it_covers_as_often_as_it_promises(defective: int) -> None:
    passed, checked = 400, 60
    inside = 0.0
    for found in range(min(defective, checked) + 1):
        low, high = count_interval(checked, found, passed)
        inside += stats.hypergeom.pmf(found, passed, defective, checked) * (low <= defective <= high)
    assert inside >= 0.95


@pytest.mark.parametrize(
    ("checked", "found", "passed"), [(500, 2, None), (500, 0, None), (200, 20, None), (200, 2, 5000)]
)
def test_so_many_more_checks_halve_the_interval(checked: int, found: int, passed: int | None) -> None:
    first = estimate_escapes(checked, found, passed=passed)
    assert first.more_checks is not None
    width = first.share.high - first.share.low
    more = checked + first.more_checks
    after = estimate_escapes(more, int(np.ceil(found * more / checked)), passed=passed)
    assert after.share.high - after.share.low <= width / 2
    fewer = more - 1
    before = estimate_escapes(fewer, int(np.ceil(found * fewer / checked)), passed=passed)
    assert before.share.high - before.share.low > width / 2


def test_the_escape_rate_needs_to_know_what_was_caught() -> None:
    found = estimate_escapes(500, 2, passed=20_000, caught=340)
    assert found.count is not None
    assert found.escape_rate == pytest.approx(
        (found.count[0] / (found.count[0] + 340), 80 / 420, found.count[1] / (found.count[1] + 340))
    )
    assert estimate_escapes(500, 0, passed=500, caught=0).escape_rate == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "numbers",
    [
        {"checked": 0, "found": 0},
        {"checked": 5, "found": 6},
        {"checked": 5, "found": -1},
        {"checked": 5, "found": 1, "passed": 4},
        {"checked": 5, "found": 1, "caught": 4},
        {"checked": 5, "found": 1, "passed": 9, "caught": -1},
        {"checked": 5, "found": 1, "confidence": 1.0},
    ],
)
def test_numbers_that_cannot_be(numbers: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        estimate_escapes(**numbers)  # type: ignore[arg-type]


def test_reviews_are_counted() -> None:
    lines = [
        {"verdict": "PASS", "defective": False},
        {"verdict": "PASS", "defective": True},
        {"verdict": "PASS"},
        {"verdict": "REJECT", "defective": True},
        {"verdict": "REVIEW", "defective": True},
        {"verdict": "REJECT", "defective": False},
        {"verdict": "REJECT"},
    ]
    placed = [(f"line {index}", line) for index, line in enumerate(lines)]
    assert count_reviews(placed) == {"checked": 2, "found": 1, "passed": 3, "caught": 2}
    for wrong in ({"defective": True}, {"verdict": "PASS", "defective": "no"}):
        with pytest.raises(DataError, match="line 9"):
            count_reviews([("line 9", wrong)])
