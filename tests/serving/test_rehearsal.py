"""Costs are measured beside work like that of a busy server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.batcher import Batcher
from serving.inference import Run
from serving.rehearsal import decoding
from serving.stages import Prepared
from vision.bundle import load_bundle
from vision.types import ModelOutputs


class Shared:
    """An engine that takes twice as long while another thread is at work."""

    def __init__(self) -> None:
        self.others = 0
        self.beside: list[int] = []
        self.began = threading.Event()

    def work(self) -> None:
        self.others += 1
        self.began.set()
        time.sleep(0.002)
        self.others -= 1

    def run(self, frames: NDArray[np.uint8]) -> ModelOutputs:
        time.sleep(0.01)
        self.beside.append(self.others)
        rows = len(frames)
        return ModelOutputs(np.zeros((rows, 1), np.float32), *[np.zeros((rows, 1, 1, 1), np.float32)] * 2)


def batcher(run: Run, pool: ThreadPoolExecutor) -> Batcher:
    limits = {"max_batch": 2, "max_queue": 4, "max_bytes": 1 << 20}
    return Batcher(run, **limits, max_wait_s=0.0, pool=pool, threads=1, clock=time.monotonic)


async def test_batches_are_measured_beside_work_and_one_frame_without_and_the_work_ends() -> None:
    shared = Shared()
    with ThreadPoolExecutor(1) as pool:
        mine = batcher(shared.run, pool)
        await mine.warm_up(2, 2, shared.work)
        assert shared.beside[0] == 0
        assert any(shared.beside[2:])
        calls = len(shared.beside)
        await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(pool, int), 5)  # the thread is free again
        assert shared.others == 0
        ticket = mine.admit(lambda: Prepared(np.zeros((2, 2, 3), np.uint8), None, 2, 2, 0, 0), camera="a", light=True)
        await ticket.ride
        mine.release(ticket, finished=True)
        assert len(shared.beside) == calls + 1
        await mine.drain()


async def test_an_engine_that_fails_while_it_is_measured_leaves_no_thread_at_work() -> None:
    shared = Shared()

    def fail(frames: NDArray[np.uint8]) -> ModelOutputs:
        if shared.began.wait(0.2):  # not yet where a frame has the machine to itself
            raise ValueError("no memory")
        return shared.run(frames)

    with ThreadPoolExecutor(1) as pool:
        mine = batcher(fail, pool)
        with pytest.raises(ValueError, match="no memory"):
            await mine.warm_up(2, 2, shared.work)
        assert await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(pool, int), 5) == 0
        await mine.drain()


def test_the_work_is_that_of_a_camera_frame_of_this_model(bundle: Path) -> None:
    work: Callable[[], None] = decoding(load_bundle(bundle).manifest)
    work()
