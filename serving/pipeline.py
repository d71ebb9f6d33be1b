"""The way of a frame through the server, free of any transport: decode → batch → inference → judge → draw."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.batcher import Batcher
from serving.drift import DriftWatch
from serving.messages import FrameRequest, Timings
from serving.priority import workers
from serving.rehearsal import decoding
from serving.settings import ServerSettings
from serving.stages import (
    EncodedMaps,
    Finished,
    check_request,
    finish,
    is_light,
    is_light_to_finish,
    prepare,
)
from serving.waiting import Ride, Ticket
from vision.bundle import Manifest
from vision.drift.states import Drift
from vision.engine import Engine
from vision.errors import DeadlineError, ShuttingDownError
from vision.types import Inspection


@dataclass(frozen=True, slots=True)
class FrameResult:
    """What is said about one frame."""

    inspection: Inspection
    maps: EncodedMaps
    overlay_jpeg: bytes
    timings: Timings
    batch_size: int
    drift: Drift | None = None


@dataclass(slots=True)
class Newest:
    """The frame of a live camera that came in last: the next one for the same model supersedes it."""

    ticket: Ticket | None = None
    pipeline: Pipeline | None = None


class Pipeline:
    """One bundle on one engine, with a line of its own. Everything but waiting happens in threads.

    Args:
        clock: monotonic, in seconds; deadlines are on this clock.
        watch: over the cameras; None watches nothing.
    """

    def __init__(
        self,
        manifest: Manifest,
        engine: Engine,
        settings: ServerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        watch: DriftWatch | None = None,
    ) -> None:
        self.clock = clock
        self._watch = watch
        self._manifest = manifest
        self._settings = settings
        self._draining = False
        self._inside = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._pool = workers(settings.decode_threads, "frames")
        self._batcher = Batcher(
            engine.run,
            max_batch=settings.max_batch,
            max_wait_s=settings.max_wait_ms / 1000.0,
            max_queue=settings.max_queue,
            max_bytes=settings.max_queue_bytes,
            pool=self._pool,
            threads=settings.decode_threads,
            clock=clock,
        )

    async def start(self) -> None:
        """Measure what an inference takes; to be awaited before the first frame."""
        size = self._manifest.input
        # Making the frame takes some 20 ms, which other models' frames would wait for on the event loop.
        work = await asyncio.get_running_loop().run_in_executor(self._pool, decoding, self._manifest)
        await self._batcher.warm_up(size.height, size.width, work)

    @property
    def queue_depth(self) -> int:
        """Frames that wait for inference now."""
        return self._batcher.depth

    def refuse_new(self) -> None:
        """From now on every new frame meets a ``ShuttingDownError``; those inside are still answered."""
        self._draining = True

    async def close(self) -> None:
        """Finish what is inside and end all threads."""
        self.refuse_new()
        await self._idle.wait()
        await self._batcher.drain()
        self._pool.shutdown()

    async def inspect(
        self,
        request: FrameRequest,
        *,
        camera: str = "",
        deadline: float | None = None,
        accepted: bool = False,
        newest: Newest | None = None,
        watched: bool = True,
    ) -> FrameResult:
        """Inspect one frame.

        Args:
            camera: whom the frame counts for where cameras compete; empty takes the request's.
            deadline: on the pipeline's clock; ``request.timeout_ms`` counts too.
            accepted: the frame has been taken already, by a stream that stops taking frames when it must. So it waits
                for a place while the server is full, and it is answered even while the server shuts down.
            newest: the frame takes the place of the one before it that has not started its inference.
            watched: the frame counts for the watch over its camera.

        Raises:
            InputError: the request or its image cannot be used.
            DeadlineError, OverloadedError, ShuttingDownError, SupersededError: as their names say.
        """
        start = self.clock()
        if request.timeout_ms:
            own = start + request.timeout_ms / 1000.0
            deadline = own if deadline is None else min(own, deadline)
        if self._draining and not accepted:
            raise ShuttingDownError("the server is shutting down; send the frame to another server or try again later")
        check_request(request, self._manifest)
        watch = self._watch if watched else None
        fast, look = self._settings.fast_decode, None if watch is None else watch.look
        ticket = self._batcher.admit(
            lambda: prepare(request, self._manifest, self._settings.max_pixels, fast_decode=fast, look=look),
            camera=camera or request.camera_id,
            deadline=deadline,
            size=0 if request.image is None else len(request.image.data),
            may_wait=accepted,
            light=watch is None and is_light(request),
            instead_of=newest.ticket if newest is not None and newest.pipeline is self else None,
        )
        if newest is not None:
            newest.ticket, newest.pipeline = ticket, self
        self._inside += 1
        self._idle.clear()
        try:
            ride = await ticket.ride
            finished, finish_wait_s, finish_s = await self._finish(ride, request, watch, deadline)
            self._batcher.release(ticket, finished=True)
        finally:
            self._batcher.release(ticket)
            if newest is not None and newest.ticket is ticket:
                newest.ticket = newest.pipeline = None  # it holds pixels
            self._inside -= 1
            if not self._inside:
                self._idle.set()
        end = self.clock()
        if deadline is not None and end > deadline:
            raise _late(end - deadline)
        timings = Timings(
            queue_ms=ride.queue_ms + finish_wait_s * 1000.0,
            decode_ms=ride.prepared.decode_ms,
            preprocess_ms=ride.prepared.preprocess_ms,
            inference_ms=ride.inference_ms,
            postprocess_ms=finish_s * 1000.0,
            total_ms=(end - start) * 1000.0,
        )
        return FrameResult(
            finished.inspection, finished.maps, finished.overlay_jpeg, timings, ride.batch_size, finished.drift
        )

    async def _finish(
        self, ride: Ride, request: FrameRequest, watch: DriftWatch | None, deadline: float | None
    ) -> tuple[Finished, float, float]:
        """The judged frame, the seconds until its judgement began and the seconds that it took."""
        asked, manifest, limit = self.clock(), self._manifest, self._settings.max_map_bytes

        def timed() -> tuple[Finished, float, float]:
            begun = self.clock()
            if deadline is not None and begun >= deadline:
                raise _late(begun - deadline)
            finished = finish(ride.outputs, ride.prepared, request, manifest, limit, watch)
            return finished, begun - asked, self.clock() - begun

        if watch is None and is_light_to_finish(ride.outputs, ride.prepared, request.outputs, manifest):
            return timed()
        return await asyncio.get_running_loop().run_in_executor(self._pool, timed)


def _late(seconds: float) -> DeadlineError:
    return DeadlineError(f"the deadline passed {seconds * 1000.0:.0f} ms ago; allow more time or send fewer frames")
