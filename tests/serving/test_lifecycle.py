"""Start, readiness, overload, deadlines and the end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving import AsyncInspectionClient, FrameRequest, InspectionServer, ServerSettings
from serving.server import SERVICE
from serving.status import FALLBACK_KEY, PROVIDER_KEY
from tests.fakes import make_bundle, part
from tests.serving.conftest import ONCE, Serve
from vision.errors import (
    BundleError,
    DeadlineError,
    DefectLensError,
    OverloadedError,
    ParityError,
    ProviderError,
    SettingsError,
    ShuttingDownError,
    UnreachableError,
)
from vision.types import Verdict

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def settings(bundle: Path, **options: Any) -> ServerSettings:
    return ServerSettings(bundle=bundle, address="127.0.0.1:0", **options)


async def test_health_tells_readiness_and_provider(serve: Serve) -> None:
    async with serve() as (server, client):
        assert await client.is_ready()
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for service in ("", SERVICE):
                call = stub.Check(health_pb2.HealthCheckRequest(service=service))
                assert (await call).status == SERVING
                metadata = dict(await call.initial_metadata())
                assert metadata[PROVIDER_KEY] == "CPUExecutionProvider"
                assert metadata[FALLBACK_KEY] == "false"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == SERVING
            stopping = asyncio.create_task(server.stop())
            assert (await watch.read()).status == NOT_SERVING
            await asyncio.wait_for(stopping, 5)  # a watcher must not hold up the end


async def test_reflection_lists_the_service(serve: Serve) -> None:
    async with serve() as (server, _), grpc.aio.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = {service.name for service in (await call.read()).list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_a_provider_that_is_not_there_is_a_loud_fallback(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vision.engine._cuda_device_present", lambda: False)
    async with serve(provider="cuda") as (server, client):
        reply = await client.inspect(part())
        info = await client.get_model()
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            await call
            assert dict(await call.initial_metadata())[FALLBACK_KEY] == "true"
    assert (reply.provider, reply.provider_fallback) == ("CPUExecutionProvider", True)
    assert info.provider_fallback
    assert "FALLBACK" in caplog.text


async def test_strict_provider_refuses_to_start(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision.engine._cuda_device_present", lambda: False)
    with pytest.raises(ProviderError, match="--strict-provider"):
        await InspectionServer(settings(bundle, provider="cuda", strict_provider=True)).start()


async def test_golden_frames_that_differ_keep_the_server_from_starting(tmp_path: Path) -> None:
    server = InspectionServer(settings(make_bundle(tmp_path / "b", damage_golden=True)))
    with pytest.raises(ParityError, match="class_logits differs by 1"):
        await server.start()


async def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    with (folder / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        await InspectionServer(settings(folder)).start()


async def test_a_port_that_is_taken_is_refused(serve: Serve, bundle: Path) -> None:
    async with serve() as (server, _):
        second = InspectionServer(ServerSettings(bundle=bundle, address=server.address))
        with pytest.raises(SettingsError, match="cannot be listened on"):
            await second.start()


async def test_overload_is_told_at_once(serve: Serve, slow_bundle: Path) -> None:
    async with serve(slow_bundle, max_queue=2, max_batch=1) as (server, client):
        results = await asyncio.gather(*(client.inspect(part()) for _ in range(12)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, OverloadedError)]
        answered = [result for result in results if not isinstance(result, BaseException)]
        assert len(refused) + len(answered) == 12
        assert len(answered) >= 2
        assert refused
        assert "2 frames are in work" in str(refused[0])
        assert server.telemetry.errors == {"OverloadedError": len(refused)}


async def test_too_many_bytes_at_once_are_overload_too(serve: Serve, slow_bundle: Path) -> None:
    async with serve(slow_bundle, max_queue_bytes=20_000) as (_, client):
        results = await asyncio.gather(*(client.inspect(part()) for _ in range(6)), return_exceptions=True)
    assert any(isinstance(result, OverloadedError) and "bytes" in str(result) for result in results)
    assert any(not isinstance(result, BaseException) for result in results)


async def test_the_deadline_of_a_call_is_kept(serve: Serve, slow_bundle: Path) -> None:
    async with serve(slow_bundle, max_batch=1) as (_, client):
        first = [asyncio.create_task(client.inspect(part())) for _ in range(4)]
        with pytest.raises(DeadlineError):
            await client.inspect(part(), timeout_s=0.01)
        assert all(reply.inspection.verdict is Verdict.PASS for reply in await asyncio.gather(*first))
        # Of the frame itself, where the call has time enough: told by the server.
        with pytest.raises(DeadlineError, match="nothing was spent"):
            await client.inspect(part(), timeout_ms=1)


async def test_the_end_answers_what_was_accepted_and_refuses_the_rest(serve: Serve, slow_bundle: Path) -> None:
    async with serve(slow_bundle, max_batch=1) as (server, client):
        calls = [asyncio.create_task(client.inspect(part())) for _ in range(10)]
        while server.telemetry.in_flight < 10:
            await asyncio.sleep(0.005)
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.05)
        with pytest.raises((ShuttingDownError, UnreachableError)):
            await client.inspect(part())
        replies = await asyncio.gather(*calls)
        assert len(replies) == 10
        await stopping
        await server.stop()  # again is harmless


async def test_the_end_closes_streams_once_their_frames_are_answered(serve: Serve, slow_bundle: Path) -> None:
    async with serve(slow_bundle, max_batch=1) as (server, client):
        answers = []

        async def camera() -> None:
            async for answer in client.inspect_stream((FrameRequest(part_image()) for _ in range(1000)), in_flight=4):
                answers.append(answer)  # noqa: PERF401, the error at the end is expected

        running = asyncio.create_task(camera())
        while len(answers) < 5:
            await asyncio.sleep(0.01)
        await asyncio.wait_for(server.stop(), 5)
        with pytest.raises((ShuttingDownError, UnreachableError)):
            await running
    done = [answer for answer in answers if answer.error is None]
    lost = [answer for answer in answers if answer.error is not None]
    assert len(done) == server.telemetry.judged
    assert len(lost) <= 4
    assert all(isinstance(answer.error, ShuttingDownError | UnreachableError) for answer in lost)


@pytest.mark.slow
async def test_a_drain_that_takes_too_long_is_cut_short(serve: Serve, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", work=100)
    async with serve(folder, max_batch=1, drain_seconds=0.2) as (server, client):
        calls = [asyncio.create_task(client.inspect(part())) for _ in range(8)]
        while server.telemetry.in_flight < 8:
            await asyncio.sleep(0.005)
        await server.stop()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(not isinstance(result, BaseException) or isinstance(result, DefectLensError) for result in results)
    assert any(isinstance(result, DefectLensError) for result in results)


async def test_waiting_for_a_server_that_never_comes_ends() -> None:
    async with AsyncInspectionClient("127.0.0.1:1", retry=ONCE) as client:
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1"):
            await client.wait_until_ready(0.3)


def part_image() -> Any:
    from serving import RawImage

    return RawImage.from_frame(part())
