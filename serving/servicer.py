"""The RPCs: words of the contract in, pipeline, words of the contract out."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from protos.inspection.v1 import inspection_pb2 as pb
from protos.inspection.v1 import inspection_pb2_grpc as pb_grpc
from serving import wire
from serving.fleet import Fleet
from serving.status import abort
from serving.streams import answer_stream
from serving.telemetry import Telemetry
from serving.wire_reply import error_to_proto, reply_to_proto
from serving.wire_status import status_to_proto
from vision.errors import DefectLensError, ShuttingDownError


class InspectionServicer(pb_grpc.InspectionServiceServicer):
    """A fleet over gRPC. Once ``draining`` is set, streams end when the frames that they read are answered."""

    def __init__(self, fleet: Fleet, telemetry: Telemetry) -> None:
        self.draining = asyncio.Event()
        self._fleet = fleet
        self._telemetry = telemetry
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
            return await self._answer(request, self._deadline(context), self._trace(context), accepted=False)
        except DefectLensError as error:
            await abort(context, error)

    async def InspectStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.InspectRequest], context: Any
    ) -> AsyncIterator[pb.InspectResponse]:
        self._count_until_done(context)
        deadline, trace = self._deadline(context), self._trace(context)

        async def answer(request: pb.InspectRequest) -> pb.InspectResponse:
            try:
                return await self._answer(request, deadline, trace, accepted=True)
            except DefectLensError as error:
                return error_to_proto(error, self._fleet.default.info, request.request_id)

        most = self._fleet.default.info.limits.max_stream_frames
        try:
            async with aclosing(answer_stream(request_iterator, answer, most, self.draining)) as answers:
                async for reply in answers:
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

    async def GetStatus(  # noqa: N802
        self,
        request: pb.GetStatusRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> pb.GetStatusResponse:
        return status_to_proto(await asyncio.to_thread(self._telemetry.status, self._fleet.served))

    async def _answer(
        self, message: pb.InspectRequest, deadline: float | None, trace: Any, *, accepted: bool
    ) -> pb.InspectResponse:
        """The one way of every frame. Raises errors of our tree and nothing else."""
        message.request_id = message.request_id or uuid.uuid4().hex
        try:
            with self._telemetry.frame(message.request_id, message.camera_id, trace) as record:
                request = record.request = wire.request_from_proto(message)
                served = self._fleet.choose(request.model, request.model_version)
                result = await served.inspect(request, deadline=deadline, accepted=accepted)
                reply = reply_to_proto(result, request, served.info, message.request_id)
                record.result = result
                self._fleet.observe(served, request, message.request_id, result.inspection)
                return reply
        except DefectLensError:
            raise
        except Exception as error:
            raise DefectLensError(
                f"the server met an unexpected error; its log has the details under request id {message.request_id}"
            ) from error

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
