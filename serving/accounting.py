"""Every frame that comes in comes out exactly once: counts in total and per camera that must add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from vision.types import Verdict

OTHER = "other"
"""Stands for all cameras that have no place of their own."""
# Names come from callers: without a bound, one of them could fill memory and every metrics store behind us.
MAX_CAMERAS = 256
LONGEST_NAME = 100
"""Of a camera that has a place of its own, in characters."""
_NO_VERDICT = Verdict.NO_VERDICT.name


@dataclass(slots=True)
class Counts:
    """What became of frames. Always: received = verdicts + no_verdicts + errors + in_flight."""

    received: int = 0
    errors: int = 0
    in_flight: int = 0
    by_verdict: Counter[str] = field(default_factory=Counter)
    last_received: float = 0.0
    """On the clock of whoever counts, in seconds."""

    @property
    def verdicts(self) -> int:
        return sum(self.by_verdict.values()) - self.no_verdicts

    @property
    def no_verdicts(self) -> int:
        """Frames that went through the model and could not be judged, such as a score that is no number."""
        return self.by_verdict[_NO_VERDICT]

    @property
    def missing(self) -> int:
        """Frames that nobody can say anything about; anything but 0 is a bug."""
        return self.received - self.verdicts - self.no_verdicts - self.errors - self.in_flight

    def copy(self) -> Counts:
        return Counts(self.received, self.errors, self.in_flight, self.by_verdict.copy(), self.last_received)


class Accounts:
    """The total and the cameras, counted apart, so that each checks the other.

    The first ``MAX_CAMERAS`` cameras are known by name; those that come later, and names of more than 100 characters,
    share the account ``OTHER``.
    """

    def __init__(self) -> None:
        self.total = Counts()
        self.cameras: dict[str, Counts] = {}

    def receive(self, camera_id: str, now: float) -> Entry:
        """Take a frame in; whoever answers it closes the entry."""
        entry = Entry(self.total, self._camera(camera_id))
        for counts in entry:
            counts.received += 1
            counts.in_flight += 1
            counts.last_received = now
        return entry

    def problems(self) -> list[str]:
        """Why the accounts do not add up, one line each; empty if they do."""
        found = []
        for name, counts in (("all cameras", self.total), *self.cameras.items()):
            if counts.missing:
                found.append(f"{name}: {counts.missing} of {counts.received} frames are unaccounted for")
            if counts.in_flight < 0:
                found.append(f"{name}: {-counts.in_flight} frames were answered twice")
        for what in ("received", "verdicts", "no_verdicts", "errors", "in_flight"):
            cameras = sum(getattr(counts, what) for counts in self.cameras.values())
            if cameras != getattr(self.total, what):
                found.append(f"{what}: {getattr(self.total, what)} in total, {cameras} over the cameras")
        return found

    def _camera(self, camera_id: str) -> Counts:
        counts = self.cameras.get(camera_id)
        if counts is None:
            if len(camera_id) > LONGEST_NAME or len(self.cameras) >= MAX_CAMERAS:
                camera_id = OTHER
            counts = self.cameras.setdefault(camera_id, Counts())
        return counts


@dataclass(frozen=True, slots=True)
class Entry:
    """One frame in two accounts."""

    total: Counts
    camera: Counts

    def __iter__(self) -> Iterator[Counts]:
        return iter((self.total, self.camera))

    def judged(self, verdict: str) -> None:
        """The frame has left with a verdict, NO_VERDICT among them."""
        for counts in self:
            counts.by_verdict[verdict] += 1
            counts.in_flight -= 1

    def failed(self) -> None:
        """The frame has left with an error, or its caller has gone."""
        for counts in self:
            counts.errors += 1
            counts.in_flight -= 1
