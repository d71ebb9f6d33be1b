"""Which frames ride in the next batch, and whether it pays to wait for more: pure functions of what is known now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from serving.waiting import Outlook, State, Ticket

# A batch is not cut short for a deadline if that makes a frame dearer by this factor while others wait.
_DEAR = 1.1


@dataclass(frozen=True, slots=True)
class Plan:
    """Either a batch that sets off now, or a time on the scheduler's clock to think again.

    ``hopeless``: frames that are given up because more others are in time without them.
    """

    batch: list[Ticket] = field(default_factory=list)
    hopeless: list[Ticket] = field(default_factory=list)
    wake_at: float = inf


def board(ready: list[Ticket], line: Iterable[Ticket], outlook: Outlook, max_wait_s: float) -> Plan:
    """Plan the next batch of an idle engine.

    Args:
        ready: prepared frames, the most urgent first; at least one.
        line: all frames that wait, prepared or not.
        max_wait_s: the longest wait for frames that are on their way.
    """
    curve = outlook.curve
    most = len(curve.seconds) - 1
    here = min(most, len(ready))
    coming = sum(1 for ticket in line if ticket.state in (State.PLACED, State.PREPARING))
    if here < curve.choose(whole := min(most, len(ready) + coming)):
        wake_at = _wait_until(ready, here, whole, outlook, max_wait_s)
        if wake_at > outlook.now:
            return Plan(wake_at=wake_at)
    size = curve.choose(here)
    return _fit(ready, size, len(ready) + coming > size, outlook)


def _wait_until(ready: list[Ticket], here: int, whole: int, outlook: Outlook, max_wait_s: float) -> float:
    """Never longer than sharing an inference saves, nor than the deadlines of those that are here allow."""
    seconds = outlook.curve.seconds
    saved_s = seconds[here] + seconds[whole - here] - seconds[whole]
    # From a clock that was set back the frames seem to have got ready in the future.
    since = min(outlook.now, *(ticket.ready_at for ticket in ready))
    until = since + min(max_wait_s, saved_s)
    slack = 1.0 + outlook.curve.margin
    for ticket in ready[:here]:
        if ticket.deadline is not None:
            until = min(until, ticket.deadline - (seconds[whole] + ticket.camera.finish.value) * slack)
    return until


def _fit(ready: list[Ticket], size: int, crowded: bool, outlook: Outlook) -> Plan:
    """Keep the batch so small that the deadlines in it are met; not where that costs time that others need.

    Then frames that would be late in a whole batch are given up, if there are others that would not.
    """
    curve, margin = outlook.curve, outlook.curve.margin / 2.0
    fit = next(n for n in range(size, 0, -1) if n == 1 or not _too_late(ready[:n], n, outlook, margin))
    if fit == size or not crowded or curve.drag(fit, size) < _DEAR:
        return Plan(ready[:fit])
    lost = _too_late(ready, size, outlook, 0.0)
    rest = [ticket for ticket in ready if ticket not in lost]
    return Plan(rest[:size], lost) if rest else Plan(ready[:fit])


def _too_late(tickets: Sequence[Ticket], size: int, outlook: Outlook, margin: float) -> list[Ticket]:
    """Those that a batch of ``size`` frames would answer too late, if it takes longer than expected by a margin."""
    end = outlook.now + outlook.curve.seconds[size] * (1.0 + margin)
    return [t for t in tickets if t.deadline is not None and not t.probe and end + t.camera.finish.value > t.deadline]
