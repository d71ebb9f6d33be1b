"""Frames of all cameras ride together: who is let in, who is decoded next, and which batch sets off when.

Every step looks at the whole line anew, on the injected clock; nothing is planned ahead that a later frame, a slow
inference or a clock that jumps could make wrong. See ``docs/decisions/0009``.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from serving.admission import SUPERSEDED, behind, gave_way, heaviest, hopeless, make_time, too_late
from serving.boarding import board
from serving.costs import Overrun, Tightest
from serving.inference import Inference, Run
from serving.stages import Prepared
from serving.waiting import Line, Outlook, Ride, State, Ticket
from vision.errors import DeadlineError, OverloadedError, ShuttingDownError, SupersededError

# While frames wait they are looked at this often even if nothing happens: a clock that jumped is noticed by then.
_GLANCE_S = 0.25
# No timer is shorter: the event loop must get round.
_LEAST_S = 0.001
# After an inference shorter than this the frames that are here are answered first: the event loop is then busier than
# the engine, and needs large batches more than the engine needs the next one at once.
_SHORT_S = 0.001
# An estimate that keeps every frame out is never put right by a measurement; so on an idle engine one is tried this
# often.
_PROBE_S = 1.0


class Batcher:
    """Lets frames in, has them prepared in ``pool`` and runs them one batch at a time, in a thread of its own.

    While a batch runs, the next one gathers. What is most urgent goes first, into preparation as into the batch. A
    frame that cannot be answered in time any more is given up wherever it waits, before anything is spent on it.

    Args:
        run: uint8 ``[N, H, W, 3]`` to the outputs of N rows; called from one thread only.
        max_batch: most frames in one inference; how many it is depends on what each size is measured to take.
        max_wait_s: longest wait for frames that are on their way; it is shorter where waiting pays less.
        max_queue: most frames that hold a place: from admission until ``release``.
        max_bytes: most bytes of images in them; a single frame is always let in.
        pool: where frames are prepared, ``threads`` at a time.
        clock: monotonic, in seconds; deadlines are on this clock.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        max_bytes: int,
        pool: Executor,
        threads: int,
        clock: Callable[[], float],
    ) -> None:
        self._inference = Inference(run, max_batch, clock)
        self._budget = Tightest(clock)
        self._overrun = Overrun()
        self._max_wait_s = max_wait_s
        self._max_queue = max_queue
        self._max_bytes = max_bytes
        self._pool = pool
        self._threads = threads
        self._clock = clock
        self._line = Line(clock)
        self._places = self._bytes = self._preparing = 0
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._closed = False

    async def warm_up(self, height: int, width: int, beside: Callable[[], None] | None = None) -> None:
        """Measure every bucket of batch sizes; to be awaited before the first frame.

        Args:
            beside: what a thread of the pool does over and over meanwhile, as it will when frames come in. The first
                promises that matter are made to a line that has filled up within milliseconds.
        """
        if beside is None:
            await self._inference.warm_up(height, width)
            return
        await self._inference.rest(height, width)
        done = threading.Event()

        def keep_busy() -> None:
            while not done.is_set():
                beside()

        busy = asyncio.get_running_loop().run_in_executor(self._pool, keep_busy)
        try:
            await self._inference.warm_up(height, width)
        finally:
            done.set()
            await busy
        self._overrun.rehearsed()

    @property
    def depth(self) -> int:
        """Frames that wait for inference now."""
        return len(self._line)

    def admit(
        self,
        prepare: Callable[[], Prepared],
        *,
        camera: str,
        deadline: float | None = None,
        size: int = 0,
        may_wait: bool = False,
        light: bool = False,
        instead_of: Ticket | None = None,
    ) -> Ticket:
        """Let a frame in, or refuse it at once; await its ``ride``, and ``release`` it in any case.

        Args:
            prepare: makes the model's input; runs in a thread of the pool.
            size: bytes of the image.
            light: ``prepare`` takes so little that it is called on the event loop.
            may_wait: wait for a place while the server is full, instead of being refused.
            instead_of: an older frame that this one supersedes, if it is let in before the other's inference begins.

        Raises:
            DeadlineError: not even an idle server would be in time.
            OverloadedError: there is no place, or the work in front of the frame takes too long; says when to return.
            ShuttingDownError: after ``drain``.
        """
        if self._closed:
            raise ShuttingDownError("the server is shutting down; send the frame to another server or try again later")
        outlook = self._outlook()
        now, kind = outlook.now, self._line.camera(camera)
        ride: asyncio.Future[Ride] = asyncio.get_running_loop().create_future()
        urgency = self._line.urgency(kind, now, deadline)
        ticket = Ticket(kind, prepare, now, deadline, urgency, size, may_wait, light, ride)
        self._check_alone(ticket, outlook)
        leaving = [instead_of] if instead_of is not None and instead_of.waits else []
        try:
            displaced = self._displaced(ticket, leaving, outlook)
        except OverloadedError:
            if not self._expire(outlook):  # nobody is refused for the sake of frames that are lost anyway
                raise
            displaced = self._displaced(ticket, leaving, outlook)
        for victim in displaced:
            self.give_up(victim, OverloadedError(gave_way(victim), self._backlog_s(outlook)))
        for older in leaving:
            self.give_up(older, SupersededError(SUPERSEDED))
        kind.usage.add(1.0)
        self._line.add(ticket)
        self._quiet.clear()
        if not may_wait:
            self._place(ticket)
        self._look_soon()
        return ticket

    def _displaced(self, ticket: Ticket, leaving: list[Ticket], outlook: Outlook) -> list[Ticket]:
        """Whom a newcomer takes the place of."""
        displaced = [] if ticket.may_wait else self._make_room(ticket, outlook)
        if ticket.deadline is not None or self._line.bound:
            others = [other for other in self._line if other not in leaving and other not in displaced]
            displaced += make_time(others, ticket, outlook, strict=not self._is_idle)
        return displaced

    def give_up(self, ticket: Ticket, error: BaseException) -> None:
        """Answer a frame that has not set off yet with an error; nothing happens to one that has."""
        if ticket.waits:
            if isinstance(error, DeadlineError):
                self._keep_promises(ticket, lost=True)
            self.release(ticket)
            ticket.camera.usage.add(-1.0)
            if not ticket.ride.done():
                ticket.ride.set_exception(error)

    def release(self, ticket: Ticket, *, finished: bool = False) -> None:
        """Free the frame's place, however it ended; again is harmless. ``finished``: its answer is complete."""
        if finished:
            now = self._clock()
            ticket.camera.finish.observe(now - ticket.rode_at)
            self._keep_promises(ticket, lost=ticket.deadline is not None and now > ticket.deadline)
        if ticket.state is State.GONE:
            return
        if ticket.state is not State.RUNNING:
            self._line.remove(ticket)
        if ticket.state is not State.OUTSIDE:
            self._places -= 1
            self._bytes -= ticket.size
        ticket.state = State.GONE
        self._look_soon()  # there is room for others

    def _keep_promises(self, ticket: Ticket, *, lost: bool) -> None:
        """Learn from what became of a frame."""
        if ticket.promised is not None and ticket.deadline is not None:
            budget_s = ticket.deadline - ticket.arrived
            self._overrun.observe(ticket.promised - ticket.arrived, budget_s, lost=lost)

    async def drain(self) -> None:
        """Take no more frames, finish those that are inside, and end the thread."""
        self._closed = True
        self._step()
        await self._quiet.wait()
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._inference.close()

    def _outlook(self) -> Outlook:
        now = self._clock()
        # A frame that just missed one batch must be able to ride in the next.
        curve = self._inference.costs.curve().within(self._budget.value / 2.0)
        return Outlook(now, now + self._inference.left_s(now), curve, self._threads, self._overrun.value)

    def _backlog_s(self, outlook: Outlook) -> float:
        """When what is inside now will have been worked off."""
        return outlook.engine_free - outlook.now + outlook.curve.clear(max(1, len(self._line)))

    def _check_alone(self, ticket: Ticket, outlook: Outlook) -> None:
        if ticket.deadline is None:
            return
        needed = outlook.curve.alone + ticket.camera.finish.value
        if ticket.deadline - outlook.now > needed:
            self._budget.observe(ticket.deadline - outlook.now - ticket.camera.finish.value)
            return
        finish = ticket.camera.finish
        stale = max(self._inference.costs.age, finish.age if finish.known else 0.0) > _PROBE_S
        ticket.probe = stale and self._is_idle and ticket.deadline > outlook.now
        if not ticket.probe:
            raise hopeless(ticket.deadline, outlook.now, needed)

    @property
    def _is_idle(self) -> bool:
        return not self._inference.is_busy and not len(self._line)

    def _make_room(self, ticket: Ticket, outlook: Outlook) -> list[Ticket]:
        """Whom to give up so that a frame finds a place."""
        if self._bytes and self._bytes + ticket.size > self._max_bytes:
            raise OverloadedError(
                f"{self._bytes} bytes of images are in work already, the limit is {self._max_bytes}; try again later",
                self._backlog_s(outlook),
            )
        if self._places < self._max_queue:
            return []
        # Frames of streams were promised to wait, not to be refused.
        others = [other for other in self._line if not other.may_wait]
        victim = heaviest(others, ticket, Counter())
        if victim is None:
            raise OverloadedError(
                f"{self._max_queue} frames are in work already; try again later", self._backlog_s(outlook)
            )
        return [victim]

    def _look_soon(self) -> None:
        """One look for all that happens in one turn of the event loop: frames that come together ride together."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        """Look at everything anew: after whatever has happened, and when the timer says so."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        outlook = self._outlook()
        self._expire(outlook)
        self._let_in()
        wake_at = min((self._last_call(ticket, outlook) for ticket in self._line), default=outlook.now + _GLANCE_S)
        if not self._inference.is_busy and (ready := self._line.in_state(State.READY)):
            plan = board(ready, self._line, outlook, self._max_wait_s)
            for ticket in plan.hopeless:
                self.give_up(ticket, behind(ticket, outlook.now))
            if plan.batch:
                self._set_off(plan.batch, outlook)
            wake_at = min(wake_at, plan.wake_at)
        if len(self._line):
            self._arm(min(_GLANCE_S, max(_LEAST_S, wake_at - outlook.now)))
        elif not self._inference.is_busy:
            self._quiet.set()

    def _last_call(self, ticket: Ticket, outlook: Outlook) -> float:
        """When a frame becomes hopeless."""
        if ticket.deadline is None:
            return outlook.now + _GLANCE_S
        return ticket.deadline - (0.0 if ticket.probe else outlook.curve.alone + ticket.camera.finish.value)

    def _expire(self, outlook: Outlook) -> bool:
        """Give up the frames whose deadline cannot be met any more; whether there were any."""
        lost = too_late(self._line, outlook) if self._line.bound else []
        for ticket, error in lost:
            self.give_up(ticket, error)
        return bool(lost)

    def _let_in(self) -> None:
        """Places for those that wait outside, threads for those that are to be prepared, the most urgent first."""
        while self._places < self._max_queue and (ticket := self._line.first(State.OUTSIDE)) is not None:
            if self._bytes and self._bytes + ticket.size > self._max_bytes:
                break
            self._place(ticket)
        for ticket in self._line.in_state(State.PLACED):
            if ticket.light:
                self._prepare_here(ticket)
        # One more than there are threads, so that none of them idles until the event loop comes round. No more: what
        # is handed over is out of order, and the last steps of earlier frames go through the same threads.
        while self._preparing <= self._threads and (ticket := self._line.first(State.PLACED)) is not None:
            ticket.state = State.PREPARING
            self._preparing += 1
            work = asyncio.get_running_loop().run_in_executor(self._pool, self._prepare, ticket)
            work.add_done_callback(partial(self._prepared, ticket))

    def _place(self, ticket: Ticket) -> None:
        ticket.state = State.PLACED
        self._places += 1
        self._bytes += ticket.size

    def _prepare(self, ticket: Ticket) -> tuple[Prepared | None, float]:
        """In a thread: nothing for a frame that was given up meanwhile."""
        if ticket.state is State.GONE:
            return None, 0.0
        start = self._clock()
        if ticket.deadline is not None and start >= ticket.deadline:
            raise hopeless(ticket.deadline, start, 0.0)
        return ticket.prepare(), self._clock() - start

    def _prepare_here(self, ticket: Ticket) -> None:
        try:
            self._ready(ticket, *self._prepare(ticket))
        except Exception as error:  # whatever is wrong with one frame must not stop the others
            self.give_up(ticket, error)

    def _ready(self, ticket: Ticket, prepared: Prepared | None, seconds: float) -> None:
        ticket.prepared, ticket.prepare_s = prepared, seconds
        ticket.camera.prepare.observe(seconds)
        ticket.state, ticket.ready_at = State.READY, self._clock()

    def _prepared(self, ticket: Ticket, done: asyncio.Future[tuple[Prepared | None, float]]) -> None:
        self._preparing -= 1
        error = done.exception()
        if error is not None:
            self.give_up(ticket, error)
        elif ticket.state is State.PREPARING:
            self._ready(ticket, *done.result())
        self._look_soon()

    def _set_off(self, batch: list[Ticket], outlook: Outlook) -> None:
        for ticket in batch:
            self._line.remove(ticket)
            ticket.state = State.RUNNING
        self._inference.set_off(batch, outlook.curve.seconds[len(batch)], self._landed)

    def _landed(self, expected_s: float) -> None:
        if expected_s > _SHORT_S:
            self._step()  # the engine first: answers can be made while it works
        else:
            self._look_soon()

    def _arm(self, delay_s: float) -> None:
        """A look that comes a little early does no harm; so most of the time the timer that there is will do."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if not self._timer.cancelled() and loop.time() < self._timer.when() <= loop.time() + delay_s:
                return
            self._timer.cancel()
        self._timer = loop.call_later(delay_s, self._step)
