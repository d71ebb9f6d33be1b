"""The way of a frame through the server, free of any transport: decode → batch → inference → judge → draw."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from serving.batcher import Batcher, Ride
from serving.messages import FrameRequest, Timings
from serving.settings import ServerSettings
from serving.stages import EncodedMaps, Prepared, check_request, finish, prepare
from vision.bundle import Manifest
from vision.engine import Engine
from vision.errors import DeadlineError, OverloadedError, ShuttingDownError
from vision.types import Inspection

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FrameResult:
    """What is said about one frame."""

    inspection: Inspection
    maps: EncodedMaps
    overlay_jpeg: bytes
    timings: Timings
    batch_size: int


class Pipeline:
    """One bundle on one engine. Everything but waiting happens in threads, never on the event loop.

    Args:
        clock: monotonic, in seconds; deadlines are on this clock.
    """

    def __init__(
        self,
        manifest: Manifest,
        engine: Engine,
        settings: ServerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._manifest = manifest
        self._settings = settings
        self._places = asyncio.Semaphore(settings.max_queue)
        self._bytes_in_work = 0
        self._to_infer = 0  # frames that have a place and no outputs yet
        self._draining = False
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="frames")
        self._batcher = Batcher(
            engine.run,
            max_batch=settings.max_batch,
            max_wait_s=settings.max_wait_ms / 1000.0,
            max_queue=settings.max_queue,
            clock=clock,
            more_coming=lambda gathered: self._to_infer > gathered,
        )

    def start(self) -> None:
        """Start batching; needs a running event loop."""
        self._batcher.start()

    def refuse_new(self) -> None:
        """From now on every new frame meets a ``ShuttingDownError``; those inside are still answered."""
        self._draining = True

    async def close(self) -> None:
        """Finish what is inside and end all threads."""
        self.refuse_new()
        await self._batcher.drain()
        self._pool.shutdown()

    async def inspect(
        self, request: FrameRequest, *, deadline: float | None = None, accepted: bool = False
    ) -> FrameResult:
        """Inspect one frame.

        Args:
            deadline: on the pipeline's clock; ``request.timeout_ms`` counts too.
            accepted: the frame has been taken already, by a stream that stops taking frames when it must. So it waits
                for a place while the server is full, and it is answered even while the server shuts down.

        Raises:
            InputError: the request or its image cannot be used.
            DeadlineError, OverloadedError, ShuttingDownError: as their names say.
        """
        start = self.clock()
        if request.timeout_ms:
            own = start + request.timeout_ms / 1000.0
            deadline = own if deadline is None else min(own, deadline)
        if self._draining and not accepted:
            raise ShuttingDownError("the server is shutting down; send the frame to another server or try again later")
        check_request(request, self._manifest)
        size = 0 if request.image is None else len(request.image.data)
        async with self._place(size, deadline, wait=accepted):
            placed = self.clock()
            prepared, prepare_wait_s, ride = await self._infer(request, deadline)
            limit = self._settings.max_map_bytes
            finished, finish_wait_s, finish_s = await self._in_pool(
                deadline, lambda: finish(ride.outputs, prepared, request.outputs, self._manifest, limit)
            )
        end = self.clock()
        if deadline is not None and end > deadline:
            raise _late(end - deadline)
        timings = Timings(
            queue_ms=(placed - start + prepare_wait_s + finish_wait_s) * 1000.0 + ride.queue_ms,
            decode_ms=prepared.decode_ms,
            preprocess_ms=prepared.preprocess_ms,
            inference_ms=ride.inference_ms,
            postprocess_ms=finish_s * 1000.0,
            total_ms=(end - start) * 1000.0,
        )
        return FrameResult(finished.inspection, finished.maps, finished.overlay_jpeg, timings, ride.batch_size)

    async def _infer(self, request: FrameRequest, deadline: float | None) -> tuple[Prepared, float, Ride]:
        self._to_infer += 1
        try:
            prepared, wait_s, _ = await self._in_pool(
                deadline,
                lambda: prepare(
                    request, self._manifest, self._settings.max_pixels, fast_decode=self._settings.fast_decode
                ),
            )
            return prepared, wait_s, await self._batcher.submit(prepared.pixels, deadline)
        finally:
            self._to_infer -= 1

    @asynccontextmanager
    async def _place(self, size: int, deadline: float | None, *, wait: bool) -> AsyncIterator[None]:
        """One of ``max_queue`` places, and room for the image's bytes."""
        if self._places.locked() and not wait:
            raise OverloadedError(f"{self._settings.max_queue} frames are in work already; try again later")
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - self.clock())):
                await self._places.acquire()
        except TimeoutError:
            raise DeadlineError("the deadline passed while the frame waited for a place on the full server") from None
        try:
            if self._bytes_in_work and self._bytes_in_work + size > self._settings.max_queue_bytes:
                raise OverloadedError(
                    f"{self._bytes_in_work} bytes of images are in work already, the limit is "
                    f"{self._settings.max_queue_bytes}; try again later"
                )
            self._bytes_in_work += size
            try:
                yield
            finally:
                self._bytes_in_work -= size
        finally:
            self._places.release()

    async def _in_pool(self, deadline: float | None, work: Callable[[], T]) -> tuple[T, float, float]:
        """Run in a thread: the result, the seconds until it began and the seconds that it took."""
        asked = self.clock()

        def timed() -> tuple[T, float, float]:
            begun = self.clock()
            if deadline is not None and begun >= deadline:
                raise _late(begun - deadline)
            value = work()
            return value, begun - asked, self.clock() - begun

        return await asyncio.get_running_loop().run_in_executor(self._pool, timed)


def _late(seconds: float) -> DeadlineError:
    return DeadlineError(f"the deadline passed {seconds * 1000.0:.0f} ms ago; allow more time or send fewer frames")
