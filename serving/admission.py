"""Who has to give way when not all can be served in time, and what is said to them: pure functions of the line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from serving.waiting import Outlook, Ticket
from vision.errors import DeadlineError, OverloadedError

# How many times as much as another a camera may have before its frames give way.
_UNFAIR = 2.0
# And so many frames more: of a handful chance decides how many each has.
_FEW = 3.0

SUPERSEDED = (
    "a newer frame of this camera came in before this one's inference began, and the stream asked that the newest "
    "frame wins; nothing has to be done"
)


def heaviest(tickets: Sequence[Ticket], newcomer: Ticket, taken: Counter[str]) -> Ticket | None:
    """Who gives way to a frame for which there is no room: the least urgent frame of the camera that has had most.

    Only a camera that has had more than twice as much of late as that of the newcomer has to: among equals chance would
    make one give way to the other all the time, and what was let in should stay in. None if there is no such camera.

    Args:
        taken: frames of each camera that give way already.
    """
    least = {ticket.camera.name: ticket for ticket in tickets}

    def had(ticket: Ticket) -> float:
        return ticket.camera.usage.value - taken[ticket.camera.name]

    most = max(least.values(), key=had, default=None)
    return most if most is not None and had(most) > _UNFAIR * had(newcomer) + _FEW else None


def make_time(line: Iterable[Ticket], newcomer: Ticket, outlook: Outlook, *, strict: bool) -> list[Ticket]:
    """Whom to give up so that a newcomer, and those that it gets in front of, are in time.

    Args:
        line: those that wait, without the newcomer.
        strict: hold the newcomer to the stricter measure of ``Outlook.late``.

    Raises:
        OverloadedError: the newcomer itself is the one who has to give way.
    """
    kept = sorted([*line, newcomer], key=lambda ticket: ticket.urgency)
    taken: Counter[str] = Counter()
    victims: list[Ticket] = []
    while (late := outlook.late(kept, newcomer if strict else None)) is not None:
        index, end = late
        victim = heaviest(_bound(kept[: index + 1]), newcomer, taken)
        if victim is None:
            raise OverloadedError(
                f"{len(kept) - 1} frames wait already, and not all deadlines can be met with one more; try again "
                "later, allow more time or send fewer frames",
                max(end - (kept[index].deadline or end), outlook.curve.seconds[1]),
            )
        kept.remove(victim)
        taken[victim.camera.name] += 1
        victims.append(victim)
    return victims


def too_late(line: Iterable[Ticket], outlook: Outlook) -> list[tuple[Ticket, DeadlineError]]:
    """Those in line whose deadline cannot be met any more, and why."""
    kept: list[Ticket] = []
    gone: list[tuple[Ticket, DeadlineError]] = []
    for ticket in line:
        if ticket.deadline is None:
            kept.append(ticket)
            continue
        needed_s = 0.0 if ticket.probe else outlook.soonest(ticket) - outlook.now
        if outlook.now + needed_s >= ticket.deadline:
            gone.append((ticket, hopeless(ticket.deadline, outlook.now, needed_s)))
        else:
            kept.append(ticket)
    taken: Counter[str] = Counter()
    while (late := outlook.late(kept)) is not None:
        victim = heaviest(_bound(kept[: late[0] + 1]), kept[late[0]], taken) or kept[late[0]]
        gone.append((victim, behind(victim, outlook.now)))
        kept.remove(victim)
        taken[victim.camera.name] += 1
    return gone


def _bound(tickets: Sequence[Ticket]) -> list[Ticket]:
    return [ticket for ticket in tickets if ticket.deadline is not None]


def gave_way(ticket: Ticket) -> str:
    return (
        f"the server has no room for all, and camera {ticket.camera.name!r} has had the most of late, so one of "
        "another camera took this one's place; try again later or send fewer frames"
    )


def hopeless(deadline: float, now: float, needed_s: float) -> DeadlineError:
    """The error of a frame that could not even make it if it came next."""
    left_ms = (deadline - now) * 1000.0
    if left_ms <= 0:
        return DeadlineError(
            f"the deadline passed {-left_ms:.0f} ms before inference; allow more time or send fewer frames"
        )
    return DeadlineError(
        f"the deadline is {left_ms:.1f} ms away, and inference and answer take {needed_s * 1000.0:.1f} ms from now; "
        "nothing was spent on the frame; allow more time or send fewer frames"
    )


def behind(ticket: Ticket, now: float) -> DeadlineError:
    """The error of a frame that was let in but has too much in front of it by now."""
    left_ms = ((ticket.deadline or now) - now) * 1000.0
    return DeadlineError(
        f"the deadline is {left_ms:.1f} ms away, and the work in front takes longer than expected; nothing was spent "
        "on the frame; allow more time or send fewer frames"
    )
