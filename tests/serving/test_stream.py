"""Streams against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from serving import FrameRequest, Outputs, RawImage, StreamAnswer
from serving.calls import as_request
from serving.messages import EncodedImage
from serving.streams import Shares, answer_stream
from tests.fakes import part
from tests.serving.conftest import Serve, png
from vision.errors import (
    DeadlineError,
    NotAnImageError,
    RawSizeError,
    SettingsError,
    ShuttingDownError,
    UnknownClassError,
    WrongModelError,
)
from vision.preprocess import PixelFormat
from vision.types import Verdict

GOOD = EncodedImage(png(part()))
HUGE = RawImage(np.full((4000, 5000), 128, np.uint8).tobytes(), 5000, 4000, PixelFormat.MONO8)


async def test_every_frame_gets_one_answer_and_bad_ones_stop_nobody(serve: Serve) -> None:
    requests = [FrameRequest(GOOD, f"good{index}") for index in range(40)]
    requests[5] = FrameRequest(EncodedImage(b"x"), "text")
    requests[9] = FrameRequest(RawImage(b"x", 9, 9, PixelFormat.RGB8), "raw")
    requests[20] = FrameRequest(GOOD, "class", outputs=Outputs(saliency=("rust",)))
    requests[30] = FrameRequest(GOOD, "model", model="other")
    async with serve() as (server, client):
        answers = {answer.request_id: answer async for answer in client.inspect_stream(requests)}
        assert server.telemetry.received == 40
    assert len(answers) == 40
    wrong = {"text": NotAnImageError, "raw": RawSizeError, "class": UnknownClassError, "model": WrongModelError}
    for request_id, answer in answers.items():
        assert answer.latency_ms > 0
        if request_id in wrong:
            assert type(answer.error) is wrong[request_id]
            with pytest.raises(wrong[request_id]):
                answer.result()
        else:
            assert answer.result().inspection.verdict is Verdict.PASS


async def test_answers_may_overtake_each_other(serve: Serve) -> None:
    requests = [FrameRequest(HUGE, "huge"), *(FrameRequest(GOOD, f"small{index}") for index in range(4))]
    async with serve(decode_threads=2, max_batch=1) as (_, client):
        order = [answer.request_id async for answer in client.inspect_stream(requests)]
    assert sorted(order) == sorted(request.request_id for request in requests)
    assert order[0] != "huge"


async def test_frames_of_a_stream_ride_together(serve: Serve) -> None:
    async with serve(max_wait_ms=50.0) as (_, client):
        answers = [answer async for answer in client.inspect_stream([FrameRequest(GOOD)] * 32, in_flight=16)]
    assert max(answer.result().batch_size for answer in answers) > 1


async def test_a_full_server_pauses_streams_instead_of_failing_them(serve: Serve) -> None:
    async with serve(max_queue=2, max_batch=1) as (server, client):

        async def one_camera() -> list[StreamAnswer]:
            return [answer async for answer in client.inspect_stream([FrameRequest(GOOD)] * 20, in_flight=8)]

        answers = await asyncio.gather(*(one_camera() for _ in range(4)))
        assert server.telemetry.judged == 80
    assert all(answer.error is None for stream in answers for answer in stream)


async def test_frames_that_come_too_late_are_told_so(serve: Serve, slow_bundle: object) -> None:
    requests = [FrameRequest(GOOD, f"r{index}", timeout_ms=1 if index else 0) for index in range(6)]
    async with serve(slow_bundle, max_batch=1) as (_, client):
        answers = {answer.request_id: answer async for answer in client.inspect_stream(requests)}
    assert answers["r0"].error is None
    assert all(isinstance(answers[f"r{index}"].error, DeadlineError) for index in range(1, 6))


async def test_an_id_that_is_still_out_is_refused_by_the_client(serve: Serve) -> None:
    async with serve() as (_, client):
        with pytest.raises(SettingsError, match="twice"):
            _ = [answer async for answer in client.inspect_stream([FrameRequest(GOOD, "twice")] * 2)]


async def test_an_error_of_the_source_comes_back_after_the_answers(serve: Serve) -> None:
    def source() -> Iterator[FrameRequest]:
        yield FrameRequest(GOOD, "a")
        yield FrameRequest(GOOD, "b")
        raise OSError("camera unplugged")

    answers: list[str] = []

    async def collect(stream: AsyncIterator[StreamAnswer]) -> None:
        async for answer in stream:
            answers.append(answer.request_id)  # noqa: PERF401, what came before the error counts

    async with serve() as (_, client):
        with pytest.raises(OSError, match="unplugged"):
            await collect(client.inspect_stream(source()))
    assert sorted(answers) == ["a", "b"]


async def test_a_source_may_be_asynchronous(serve: Serve) -> None:
    async def source() -> AsyncIterator[FrameRequest]:
        for index in range(3):
            await asyncio.sleep(0)
            yield as_request(part(), request_id=f"r{index}")

    async with serve() as (_, client):
        answers = [answer.request_id async for answer in client.inspect_stream(source())]
    assert sorted(answers) == ["r0", "r1", "r2"]


async def test_a_caller_that_leaves_frees_its_places(serve: Serve, slow_bundle: object) -> None:
    async with serve(slow_bundle, max_queue=4, max_batch=1) as (server, client):
        stream = client.inspect_stream([FrameRequest(GOOD)] * 50, in_flight=8)
        await anext(stream)
        await stream.aclose()
        assert (await client.inspect(part())).inspection.verdict is Verdict.PASS
        for _ in range(100):
            if not server.telemetry.in_flight:
                break
            await asyncio.sleep(0.02)
        assert server.telemetry.in_flight == 0


async def test_unread_answers_stop_the_reading() -> None:
    read = 0

    async def requests() -> AsyncIterator[int]:
        nonlocal read
        for value in range(100):
            read += 1
            yield value

    async def answer(value: int) -> int:
        return value

    answers = answer_stream(requests(), answer, Shares(3, 3), asyncio.Event())
    assert await anext(answers) == 0
    for _ in range(20):
        await asyncio.sleep(0)
    assert read == 3
    assert sorted([value async for value in answers]) == list(range(1, 100))


async def test_a_drained_stream_answers_what_it_read_and_says_whether_that_was_all() -> None:
    draining, gate = asyncio.Event(), asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        yield 1
        yield 2
        await asyncio.Event().wait()

    async def finite() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def answer(value: int) -> int:
        await gate.wait()
        return value

    async def collect(requests: AsyncIterator[int], into: list[int]) -> None:
        async for value in answer_stream(requests, answer, Shares(8, 32), draining):
            into.append(value)  # noqa: PERF401, the error at the end is expected

    cut: list[int] = []
    whole: list[int] = []
    tasks = [asyncio.create_task(collect(endless(), cut)), asyncio.create_task(collect(finite(), whole))]
    for _ in range(20):
        await asyncio.sleep(0)
    draining.set()
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(cut) == sorted(whole) == [1, 2]
    assert isinstance(results[0], ShuttingDownError)
    assert results[1] is None
