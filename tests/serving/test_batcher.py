from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.batcher import Batcher
from vision.errors import DeadlineError, OverloadedError, ShuttingDownError
from vision.types import ModelOutputs


class Engine:
    """Gives back the first pixel of each frame; breaks on 13; notes its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.inside = 0

    def run(self, frames: NDArray[np.uint8]) -> ModelOutputs:
        self.inside += 1
        assert self.inside == 1, "two inferences at once"
        self.batches.append(len(frames))
        assert self.gate.wait(5)
        self.inside -= 1
        if (frames[:, 0, 0, 0] == 13).any():
            raise ValueError("unlucky")
        logits = frames[:, 0, 0, :1].astype(np.float32)
        maps = np.zeros((len(frames), 1, 1, 1), np.float32)
        return ModelOutputs(logits, maps, maps)


def frame(value: int) -> NDArray[np.uint8]:
    return np.full((2, 2, 3), value, np.uint8)


@asynccontextmanager
async def running(
    engine: Engine, more_coming: Callable[[int], bool] = lambda _: True, **options: Any
) -> AsyncIterator[Batcher]:
    defaults: dict[str, Any] = {"max_batch": 4, "max_wait_s": 0.02, "max_queue": 8, "clock": time.monotonic}
    batcher = Batcher(engine.run, more_coming=more_coming, **(defaults | options))
    batcher.start()
    try:
        yield batcher
    finally:
        engine.gate.set()
        await batcher.drain()


async def test_frames_ride_together_and_get_their_own_rows() -> None:
    engine = Engine()
    async with running(engine) as batcher:
        rides = await asyncio.gather(*(batcher.submit(frame(value), None) for value in range(6)))
    assert [float(ride.outputs.class_logits[0, 0]) for ride in rides] == list(range(6))
    assert engine.batches == [4, 2]
    assert [ride.batch_size for ride in rides] == [4, 4, 4, 4, 2, 2]


async def test_a_lone_frame_does_not_wait() -> None:
    async with running(Engine(), more_coming=lambda gathered: gathered < 1, max_wait_s=5.0) as batcher:
        ride = await asyncio.wait_for(batcher.submit(frame(1), None), 2)
    assert ride.batch_size == 1
    assert ride.queue_ms < 1000


async def test_one_frame_that_breaks_the_batch_fails_alone() -> None:
    async with running(Engine()) as batcher:
        rides = await asyncio.gather(
            *(batcher.submit(frame(value), None) for value in (1, 13, 3)), return_exceptions=True
        )
    assert isinstance(rides[1], ValueError)
    assert [ride.batch_size for ride in rides if not isinstance(ride, BaseException)] == [1, 1]


async def test_a_deadline_that_passed_in_the_queue_costs_no_inference() -> None:
    engine = Engine()
    engine.gate.clear()
    async with running(engine) as batcher:
        first = asyncio.create_task(batcher.submit(frame(1), None))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(batcher.submit(frame(2), time.monotonic() + 0.01))
        await asyncio.sleep(0.05)
        engine.gate.set()
        await first
        with pytest.raises(DeadlineError, match="before inference"):
            await late
    assert engine.batches == [1]


async def test_a_full_queue_is_overloaded_and_a_gone_caller_costs_nothing() -> None:
    engine = Engine()
    engine.gate.clear()
    async with running(engine, max_queue=2, max_wait_s=0.0) as batcher:
        tasks = [asyncio.create_task(batcher.submit(frame(1), None))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher.submit(frame(value), None)) for value in (2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="2 frames"):
            await batcher.submit(frame(4), None)
        tasks[2].cancel()
        engine.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert engine.batches == [1, 1]


async def test_drain_answers_what_is_queued_and_takes_no_more() -> None:
    engine = Engine()
    engine.gate.clear()
    async with running(engine) as batcher:
        tasks = [asyncio.create_task(batcher.submit(frame(value), None)) for value in range(7)]
        await asyncio.sleep(0.05)
        draining = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0.01)
        with pytest.raises(ShuttingDownError):
            await batcher.submit(frame(9), None)
        engine.gate.set()
        await draining
        rides = await asyncio.gather(*tasks)
    assert [float(ride.outputs.class_logits[0, 0]) for ride in rides] == list(range(7))
