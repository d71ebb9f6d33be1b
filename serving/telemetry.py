"""What happened to every frame: one log line each, accounts that add up, timings, and a span where traces are on."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protos.inspection.v1 import inspection_pb2 as pb
from serving.accounting import Accounts, Counts
from serving.live import CameraStatus, FrameCounts, ServedModel, ServerStatus
from serving.logs import Event
from serving.messages import FrameRequest, ModelInfo
from serving.pipeline import FrameResult
from serving.recent import Durations, Histograms, recent
from serving.status import message_of, status_of
from vision.errors import DefectLensError

if TYPE_CHECKING:  # an optional extra
    from serving.tracing import Tracing

CANCELLED = "CANCELLED"
"""Stands among the error codes for callers that left before their answer."""
_LONGEST_NAME = 200
_log = logging.getLogger("serving.frames")


@dataclass(slots=True)
class FrameRecord:
    """What one frame came to; filled in by whoever answers it."""

    request_id: str
    request: FrameRequest | None = None
    result: FrameResult | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything counted since the start, at one moment: what it says always adds up."""

    total: Counts
    cameras: dict[str, Counts]
    codes: dict[str, int]
    histograms: Histograms
    uptime_s: float
    problems: int


class Telemetry:
    """Counts and timings since the start. Frames are recorded on one event loop; any thread may look.

    Args:
        clock: monotonic, in seconds.
        queue_depth: frames that wait for inference now.
        tracing: where the spans of frames go, if anywhere.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        queue_depth: Callable[[], int] = lambda: 0,
        tracing: Tracing | None = None,
    ) -> None:
        self.errors: Counter[str] = Counter()
        """By the name of the exception's class, as the log has them."""
        self.queue_depth = queue_depth
        self.tracing = tracing
        self._clock = clock
        self._started = clock()
        self._accounts = Accounts()
        self._codes: Counter[str] = Counter()
        self._durations = Durations()
        self._lock = threading.Lock()

    @property
    def received(self) -> int:
        return self._accounts.total.received

    @property
    def in_flight(self) -> int:
        return self._accounts.total.in_flight

    @property
    def judged(self) -> int:
        return self._accounts.total.verdicts

    @property
    def not_judged(self) -> int:
        return self._accounts.total.no_verdicts

    @property
    def verdicts(self) -> Counter[str]:
        return self._accounts.total.by_verdict

    @property
    def problems(self) -> list[str]:
        """Why the counts do not add up, one line each; empty if all is well."""
        found = self._accounts.problems()
        for what, counted in (("exceptions", self.errors), ("error codes", self._codes)):
            if sum(counted.values()) != self._accounts.total.errors:
                found.append(f"{sum(counted.values())} {what} for {self._accounts.total.errors} errors")
        return found

    @property
    def adds_up(self) -> bool:
        return not self.problems

    @contextmanager
    def frame(self, request_id: str, camera_id: str = "", parent: Any = None) -> Iterator[FrameRecord]:
        """Count one frame from its receipt to its answer, its error or the loss of its caller.

        Args:
            parent: the caller's trace context, from ``Tracing.parent_of``.
        """
        record = FrameRecord(request_id)
        span = None if self.tracing is None else self.tracing.frame(request_id, camera_id, parent)
        with self._lock:
            entry = self._accounts.receive(camera_id, self._clock())
        try:
            yield record
            if record.result is None:
                raise RuntimeError(f"frame {request_id} left without a result and without an error")
        except BaseException as error:
            code = _code_of(error)
            with self._lock:
                entry.failed()
                self.errors[_name_of(error)] += 1
                self._codes[code] += 1
            self._log_error(record, error)
            if span is not None:
                span.fail(code, message_of(error))
            raise
        result = record.result
        verdict = result.inspection.verdict.name
        with self._lock:
            entry.judged(verdict)
            self._durations.add(self._clock(), result.timings, result.batch_size)
        if _log.isEnabledFor(logging.DEBUG):
            figures = {"inference_ms": result.timings.inference_ms, "total_ms": result.timings.total_ms}
            _log.debug(Event("answered", **_names(record), verdict=verdict, batch_size=result.batch_size, **figures))
        if span is not None:
            span.finish(verdict, result.batch_size, result.timings)

    def snapshot(self) -> Snapshot:
        """For metrics."""
        with self._lock:
            cameras = {name: counts.copy() for name, counts in self._accounts.cameras.items()}
            total, codes, histograms = self._accounts.total.copy(), dict(self._codes), self._durations.histograms()
            problems = len(self.problems)
        return Snapshot(total, cameras, codes, histograms, self._clock() - self._started, problems)

    def status(self, served: Sequence[ModelInfo]) -> ServerStatus:
        """The live picture; takes some ms, so not for the event loop."""
        snapshot = self.snapshot()
        with self._lock:
            rows = self._durations.rows()
        now = self._clock()
        return ServerStatus(
            uptime_s=snapshot.uptime_s,
            served=tuple(ServedModel(info.model, info.provider, info.provider_fallback) for info in served),
            total=_frame_counts(snapshot.total),
            cameras=tuple(
                CameraStatus(name, _frame_counts(counts), now - counts.last_received)
                for name, counts in sorted(snapshot.cameras.items())
            ),
            errors=snapshot.codes,
            recent=recent(rows, now, snapshot.uptime_s),
            queue_depth=self.queue_depth(),
            resident_memory_bytes=resident_memory_bytes(),
        )

    def figures(self) -> dict[str, Any]:
        """The counts, for a JSON line."""
        return {
            "received": self.received,
            "judged": self.judged,
            "not_judged": self.not_judged,
            "errors": dict(self.errors),
            "in_flight": self.in_flight,
            "verdicts": dict(self.verdicts),
        }

    def summary(self) -> dict[str, int]:
        """For one line of the log."""
        counts = {"received": self.received, "judged": self.judged, "not_judged": self.not_judged}
        counts |= {"errors": self._accounts.total.errors, "in_flight": self.in_flight}
        return counts | dict(sorted((self.verdicts + self.errors).items()))

    def _log_error(self, record: FrameRecord, error: BaseException) -> None:
        if isinstance(error, DefectLensError | asyncio.CancelledError):
            _log.warning(Event("error", **_names(record), error=_name_of(error), message=message_of(error)))
        else:
            _log.error(Event("bug", **_names(record)), exc_info=error)


