"""The one inference at a time: a thread of its own, warmed up and measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from serving.costs import CostModel
from serving.priority import workers
from serving.waiting import Ride, Ticket
from vision.errors import DefectLensError, ShuttingDownError
from vision.types import ModelOutputs

Run = Callable[[NDArray[np.uint8]], ModelOutputs]
"""uint8 ``[N, H, W, 3]`` to the outputs of N rows."""

# Measured twice at the start, and the lower counts: the first run of a size allocates its memory.
_WARM_UP_RUNS = 2
# The longest that a batch under way is expected to take yet, in times of its usual duration.
_STALL = 4.0


class Inference:
    """Runs batches of tickets and hands out their rows; ``costs`` is what that has been taking.

    Args:
        run: called from one thread only.
        clock: monotonic, in seconds.
    """

    def __init__(self, run: Run, max_batch: int, clock: Callable[[], float]) -> None:
        self.costs = CostModel(max_batch, clock)
        self._run = run
        self._clock = clock
        self._flight: asyncio.Task[None] | None = None
        self._expected_s = self._ends = 0.0
        self._thread = workers(1, "inference")

    async def warm_up(self, height: int, width: int) -> None:
        """Run every bucket of batch sizes on grey frames, so that no camera pays for first times or for a guess."""
        for size in self.costs.buckets:
            self.costs.observe(size, await self._time(size, height, width))

    async def rest(self, height: int, width: int) -> None:
        """Measure what a frame takes that has the machine to itself; before ``warm_up``, if that is not so then."""
        self.costs.observe_at_rest(await self._time(1, height, width))

    async def _time(self, size: int, height: int, width: int) -> float:
        frames = np.full((size, height, width, 3), 128, np.uint8)
        times = []
        for _ in range(_WARM_UP_RUNS):
            start = self._clock()
            await asyncio.get_running_loop().run_in_executor(self._thread, self._run, frames)
            times.append(self._clock() - start)
        return min(times)

    @property
    def is_busy(self) -> bool:
        """Whether a batch is under way."""
        return self._flight is not None

    def left_s(self, now: float) -> float:
        """How long the batch under way is expected to take yet."""
        if self._flight is None:
            return 0.0
        # What is overdue will take about as long again: whoever is let in behind it in the hope that it ends at once is
        # lost. No longer than some whole inferences, though: the clock may have jumped.
        return min(abs(self._ends - now), _STALL * self._expected_s)

    def set_off(self, batch: Sequence[Ticket], expected_s: float, landed: Callable[[float], None]) -> None:
        """Run a batch on the idle engine, and then answer its tickets' ``ride``.

        Args:
            landed: called with ``expected_s`` once the engine is idle again, before anybody hears of the batch.
        """
        self._expected_s, self._ends = expected_s, self._clock() + expected_s
        self._flight = asyncio.create_task(self._fly(batch, landed), name="batch")

    async def _fly(self, batch: Sequence[Ticket], landed: Callable[[float], None]) -> None:
        outcomes: list[Ride | Exception] = []
        try:
            outcomes = await self.run(batch)
        finally:
            self._flight = None
            landed(self._expected_s)
            for ticket, outcome in zip_longest(batch, outcomes):
                if ticket.ride.done():
                    continue
                if isinstance(outcome, Ride):
                    ticket.ride.set_result(outcome)
                else:  # whatever went wrong, nobody waits for ever
                    ticket.ride.set_exception(
                        outcome or ShuttingDownError("the inference was cut short; send the frame again")
                    )

    async def run(self, batch: Sequence[Ticket]) -> list[Ride | Exception]:
        """Run a batch: for every frame in it its row, or the error that it met."""
        try:
            return await self._try(batch)
        except Exception as error:  # whatever the runtime raises belongs to the frame, and the others must go on
            if len(batch) == 1:
                return [error]
        # One frame broke the batch: the others must not suffer.
        return [outcome for ticket in batch for outcome in await self.run([ticket])]

    def close(self) -> None:
        """End the thread once it has nothing to do."""
        self._thread.shutdown()

    async def _try(self, riders: Sequence[Ticket]) -> list[Ride | Exception]:
        prepared = [ticket.prepared for ticket in riders if ticket.prepared is not None]
        start = self._clock()
        outputs = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._infer, [frame.pixels for frame in prepared]
        )
        end = self._clock()
        self.costs.observe(len(riders), end - start)
        rides: list[Ride | Exception] = []
        for index, (ticket, frame) in enumerate(zip(riders, prepared, strict=True)):
            ticket.rode_at = end
            queue_ms = max(0.0, start - ticket.arrived - ticket.prepare_s) * 1000.0
            rides.append(Ride(frame, outputs.row(index), len(riders), queue_ms, (end - start) * 1000.0))
        return rides

    def _infer(self, frames: Sequence[NDArray[np.uint8]]) -> ModelOutputs:
        outputs = self._run(frames[0][None] if len(frames) == 1 else np.stack(frames))
        if len(outputs.class_logits) != len(frames):
            raise DefectLensError(
                f"the model gave {len(outputs.class_logits)} rows for {len(frames)} frames; export it anew"
            )
        return outputs
