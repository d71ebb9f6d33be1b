"""Many frames over one call: answers as they come, a bounded number in work, an orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from vision.errors import ShuttingDownError

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def answer_stream(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    most: int,
    draining: asyncio.Event,
) -> AsyncGenerator[Answer, None]:
    """Answers in the order in which they are ready.

    At most ``most`` requests are read and not yet answered *and* sent: a caller that does not read its answers stops
    being read. Ends when the requests end or, once ``draining`` is set, when those that were read are answered.

    Args:
        answer: must not raise; its error is the end of the stream.

    Raises:
        ShuttingDownError: after the last answer, if ``draining`` came before the end of the requests.
    """
    ready: asyncio.Queue[Answer | None] = asyncio.Queue(most + 1)  # None is the last one
    credit = asyncio.Semaphore(most)
    working: set[asyncio.Task[None]] = set()

    async def work(request: Request) -> None:
        ready.put_nowait(await answer(request))

    async def read() -> None:
        await credit.acquire()
        async for request in requests:
            task = asyncio.create_task(work(request))
            working.add(task)
            task.add_done_callback(working.discard)
            await credit.acquire()

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
            credit.release()
        await supervisor
    finally:
        for task in (supervisor, *working):
            task.cancel()
