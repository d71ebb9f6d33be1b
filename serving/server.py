"""The only wiring of the server: bundle, engine, pipeline, gRPC, health and reflection, start and orderly end."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from protos.inspection.v1 import inspection_pb2 as pb
from protos.inspection.v1 import inspection_pb2_grpc as pb_grpc
from serving.messages import Limits, ModelIdentity, ModelInfo
from serving.pipeline import Pipeline
from serving.servicer import InspectionServicer
from serving.settings import ServerSettings, socket_path
from serving.shared_frames import SharedFrames
from serving.sockets import identity_of, remove_socket, room_for
from serving.status import FALLBACK_KEY, PROVIDER_KEY
from serving.telemetry import Telemetry
from vision.bundle import MAP_TOLERANCE, SCORE_TOLERANCE, Bundle, load_bundle
from vision.console import plain
from vision.engine import Engine
from vision.errors import SettingsError

SERVICE: str = pb.DESCRIPTOR.services_by_name["InspectionService"].full_name
# What is left for health watchers and the like once every frame is answered.
_LAST_CALLS_S = 0.5
_log = logging.getLogger(__name__)


class InspectionServer:
    """A server for one bundle. ``await start()``, then ``await stop()``; or ``async with``.

    Raises:
        BundleError, ProviderError, ParityError: from ``start``; the port then never answers.
        SettingsError: the address cannot be bound.
    """

    def __init__(self, settings: ServerSettings, *, clock: Callable[[], float] | None = None) -> None:
        self.telemetry = Telemetry()
        self.shared_frames = SharedFrames(settings.offered_shared_bytes, settings.address)
        self._settings = settings
        self._clock = clock
        self._socket: tuple[Path, tuple[int, int]] | None = None
        self._stopped = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> InspectionServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Load and prove the bundle, then listen. Health is SERVING when this returns."""
        settings = self._settings
        # Frames are decoded side by side in threads of ours; OpenCV's own would only fight over the same cores.
        cv2.setNumThreads(1)
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # bad frames are told in our own words
        bundle = await asyncio.to_thread(load_bundle, settings.bundle)
        engine = await asyncio.to_thread(
            bundle.engine,
            provider=settings.provider,
            strict=settings.strict_provider,
            threads=settings.threads,
        )
        self.info = describe(bundle, engine, settings)
        _log.info("event=provider asked=%s used=%s fallback=%s", settings.provider, engine.provider, engine.fallback)
        differences = await asyncio.to_thread(bundle.replay_golden, engine)
        worst = ", ".join(f"{name} {value:.2g}" for name, value in differences.items())
        _log.info("event=golden_frames_agree differences=%r", worst)
        clock = {} if self._clock is None else {"clock": self._clock}
        self._pipeline = Pipeline(bundle.manifest, engine, settings, **clock)
        self._servicer = InspectionServicer(self._pipeline, self.info, self.telemetry, self.shared_frames)
        self._health = _ProviderHealth(self.info)
        self._server = grpc.aio.server(options=_options(settings), maximum_concurrent_rpcs=settings.max_calls)
        self.address = self._bind()
        pb_grpc.add_InspectionServiceServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._pipeline.start()
        await self._server.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        model = self.info.model
        _log.info("event=ready address=%s model=%s version=%s", self.address, model.name, model.version)

    async def stop(self) -> None:
        """Not serving → take no new frames → answer every accepted one → close. A second call waits for the first."""
        await asyncio.shield(self.begin_stop())

    def begin_stop(self) -> asyncio.Task[None]:
        """What ``stop`` waits for; for signal handlers, which cannot wait."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="stop")
        return self._stopping

    async def wait_until_stopped(self) -> None:
        """Until ``stop`` was called and everything has ended."""
        await self._stopped.wait()
        await self.stop()

    async def _stop(self) -> None:
        try:
            await self._drain_and_close()
        finally:
            self._stopped.set()

    async def _drain_and_close(self) -> None:
        drain_s = self._settings.drain_seconds
        _log.info("event=draining in_flight=%d limit_s=%g", self.telemetry.in_flight, drain_s)
        await self._health.enter_graceful_shutdown()
        self._pipeline.refuse_new()
        self._servicer.draining.set()
        closing = asyncio.create_task(self._server.stop(drain_s))
        try:
            async with asyncio.timeout(drain_s):
                await self._servicer.wait_until_idle()
        except TimeoutError:
            _log.warning("event=drain_cut_short in_flight=%d", self.telemetry.in_flight)
        await self._server.stop(_LAST_CALLS_S)
        await closing
        await self._pipeline.close()
        if self._socket is not None:
            remove_socket(*self._socket)
        _log.info("event=stopped %s", self.telemetry.summary())

    def _bind(self) -> str:
        address = self._settings.address
        path = socket_path(address)
        if path is not None:
            with room_for(path):
                self._listen(f"unix:{path}")
                self._socket = path, identity_of(path)
            return f"unix:{path}"
        return f"{address.rpartition(':')[0]}:{self._listen(address)}"

    def _listen(self, address: str) -> int:
        try:
            port: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise SettingsError(
                f"{address} cannot be listened on: another server is there, or it is no address of this machine; "
                "choose another one, or port 0 for any free port"
            ) from error
        return port


class _ProviderHealth(health_aio.HealthServicer):  # type: ignore[misc]  # the package has no types
    """Standard health whose replies tell, in their initial metadata, what the model runs on."""

    def __init__(self, info: ModelInfo) -> None:
        super().__init__()
        self._metadata = ((PROVIDER_KEY, info.provider), (FALLBACK_KEY, str(info.provider_fallback).lower()))

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802, gRPC's name
        await context.send_initial_metadata(self._metadata)
        return await super().Check(request, context)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        await context.send_initial_metadata(self._metadata)
        await super().Watch(request, context)


def describe(bundle: Bundle, engine: Engine, settings: ServerSettings) -> ModelInfo:
    """What GetModel says."""
    manifest = bundle.manifest
    return ModelInfo(
        model=ModelIdentity(manifest.name, manifest.version, bundle.digest, manifest.model_digest),
        created=manifest.created,
        classes=manifest.classes,
        good_class=manifest.good_class,
        input_height=manifest.input.height,
        input_width=manifest.input.width,
        white_level=manifest.input.white_level,
        operating_point=manifest.operating_point,
        metrics_json=json.dumps(plain(manifest.metrics)),
        parity_json=json.dumps(plain(manifest.parity)),
        provenance_json=json.dumps(plain(manifest.provenance)),
        provider=engine.provider,
        provider_fallback=engine.fallback,
        score_tolerance=SCORE_TOLERANCE,
        map_tolerance=MAP_TOLERANCE,
        limits=Limits(
            max_pixels=settings.max_pixels,
            max_request_bytes=settings.max_request_bytes,
            max_reply_bytes=settings.max_reply_bytes,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            max_stream_frames=settings.max_stream_frames,
            max_shared_bytes=settings.offered_shared_bytes,
        ),
        fast_decode=settings.fast_decode,
    )


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_request_bytes),
        ("grpc.max_send_message_length", settings.max_reply_bytes),
        # Without it a second server on the same port starts happily and takes half of the calls.
        ("grpc.so_reuseport", 0),
        # Lines stand still for hours: find dead peers, and do not punish cameras that ping to find out about us
        # (gRPC's floor of 300 s between pings ends their connections).
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]
