"""The synchronous client, retries, and what happens when a server misbehaves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

import serving
from protos.inspection.v1 import inspection_pb2 as pb
from protos.inspection.v1 import inspection_pb2_grpc as pb_grpc
from serving import AsyncInspectionClient, FrameRequest, InspectionClient, Outputs, RetryPolicy
from serving.messages import EncodedImage
from tests.fakes import part
from tests.serving.conftest import ONCE, Serve, png
from vision.errors import (
    DeadlineError,
    DefectLensError,
    ImageTooLargeError,
    NotAnImageError,
    OverloadedError,
    SettingsError,
    ShuttingDownError,
    UnreachableError,
)
from vision.types import Verdict

GOOD = EncodedImage(png(part()))
QUICK = RetryPolicy(attempts=4, first_pause_s=0.001, longest_pause_s=0.002)


class Moody(pb_grpc.InspectionServiceServicer):
    """Fails the first calls with a status, then answers; streams break after two answers."""

    def __init__(self, code: grpc.StatusCode, failures: int, details: str = "moody") -> None:
        self.code, self.failures, self.details, self.calls = code, failures, details, 0

    def Inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectResponse:  # noqa: N802
        self.calls += 1
        if self.calls <= self.failures:
            context.abort(self.code, self.details)
        return _answer(request)

    def InspectStream(self, requests: Iterator[pb.InspectRequest], context: Any) -> Iterator[pb.InspectResponse]:  # noqa: N802
        for index, request in enumerate(requests):
            if index == 2:
                context.abort(self.code, self.details)
            yield _answer(request)

    def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        return pb.GetModelResponse()


class Forgetful(Moody):
    def InspectStream(self, requests: Iterator[pb.InspectRequest], context: Any) -> Iterator[pb.InspectResponse]:  # noqa: N802
        for index, request in enumerate(requests):
            if index != 1:
                yield _answer(request)


def _answer(request: pb.InspectRequest) -> pb.InspectResponse:
    return pb.InspectResponse(
        request_id=request.request_id, verdict=pb.PASS, class_scores=[pb.ClassScore(name="good", score=1)]
    )


@contextmanager
def served(servicer: Moody) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    pb_grpc.add_InspectionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_the_front_door_is_locked() -> None:
    assert serving.__all__ == [
        "ALL",
        "AsyncInspectionClient",
        "AsyncSharedMemory",
        "EncodedImage",
        "FrameRequest",
        "InspectionClient",
        "InspectionReply",
        "InspectionServer",
        "MapFormat",
        "MaskFormat",
        "ModelIdentity",
        "ModelInfo",
        "Outputs",
        "RawImage",
        "RetryPolicy",
        "ServerSettings",
        "ServerStatus",
        "SharedMemory",
        "SharedSlot",
        "StreamAnswer",
        "Timings",
    ]
    for name in serving.__all__:
        assert getattr(serving, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = serving.nothing


def test_serving_never_loads_the_training_stack() -> None:
    program = """
import sys
import serving.cli, serving.server, serving.client, serving.aio_client, serving.inspecting, serving.sources
from serving import *
heavy = {"torch", "torchvision", "timm", "albumentations", "training", "vision.model", "onnx"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_the_synchronous_client_speaks_the_same(serve: Serve) -> None:
    async with serve() as (server, asynchronous):

        def use() -> tuple[Any, ...]:
            with InspectionClient(server.address) as client:
                client.wait_until_ready(5)
                requests = [FrameRequest(GOOD, f"r{index}") for index in range(10)]
                requests[4] = FrameRequest(EncodedImage(b"x"), "r4")
                answers = {answer.request_id: answer for answer in client.inspect_stream(requests, in_flight=3)}
                with pytest.raises(NotAnImageError):
                    client.inspect(b"x")
                return client.get_model(), client.inspect(part(spot=255), outputs=Outputs(overlay=True)), answers

        info, reply, answers = await asyncio.to_thread(use)
        assert info == await asynchronous.get_model()
    assert reply.inspection.verdict is Verdict.REJECT
    assert reply.overlay_jpeg
    assert set(answers) == {f"r{index}" for index in range(10)}
    assert isinstance(answers["r4"].error, NotAnImageError)
    assert sum(answer.reply is not None for answer in answers.values()) == 9


async def test_leaving_a_stream_early_is_harmless(serve: Serve) -> None:
    async with serve() as (server, _):

        def use() -> None:
            with InspectionClient(server.address) as client:
                stream = client.inspect_stream((FrameRequest(GOOD) for _ in range(1000)), in_flight=4)
                next(iter(stream))
                stream.close()
                assert client.inspect(part()).inspection.verdict is Verdict.PASS

        await asyncio.to_thread(use)
        for _ in range(100):
            if not server.telemetry.in_flight:
                break
            await asyncio.sleep(0.02)


async def test_an_error_of_the_source_comes_back(serve: Serve) -> None:
    def source() -> Iterator[FrameRequest]:
        yield FrameRequest(GOOD)
        raise OSError("camera unplugged")

    async with serve() as (server, _):

        def use() -> None:
            with InspectionClient(server.address) as client:
                list(client.inspect_stream(source()))

        with pytest.raises(OSError, match="unplugged"):
            await asyncio.to_thread(use)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_single_calls_are_repeated_where_that_may_help(code: grpc.StatusCode) -> None:
    servicer = Moody(code, 3)
    with served(servicer) as address, InspectionClient(address, retry=QUICK) as client:
        assert client.inspect(GOOD).inspection.verdict is Verdict.PASS
    assert servicer.calls == 4


@pytest.mark.parametrize(
    ("code", "details", "kind", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, "gone", UnreachableError, 4),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", OverloadedError, 4),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)", ImageTooLargeError, 1),
        (grpc.StatusCode.INTERNAL, "bug", DefectLensError, 1),
        (grpc.StatusCode.CANCELLED, "bye", ShuttingDownError, 4),
    ],
)
def test_repeating_ends_and_is_left_out_where_it_cannot_help(
    code: grpc.StatusCode, details: str, kind: type[DefectLensError], calls: int
) -> None:
    servicer = Moody(code, 99, details)
    with (
        served(servicer) as address,
        InspectionClient(address, retry=QUICK) as client,
        pytest.raises(DefectLensError) as caught,
    ):
        client.inspect(GOOD)
    assert type(caught.value) is kind
    assert servicer.calls == calls


