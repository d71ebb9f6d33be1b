"""Escapes from a sample: passed parts that a person checked again, and what they say about all passed parts.

The share is of *passed parts* that are defective, because that is what was drawn from. The escape rate, of *defective
parts* that pass, follows only where it is known how many defective parts were caught.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vision.calibration.intervals import CONFIDENCE, Rate, exact_interval
from vision.errors import DataError, SettingsError


@dataclass(frozen=True, slots=True)
class Escapes:
    """What the checks show.

    ``share``: of passed parts that are defective, with its interval. ``count``: lowest and highest number of defective
    parts among all ``passed`` ones; ``escape_rate``: lowest, likeliest and highest share of defective parts that pass;
    both None where it is not known how many passed, or were caught. ``more_checks``: how many more would make the
    interval half as wide, if as large a share of them is found defective; None where all passed parts are too few.
    """

    share: Rate
    confidence: float
    passed: int | None
    count: tuple[int, int] | None
    escape_rate: tuple[float, float, float] | None
    more_checks: int | None


def estimate_escapes(
    checked: int,
    found: int,
    *,
    passed: int | None = None,
    caught: int | None = None,
    confidence: float = CONFIDENCE,
) -> Escapes:
    """Estimate escapes from a random sample of passed parts.

    Args:
        checked: passed parts that a person checked, drawn at random.
        found: of these, how many were defective.
        passed: of how many passed parts they were drawn, themselves included; None for no end of parts.
        caught: defective parts that were rejected, or found in review, in the same time.

    Raises:
        SettingsError: numbers that cannot be.
    """
    _check(checked, found, passed, caught, confidence)

    def interval(number: int, hits: int) -> tuple[float, float]:
        if passed is None:
            return exact_interval(hits, number, confidence)
        low, high = count_interval(number, hits, passed, confidence)
        return low / passed, high / passed

    low, high = interval(checked, found)
    count = None if passed is None else count_interval(checked, found, passed, confidence)
    rate = None
    if count is not None and caught is not None and passed is not None:
        likeliest = found / checked * passed
        rate = (_share(count[0], caught), _share(likeliest, caught), _share(count[1], caught))
    return Escapes(
        share=Rate(found, checked, low, high),
        confidence=confidence,
        passed=passed,
        count=count,
        escape_rate=rate,
        more_checks=_more_checks(checked, found, passed, interval),
    )


def count_interval(checked: int, found: int, passed: int, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Lowest and highest number of defective parts among ``passed``, of which ``found`` of ``checked`` drawn ones were.

    The exact interval of the hypergeometric distribution: checking everything leaves no doubt. Source: Katz,
    *Confidence intervals for the number showing a certain characteristic in a population when sampling is without
    replacement*, JASA 48 (1953).
    """
    tail = (1 - confidence) / 2
    least, most = found, passed - (checked - found)
    low = _first(least, most, lambda number: 1 - _at_most(found - 1, number, checked, passed) > tail)
    high = _first(least, most, lambda number: _at_most(found, number, checked, passed) <= tail)
    # The first number that is too many, unless even the most that can be is not.
    beyond = _at_most(found, most, checked, passed) <= tail
    return low, high - 1 if beyond else most


def count_reviews(lines: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, int]:
    """``checked``, ``found``, ``passed`` and ``caught`` from lines with ``verdict`` and, where somebody looked,
    ``defective``.

    Args:
        lines: each with its place for messages, as ``stored.read_lines`` gives them.

    Raises:
        DataError: a line is something else.
    """
    counts = {"checked": 0, "found": 0, "passed": 0, "caught": 0}
    for place, line in lines:
        defective = line.get("defective")
        if "verdict" not in line or not (defective is None or isinstance(defective, bool)):
            raise DataError(
                f'{place}: expected {{"verdict": "PASS", "defective": false}}, "defective" being left out where nobody '
                "checked the part"
            )
        if line["verdict"] == "PASS":
            counts["passed"] += 1
            counts["checked"] += defective is not None
            counts["found"] += defective is True
        else:
            counts["caught"] += defective is True
    return counts


def _more_checks(
    checked: int, found: int, passed: int | None, interval: Callable[[int, int], tuple[float, float]]
) -> int | None:
    def width(number: int) -> float:
        low, high = interval(number, min(number, math.ceil(found * number / checked)))
        return high - low

    wanted = width(checked) / 2
    low, high = checked, checked * 2
    while width(min(high, passed or high)) > wanted:
        if passed is not None and high >= passed:
            return None
        low, high = high, high * 2
    high = min(high, passed or high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if width(middle) > wanted else (low, middle)
    return high - checked


def _share(escaped: float, caught: int) -> float:
    return escaped / (escaped + caught) if escaped + caught else 0.0


def _first(low: int, high: int, is_reached: Callable[[int], bool]) -> int:
    """The smallest number in low..high from which on ``is_reached`` holds; ``high`` where it never does."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_reached(middle) else (middle + 1, high)
    return low


def _at_most(hits: int, defective: int, drawn: int, total: int) -> float:
    """P(X <= hits) of defective ones among ``drawn`` of ``total`` without replacement."""
    first = max(0, drawn - (total - defective))
    logs = [
        _log_choose(defective, number) + _log_choose(total - defective, drawn - number) - _log_choose(total, drawn)
        for number in range(first, min(hits, defective, drawn) + 1)
    ]
    return min(1.0, math.fsum(math.exp(value) for value in logs))


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)


def _check(checked: int, found: int, passed: int | None, caught: int | None, confidence: float) -> None:
    if checked < 1 or not 0 <= found <= checked:
        raise SettingsError(f"of at least 1 checked part, 0 to all are found defective; got {found} of {checked}")
    if passed is not None and passed < checked:
        raise SettingsError(f"the {checked} checked parts are among the passed ones; got {passed} passed")
    if caught is not None and (caught < 0 or passed is None):
        raise SettingsError(f"caught parts are counted from 0, beside the number of passed parts; got {caught}")
    if not 0 < confidence < 1:
        raise SettingsError(f"a confidence lies between 0 and 1, such as 0.95; got {confidence:g}")
