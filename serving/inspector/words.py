"""Numbers, times and verdicts as people read them on a page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from serving.audit import PersonVerdict
from vision.calibration.intervals import Rate
from vision.types import Verdict

_VERDICTS = {
    Verdict.PASS: ("pass", "Pass"),
    Verdict.REJECT: ("reject", "Reject"),
    Verdict.REVIEW: ("review", "Review"),
    Verdict.NO_VERDICT: ("none", "No verdict"),
    Verdict.UNSPECIFIED: ("none", "No verdict"),
}
_SAID = {
    PersonVerdict.GOOD: ("pass", "good"),
    PersonVerdict.DEFECT: ("reject", "defective"),
    PersonVerdict.UNSURE: ("unsure", "unsure"),
    PersonVerdict.WITHDRAWN: ("none", "taken back"),
}
_DISAGREEMENTS = {"": "agrees", "overkill": "overkill", "escape": "escape", "class": "other class"}


def verdict_key(verdict: Verdict) -> str:
    """The name of a verdict's shape and colour."""
    return _VERDICTS[verdict][0]


def verdict_word(verdict: Verdict) -> str:
    return _VERDICTS[verdict][1]


def said_key(verdict: PersonVerdict) -> str:
    return _SAID[verdict][0]


def said_word(verdict: PersonVerdict) -> str:
    return _SAID[verdict][1]


def disagreement_word(value: str) -> str:
    return _DISAGREEMENTS[value]


def when(time_ns: int) -> str:
    """Local time to the second; the day too where it is not today."""
    moment = datetime.fromtimestamp(time_ns / 1e9).astimezone()
    today = datetime.now().astimezone().date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%Y-%m-%d %H:%M:%S")


def full_time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9).astimezone().isoformat(sep=" ", timespec="milliseconds")


def day_time(time_ns: int) -> str:
    """The minute, for reports."""
    return datetime.fromtimestamp(time_ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M")


def input_time(time_ns: int | None) -> str:
    """As a ``datetime-local`` field takes it."""
    if time_ns is None:
        return ""
    return datetime.fromtimestamp(time_ns / 1e9).astimezone().strftime("%Y-%m-%dT%H:%M")


def read_time(text: str) -> int | None:
    """The inverse of ``input_time``; None for an empty field or what is no time."""
    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp()) * 1_000_000_000 if text else None
    except (ValueError, OverflowError):
        return None


def midnight_ns() -> int:
    """When this day began here."""
    return int(datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0).timestamp()) * 10**9


def age(time_ns: int) -> str:
    seconds = max(0.0, time.time() - time_ns / 1e9)
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"


def number(value: float | None) -> str:
    """Four digits; a dash for what is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"


def percent(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    shown = 100 * value
    return f"{shown:.0f} %" if shown in (0, 100) or shown >= 10 else f"{shown:.2g} %"


def rate(value: Rate) -> str:
    """The share and how sure it is, in words."""
    if not value.of:
        return "nothing to count yet"
    return f"{percent(value.value)} ({value.hits} of {value.of}; {percent(value.low)} to {percent(value.high)})"


def pairs(values: list[str]) -> list[tuple[str, str]]:
    """For a list to choose from: value and words, here the same."""
    return [(value, value) for value in values]


FILTERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        verdict_key,
        verdict_word,
        said_key,
        said_word,
        disagreement_word,
        when,
        full_time,
        day_time,
        input_time,
        age,
        number,
        percent,
        rate,
        pairs,
    )
}
