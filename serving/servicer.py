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
from serving.pipeline import Pipeline
from serving.shared_frames import SharedFrames
from serving.status import ERROR_KEY, message_of, status_of
from serving.streams import answer_stream
from serving.telemetry import Telemetry
from serving.wire_reply import error_to_proto, reply_to_proto
from vision.errors import DefectLensError, ShuttingDownError


class InspectionServicer(pb_grpc.InspectionServiceServicer):
    """One pipeline over gRPC. Once ``draining`` is set, streams end when the frames that they read are answered."""

    def __init__(self, pipeline: Pipeline, info: ModelInfo, telemetry: Telemetry, shared: SharedFrames) -> None:
        self.draining = asyncio.Event()
        self._pipeline = pipeline
        self._info = info
        self._telemetry = telemetry
        self._shared = shared
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
            return await self._answer(request, self._deadline(context), accepted=False)
        except DefectLensError as error:
            await _abort(context, error)

    async def InspectStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.InspectRequest], context: Any
    ) -> AsyncIterator[pb.InspectResponse]:
        self._count_until_done(context)
        deadline = self._deadline(context)

        async def answer(request: pb.InspectRequest) -> pb.InspectResponse:
            try:
                return await self._answer(request, deadline, accepted=True)
            except DefectLensError as error:
                return error_to_proto(error, self._info, request.request_id)

        most = self._info.limits.max_stream_frames
        try:
            async with aclosing(answer_stream(request_iterator, answer, most, self.draining)) as answers:
                async for reply in answers:
                    yield reply
        except ShuttingDownError as error:
            await _abort(context, error)

    async def GetModel(  # noqa: N802
        self,
        request: pb.GetModelRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> pb.GetModelResponse:
        return wire.model_to_proto(self._info)

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
            await _abort(context, error)

    async def _answer(
        self, message: pb.InspectRequest, deadline: float | None, *, accepted: bool
    ) -> pb.InspectResponse:
        """The one way of every frame. Raises errors of our tree and nothing else."""
        message.request_id = message.request_id or uuid.uuid4().hex
        try:
            with self._telemetry.frame(message.request_id) as record:
                request = record.request = wire.request_from_proto(message, self._shared.view)
                result = await self._pipeline.inspect(request, deadline=deadline, accepted=accepted)
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


async def _abort(context: Any, error: DefectLensError) -> NoReturn:
    status = status_of(error)
    await context.abort(status.grpc, message_of(error), ((ERROR_KEY, pb.ErrorCode.Name(status.code)),))
    raise AssertionError("abort always raises")  # pragma: no cover, tells the type checker
