"""The line wall: each camera's latest part, live."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from serving.inspector.site import Person, SignInNeededError, Site, looking, person_of, site_of

router = APIRouter(prefix="/wall")
Looking = Annotated[Person, Depends(looking)]
# Without news a line keeps proxies from closing the connection; sessions are checked anew as often.
_ALIVE_S = 15.0


@router.get("")
def wall(request: Request, _: Looking) -> Response:
    """The page; its script asks for the events."""
    return site_of(request).render(request, "wall.html")


@router.get("/events")
async def events(request: Request, _: Looking) -> Response:
    """Server-sent events: the whole picture, then changes."""
    return StreamingResponse(_stream(request, site_of(request)), media_type="text/event-stream")


async def _stream(request: Request, site: Site) -> AsyncIterator[str]:
    queue = await site.feed.listen()
    checked = time.monotonic()
    try:
        while True:
            if time.monotonic() - checked > _ALIVE_S:
                checked = time.monotonic()
                if not await asyncio.to_thread(_still_signed_in, request):
                    return
            try:
                event = await asyncio.wait_for(site.feed.next_of(queue), _ALIVE_S)
            except TimeoutError:
                yield ": alive\n\n"
                continue
            if event is None:
                return
            yield f"data: {json.dumps(event, separators=(',', ':'))}\n\n"
    finally:
        site.feed.leave(queue)


def _still_signed_in(request: Request) -> bool:
    try:
        person_of(request)
    except SignInNeededError:
        return False
    return True
