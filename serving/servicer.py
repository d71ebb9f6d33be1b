"""The RPCs: words of the contract in, pipeline, words of the contract out."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from protos.inspection.v1 import inspection_pb2 as pb
from protos.inspection.v1 import inspection_pb2_grpc as pb_grpc
from serving import wire
from serving.drift import with_drift
from serving.fleet import Fleet
from serving.live import ServerStatus
from serving.messages import FrameRequest, ModelInfo, with_regions
from serving.pipeline import Newest
from serving.shared_frames import SharedFrames
from serving.stations import Stations
from serving.status import abort, status_of
from serving.streams import Shares, answer_stream
from serving.telemetry import Telemetry
from serving.wire_reply import error_to_proto, reply_to_proto
from serving.wire_status import status_to_proto
from vision.errors import DefectLensError, SettingsError, ShuttingDownError

if TYPE_CHECKING:  # loads the audit store, which a server without one need not
    from serving.recording import Recording

# Cameras of one stream that may ask for something of their own.
_MOST_CAMERAS = 256


@dataclass(frozen=True, slots=True)
class _Caller:
    """Whose frame it is: the deadline of its call, its trace, whom frames without a camera's name count for, and of a
    stream the cameras whose newest frame wins (None: a single call).
    """

    deadline: float | None
    trace: Any
    peer: str
    live: dict[str, Newest] | None = None


@dataclass(slots=True)
class _Frame:
    """What is known about a frame so far, for the record of its answer."""

    received_ns: int
    request: FrameRequest | None = None
    info: ModelInfo | None = None


class InspectionServicer(pb_grpc.InspectionServiceServicer):
    """A fleet over gRPC. Once ``draining`` is set, streams end when the frames that they read are answered."""

    def __init__(
        self,
        fleet: Fleet,
        telemetry: Telemetry,
        shared: SharedFrames,
        stations: Stations,
        recording: Recording | None = None,
    ) -> None:
        self.draining = asyncio.Event()
        self._fleet = fleet
        self._telemetry = telemetry
        self._shared = shared
        self._stations = stations
        self._recording = recording
        limits = fleet.default.info.limits
        self._shares = Shares(limits.max_stream_frames, limits.max_queue)
        self._open_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_until_idle(self) -> None:
        """Until no call with frames is open: every answer has left the server."""
        await self._idle.wait()

    async def Inspect(  # noqa: N802, gRPC's name
        self, request: pb.InspectRequest, context: Any
    ) -> pb.InspectResponse:
        self._count_until_done(context)
        try:
            return await self._answer(request, _Caller(self._deadline(context), self._trace(context), context.peer()))
        except DefectLensError as error:
            _let_go(error)
            await abort(context, error)

    async def InspectStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.InspectRequest], context: Any
    ) -> AsyncIterator[pb.InspectResponse]:
        self._count_until_done(context)
        caller = _Caller(self._deadline(context), self._trace(context), context.peer(), live={})

        async def answer(request: pb.InspectRequest) -> pb.InspectResponse:
            try:
                return await self._answer(request, caller)
            except DefectLensError as error:
                _let_go(error)
                return error_to_proto(error, self._fleet.default.info, request.request_id)

        try:
            async with aclosing(answer_stream(request_iterator, answer, self._shares, self.draining)) as answers:
                async for reply in answers:
                    reply.credits = self._shares.credits
                    yield reply
        except ShuttingDownError as error:
            await abort(context, error)

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: Any
    ) -> pb.GetModelResponse:
        try:
            return wire.model_to_proto(self._fleet.choose(request.model).info)
        except DefectLensError as error:
            await abort(context, error)

    async def ShareMemory(  # type: ignore[override]  # noqa: N802, what grpc.aio also takes
        self, request: pb.ShareMemoryRequest, context: Any
    ) -> None:
        # Written to the context and not yielded: a caller that dies then cancels this very wait, and no generator that
        # somebody has to finish stands between it and the memory.
        try:
            with self._shared.opened(request.pid, request.fd, request.size, request.proof) as region:
                await context.write(pb.ShareMemoryResponse(region=region))
                await self.draining.wait()
                await self.wait_until_idle()  # a stream may have read frames that it has not looked for yet
                raise ShuttingDownError("the server is shutting down; share the memory with the next one")
        except DefectLensError as error:
            await abort(context, error)

    async def GetStatus(  # noqa: N802
        self,
        request: pb.GetStatusRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> pb.GetStatusResponse:
        return status_to_proto(await asyncio.to_thread(self._status))

    def _status(self) -> ServerStatus:
        status = with_drift(self._telemetry.status(self._fleet.served), self._fleet.watches)
        audit = None if self._recording is None else self._recording.status()
        return replace(status, stations=self._stations.all(), audit=audit)

    async def _answer(self, message: pb.InspectRequest, caller: _Caller) -> pb.InspectResponse:
        """The one way of every frame. Raises errors of our tree and nothing else."""
        message.request_id = message.request_id or uuid.uuid4().hex
        frame = _Frame(time.time_ns())
        try:
            with self._telemetry.frame(message.request_id, message.camera_id, caller.trace) as record:
                request = record.request = frame.request = wire.request_from_proto(message, self._shared.view)
                self._stations.admit(request.station, request.camera_id)
                served = self._fleet.choose(request.model, request.model_version)
                frame.info = served.info
                deadline = self._until(request, caller)
                newest = None if caller.live is None else _newest(message, caller.live)
                result = await served.pipeline.inspect(
                    request if self._recording is None else with_regions(request),
                    camera=request.camera_id or caller.peer,
                    deadline=deadline,
                    accepted=caller.live is not None,
                    newest=newest,
                )
                reply = reply_to_proto(result, request, served.info, message.request_id)
                if self._recording is not None:
                    await self._recording.answered(
                        request, message.request_id, frame.received_ns, served.info, result, deadline
                    )
                record.result = result
                await self._fleet.observe(served, request, message.request_id, result.inspection)
                return reply
        except DefectLensError as error:
            await self._record_failure(frame, message.request_id, error)
            raise
        except Exception as error:
            told = DefectLensError(
                f"the server met an unexpected error; its log has the details under request id {message.request_id}"
            )
            await self._record_failure(frame, message.request_id, told)
            raise told from error

    async def _record_failure(self, frame: _Frame, request_id: str, error: DefectLensError) -> None:
        if self._recording is not None:
            code = pb.ErrorCode.Name(status_of(error).code)
            await self._recording.failed(frame.request, request_id, frame.received_ns, frame.info, error, code)

    def _until(self, request: FrameRequest, caller: _Caller) -> float | None:
        """The frame's deadline: its call's, or its own if that is earlier."""
        if not request.timeout_ms:
            return caller.deadline
        own = self._fleet.clock() + request.timeout_ms / 1000.0
        return own if caller.deadline is None else min(own, caller.deadline)

    def _deadline(self, context: Any) -> float | None:
        remaining_s: float | None = context.time_remaining()
        return None if remaining_s is None else self._fleet.clock() + remaining_s

    def _trace(self, context: Any) -> Any:
        """The caller's trace context; its spans are joined where traces are on."""
        tracing = self._telemetry.tracing
        return None if tracing is None else tracing.parent_of(context.invocation_metadata())

    def _count_until_done(self, context: Any) -> None:
        self._open_calls += 1
        self._idle.clear()
        context.add_done_callback(self._call_done)

    def _call_done(self, _: Any) -> None:
        self._open_calls -= 1
        if not self._open_calls:
            self._idle.set()


def _let_go(error: BaseException | None) -> None:
    """An error holds the calls that it went through, and they hold the frame, in circles that Python's collector finds
    much later: too late for memory that belongs to a camera.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _newest(message: pb.InspectRequest, live: dict[str, Newest]) -> Newest | None:
    """What the frame supersedes, after it has had its say about its camera."""
    camera = message.camera_id
    if message.HasField("stream"):
        if not message.stream.newest_frame_wins:
            live.pop(camera, None)
        elif camera not in live:
            if len(live) >= _MOST_CAMERAS:
                raise SettingsError(
                    f"{_MOST_CAMERAS} cameras of this stream have the newest frame win already; open another stream"
                )
            live[camera] = Newest()
    return live.get(camera)
