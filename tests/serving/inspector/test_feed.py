"""What the line wall is told."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import httpx

from serving.audit import Store
from serving.inspector.feed import Event, Feed, Listener
from serving.live import ServerStatus
from tests.serving.audit.making import answer
from tests.serving.inspector.conftest import Page
from tests.serving.inspector.test_safety import sign_in
from vision.errors import UnreachableError
from vision.types import Verdict


async def heard(feed: Feed, queue: Listener, until: int) -> list[Event]:
    """Events up to a record's number."""
    events: list[Event] = []
    while not events or events[-1]["head"] < until:
        event = await asyncio.wait_for(feed.next_of(queue), 5)
        assert event is not None
        events.append(event)
    return events


def seen(events: list[Event]) -> tuple[Counter[str], dict[str, Any]]:
    """Results by camera, and each camera's last state."""
    results = Counter(camera for event in events for _, camera, _ in event["results"])
    states = {state["camera"]: state for event in events for state in event["cameras"]}
    return results, states


async def test_every_result_is_told_once_and_the_counts_add_up(store: Store) -> None:
    feed = Feed(store, poll_s=0.01)
    queue = await feed.listen()
    first = await asyncio.wait_for(feed.next_of(queue), 5)
    assert first is not None
    before = {state["camera"]: state["total"] for state in first["cameras"]}
    verdicts = (Verdict.PASS, Verdict.REJECT, Verdict.REVIEW, Verdict.NO_VERDICT)

    def work() -> int:
        for index in range(60):
            new = answer(verdicts[index % 4], camera=("left", "right", "new")[index % 3], request_id=f"n{index}")
            last = store.append([new])[0]
        return last

    last = await asyncio.to_thread(work)
    results, states = seen(await heard(feed, queue, last))
    feed.leave(queue)
    assert results == {"left": 20, "right": 20, "new": 20}
    for name, state in states.items():
        assert state["total"] == before.get(name, 0) + 20
        assert sum(state["counts"].values()) == state["total"]
    assert states["new"]["counts"] == {"none": 5, "pass": 5, "reject": 5, "review": 5}


async def test_who_falls_behind_gets_the_whole_picture_and_nothing_twice(store: Store) -> None:
    feed = Feed(store, poll_s=0.001)
    quick, slow = await feed.listen(), await feed.listen()
    last = 0
    for index in range(130):
        last = (await asyncio.to_thread(store.append, [answer(camera="left", request_id=f"n{index}")]))[0]
        while not quick.empty():
            quick.get_nowait()
        await asyncio.sleep(0.003)
    for _ in range(500):
        if feed.picture()["head"] == last:
            break
        await asyncio.sleep(0.01)
    events = [await asyncio.wait_for(feed.next_of(slow), 5)]
    assert events[0] is not None
    state = next(one for one in feed.picture()["cameras"] if one["camera"] == "left")
    if slow.empty():
        told = next(one for one in events[0]["cameras"] if one["camera"] == "left")
        assert events[0]["whole"]
        assert told["total"] == state["total"]
    feed.leave(quick)
    feed.leave(slow)


async def test_nobody_looking_means_nobody_reading(store: Store) -> None:
    feed = Feed(store, poll_s=0.01)
    queue = await feed.listen()
    reading = [task for task in asyncio.all_tasks() if task.get_name() == "wall-feed"]
    assert len(reading) == 1
    feed.leave(queue)
    await asyncio.gather(*reading, return_exceptions=True)
    assert reading[0].cancelled()


async def test_a_server_that_does_not_answer_is_told(store: Store) -> None:
    def status() -> ServerStatus:
        raise UnreachableError("no inspection server answers")

    feed = Feed(store, status, poll_s=0.01)
    queue = await feed.listen()
    await feed.next_of(queue)
    event = await asyncio.wait_for(feed.next_of(queue), 5)
    assert event is not None
    assert not event["server"]["reachable"]
    feed.leave(queue)


def test_events_come_over_the_wire(page: Page) -> None:
    with sign_in(page.url) as client, client.stream("GET", "/wall/events") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = reply.iter_lines()
        first = json.loads(next(lines).removeprefix("data: "))
        assert {one["camera"] for one in first["cameras"]} == {"left", "right"}
        seq = page.store.append([answer(Verdict.REJECT, camera="left", request_id="now")])[0]
        event = next(json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))
        assert event["results"] == [[seq, "left", "reject"]]


def test_the_wall_needs_a_session(page: Page) -> None:
    assert httpx.get(f"{page.url}/wall/events").status_code == 401
