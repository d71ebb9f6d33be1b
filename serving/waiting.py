"""Who waits for an inference, in which order, and when each would be answered."""

from __future__ import annotations

import asyncio
import enum
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from serving.costs import Curve, Duration, Usage
from serving.stages import Prepared
from vision.types import ModelOutputs

# A frame without a deadline, or with a distant one (clients put 30 s on every call), is as urgent as one with this
# budget, in seconds: it is never starved by frames that are in a greater hurry.
PATIENCE_S = 1.0
# And later by this for each frame of its camera in line, so that a camera that sends many takes turns with the others.
TURN_S = 0.1
# Cameras whose durations are remembered while nothing of theirs waits.
_REMEMBERED = 1024


class State(enum.Enum):
    """Where a frame stands; the first four wait in line."""

    OUTSIDE = enum.auto()  # a stream's frame while the server is full
    PLACED = enum.auto()  # waits for a thread that decodes it
    PREPARING = enum.auto()
    READY = enum.auto()
    RUNNING = enum.auto()  # in an inference or behind it
    GONE = enum.auto()  # holds no place


@dataclass(frozen=True, slots=True)
class Ride:
    """What a frame brings back: its own row of the outputs, the size of its batch, and how long it took, in ms."""

    prepared: Prepared
    outputs: ModelOutputs
    batch_size: int
    queue_ms: float
    inference_ms: float


class Camera:
    """What the frames of one camera take outside of the inference, and how many were let in of late.

    Cameras differ in size and in what they ask for.
    """

    __slots__ = ("finish", "name", "prepare", "usage")

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.prepare = Duration(clock)
        self.finish = Duration(clock)
        self.usage = Usage(clock)


@dataclass(eq=False, slots=True)
class Ticket:
    """One frame on its way; ``ride`` is its answer or the reason why there is none."""

    camera: Camera
    prepare: Callable[[], Prepared]
    arrived: float
    deadline: float | None
    urgency: tuple[float, int]
    size: int
    may_wait: bool
    light: bool
    ride: asyncio.Future[Ride]
    state: State = State.OUTSIDE
    probe: bool = False
    prepared: Prepared | None = None
    ready_at: float = 0.0
    prepare_s: float = 0.0
    rode_at: float = 0.0
    promised: float | None = None
    """When the answer was expected, as the frame was let in; None if it has no deadline."""

    @property
    def waits(self) -> bool:
        """Whether it stands in line: nothing of the inference has been spent on it."""
        return self.state not in (State.RUNNING, State.GONE)


@dataclass(slots=True)
class Line:
    """Tickets by urgency: the earliest deadline first."""

    clock: Callable[[], float]
    waiting: Counter[str] = field(default_factory=Counter)
    """Frames in line of each camera."""
    bound: int = 0
    """Frames in line that have a deadline."""
    _tickets: list[Ticket] = field(default_factory=list)
    _cameras: OrderedDict[str, Camera] = field(default_factory=OrderedDict)
    _number: int = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        """In order; the line may change meanwhile."""
        return iter(self._tickets[:])

    def camera(self, name: str) -> Camera:
        """The camera's durations; those unheard of for longest are forgotten."""
        camera = self._cameras.setdefault(name, Camera(name, self.clock))
        self._cameras.move_to_end(name)
        if len(self._cameras) > _REMEMBERED:
            self._cameras.popitem(last=False)
        return camera

    def urgency(self, camera: Camera, arrived: float, deadline: float | None) -> tuple[float, int]:
        """Where a new frame stands: by its deadline or an implied one; in the order of arrival where they are equal."""
        self._number += 1
        implied = arrived + PATIENCE_S + TURN_S * self.waiting[camera.name]
        return (implied if deadline is None else min(deadline, implied)), self._number

    def add(self, ticket: Ticket) -> None:
        insort(self._tickets, ticket, key=_urgency)
        self.waiting[ticket.camera.name] += 1
        self.bound += ticket.deadline is not None

    def remove(self, ticket: Ticket) -> None:
        del self._tickets[bisect_left(self._tickets, ticket.urgency, key=_urgency)]
        self.bound -= ticket.deadline is not None
        self.waiting[ticket.camera.name] -= 1
        if not self.waiting[ticket.camera.name]:
            del self.waiting[ticket.camera.name]

    def in_state(self, state: State) -> list[Ticket]:
        return [ticket for ticket in self._tickets if ticket.state is state]

    def first(self, state: State) -> Ticket | None:
        return next((ticket for ticket in self._tickets if ticket.state is state), None)


@dataclass(frozen=True, slots=True)
class Outlook:
    """When each frame in line would be answered, if the line is worked off in its order from now on.

    Args:
        now: on the scheduler's clock.
        engine_free: when the inference under way ends.
        threads: that prepare frames.
        overrun: by which share of the time promised things have turned out to take longer (``costs.Overrun``).
    """

    now: float
    engine_free: float
    curve: Curve
    threads: int
    overrun: float = 0.0

    def soonest(self, ticket: Ticket) -> float:
        """When a frame could be answered if it came next and rode alone."""
        return self.engine_free + self.curve.alone + ticket.camera.finish.value

    def answers(self, tickets: Sequence[Ticket], newcomer: Ticket | None = None) -> Iterator[tuple[Ticket, float]]:
        """Each frame and the time of its answer; of the newcomer, if others fill up the batch that it rides in."""
        preparing_s = 0.0
        for index, ticket in enumerate(tickets):
            infer_s = self.curve.clear(index + 1) if ticket is not newcomer else self.curve.clear_with_others(index)
            if len(tickets) == 1:
                infer_s = self.curve.alone
            inferred = self.engine_free + infer_s
            if ticket.state is not State.READY:
                preparing_s += ticket.camera.prepare.value
                # Side by side, but no frame faster than itself.
                ready = self.now + max(preparing_s / self.threads, ticket.camera.prepare.value)
                inferred = max(inferred, ready + self.curve.alone)
            yield ticket, inferred + ticket.camera.finish.value

    def late(self, tickets: Sequence[Ticket], newcomer: Ticket | None = None) -> tuple[int, float] | None:
        """The first frame that would come too late: its index, and the time of its answer. None if all are in time.

        A newcomer is held to a stricter measure than the others: what is let in should be in time even if things take
        a little longer than expected, and what was let in is given up only when there is little hope.
        """
        spread = self.curve.margin
        for index, (ticket, end) in enumerate(self.answers(tickets, newcomer)):
            if ticket is newcomer:
                ticket.promised = end
            spare = (end - self.now) * (max(spread, self.overrun) if ticket is newcomer else -spread)
            if ticket.deadline is not None and not ticket.probe and end + spare > ticket.deadline:
                return index, end
        return None


def _urgency(ticket: Ticket) -> tuple[float, int]:
    return ticket.urgency
