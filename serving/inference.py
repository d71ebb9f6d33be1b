"""The one inference at a time: a thread of its own, warmed up and measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from serving.costs import CostModel
from serving.waiting import Ride, Ticket
from vision.errors import DefectLensError
from vision.types import ModelOutputs

Run = Callable[[NDArray[np.uint8]], ModelOutputs]
"""uint8 ``[N, H, W, 3]`` to the outputs of N rows."""

# Measured twice at the start, and the lower counts: the first run of a size allocates its memory.
_WARM_UP_RUNS = 2


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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")

    async def warm_up(self, height: int, width: int) -> None:
        """Run every bucket of batch sizes on grey frames, so that no camera pays for first times or for a guess."""
        for size in self.costs.buckets:
            frames = np.full((size, height, width, 3), 128, np.uint8)
            times = []
            for _ in range(_WARM_UP_RUNS):
                start = self._clock()
                await asyncio.get_running_loop().run_in_executor(self._thread, self._run, frames)
                times.append(self._clock() - start)
            self.costs.observe(size, min(times))

    async def ride(self, batch: Sequence[Ticket]) -> None:
        """Run a batch; every frame in it gets its row or the error that it met."""
        if not await self._try(batch, alone=len(batch) == 1):
            for ticket in batch:  # one frame broke the batch: the others must not suffer
                if not ticket.ride.done():
                    await self._try([ticket], alone=True)

    def close(self) -> None:
        """End the thread once it has nothing to do."""
        self._thread.shutdown()

    async def _try(self, riders: Sequence[Ticket], *, alone: bool) -> bool:
        """False if the batch failed and its frames are to be tried one by one."""
        start = self._clock()
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._infer, riders)
        except Exception as error:  # whatever the runtime raises belongs to the frame, and the others must go on
            if alone and not riders[0].ride.done():
                riders[0].ride.set_exception(error)
            return alone
        end = self._clock()
        self.costs.observe(len(riders), end - start)
        for index, ticket in enumerate(riders):
            if ticket.prepared is not None and not ticket.ride.done():
                ticket.rode_at = end
                queue_ms = max(0.0, start - ticket.arrived - ticket.prepare_s) * 1000.0
                outcome = Ride(ticket.prepared, outputs.row(index), len(riders), queue_ms, (end - start) * 1000.0)
                ticket.ride.set_result(outcome)
        return True

    def _infer(self, riders: Sequence[Ticket]) -> ModelOutputs:
        frames = [ticket.prepared.pixels for ticket in riders if ticket.prepared is not None]
        outputs = self._run(frames[0][None] if len(frames) == 1 else np.stack(frames))
        if len(outputs.class_logits) != len(frames):
            raise DefectLensError(
                f"the model gave {len(outputs.class_logits)} rows for {len(frames)} frames; export it anew"
            )
        return outputs