async def test_the_asynchronous_client_repeats_too() -> None:
    servicer = Moody(grpc.StatusCode.UNAVAILABLE, 3)
    with served(servicer) as address:
        async with AsyncInspectionClient(address, retry=QUICK) as client:
            assert (await client.inspect(GOOD)).inspection.verdict is Verdict.PASS
        servicer.calls = 0
        async with AsyncInspectionClient(address, retry=ONCE) as client:
            with pytest.raises(UnreachableError):
                await client.inspect(GOOD)


def test_repeating_stays_within_the_deadline() -> None:
    servicer = Moody(grpc.StatusCode.UNAVAILABLE, 99)
    patient = RetryPolicy(attempts=50, first_pause_s=0.1, longest_pause_s=0.1)
    start = time.monotonic()
    with (
        served(servicer) as address,
        InspectionClient(address, retry=patient, timeout_s=0.3) as client,
        pytest.raises((UnreachableError, DeadlineError)),
    ):
        client.inspect(GOOD)
    assert time.monotonic() - start < 1.0


def _collect_sync(address: str, requests: list[FrameRequest], answers: list[Any]) -> None:
    with InspectionClient(address) as client:
        for answer in client.inspect_stream(requests, in_flight=2):
            answers.append(answer)  # noqa: PERF402, what came before the error counts


def _collect_async(address: str, requests: list[FrameRequest], answers: list[Any]) -> None:
    async def collect() -> None:
        async with AsyncInspectionClient(address) as client:
            async for answer in client.inspect_stream(requests, in_flight=2):
                answers.append(answer)  # noqa: PERF401

    asyncio.run(collect())


@pytest.mark.parametrize("collect", [_collect_sync, _collect_async])
def test_a_stream_that_breaks_answers_the_frames_that_are_out(collect: Callable[..., None]) -> None:
    answers: list[Any] = []
    requests = [FrameRequest(GOOD, f"r{index}") for index in range(10)]
    with served(Moody(grpc.StatusCode.UNAVAILABLE, 0)) as address, pytest.raises(UnreachableError):
        collect(address, requests, answers)
    good = [answer for answer in answers if answer.error is None]
    lost = [answer for answer in answers if answer.error is not None]
    assert [answer.request_id for answer in good] == ["r0", "r1"]
    assert 1 <= len(lost) <= 2
    assert all(isinstance(answer.error, UnreachableError) for answer in lost)


@pytest.mark.parametrize("collect", [_collect_sync, _collect_async])
def test_a_frame_that_the_server_forgets_is_an_error(collect: Callable[..., None]) -> None:
    answers: list[Any] = []
    requests = [FrameRequest(GOOD, f"r{index}") for index in range(5)]
    with served(Forgetful(grpc.StatusCode.OK, 0)) as address:
        collect(address, requests, answers)
    assert [answer.request_id for answer in answers if answer.error is not None] == ["r1"]
    assert len(answers) == 5


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with InspectionClient("127.0.0.1:1", retry=QUICK) as client:
        assert not client.is_ready()
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1"):
            client.get_model()
        with pytest.raises(UnreachableError):
            client.wait_until_ready(0.2)


def test_pixels_of_another_type_are_refused_before_they_are_sent() -> None:
    with InspectionClient("127.0.0.1:1") as client, pytest.raises(SettingsError, match="float32"):
        client.inspect(part().astype("float32"))  # type: ignore[arg-type]


async def _forever() -> AsyncIterator[FrameRequest]:
    while True:
        yield FrameRequest(GOOD)
        await asyncio.sleep(0)


async def test_leaving_an_asynchronous_stream_early_is_harmless(serve: Serve) -> None:
    async with serve() as (_, client):
        stream = client.inspect_stream(_forever(), in_flight=4)
        await anext(stream)
        await stream.aclose()
        assert (await client.inspect(part())).inspection.verdict is Verdict.PASS
