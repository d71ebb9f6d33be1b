"""The only wiring of the server: models, gRPC, health and reflection, start and orderly end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from protos.inspection.v1 import inspection_pb2 as pb
from protos.inspection.v1 import inspection_pb2_grpc as pb_grpc
from serving.admin import admin_server
from serving.beside import PageBeside
from serving.fleet import Fleet
from serving.logs import Event
from serving.messages import ModelInfo
from serving.recording_options import SERVER
from serving.servicer import InspectionServicer
from serving.settings import ServerSettings, socket_path
from serving.shared_frames import SharedFrames
from serving.sockets import identity_of, remove_socket, room_for
from serving.stations import Stations
from serving.status import FALLBACK_KEY, PROVIDER_KEY
from serving.telemetry import Telemetry
from serving.watching import Watcher
from vision.errors import DefectLensError, SettingsError

if TYPE_CHECKING:
    from serving.metrics import MetricsServer
    from serving.recording import Recording
    from serving.tracing import Tracing

STATION = "station/"
"""Before a station's name, its name in the health service."""
SERVICE: str = pb.DESCRIPTOR.services_by_name["InspectionService"].full_name
# What is left for health watchers and the like once every frame is answered.
_LAST_CALLS_S = 0.5
_SHORTEST_TOKEN = 16
_log = logging.getLogger(__name__)


