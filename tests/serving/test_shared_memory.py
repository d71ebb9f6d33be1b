"""Frames in shared memory, through a real server: slots, rings, cameras that die, servers that end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.inspection.v1 import inspection_pb2 as pb
from protos.inspection.v1 import inspection_pb2_grpc as pb_grpc
from serving import AsyncInspectionClient, FrameRequest, InspectionClient, Outputs, StreamAnswer
from serving.calls import error_of
from tests.fakes import make_bundle, part
from tests.serving.conftest import Serve, png
from tests.serving.test_shared_frames import PROOF, mappings, memfd
from vision.errors import OverloadedError, RawSizeError, SettingsError, SharedMemoryError, UnreachableError
from vision.preprocess import PixelFormat
from vision.types import Verdict

SLOT = 64 * 96 * 3


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_frames_are_answered_as_if_they_had_been_sent(serve: Serve) -> None:
    bright = part(spot=255)
    async with serve() as (server, client):
        sent = await client.inspect(bright)
        async with client.shared_memory(slots=2, slot_bytes=SLOT) as memory:
            assert len(server.shared_frames) == 1
            with await memory.take() as slot:
                image = slot.raw(96, 64, PixelFormat.RGB8)
                image.pixels[:] = bright
                shared = await client.inspect(image, outputs=Outputs(overlay=True))
            with await memory.take() as slot:
                encoded = await client.inspect(slot.encoded(png(bright)))
        await until(lambda: not len(server.shared_frames))
    for reply in (shared, encoded):
        assert reply.inspection.anomaly_score == sent.inspection.anomaly_score
        assert reply.inspection.regions[0].box == sent.inspection.regions[0].box
    assert shared.overlay_jpeg


@pytest.mark.parametrize("unix", [True, False])
async def test_the_synchronous_client_streams_through_a_ring(serve: Serve, tmp_path: Path, unix: bool) -> None:
    """More frames than slots: each slot is used again once its answer is there, and no frame sees another's pixels."""
    spots = [(0, 128, 255)[index % 3] for index in range(24)]

    def use(address: str) -> dict[int, StreamAnswer]:
        with InspectionClient(address) as client, client.shared_memory(slots=3, slot_bytes=SLOT) as memory:
            out = {}

            def frames() -> Iterator[FrameRequest]:
                for index, spot in enumerate(spots):
                    slot = out[str(index)] = memory.take(timeout_s=10)
                    image = slot.raw(96, 64, PixelFormat.BGR8)
                    image.pixels[:] = part(spot=spot)
                    yield FrameRequest(image, str(index))

            answers = {}
            for answer in client.inspect_stream(frames(), in_flight=8):
                answers[int(answer.request_id)] = answer
                out[answer.request_id].release()
            return answers

    address = f"unix:{tmp_path}/s.sock" if unix else "127.0.0.1:0"
    async with serve(address=address) as (server, _):
        answers = await asyncio.to_thread(use, server.address)
    for index, spot in enumerate(spots):
        expected = Verdict.PASS if spot == 128 else Verdict.REJECT
        assert answers[index].result().inspection.verdict is expected
        assert answers[index].result().inspection.predicted == {0: "dark", 128: "good", 255: "bright"}[spot]


async def test_a_bad_frame_hands_its_slot_back_too(serve: Serve) -> None:
    async with serve() as (_, client), client.shared_memory(slots=1, slot_bytes=SLOT) as memory:
        with pytest.raises(RawSizeError), await memory.take() as slot:
            await client.inspect(replace(slot.raw(96, 64, PixelFormat.RGB8), height=65))
        slot = await memory.take(timeout_s=1)
        with pytest.raises(OverloadedError, match="no slot"):
            await memory.take(timeout_s=0.01)
        slot.release()
        slot.release()  # harmless: there is still but one slot
        await memory.take()
        with pytest.raises(OverloadedError):
            await memory.take(timeout_s=0.01)


async def test_a_frame_larger_than_its_slot_is_refused_at_once(serve: Serve) -> None:
    async with serve() as (_, client), client.shared_memory(slots=1, slot_bytes=4096) as memory:
        slot = await memory.take()
        with pytest.raises(SettingsError, match="does not fit"):
            slot.raw(96, 64, PixelFormat.MONO8)
        with pytest.raises(SettingsError, match="does not fit"):
            slot.encoded(bytes(4097))
        with pytest.raises(SettingsError, match="slots >= 1"):
            async with client.shared_memory(slots=0, slot_bytes=1):
                pass


