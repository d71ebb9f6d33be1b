"""The AdminService: changes of models, checks of stations, in the words of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.json_format import MessageToDict

from protos.inspection.v1 import admin_pb2 as pb
from protos.inspection.v1 import admin_pb2_grpc as pb_grpc
from protos.inspection.v1 import inspection_pb2 as frames_pb
from serving import wire
from serving.fleet import Fleet, Model
from serving.masters import MasterPart, check_station
from serving.shadow import Opinion, Shadow
from serving.stations import Stations
from serving.status import abort
from serving.wire_cameras import check_to_proto, station_to_proto
from vision.errors import DefectLensError

if TYPE_CHECKING:  # loads the audit store, which a server without one need not
    from serving.recording import Recording

_Change = pb.LoadModelRequest | pb.ShadowModelRequest | pb.ModelRequest


class AdminServicer(pb_grpc.AdminServiceServicer):
    """One fleet and its stations over gRPC."""

    def __init__(self, fleet: Fleet, stations: Stations, recording: Recording | None = None) -> None:
        self._fleet = fleet
        self._stations = stations
        self._recording = recording

    async def ListModels(  # noqa: N802, gRPC's name
        self,
        request: pb.ListModelsRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(
            models=[self._state(model) for model in self._fleet.models.values()],
            refused=[pb.RefusedBundle(folder=str(folder), reason=reason) for folder, reason in self._fleet.refused],
        )

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> pb.ModelState:  # noqa: N802
        return await self._change(self._fleet.install(Path(request.folder)), request, "load", context)

    async def ShadowModel(self, request: pb.ShadowModelRequest, context: Any) -> pb.ModelState:  # noqa: N802
        return await self._change(self._fleet.shadow(Path(request.folder), request.share), request, "shadow", context)

    async def PromoteModel(self, request: pb.ModelRequest, context: Any) -> pb.ModelState:  # noqa: N802
        return await self._change(self._fleet.promote(request.name), request, "promote", context)

    async def RollbackModel(self, request: pb.ModelRequest, context: Any) -> pb.ModelState:  # noqa: N802
        return await self._change(self._fleet.rollback(request.name), request, "rollback", context)

    async def WithdrawModel(self, request: pb.ModelRequest, context: Any) -> pb.ModelState:  # noqa: N802
        return await self._change(self._fleet.withdraw(request.name), request, "withdraw", context)

    async def ListDisagreements(  # noqa: N802
        self, request: pb.ModelRequest, context: Any
    ) -> pb.ListDisagreementsResponse:
        try:
            model = self._fleet.model(request.name)
        except DefectLensError as error:
            await abort(context, error)
        kept = () if model.shadow is None else model.shadow.kept
        return pb.ListDisagreementsResponse(
            disagreements=[
                pb.Disagreement(
                    request_id=one.request_id,
                    camera_id=one.camera_id,
                    part_id=one.part_id,
                    lot=one.lot,
                    serving=_opinion(one.serving),
                    candidate=_opinion(one.candidate),
                )
                for one in kept
            ]
        )

    async def CheckStation(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.MasterPart], context: Any
    ) -> pb.StationCheck:
        parts: list[MasterPart] = []
        first: pb.MasterPart | None = None
        async for message in request_iterator:
            first = first or message
            parts.append(MasterPart(message.name, message.good, message.encoded))
        first = first or pb.MasterPart()
        check = check_station(self._fleet, self._stations, first.station, parts, by=first.by, model=first.model)
        try:
            done = await asyncio.shield(asyncio.ensure_future(check))
            said = {"passed": done.passed, "problems": list(done.problems), "bundle_digest": done.bundle_digest}
            await self._act("check station", first.by, first.station, "", said)
        except DefectLensError as error:
            await abort(context, error)
        return check_to_proto(done, self._fleet.choose(first.model).info.model)

    async def OverrideStation(self, request: pb.OverrideRequest, context: Any) -> frames_pb.StationStatus:  # noqa: N802
        try:
            status = self._stations.override(request.station, token=request.token, by=request.by, reason=request.reason)
            await self._act("override station", request.by, request.station, request.reason, {})
            return station_to_proto(status)
        except DefectLensError as error:
            await abort(context, error)

    async def ForgetCamera(self, request: pb.ForgetCameraRequest, context: Any) -> pb.ForgetCameraResponse:  # noqa: N802
        forgotten = sum(watch.forget(request.camera_id) for watch in self._fleet.watches)
        try:
            await self._act("forget camera", request.by, request.camera_id, request.reason, {})
        except DefectLensError as error:
            await abort(context, error)
        return pb.ForgetCameraResponse(forgotten=forgotten)

    async def _change(self, change: Awaitable[Model], request: _Change, action: str, context: Any) -> pb.ModelState:
        """A change that has begun is finished even if its caller goes away: half a change would be worse."""
        try:
            return await asyncio.shield(asyncio.ensure_future(self._recorded(change, request, action)))
        except DefectLensError as error:
            await abort(context, error)

    async def _recorded(self, change: Awaitable[Model], request: _Change, action: str) -> pb.ModelState:
        state = self._state(await change)
        versions = {
            name: MessageToDict(getattr(state, name), preserving_proto_field_name=True)
            for name in ("serving", "previous", "candidate")
            if state.HasField(name)
        }
        await self._act(action, request.by, state.name, request.reason, versions)
        return state

    async def _act(self, action: str, by: str, subject: str, reason: str, details: dict[str, Any]) -> None:
        if self._recording is not None:
            await self._recording.act(action, by, subject, reason, details)

    def _state(self, model: Model) -> pb.ModelState:
        state = pb.ModelState(
            name=model.serving.name,
            serving=wire.identity_to_proto(model.serving.info.model),
            is_default=model.serving is self._fleet.default,
        )
        if model.previous is not None:
            state.previous.CopyFrom(wire.identity_to_proto(model.previous.info.model))
        if model.shadow is not None:
            state.candidate.CopyFrom(wire.identity_to_proto(model.shadow.candidate.info.model))
            state.shadow.CopyFrom(_figures(model.shadow))
        return state


def admin_server(
    fleet: Fleet, stations: Stations, max_request_bytes: int, recording: Recording | None = None
) -> grpc.aio.Server:
    """A server of its own, not started and not bound yet: the cameras' address does not offer it."""
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", max_request_bytes)]
    server = grpc.aio.server(options=options)
    pb_grpc.add_AdminServiceServicer_to_server(AdminServicer(fleet, stations, recording), server)
    return server


def _figures(shadow: Shadow) -> pb.ShadowFigures:
    return pb.ShadowFigures(
        share=shadow.share,
        seen=shadow.seen,
        compared=shadow.compared,
        failed=shadow.failed,
        skipped=shadow.skipped,
        disagreements=shadow.disagreements,
        largest_score_difference=shadow.largest_score_difference,
    )


def _opinion(opinion: Opinion) -> pb.Opinion:
    return pb.Opinion(
        verdict=frames_pb.Verdict.ValueType(opinion.verdict),
        predicted=opinion.predicted,
        anomaly_score=opinion.anomaly_score,
    )
