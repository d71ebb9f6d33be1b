"""What the watch over a camera says."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DriftState(enum.IntEnum):
    """What is said; the numbers are the contract's."""

    NOT_WATCHED = 0
    STEADY = 1
    LEARNING = 2
    CAMERA_CHANGED = 3
    PARTS_WORSE = 4
    UNCLEAR = 5

    @property
    def is_alarm(self) -> bool:
        return self >= DriftState.CAMERA_CHANGED


@dataclass(frozen=True, slots=True)
class Drift:
    """The state after a frame. ``signal`` has the most evidence; ``strength`` is its share, 0..1, of what an alarm
    takes (on the log scale), and ``shift`` how far its recent values are off, in spreads of the reference.
    """

    state: DriftState
    signal: str = ""
    strength: float = 0.0
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """One signal's alarm. Frames are counted from 1, times are the caller's clock.

    ``against_calibration``: else against the camera's own first frames. ``since_frame`` and ``since``: when the change
    most probably began. ``shift``: how far the values since then are off, in spreads of the reference. ``evidence``:
    how improbable this is, as log10 of the odds.
    """

    signal: str
    against_calibration: bool
    frame: int
    time: float
    since_frame: int
    since: float
    shift: float
    evidence: float


@dataclass(frozen=True, slots=True)
class Level:
    """Where one signal stands: ``shift`` of the recent frames from the calibration in spreads, ``strength`` 0..1."""

    signal: str
    shift: float
    strength: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about one camera. ``alarms`` are those that stand, the one that says most first."""

    drift: Drift
    frames: int
    alarms: tuple[Alarm, ...]
    levels: tuple[Level, ...]
    alarms_so_far: dict[str, int]
