"""A small client for the AdminService."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from protos.inspection.v1 import admin_pb2 as pb
from protos.inspection.v1 import admin_pb2_grpc as pb_grpc
from protos.inspection.v1 import inspection_pb2 as frames_pb
from serving.calls import channel_options, error_of

# Loading a model, proving it and, on a GPU, warming it up takes seconds, not minutes.
_TIMEOUT_S = 300.0
Reply = TypeVar("Reply", bound=Message)


class AdminClient:
    """``with AdminClient("127.0.0.1:50052") as admin: admin.load(Path("bundles/parts-2"))``.

    Folders are those of the server's machine. ``by`` and ``reason`` are for its audit trail. Every call raises the
    error that the server met, of the same class, or ``UnreachableError``.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(address, channel_options(address))
        self._stub = pb_grpc.AdminServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def models(self) -> pb.ListModelsResponse:
        """All models and the bundles refused lately."""
        return self._call("ListModels", pb.ListModelsRequest(), pb.ListModelsResponse)

    def load(self, folder: Path, *, by: str = "", reason: str = "") -> pb.ModelState:
        """Load a bundle; it takes over from the version of its name."""
        request = pb.LoadModelRequest(folder=str(folder), by=by, reason=reason)
        return self._call("LoadModel", request, pb.ModelState)

    def shadow(self, folder: Path, share: float, *, by: str = "", reason: str = "") -> pb.ModelState:
        """Load a bundle as a candidate that sees a share (0..1) of the frames."""
        request = pb.ShadowModelRequest(folder=str(folder), share=share, by=by, reason=reason)
        return self._call("ShadowModel", request, pb.ModelState)

    def promote(self, name: str, *, by: str = "", reason: str = "") -> pb.ModelState:
        """The candidate takes over."""
        return self._call("PromoteModel", pb.ModelRequest(name=name, by=by, reason=reason), pb.ModelState)

    def rollback(self, name: str, *, by: str = "", reason: str = "") -> pb.ModelState:
        """The version before takes over again."""
        return self._call("RollbackModel", pb.ModelRequest(name=name, by=by, reason=reason), pb.ModelState)

    def withdraw(self, name: str, *, by: str = "", reason: str = "") -> pb.ModelState:
        """The candidate leaves."""
        return self._call("WithdrawModel", pb.ModelRequest(name=name, by=by, reason=reason), pb.ModelState)

    def disagreements(self, name: str) -> list[pb.Disagreement]:
        """The latest frames about which the candidate and the serving version disagree."""
        reply = self._call("ListDisagreements", pb.ModelRequest(name=name), pb.ListDisagreementsResponse)
        return list(reply.disagreements)

    def check_station(
        self, station: str, parts: Iterable[tuple[str, bool, bytes]], *, by: str = "", model: str = ""
    ) -> pb.StationCheck:
        """Check a station with master parts: name, whether it is known to be good, and today's picture of each."""
        messages = (
            pb.MasterPart(station=station, by=by, model=model, name=name, good=good, encoded=data)
            for name, good, data in parts
        )
        return self._call("CheckStation", messages, pb.StationCheck)

    def override_station(self, station: str, *, token: str, by: str, reason: str) -> frames_pb.StationStatus:
        """Let a stopped station serve until its next check."""
        request = pb.OverrideRequest(station=station, token=token, by=by, reason=reason)
        return self._call("OverrideStation", request, frames_pb.StationStatus)

    def forget_camera(self, camera_id: str, *, by: str = "", reason: str = "") -> int:
        """Forget what was seen of a camera; how many models' watches had seen it."""
        request = pb.ForgetCameraRequest(camera_id=camera_id, by=by, reason=reason)
        reply = self._call("ForgetCamera", request, pb.ForgetCameraResponse)
        return reply.forgotten

    def _call(self, method: str, request: Message | Iterator[Message], kind: type[Reply]) -> Reply:  # noqa: ARG002, says what comes back
        try:
            reply: Reply = getattr(self._stub, method)(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise error_of(error, self._address) from error
        return reply