class InspectionServer:
    """A server for one or more bundles. ``await start()``, then ``await stop()``; or ``async with``.

    Raises:
        BundleError, ProviderError, ParityError: from ``start``; the port then never answers.
        SettingsError: the address cannot be bound.
    """

    def __init__(self, settings: ServerSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self.telemetry = Telemetry(clock=clock)
        self.shared_frames = SharedFrames(settings.offered_shared_bytes, settings.address)
        self._socket: tuple[Path, tuple[int, int]] | None = None
        self.metrics: MetricsServer | None = None
        self.stations = Stations(settings.stations, settings.station_log, _token(settings.override_token_file))
        self._stopped = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._admin: grpc.aio.Server | None = None
        self._watching: asyncio.Task[None] | None = None
        self.recording: Recording | None = None
        self.page: PageBeside | None = None
        self._telling: set[asyncio.Future[None]] = set()
        self.admin_address: str | None = None

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
        self.fleet = Fleet(settings, clock=self._clock)
        try:
            await self._open()
        except BaseException:
            await self.fleet.close()
            await self._close_page()
            if self.recording is not None:
                await asyncio.to_thread(self.recording.close)
            raise

    @property
    def info(self) -> ModelInfo:
        """The default model, as GetModel describes it."""
        return self.fleet.default.info

    async def _open(self) -> None:
        settings = self._settings
        if settings.page is not None:  # before anything else: what it lacks is told at once
            self.page = PageBeside(settings.page)
        await self._open_audit()
        for folder in (settings.bundle, *settings.further_bundles):
            await self.fleet.install(folder)
        if self.recording is not None:
            models = [asdict(info.model) for info in self.fleet.served]
            await self.recording.act("start", SERVER, details={"models": models, "mode": self.recording.mode})
        self.telemetry.queue_depth = lambda: self.fleet.queue_depth
        self._servicer = InspectionServicer(
            self.fleet, self.telemetry, self.shared_frames, self.stations, self.recording
        )
        self._health = _ProviderHealth(self.info)
        self._server = grpc.aio.server(options=_options(settings), maximum_concurrent_rpcs=settings.max_calls)
        self.address = self._listen()
        pb_grpc.add_InspectionServiceServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._watch()
        await self._server.start()
        await self._open_admin()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        for station in self.stations.all():
            await self._tell_station(station.station, serving=station.serving)
        self.stations.changed = self._station_changed
        if self.page is not None and settings.audit is not None:
            self.page.start(settings.audit.where, settings.audit.files, self.address, self.admin_address)
        model = self.info.model
        _log.info(Event("ready", address=self.address, model=model.name, version=model.version))

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
        _log.info(Event("draining", in_flight=self.telemetry.in_flight, limit_s=drain_s))
        await self._health.enter_graceful_shutdown()
        if self._watching is not None:
            self._watching.cancel()
        self.fleet.refuse_new()
        self._servicer.draining.set()
        closing = asyncio.create_task(self._server.stop(drain_s))
        try:
            async with asyncio.timeout(drain_s):
                await self._servicer.wait_until_idle()
        except TimeoutError:
            _log.warning(Event("drain_cut_short", in_flight=self.telemetry.in_flight))
        await self._server.stop(_LAST_CALLS_S)
        await closing
        if self._admin is not None:
            await self._admin.stop(_LAST_CALLS_S)
        await self.fleet.close()
        await self._close_page()  # what people did there is signed with the end of the chain
        await self._close_audit()
        if self._socket is not None:
            remove_socket(*self._socket)
        await asyncio.to_thread(self._stop_watching)
        for problem in self.telemetry.problems:
            _log.error(Event("accounting_broken", problem=problem))
        _log.info(Event("stopped", **self.telemetry.summary()))

    async def _open_audit(self) -> None:
        settings = self._settings.audit
        if settings is None:
            return
        from serving.recording import Recording

        self.recording = await asyncio.to_thread(Recording.open, settings, self._clock)
        self.fleet.loaded = self.recording.keep_bundle
        _log.info(Event("audit", store=self.recording.place, mode=settings.mode))

    async def _close_page(self) -> None:
        if self.page is not None:
            await asyncio.to_thread(self.page.stop)

    async def _close_audit(self) -> None:
        """Sign the end of the chain, after the last answer."""
        if self.recording is None:
            return
        try:
            await self.recording.act("stop", SERVER, details=self.telemetry.figures())
        except DefectLensError as error:
            _log.error(Event("audit_fails", reason=str(error)))
        await asyncio.to_thread(self.recording.close)
        counts = self.recording.counts()
        _log.info(Event("audit_closed", recorded=counts.recorded, failed=counts.failed, dropped=counts.dropped))

    def _listen(self) -> str:
        path = socket_path(self._settings.address)
        if path is None:
            return _bind(self._server, self._settings.address)
        with room_for(path):
            _bind(self._server, f"unix:{path}")
            self._socket = path, identity_of(path)
        return f"unix:{path}"

    def _watch(self) -> None:
        """Metrics and traces, where they are wanted; what they need is loaded only then."""
        if self._settings.traces is not None:
            self.telemetry.tracing = _tracing(self._settings.traces)
            _log.info(Event("traces", endpoint=self._settings.traces))
        if self._settings.metrics is not None:
            from serving.metrics import MetricsServer

            self.metrics = MetricsServer(
                self._settings.metrics, self.telemetry, self.fleet, self.stations, self.recording
            )
            _log.info(Event("metrics", address=self.metrics.address))

    def _station_changed(self, station: str, serving: bool) -> None:
        """Called on the event loop, by the admin service."""
        telling = asyncio.ensure_future(self._tell_station(station, serving=serving))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _tell_station(self, station: str, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self._health.set(f"{STATION}{station}", status.SERVING if serving else status.NOT_SERVING)

    def _stop_watching(self) -> None:
        if self.telemetry.tracing is not None:
            self.telemetry.tracing.close()
        if self.metrics is not None:
            self.metrics.close()

    async def _open_admin(self) -> None:
        settings = self._settings
        if settings.admin is not None:
            self._admin = admin_server(self.fleet, self.stations, settings.max_request_bytes, self.recording)
            self.admin_address = _bind(self._admin, settings.admin)
            await self._admin.start()
            _log.info(Event("admin_ready", address=self.admin_address))
        if settings.watch is not None:
            watcher = Watcher(settings.watch, self.fleet)
            await asyncio.to_thread(watcher.skip_known)
            self._watching = asyncio.create_task(watcher.run(), name="watch")


def _token(path: Path | None) -> str:
    """What stands in the file of the override token."""
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the override token {path} cannot be read: {error}") from error
    if len(token) < _SHORTEST_TOKEN:
        raise SettingsError(
            f"the override token in {path} has {len(token)} characters, at least {_SHORTEST_TOKEN} are needed; make "
            "one with `openssl rand -hex 16`"
        )
    return token


def _tracing(endpoint: str) -> Tracing:
    try:
        from serving.tracing import otlp_tracing
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"traces need the package {error.name!r}; install it with `pip install 'defectlens[otel]'`"
        ) from error
    return otlp_tracing(endpoint)


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


def _bind(server: grpc.aio.Server, address: str) -> str:
    host = address.rpartition(":")[0]
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise SettingsError(
            f"{address} cannot be listened on: another server is there, or it is no address of this machine; "
            "choose another one, or port 0 for any free port"
        ) from error
    return f"{host}:{port}"


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