async def test_a_killed_camera_leaves_nothing_behind(serve: Serve) -> None:
    program = """
import sys, time
from serving import InspectionClient
from vision.preprocess import PixelFormat
with InspectionClient(sys.argv[1]) as client, client.shared_memory(slots=2, slot_bytes=1 << 20) as memory:
    slot = memory.take()
    image = slot.raw(96, 64, PixelFormat.MONO8)
    image.pixels[:] = 128
    print(client.inspect(image).inspection.verdict.name, flush=True)
    time.sleep(60)
"""
    async with serve() as (server, client):
        before = mappings("defectlens")
        camera = subprocess.Popen([sys.executable, "-c", program, server.address], stdout=subprocess.PIPE, text=True)
        try:
            assert camera.stdout is not None
            assert (await asyncio.to_thread(camera.stdout.readline)).strip() == "PASS"
            assert len(server.shared_frames) == 1
            assert mappings("defectlens") == before + 1
        finally:
            camera.send_signal(signal.SIGKILL)
            camera.communicate()
        await until(lambda: not len(server.shared_frames))
        assert mappings("defectlens") == before
        assert (await client.inspect(part())).inspection.verdict is Verdict.PASS


async def test_a_frame_in_work_outlives_its_camera(serve: Serve, slow_bundle: Path) -> None:
    """The memory goes with the last frame that is read from it, not under its feet."""
    async with serve(slow_bundle, max_batch=1) as (server, client):
        before = mappings("defectlens")
        async with client.shared_memory(slots=4, slot_bytes=SLOT) as memory:
            calls = []
            for _ in range(4):
                image = (await memory.take()).raw(96, 64, PixelFormat.RGB8)
                image.pixels[:] = part(spot=0)
                calls.append(asyncio.create_task(client.inspect(image)))
            await until(lambda: server.telemetry.received == 4)
        await until(lambda: not len(server.shared_frames))
        for reply in await asyncio.gather(*calls):
            assert reply.inspection.predicted == "dark"
        del memory, image, calls, reply
        await until(lambda: mappings("defectlens") == before)


async def test_the_end_of_the_server_waits_for_frames_and_not_for_regions(serve: Serve, slow_bundle: Path) -> None:
    async with (
        serve(slow_bundle, max_batch=1) as (server, client),
        client.shared_memory(slots=4, slot_bytes=SLOT) as memory,
    ):
        calls = []
        for _ in range(4):
            image = (await memory.take()).raw(96, 64, PixelFormat.RGB8)
            image.pixels[:] = 128
            calls.append(asyncio.create_task(client.inspect(image)))
        await until(lambda: server.telemetry.received == 4)
        await asyncio.wait_for(server.stop(), 5)
        assert all(reply.inspection.verdict is Verdict.PASS for reply in await asyncio.gather(*calls))


async def test_memory_of_a_server_that_was_started_anew_is_refused_in_words(serve: Serve) -> None:
    async with serve() as (_, first), first.shared_memory(slots=1, slot_bytes=SLOT) as memory:
        image = (await memory.take()).raw(96, 64, PixelFormat.RGB8)
        async with serve() as (_, second):
            with pytest.raises(SharedMemoryError, match="share the memory again"):
                await second.inspect(image)


async def test_other_machines_and_servers_without_room_are_told(serve: Serve) -> None:
    for options, words in (
        ({"address": "0.0.0.0:0"}, "takes no shared memory"),
        ({"max_shared_bytes": 0}, "takes no shared memory"),
        ({"max_shared_bytes": 8192}, "8192 at most"),
    ):
        async with serve(**options) as (server, client):
            info = await client.get_model()
            assert info.limits.max_shared_bytes == (8192 if "8192" in words else 0)
            with pytest.raises(SharedMemoryError, match=words):
                async with client.shared_memory(slots=3, slot_bytes=4096):
                    pass
            assert not len(server.shared_frames)


