"""A virtual machine for the scheduler: time passes only where a test says so, and threads are played by the event loop.

What happens is the same on every run and on every machine, and a minute of load takes a fraction of a second.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from random import Random
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.batcher import Batcher
from serving.stages import Prepared
from serving.waiting import Ride, Ticket
from vision.errors import DeadlineError, OverloadedError
from vision.types import ModelOutputs

T = TypeVar("T")
UNLUCKY = 13


class VirtualLoop(asyncio.SelectorEventLoop):
    """Where others wait for time to pass, this one sets its clock forward. Executors run on it, one job a worker."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._ahead = 0.0
        self._idle: dict[Executor, int] = {}
        self._jobs: dict[Executor, deque[Callable[[], None]]] = {}
        super().__init__(_Forward(self))

    def time(self) -> float:
        return self.now

    def clock(self) -> float:
        """What code in a job sees: time goes on while it works."""
        return self.now + self._ahead

    def spend(self, seconds: float) -> None:
        """To be called inside a job: it takes so long."""
        self._ahead += seconds

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        future = self.create_future()
        jobs = self._jobs.setdefault(executor, deque())
        self._idle.setdefault(executor, executor._max_workers)

        def finish(result: Any, error: BaseException | None) -> None:
            self._idle[executor] += 1
            if not future.cancelled():
                future.set_result(result) if error is None else future.set_exception(error)
            following()

        def work() -> None:
            result, error = None, None
            try:
                result = func(*args)
            except Exception as caught:
                error = caught
            seconds, self._ahead = self._ahead, 0.0
            self.call_later(seconds, finish, result, error)

        def following() -> None:
            if jobs and self._idle[executor]:
                self._idle[executor] -= 1
                jobs.popleft()()

        jobs.append(work)
        self.call_soon(following)
        return future


class _Forward(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        self._loop.now += max(0.0, timeout)
        return super().select(0)


class Rig:
    """A batcher on a virtual machine, with an engine that gives back the first pixel and breaks on ``UNLUCKY``.

    Args:
        cost: seconds of an inference of n frames.
        prepare_s, finish_s: seconds of the steps before and after it.
        skew: added to the clock that the batcher sees; a test may change it.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        cost: Callable[[int], float],
        *,
        prepare_s: float = 0.0,
        finish_s: float = 0.0,
        threads: int = 2,
        **options: Any,
    ) -> None:
        self.loop = loop
        self.cost = cost
        self.prepare_s, self.finish_s, self.skew = prepare_s, finish_s, 0.0
        self.batches: list[list[int]] = []
        self.prepared: list[int] = []
        self.finished: dict[int, float] = {}
        self._pool = ThreadPoolExecutor(threads)
        defaults: dict[str, Any] = {"max_batch": 4, "max_wait_s": 0.005, "max_queue": 64, "max_bytes": 10**9}
        self.batcher = Batcher(self._run, pool=self._pool, threads=threads, clock=self.clock, **(defaults | options))

    def clock(self) -> float:
        return self.loop.clock() + self.skew

    def admit(self, value: int, camera: str = "a", within: float | None = None, **options: Any) -> Ticket:
        """Let the frame in; its deadline is ``within`` seconds from now."""

        def prepare() -> Prepared:
            self.prepared.append(value)
            self.loop.spend(self.prepare_s)
            return Prepared(np.full((2, 2, 3), value % 256, np.uint8), None, 2, 2, 0.0, 0.0)

        deadline = None if within is None else self.clock() + within
        return self.batcher.admit(prepare, camera=camera, deadline=deadline, **options)

    async def answer(self, value: int, ticket: Ticket) -> Ride:
        try:
            ride = await ticket.ride
            await asyncio.sleep(self.finish_s)
            self.finished[value] = self.clock()
            self.batcher.release(ticket, finished=True)
            return ride
        finally:
            self.batcher.release(ticket)

    def send(self, value: int, camera: str = "a", within: float | None = None, **options: Any) -> asyncio.Task[Ride]:
        """Let the frame in now, and see to it; raises what ``admit`` raises."""
        return asyncio.create_task(self.answer(value, self.admit(value, camera, within, **options)))

    def _run(self, frames: NDArray[np.uint8]) -> ModelOutputs:
        values = frames[:, 0, 0, 0].tolist()
        self.batches.append(values)
        self.loop.spend(self.cost(len(frames)))
        if UNLUCKY in values:
            raise ValueError("unlucky")
        maps = np.zeros((len(frames), 1, 1, 1), np.float32)
        return ModelOutputs(frames[:, 0, 0, :1].astype(np.float32), maps, maps)


def simulate(
    story: Callable[[Rig], Coroutine[Any, Any, T]], cost: Callable[[int], float], **options: Any
) -> tuple[T, Rig]:
    """Play a story on a warmed-up rig, and then drain it: its result, and the rig with what it did in the story."""
    loop = VirtualLoop()

    async def play() -> tuple[T, Rig]:
        rig = Rig(loop, cost, **options)
        await rig.batcher.warm_up(2, 2)
        rig.batches.clear()
        result = await story(rig)
        await rig.batcher.drain()
        return result, rig

    try:
        return loop.run_until_complete(play())
    finally:
        loop.run_until_complete(_cancel_rest())
        loop.close()


async def _cancel_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


async def outcomes(tasks: list[Awaitable[Ride]]) -> list[Ride | BaseException]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def values(results: list[Ride | BaseException]) -> list[float]:
    """What the engine gave back for each frame that was answered."""
    return [float(ride.outputs.class_logits[0, 0]) for ride in results if isinstance(ride, Ride)]


def linear(size: int) -> float:
    """10 ms a frame: a batch saves nothing."""
    return 0.010 * size


def shared(size: int) -> float:
    """8 ms an inference and 2 ms a frame: batches pay."""
    return 0.008 + 0.002 * size


async def load(rig: Rig, seconds: float, a_second: float, within: float, random: Random) -> Counter[str]:
    """Frames of ten cameras at random times, each due ``within`` seconds; what they came to."""
    came: Counter[str] = Counter()

    async def one(camera: str) -> None:
        deadline = rig.clock() + within
        try:
            ticket = rig.admit(1, camera, within)
        except OverloadedError:
            came["refused"] += 1
            return
        came["admitted"] += 1
        try:
            await rig.answer(1, ticket)
            came["in time" if rig.clock() <= deadline else "late"] += 1
        except (DeadlineError, OverloadedError) as error:
            came[type(error).__name__] += 1

    tasks = []
    end = rig.clock() + seconds
    while rig.clock() < end:
        tasks.append(asyncio.create_task(one(f"camera{random.randrange(10)}")))
        await asyncio.sleep(random.expovariate(a_second))
    await asyncio.gather(*tasks)
    return came
