"""Frames of all cameras ride together: a bounded queue in front of one inference at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.errors import DeadlineError, OverloadedError, ShuttingDownError
from vision.types import ModelOutputs

Run = Callable[[NDArray[np.uint8]], ModelOutputs]


@dataclass(frozen=True, slots=True)
class Ride:
    """What a frame brings back: its own row of the outputs, the size of its batch, and how long it took, in ms."""

    outputs: ModelOutputs
    batch_size: int
    queue_ms: float
    inference_ms: float


@dataclass(slots=True)
class _Passenger:
    pixels: NDArray[np.uint8]
    deadline: float | None
    queued: float
    ride: asyncio.Future[Ride]


class Batcher:
    """Collects frames into batches and runs them one batch at a time, in a thread of its own.

    While a batch runs, the next one gathers. A batch sets off when it is full, when its first frame has waited
    ``max_wait_s``, or when ``more_coming`` says that no other frame is on its way: a lone camera never waits.

    Args:
        run: uint8 ``[N, H, W, 3]`` to the outputs of N rows; called from one thread only.
        more_coming: whether frames that are not queued yet are on their way; called with the number of those that are.
        clock: monotonic, in seconds; deadlines are on this clock.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        clock: Callable[[], float],
        more_coming: Callable[[int], bool],
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._more_coming = more_coming
        # None is the last one: the loop ends when it reaches it.
        self._queue: asyncio.Queue[_Passenger | None] = asyncio.Queue(max_queue + 1)
        self._max_queue = max_queue
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._loop: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Start the loop; needs a running event loop."""
        self._loop = asyncio.create_task(self._drive(), name="batcher")

    @property
    def depth(self) -> int:
        """Frames that wait for inference now."""
        return self._queue.qsize()

    async def submit(self, pixels: NDArray[np.uint8], deadline: float | None) -> Ride:
        """Queue one frame, uint8 ``[H, W, 3]``, and wait for its outputs.

        Raises:
            ShuttingDownError, OverloadedError: it was not queued.
            DeadlineError: its deadline passed while it waited.
        """
        if self._closed:
            raise ShuttingDownError("the server is shutting down; send the frame to another server or try again later")
        if self._queue.qsize() >= self._max_queue:
            raise OverloadedError(f"{self._max_queue} frames wait for inference already; try again later")
        ride: asyncio.Future[Ride] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Passenger(pixels, deadline, self._clock(), ride))
        return await ride

    async def drain(self) -> None:
        """Take no more frames, finish those that are queued, and end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put_nowait(None)
        if self._loop is not None:
            await self._loop
        self._thread.shutdown()

    async def _drive(self) -> None:
        while (first := await self._queue.get()) is not None:
            batch = [first]
            last = await self._gather(batch)
            await self._serve(batch)
            if last:
                return

    async def _gather(self, batch: list[_Passenger]) -> bool:
        """Fill up the batch; true if the end of the queue was reached."""
        until = batch[0].queued + self._max_wait_s
        while len(batch) < self._max_batch:
            if self._queue.empty():
                wait_s = until - self._clock()
                if wait_s <= 0 or not self._more_coming(len(batch)):
                    return False
                try:
                    async with asyncio.timeout(wait_s):
                        passenger = await self._queue.get()
                except TimeoutError:
                    return False
            else:
                passenger = self._queue.get_nowait()
            if passenger is None:
                return True
            batch.append(passenger)
        return False

    async def _serve(self, batch: list[_Passenger]) -> None:
        now = self._clock()
        riders = []
        for passenger in batch:
            if passenger.ride.done():  # its caller has gone
                continue
            if passenger.deadline is not None and now >= passenger.deadline:
                late_ms = (now - passenger.deadline) * 1000.0
                passenger.ride.set_exception(DeadlineError(f"the deadline passed {late_ms:.0f} ms before inference"))
                continue
            riders.append(passenger)
        if riders and not await self._ride(riders, alone=len(riders) == 1):
            for passenger in riders:  # one frame broke the batch: the others must not suffer
                await self._ride([passenger], alone=True)

    async def _ride(self, riders: list[_Passenger], *, alone: bool) -> bool:
        """Run a batch and hand out its rows; false if it failed and its frames are to be tried one by one."""
        start = self._clock()
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._infer, riders)
        except Exception as error:  # whatever the runtime raises belongs to the frame, and the loop must go on
            if alone and not riders[0].ride.done():
                riders[0].ride.set_exception(error)
            return alone
        inference_ms = (self._clock() - start) * 1000.0
        for index, passenger in enumerate(riders):
            if not passenger.ride.done():
                queue_ms = (start - passenger.queued) * 1000.0
                passenger.ride.set_result(Ride(outputs.row(index), len(riders), queue_ms, inference_ms))
        return True

    def _infer(self, riders: list[_Passenger]) -> ModelOutputs:
        if len(riders) == 1:
            return self._run(riders[0].pixels[None])
        return self._run(np.stack([passenger.pixels for passenger in riders]))