async def test_any_numbers_in_a_request_are_answered_with_our_error(serve: Serve) -> None:
    async with serve() as (server, client), grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = pb_grpc.InspectionServiceStub(channel)
        with memfd() as fd:
            call = stub.ShareMemory(pb.ShareMemoryRequest(pid=os.getpid(), fd=fd, size=8192, proof=PROOF))
            region = (await call.read()).region
            for fields in (
                {"region": "nobody's", "size": 4},
                {"offset": 2**64 - 64, "size": 128},
                {"size": 0},
                {"size": 4096, "width": 64, "height": 64},  # a pixel format forgotten
                {"size": 4096, "width": 65, "height": 64, "pixel_format": pb.MONO8},
                {"size": 4096, "pixel_format": pb.MONO8},
                {"size": 8192},  # no image file
            ):
                message = pb.InspectRequest(shared=pb.SharedImage(**{"region": region, **fields}))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Inspect(message)
                assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
                assert type(error_of(caught.value, "")).__name__ != "DefectLensError"
            call.cancel()
        for request in (pb.ShareMemoryRequest(), pb.ShareMemoryRequest(pid=1, fd=2**32 - 1, size=2**64 - 1)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ShareMemory(request).read()
            assert isinstance(error_of(caught.value, ""), SharedMemoryError)
        assert (await client.inspect(part())).inspection.verdict is Verdict.PASS
        # Errors hold the calls that they went through, and those the frames: not for longer than the answer takes.
        await until(lambda: not mappings("guest"))


async def test_a_candidate_on_trial_sees_the_frame_and_not_what_comes_into_its_slot_next(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as (server, client), client.shared_memory(slots=1, slot_bytes=SLOT) as memory:
        model = await server.fleet.shadow(make_bundle(tmp_path / "two", version="2"), 1.0)
        assert model.shadow is not None
        candidate = model.shadow.candidate.pipeline
        inspect = candidate.inspect

        async def late(*arguments: Any, **options: Any) -> Any:
            await asyncio.sleep(0.1)
            return await inspect(*arguments, **options)

        monkeypatch.setattr(candidate, "inspect", late)
        with await memory.take() as slot:
            image = slot.raw(96, 64, PixelFormat.RGB8)
            image.pixels[:] = part(spot=255)
            assert (await client.inspect(image)).inspection.verdict is Verdict.REJECT
            image.pixels[:] = 128
        await model.shadow.settle()
        assert (model.shadow.compared, model.shadow.disagreements) == (1, 0)


class Mute(pb_grpc.InspectionServiceServicer):
    """A server that never says whether it takes the memory, or says nothing and goes."""

    def __init__(self) -> None:
        self.leave = threading.Event()

    def ShareMemory(self, request: Any, context: Any) -> Iterator[pb.ShareMemoryResponse]:  # noqa: N802
        self.leave.wait(10)
        return iter(())


@pytest.mark.parametrize("leaves", [True, False])
async def test_nobody_waits_forever_for_a_server_without_words(leaves: bool) -> None:
    mute = Mute()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    pb_grpc.add_InspectionServiceServicer_to_server(mute, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    if leaves:
        mute.leave.set()

    def use() -> None:
        with InspectionClient(address) as client, client.shared_memory(slots=1, slot_bytes=1, timeout_s=limit_s):
            pytest.fail("nobody has taken the memory")

    limit_s = 10.0 if leaves else 0.1
    try:
        with pytest.raises(UnreachableError, match="did not say"):
            await asyncio.to_thread(use)
        async with AsyncInspectionClient(address) as client:
            with pytest.raises(UnreachableError, match="did not say"):
                async with client.shared_memory(slots=1, slot_bytes=1, timeout_s=limit_s):
                    pass
    finally:
        mute.leave.set()
        server.stop(None).wait()
    async with AsyncInspectionClient(address) as client:
        with pytest.raises(UnreachableError, match="check the address"):
            async with client.shared_memory(slots=1, slot_bytes=1):
                pass


async def test_20_megapixels_through_shared_memory(serve: Serve) -> None:
    width, height = 5472, 3648
    async with serve() as (_, client), client.shared_memory(slots=1, slot_bytes=width * height * 3) as memory:
        image = (await memory.take()).raw(width, height, PixelFormat.RGB8)
        image.pixels[:] = 128
        image.pixels[1824:2280, 2736:3192] = 255
        inspection = (await client.inspect(image)).inspection
    assert (inspection.frame_width, inspection.frame_height) == (width, height)
    assert inspection.verdict is Verdict.REJECT
    assert abs(inspection.regions[0].box.x - 2736) < 60
