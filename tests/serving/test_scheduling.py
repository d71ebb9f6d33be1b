"""What cameras notice of the scheduler, with real servers: refusals, hints, credits, the newest frame, lost clients."""

from __future__ import annotations

import asyncio
import io
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.inspection.v1 import inspection_pb2 as pb
from protos.inspection.v1 import inspection_pb2_grpc as pb_grpc
from serving import AsyncInspectionClient, FrameRequest, InspectionClient, InspectionServer, RetryPolicy, StreamAnswer
from serving.calls import Ledger, pause_after
from serving.inspecting import Inspecting
from serving.messages import EncodedImage, InspectionReply, RawImage
from serving.servicer import _MOST_CAMERAS
from serving.sources import SourceFrame
from serving.status import ERROR_KEY, RETRY_KEY, retry_from_metadata
from serving.streams import Share, Shares
from tests.fakes import part
from tests.serving.conftest import Serve, png
from vision.errors import DeadlineError, OverloadedError, SettingsError, SupersededError
from vision.types import Verdict

GOOD = EncodedImage(png(part()))


def counted(server: InspectionServer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the inferences from now on."""
    sizes: list[int] = []
    inference = server.fleet.default.pipeline._batcher._inference
    run = inference._run
    monkeypatch.setattr(inference, "_run", lambda frames: (sizes.append(len(frames)), run(frames))[1])
    return sizes


async def all_answered(server: InspectionServer) -> None:
    async with asyncio.timeout(10):
        while server.telemetry.in_flight:
            await asyncio.sleep(0.01)


async def test_hopeless_frames_cost_no_inference(
    serve: Serve, slow_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(slow_bundle) as (server, client):
        sizes = counted(server, monkeypatch)
        for _ in range(3):
            with pytest.raises(DeadlineError, match="nothing was spent"):
                await client.inspect(part(), timeout_ms=2)
        requests = [FrameRequest(GOOD, f"r{index}", timeout_ms=2) for index in range(4)]
        answers = [answer async for answer in client.inspect_stream(requests)]
        assert sizes == []
    assert len(answers) == 4
    assert all(isinstance(answer.error, DeadlineError) for answer in answers)


async def test_the_server_has_measured_every_batch_size_before_it_is_ready(serve: Serve, slow_bundle: Path) -> None:
    async with serve(slow_bundle, max_batch=6) as (server, _):
        seconds = server.fleet.default.pipeline._batcher._inference.costs.curve().seconds
    assert len(seconds) == 7
    assert all(value > 0.001 for value in seconds[1:])


async def test_a_refused_call_knows_when_to_come_back(serve: Serve, slow_bundle: Path) -> None:
    async with serve(slow_bundle, max_queue=2, max_batch=1) as (server, client):
        busy = [asyncio.create_task(client.inspect(part())) for _ in range(2)]
        while server.telemetry.in_flight < 2:
            await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError) as caught:
            await client.inspect(part())
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = pb_grpc.InspectionServiceStub(channel).Inspect(pb.InspectRequest(encoded=GOOD.data))
            metadata = dict(await call.trailing_metadata())
        # A patient client gets through by doing as it is told.
        async with AsyncInspectionClient(server.address, retry=RetryPolicy(attempts=20)) as patient:
            assert (await patient.inspect(part())).inspection.verdict is Verdict.PASS
        await asyncio.gather(*busy)
    assert caught.value.retry_after_s is not None
    assert 0.001 <= caught.value.retry_after_s < 5.0
    assert metadata[ERROR_KEY] == "OVERLOADED"
    assert int(metadata[RETRY_KEY]) >= 1


class Full(pb_grpc.InspectionServiceServicer):
    """Refuses the first call and says when to return."""

    def __init__(self, retry_after_ms: str) -> None:
        self.retry_after_ms = retry_after_ms
        self.calls: list[float] = []

    def Inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectResponse:  # noqa: N802
        self.calls.append(time.monotonic())
        if len(self.calls) == 1:
            context.set_trailing_metadata(((ERROR_KEY, "OVERLOADED"), (RETRY_KEY, self.retry_after_ms)))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return pb.InspectResponse(
            request_id=request.request_id, verdict=pb.PASS, class_scores=[pb.ClassScore(name="good", score=1)]
        )


@pytest.fixture
def full(request: pytest.FixtureRequest) -> Iterator[tuple[Full, str]]:
    servicer = Full(request.param)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    pb_grpc.add_InspectionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


QUICK = RetryPolicy(attempts=2, first_pause_s=0.001, longest_pause_s=0.001)


@pytest.mark.parametrize("full", ["150"], indirect=True)
def test_a_retry_does_not_come_before_the_hint(full: tuple[Full, str]) -> None:
    servicer, address = full
    with InspectionClient(address, retry=QUICK) as client:
        client.inspect(GOOD)
    assert servicer.calls[1] - servicer.calls[0] >= 0.15


@pytest.mark.parametrize("full", ["150"], indirect=True)
async def test_an_asynchronous_retry_does_not_either(full: tuple[Full, str]) -> None:
    servicer, address = full
    async with AsyncInspectionClient(address, retry=QUICK) as client:
        await client.inspect(GOOD)
    assert servicer.calls[1] - servicer.calls[0] >= 0.15


@pytest.mark.parametrize("full", ["60000"], indirect=True)
def test_a_hint_beyond_the_deadline_is_told_at_once(full: tuple[Full, str]) -> None:
    servicer, address = full
    with InspectionClient(address, retry=QUICK, timeout_s=5.0) as client, pytest.raises(OverloadedError) as caught:
        client.inspect(GOOD)
    assert caught.value.retry_after_s == 60.0
    assert len(servicer.calls) == 1


def test_hints_that_are_no_numbers_are_no_hints() -> None:
    assert [retry_from_metadata(text) for text in (None, "", "soon", "-5", "1.5", "²")] == [None] * 6
    assert retry_from_metadata("250") == 0.25
    assert pause_after(OverloadedError("full"), 0.5) == 0.5
    assert pause_after(OverloadedError("full", 0.1), 0.5) == 0.5
    assert 2.0 <= pause_after(OverloadedError("full", 2.0), 0.5) <= 2.5


async def test_newest_frame_wins_answers_every_frame_once_and_never_falls_behind(
    serve: Serve, slow_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [FrameRequest(GOOD, f"r{index}", camera_id="live") for index in range(40)]
    async with serve(slow_bundle) as (server, client):
        sizes = counted(server, monkeypatch)
        stream = client.inspect_stream(requests, in_flight=8, newest_frame_wins=True)
        answers = [answer async for answer in stream]
        assert server.telemetry.errors["SupersededError"] == sum(answer.error is not None for answer in answers) > 0
        assert sum(sizes) == server.telemetry.judged < 40
    assert sorted(answer.request_id for answer in answers) == sorted(request.request_id for request in requests)
    assert all(isinstance(answer.error, SupersededError | None) for answer in answers)
    assert next(answer for answer in answers if answer.request_id == "r39").error is None


async def test_only_the_camera_that_asked_for_it_is_superseded(serve: Serve, slow_bundle: Path) -> None:
    async def both() -> AsyncIterator[pb.InspectRequest]:
        live = pb.StreamOptions(newest_frame_wins=True)
        for index in range(6):
            # The options hold for the later frames of the camera too.
            options = live if index == 0 else None
            yield pb.InspectRequest(request_id=f"live{index}", camera_id="live", encoded=GOOD.data, stream=options)
            yield pb.InspectRequest(request_id=f"part{index}", camera_id="parts", encoded=GOOD.data)
        off = pb.StreamOptions()
        for index in range(6, 9):
            yield pb.InspectRequest(request_id=f"live{index}", camera_id="live", encoded=GOOD.data, stream=off)

    async with serve(slow_bundle, max_batch=1) as (server, _), grpc.aio.insecure_channel(server.address) as channel:
        call = pb_grpc.InspectionServiceStub(channel).InspectStream(both())
        answers = {answer.request_id: answer async for answer in call}
    superseded = {name for name, answer in answers.items() if answer.error.code == pb.SUPERSEDED}
    assert len(answers) == 15
    assert superseded
    assert superseded <= {f"live{index}" for index in range(5)}
    for name in superseded:
        assert answers[name].verdict == pb.NO_VERDICT
        assert "newer frame" in answers[name].reason


async def test_options_for_too_many_cameras_are_refused(serve: Serve) -> None:
    requests = [FrameRequest(GOOD, camera_id=f"camera{index}") for index in range(_MOST_CAMERAS + 1)]
    async with serve() as (_, client):
        answers = [answer async for answer in client.inspect_stream(requests, newest_frame_wins=True)]
    assert [type(answer.error) for answer in answers if answer.error is not None] == [SettingsError]


class LiveSource:
    """A camera that is faster than the server."""

    is_live = True
    length = None

    def __iter__(self) -> Iterator[SourceFrame]:
        for index in range(30):
            yield SourceFrame(f"frame{index}", f"camera#{index}", RawImage.from_frame(part()))


async def test_inspecting_a_live_camera_lets_the_newest_frame_win(serve: Serve, slow_bundle: Path) -> None:
    async with serve(slow_bundle) as (server, _):

        def run() -> Any:
            with InspectionClient(server.address) as client:
                return Inspecting(io.StringIO(), in_flight=8).run(client, LiveSource())  # type: ignore[arg-type]

        tally = await asyncio.to_thread(run)
    assert tally.frames == 30
    assert tally.superseded > 0
    assert tally.errors == 0
    assert tally.superseded + sum(tally.by_verdict.values()) == 30


async def test_credits_shrink_while_many_streams_are_busy(serve: Serve, slow_bundle: Path) -> None:
    async with (
        serve(slow_bundle, max_queue=16, max_batch=4) as (server, _),
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = pb_grpc.InspectionServiceStub(channel)

        async def one(frames: int) -> list[int]:
            async def requests() -> AsyncIterator[pb.InspectRequest]:
                for _ in range(frames):
                    yield pb.InspectRequest(encoded=GOOD.data)

            return [answer.credits async for answer in stub.InspectStream(requests())]

        assert set(await one(5)) == {4}
        crowded = await asyncio.gather(*(one(8) for _ in range(8)))
        assert min(min(credits_) for credits_ in crowded) == 2
        assert set(await one(5)) == {4}


def test_each_busy_stream_has_an_equal_share_and_idle_ones_have_none() -> None:
    shares = Shares(16, 64)
    streams = [Share(shares) for _ in range(8)]
    assert shares.credits == 16
    for stream in streams:
        stream.take()
        stream.take()
    assert shares.credits == 8
    for stream in streams[:6]:
        stream.give_back()
    assert shares.credits == 8
    for stream in streams[:6]:
        stream.give_back()
    assert shares.credits == 16
    for stream in streams:
        stream.close()
    assert shares.busy == 0
    assert Shares(16, 1).credits == 2


def test_a_client_keeps_to_its_credits() -> None:
    ledger = Ledger(time.monotonic, in_flight=5, newest_frame_wins=False)
    for index in range(5):
        assert ledger.has_room
        ledger.send(FrameRequest(GOOD, str(index)))
    assert not ledger.has_room

    def answer(index: int, credits_: int) -> bool:
        error = pb.Error(code=pb.INTERNAL)
        ledger.answer(pb.InspectResponse(request_id=str(index), error=error, credits=credits_))
        return ledger.has_room

    assert not answer(0, 2)
    assert not answer(1, 0)  # an older server says nothing
    assert not answer(2, 2)
    assert answer(3, 2)
    ledger.send(FrameRequest(GOOD, "5"))
    assert answer(4, 99)
    for index in range(6, 10):
        ledger.send(FrameRequest(GOOD, str(index)))
    assert not ledger.has_room  # never more than the caller wants


async def test_a_slow_consumer_slows_nobody_else(serve: Serve) -> None:
    async with serve(max_queue=16, max_batch=4) as (server, client):
        slow = client.inspect_stream((FrameRequest(GOOD, camera_id="slow") for _ in range(60)), in_flight=8)
        first = await anext(slow)
        async with asyncio.timeout(20):
            quick = [
                answer.result()
                async for answer in client.inspect_stream([FrameRequest(GOOD, camera_id="quick")] * 60, in_flight=4)
            ]
        assert server.telemetry.received < 60 + 20  # the slow one's producer was held up
        rest = [answer async for answer in slow]
    assert len(quick) == 60
    assert len({answer.request_id for answer in [first, *rest]}) == 60
    assert all(answer.error is None for answer in rest)


async def test_one_flooding_camera_does_not_push_the_others_out(serve: Serve, slow_bundle: Path) -> None:
    """Thirty callers of one camera against a server with eight places, and one call at a time of another camera."""
    async with serve(slow_bundle, max_queue=8, max_batch=2) as (server, client):
        over = asyncio.Event()

        async def flood() -> int:
            refused = 0
            while not over.is_set():
                try:
                    await client.inspect(part(), camera_id="flood")
                except OverloadedError:
                    refused += 1
                    await asyncio.sleep(0.005)
            return refused

        floods = [asyncio.create_task(flood()) for _ in range(30)]
        while server.telemetry.in_flight < 8:
            await asyncio.sleep(0.001)
        calm: list[InspectionReply] = []
        calm_refused = 0
        while len(calm) < 10:
            try:
                calm.append(await client.inspect(part(), camera_id="calm"))
            except OverloadedError:  # on a machine so slow that it has had its half already
                calm_refused += 1
                await asyncio.sleep(0.005)
        over.set()
        refused = sum(await asyncio.gather(*floods))
    assert all(reply.inspection.verdict is Verdict.PASS for reply in calm)
    assert refused > 20 * calm_refused


@pytest.mark.slow
async def test_a_client_that_is_killed_leaves_nothing_behind(serve: Serve, slow_bundle: Path) -> None:
    program = """
import sys
from serving import FrameRequest, InspectionClient, RawImage
from tests.fakes import part
image = RawImage.from_frame(part())
with InspectionClient(sys.argv[1]) as client:
    for answer in client.inspect_stream((FrameRequest(image) for _ in range(100_000)), in_flight=8):
        print("answered", flush=True)
"""
    async with serve(slow_bundle, max_queue=8, max_batch=1) as (server, client):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, server.address, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(30):
            await process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await all_answered(server)
        answers: list[StreamAnswer] = [answer async for answer in client.inspect_stream([FrameRequest(GOOD)] * 8)]
        assert server.fleet.default.pipeline._batcher._places == server._servicer._shares.busy == 0
    assert all(answer.error is None for answer in answers)
