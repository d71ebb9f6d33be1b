"""The RPCs: words of the contract in, pipeline, words of the contract out."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn

from protos.inspection.v1 import inspection_pb2 as pb
from protos.inspection.v1 import inspection_pb2_grpc as pb_grpc
from serving import wire
from serving.messages import ModelInfo
from serving.pipeline import Newest, Pipeline
from serving.status import ERROR_KEY, message_of, retry_metadata, status_of
from serving.streams import Shares, answer_stream
from serving.telemetry import Telemetry
from serving.wire_reply import error_to_proto, reply_to_proto
from vision.errors import DefectLensError, SettingsError, ShuttingDownError

# Cameras of one stream that may ask for something of their own.
_MOST_CAMERAS = 256


class InspectionServicer(pb_grpc.InspectionServiceServicer):
    """One pipeline over gRPC. Once ``draining`` is set, streams end when the frames that they read are answered."""

    def __init__(self, pipeline: Pipeline, info: ModelInfo, telemetry: Telemetry) -> None:
        self.draining = asyncio.Event()
        self._pipeline = pipeline
        self._info = info
        self._telemetry = telemetry
        self._shares = Shares(info.limits.max_stream_frames, info.limits.max_queue)
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
            return await self._answer(request, self._deadline(context), context.peer(), accepted=False)
        except DefectLensError as error:
            await _abort(context, error)

    async def InspectStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.InspectRequest], context: Any
    ) -> AsyncIterator[pb.InspectResponse]:
        self._count_until_done(context)
        deadline, peer = self._deadline(context), context.peer()
        live: dict[str, Newest] = {}

        async def answer(request: pb.InspectRequest) -> pb.InspectResponse:
            try:
                return await self._answer(request, deadline, peer, accepted=True, live=live)
            except DefectLensError as error:
                return error_to_proto(error, self._info, request.request_id)

        try:
            async with aclosing(answer_stream(request_iterator, answer, self._shares, self.draining)) as answers:
                async for reply in answers:
                    reply.credits = self._shares.credits
                    yield reply
        except ShuttingDownError as error:
            await _abort(context, error)

    async def GetModel(  # noqa: N802
        self,
        request: pb.GetModelRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> pb.GetModelResponse:
        return wire.model_to_proto(self._info)

    async def _answer(
        self,
        message: pb.InspectRequest,
        deadline: float | None,
        peer: str,
        *,
        accepted: bool,
        live: dict[str, Newest] | None = None,
    ) -> pb.InspectResponse:
        """The one way of every frame. Raises errors of our tree and nothing else.

        Args:
            peer: whom frames without a camera's name count for.
            live: of the frame's stream, the cameras whose newest frame wins.
        """
        message.request_id = message.request_id or uuid.uuid4().hex
        try:
            with self._telemetry.frame(message.request_id) as record:
                request = record.request = wire.request_from_proto(message)
                newest = None if live is None else _newest(message, live)
                camera = request.camera_id or peer
                result = await self._pipeline.inspect(
                    request, camera=camera, deadline=deadline, accepted=accepted, newest=newest
                )
                reply = reply_to_proto(result, request, self._info, message.request_id)
                record.result = result
                return reply
        except DefectLensError:
            raise
        except Exception as error:
            raise DefectLensError(
                f"the server met an unexpected error; its log has the details under request id {message.request_id}"
            ) from error

    def _deadline(self, context: Any) -> float | None:
        remaining_s: float | None = context.time_remaining()
        return None if remaining_s is None else self._pipeline.clock() + remaining_s

    def _count_until_done(self, context: Any) -> None:
        self._open_calls += 1
        self._idle.clear()
        context.add_done_callback(self._call_done)

    def _call_done(self, _: Any) -> None:
        self._open_calls -= 1
        if not self._open_calls:
            self._idle.set()


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


async def _abort(context: Any, error: DefectLensError) -> NoReturn:
    status = status_of(error)
    metadata = ((ERROR_KEY, pb.ErrorCode.Name(status.code)), *retry_metadata(error))
    await context.abort(status.grpc, message_of(error), metadata)
    raise AssertionError("abort always raises")  # pragma: no cover, tells the type checker