def resident_memory_bytes() -> int:
    """Of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as stream:  # noqa: PTH123, a file of the kernel's
            pages = int(stream.read().split()[1])
    except OSError:
        return 0
    return pages * _page_size()


def _page_size() -> int:
    import resource  # not on every system, but wherever there is /proc

    return resource.getpagesize()


def _frame_counts(counts: Counts) -> FrameCounts:
    return FrameCounts(
        received=counts.received,
        verdicts=counts.verdicts,
        no_verdicts=counts.no_verdicts,
        errors=counts.errors,
        in_flight=counts.in_flight,
        by_verdict=dict(counts.by_verdict),
    )


def _name_of(error: BaseException) -> str:
    return "Cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__


def _code_of(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return CANCELLED
    return pb.ErrorCode.Name(status_of(error).code if isinstance(error, DefectLensError) else pb.INTERNAL)


def _names(record: FrameRecord) -> dict[str, str]:
    """For the log; cut, since callers may name their frames with megabytes."""
    names = {"request_id": record.request_id}
    if record.request is not None:
        given = {"camera_id": record.request.camera_id, "part_id": record.request.part_id, "lot": record.request.lot}
        names |= {key: value for key, value in given.items() if value}
    return {
        key: value if len(value) <= _LONGEST_NAME else value[:_LONGEST_NAME] + "..." for key, value in names.items()
    }
