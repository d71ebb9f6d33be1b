"""Follows the store for the line wall: one reader, however many people look."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from serving.audit import AnswerRow, Search, Span, Store, by_camera, head, latest_by_camera, search
from serving.inspector import words
from serving.live import ServerStatus
from vision.drift.states import DriftState
from vision.errors import DefectLensError
from vision.types import Verdict

_log = logging.getLogger(__name__)

_CHUNK = 500
_WINDOW_S = 60.0
# Answers of the last minute that are read when the wall is opened, for rate and latency.
_LATELY = 5000
_STATUS_S = 2.0
# Events that a browser has not taken yet; one that falls behind further gets the whole picture anew.
_BACKLOG = 100
_DRIFT = {
    DriftState.NOT_WATCHED: "not watched",
    DriftState.STEADY: "steady",
    DriftState.LEARNING: "learning",
    DriftState.CAMERA_CHANGED: "camera changed",
    DriftState.PARTS_WORSE: "parts got worse",
    DriftState.UNCLEAR: "something changed",
}
Event = dict[str, Any]
Listener = asyncio.Queue[Event | None]


@dataclass(slots=True)
class Camera:
    """What the wall shows of one camera. ``counts``: answers since midnight by verdict."""

    name: str
    counts: dict[Verdict, int] = field(default_factory=dict)
    latest: AnswerRow | None = None
    times_ns: deque[int] = field(default_factory=lambda: deque(maxlen=5000))
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=50))

    def take(self, row: AnswerRow) -> None:
        self.counts[row.verdict] = self.counts.get(row.verdict, 0) + 1
        self.latest = row
        self.time(row)

    def time(self, row: AnswerRow) -> None:
        """Count an answer for rate and latency alone."""
        self.times_ns.append(row.time_ns)
        if row.total_ms is not None:
            self.latencies_ms.append(row.total_ms)

    def shown(self, now_ns: int) -> Event:
        while self.times_ns and self.times_ns[0] < now_ns - _WINDOW_S * 1e9:
            self.times_ns.popleft()
        latencies = sorted(self.latencies_ms)
        counts = {words.verdict_key(one): 0 for one in Verdict}
        for verdict, count in self.counts.items():
            counts[words.verdict_key(verdict)] += count
        return {
            "camera": self.name,
            "counts": counts,
            "total": sum(self.counts.values()),
            "rate": len(self.times_ns) / _WINDOW_S,
            "p50_ms": latencies[len(latencies) // 2] if latencies else None,
            "latest": None if self.latest is None else _latest(self.latest),
        }


class Feed:
    """Reads new answers while somebody looks, and tells everybody about them.

    Args:
        status: asks the inspection server how it is; None where there is none to ask.
        poll_s: time between two looks at the store.
        clock_ns: ns since 1970, as the store's.
    """

    def __init__(
        self,
        store: Store,
        status: Callable[[], ServerStatus] | None = None,
        *,
        poll_s: float = 0.1,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store, self._status, self._poll_s, self._clock_ns = store, status, poll_s, clock_ns
        self._cameras: dict[str, Camera] = {}
        self._head = 0
        self._since_ns = 0
        self._server: Event = {}
        self._listeners: set[Listener] = set()
        self._starting = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def listen(self) -> Listener:
        """Somebody who looks; ``leave`` has to follow."""
        queue: Listener = asyncio.Queue(_BACKLOG)
        async with self._starting:
            if not self._tasks:
                await asyncio.to_thread(self._read_all)
                self._start()
        queue.put_nowait(self.picture())
        self._listeners.add(queue)
        return queue

    def leave(self, queue: Listener) -> None:
        """The last one who goes ends the reading."""
        self._listeners.discard(queue)
        if not self._listeners:
            self._stop()

    def next_of(self, queue: Listener) -> Awaitable[Event | None]:
        """The next event of a listener: the whole picture first, then what changes; None when the feed closes."""
        if queue.full():
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(self.picture())
        return queue.get()

    async def close(self) -> None:
        """End all listeners."""
        for queue in list(self._listeners):
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(None)
        tasks = self._stop()
        await asyncio.gather(*tasks, return_exceptions=True)

    def picture(self) -> Event:
        """Everything that the wall shows."""
        now = self._clock_ns()
        cameras = [camera.shown(now) for _, camera in sorted(self._cameras.items())]
        return {"whole": True, "head": self._head, "cameras": cameras, "results": [], "server": self._server}

    def _start(self) -> None:
        self._tasks = [asyncio.create_task(self._follow(), name="wall-feed")]
        if self._status is not None:
            self._tasks.append(asyncio.create_task(self._ask(), name="wall-status"))

    def _stop(self) -> list[asyncio.Task[None]]:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        return tasks

    async def _follow(self) -> None:
        failed = False
        while True:
            try:
                event = await asyncio.to_thread(self._read_new)
                failed = False
            except DefectLensError as error:
                if not failed:
                    _log.warning("the wall cannot read the store: %s", error)
                failed, event = True, None
            if event is not None:
                self._tell(event)
            await asyncio.sleep(self._poll_s)

    async def _ask(self) -> None:
        assert self._status is not None  # noqa: S101, for the type checker: the task starts only then
        while True:
            try:
                self._server = _server(await asyncio.to_thread(self._status))
            except DefectLensError as error:
                self._server = {"reachable": False, "problem": str(error), "cameras": {}, "stations": []}
            self._tell({"head": self._head, "cameras": [], "results": [], "server": self._server})
            await asyncio.sleep(_STATUS_S)

    def _tell(self, event: Event) -> None:
        for queue in self._listeners:
            # A full queue is told by its own reader, which then asks for the whole picture.
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(event)

    def _read_all(self) -> None:
        self._since_ns = words.midnight_ns()
        self._head = head(self._store)
        counts = by_camera(self._store, Span(since_ns=self._since_ns, up_to=self._head))
        self._cameras = {name: Camera(name, dict(tally.by_verdict)) for name, tally in counts.items()}
        for row in latest_by_camera(self._store).values():
            if row.seq <= self._head:
                self._cameras.setdefault(row.camera, Camera(row.camera)).latest = row
        lately = Search(since_ns=self._clock_ns() - int(_WINDOW_S * 1e9))
        for row in reversed(search(self._store, lately, before=self._head + 1, limit=_LATELY).answers):
            self._cameras.setdefault(row.camera, Camera(row.camera)).time(row)

    def _read_new(self) -> Event | None:
        """The answers since the last look; None where there are none."""
        if words.midnight_ns() != self._since_ns:
            self._read_all()
            return self.picture()
        page = search(self._store, Search(), after=self._head, limit=_CHUNK)
        if not page.answers:
            return None
        changed: dict[str, Camera] = {}
        for row in page.answers:
            camera = changed[row.camera] = self._cameras.setdefault(row.camera, Camera(row.camera))
            camera.take(row)
        self._head = page.answers[-1].seq
        now = self._clock_ns()
        results = [[row.seq, row.camera, words.verdict_key(row.verdict)] for row in page.answers]
        shown = [camera.shown(now) for camera in changed.values()]
        return {"head": self._head, "cameras": shown, "results": results, "server": None}


def _latest(row: AnswerRow) -> Event:
    return {
        "seq": row.seq,
        "part": row.part,
        "verdict": words.verdict_key(row.verdict),
        "word": words.verdict_word(row.verdict),
        "predicted": row.predicted,
        "score": words.number(row.anomaly_score),
        "time": words.when(row.time_ns),
        "has_frame": bool(row.frame),
    }


def _server(status: ServerStatus) -> Event:
    cameras: dict[str, Event] = {}
    for camera in status.cameras:
        states = [one.now.state for one in camera.drift]
        state = max(states, default=DriftState.NOT_WATCHED)
        alarms = [alarm for one in camera.drift for alarm in one.alarms]
        cameras[camera.camera_id] = {
            "state": _DRIFT[state],
            "alarm": state.is_alarm,
            "why": f"{alarms[0].words}; {alarms[0].advice}" if alarms else "",
        }
    stations = [{"station": one.station, "reason": one.reason} for one in status.stations if not one.serving]
    return {"reachable": True, "problem": "", "cameras": cameras, "stations": stations}
