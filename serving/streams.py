"""Many frames over one call: answers as they come, a bounded number in work, an orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from vision.errors import ShuttingDownError

Request = TypeVar("Request")
Answer = TypeVar("Answer")
# One frame in work and one on its way: a stream never stops for the time that a message travels, and a newer frame can
# always reach the one that it supersedes.
_LEAST_CREDITS = 2


class Shares:
    """How many frames each stream may have out: an equal share of the places for each that has any.

    Args:
        most: of one stream.
        places: of all streams together.
    """

    def __init__(self, most: int, places: int) -> None:
        self.busy = 0
        self._most = most
        self._places = places

    @property
    def credits(self) -> int:
        """Frames of one stream at this moment."""
        return max(_LEAST_CREDITS, min(self._most, self._places // max(1, self.busy)))


class Share:
    """One stream's part in ``Shares``: what it has out, and whether it may have more."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._out = 0
        self._room = asyncio.Event()

    def take(self) -> None:
        """One frame more is out."""
        self._out += 1
        self._shares.busy += self._out == 1

    def give_back(self, frames: int = 1) -> None:
        """Frames are answered."""
        self._shares.busy -= 0 < self._out <= frames
        self._out -= frames
        self._room.set()

    def close(self) -> None:
        """The stream has ended, with whatever was out."""
        self.give_back(self._out)

    async def wait_for_room(self) -> None:
        while self._out >= self._shares.credits:
            self._room.clear()
            await self._room.wait()


async def answer_stream(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    shares: Shares,
    draining: asyncio.Event,
) -> AsyncGenerator[Answer, None]:
    """Answers in the order in which they are ready.

    At most ``shares.credits`` requests are read and not yet answered *and* sent: a caller that does not read its
    answers stops being read. Ends when the requests end or, once ``draining`` is set, when those that were read are
    answered.

    Args:
        answer: must not raise; its error is the end of the stream.

    Raises:
        ShuttingDownError: after the last answer, if ``draining`` came before the end of the requests.
    """
    ready: asyncio.Queue[Answer | None] = asyncio.Queue()  # as many as are out, at most; None is the last one
    share = Share(shares)
    working: set[asyncio.Task[None]] = set()

    async def work(request: Request) -> None:
        ready.put_nowait(await answer(request))

    async def read() -> None:
        await share.wait_for_room()
        async for request in requests:
            share.take()
            task = asyncio.create_task(work(request))
            working.add(task)
            task.add_done_callback(working.discard)
            await share.wait_for_room()

    async def supervise() -> None:
        reading, drained = asyncio.create_task(read()), asyncio.create_task(draining.wait())
        try:
            await asyncio.wait({reading, drained}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            cut_short = not reading.done()
            reading.cancel()  # what was not read by now was not accepted
            await asyncio.gather(*list(working))
            if cut_short:
                raise ShuttingDownError("the server is shutting down; send the frames without an answer again")
        finally:
            reading.cancel()
            drained.cancel()
            ready.put_nowait(None)

    supervisor = asyncio.create_task(supervise())
    try:
        while (item := await ready.get()) is not None:
            yield item
            share.give_back()
        await supervisor
    finally:
        share.close()
        for task in (supervisor, *working):
            task.cancel()
