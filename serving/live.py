"""How a server is doing, as its clients see it."""

from __future__ import annotations

from dataclasses import dataclass

from serving.messages import ModelIdentity
from vision.drift.states import Drift, Level


@dataclass(frozen=True, slots=True)
class FrameCounts:
    """Since the start. Always: received = verdicts + no_verdicts + errors + in_flight."""

    received: int
    verdicts: int
    no_verdicts: int
    errors: int
    in_flight: int
    by_verdict: dict[str, int]


@dataclass(frozen=True, slots=True)
class DriftAlarm:
    """One signal's alarm; see ``vision.drift.monitor.Alarm``. ``words``: what changed, ``advice``: what to do."""

    signal: str
    against_calibration: bool
    frame: int
    since_frame: int
    raised_s_ago: float
    since_s_ago: float
    shift: float
    log10_odds: float
    words: str
    advice: str


@dataclass(frozen=True, slots=True)
class CameraDrift:
    """What the watch of one model says about a camera; ``alarms`` are those that stand, what explains most first."""

    model: ModelIdentity
    now: Drift
    frames: int
    alarms: tuple[DriftAlarm, ...]
    levels: tuple[Level, ...]
    alarms_so_far: dict[str, int]


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """One camera; ``last_frame_age_s`` is the time since its last frame came in. ``drift``: one a model."""

    camera_id: str
    counts: FrameCounts
    last_frame_age_s: float
    drift: tuple[CameraDrift, ...] = ()


@dataclass(frozen=True, slots=True)
class StationStatus:
    """One station: ``serving`` is False while its frames are refused, ``reason`` says why or how the last check went.

    ``checked_at``: when, in seconds since 1970 (UTC); None before the first check, and ``passed`` is then False.
    """

    station: str
    serving: bool
    reason: str
    checked_at: float | None = None
    passed: bool = False
    overridden_by: str = ""
    cameras: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AuditStatus:
    """How the recording of answers does. Always: offered = recorded + failed + dropped + waiting.

    ``failed``: could not be written, and whoever waited was told. ``dropped``: lost. ``problem``: why writing fails
    now; empty if it does not.
    """

    mode: str
    offered: int
    recorded: int
    failed: int
    dropped: int
    waiting: int
    problem: str


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Quantiles over the recent frames, in ms."""

    stage: str
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class RecentFrames:
    """The answered frames of the last ``seconds``; ``mean_batch_size`` counts frames in an inference."""

    seconds: float
    frames: int
    mean_batch_size: float
    stages: tuple[StageTimes, ...]

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model and what it really runs on."""

    model: ModelIdentity
    provider: str
    provider_fallback: bool


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The live picture. ``recent`` is None if no frame was answered lately; ``errors`` is keyed by error code;
    ``audit`` is None where answers are not recorded.
    """

    uptime_s: float
    served: tuple[ServedModel, ...]
    total: FrameCounts
    cameras: tuple[CameraStatus, ...]
    errors: dict[str, int]
    recent: RecentFrames | None
    queue_depth: int
    resident_memory_bytes: int
    stations: tuple[StationStatus, ...] = ()
    audit: AuditStatus | None = None
