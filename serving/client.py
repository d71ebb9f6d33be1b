"""The synchronous client: ``with InspectionClient("127.0.0.1:50051") as client: client.inspect(data)``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.inspection.v1 import inspection_pb2 as pb
from protos.inspection.v1 import inspection_pb2_grpc as pb_grpc
from serving import wire
from serving.calls import (
    RETRIED,
    Ledger,
    RetryPolicy,
    as_request,
    channel_options,
    error_of,
    pause_after,
    trace_metadata,
)
from serving.live import ServerStatus
from serving.messages import EncodedImage, FrameRequest, InspectionReply, ModelInfo, RawImage, StreamAnswer
from serving.shared_memory import SharedMemory, share
from serving.wire_reply import reply_from_proto
from serving.wire_status import status_from_proto
from vision.errors import DefectLensError, UnreachableError
from vision.types import Frame

T = TypeVar("T")
# Between two questions whether a server is ready.
_READY_PAUSE_S = 0.1
_SERVING = health_pb2.HealthCheckResponse.SERVING


class InspectionClient:
    """A connection to one inspection server; may be shared between threads. Close it, or use it in ``with``.

    Errors of the server come back as the same classes of ``vision.errors``; a server that cannot be reached is an
    ``UnreachableError``.

    Args:
        address: ``host:port``, or ``unix:/path`` of a server on this machine.
        timeout_s: deadline of single calls, retries included, where a call names no other.
        retry: how single calls are repeated; streams never are.
    """

    def __init__(self, address: str, *, timeout_s: float = 30.0, retry: RetryPolicy | None = None) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()
        self._channel = grpc.insecure_channel(address, options=channel_options(address))
        self._stub = pb_grpc.InspectionServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> InspectionClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; calls that are under way fail."""
        self._channel.close()

    def inspect(
        self,
        image: bytes | Frame | EncodedImage | RawImage | FrameRequest,
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> InspectionReply:
        """Inspect one frame.

        Args:
            image: bytes of an image file, uint8 pixels (``[H, W]`` grey or ``[H, W, 3]`` RGB), raw camera pixels, or a
                whole request.
            fields: of ``FrameRequest``, such as ``outputs=Outputs(overlay=True)`` or ``part_id="A-17"``.
        """
        start = time.monotonic()
        message = wire.request_to_proto(as_request(image, **fields))
        reply: pb.InspectResponse = self._call(self._stub.Inspect, message, timeout_s)
        return reply_from_proto(reply, (time.monotonic() - start) * 1000.0)

    def get_model(self, name: str = "", *, timeout_s: float | None = None) -> ModelInfo:
        """What the server serves under a name; empty takes the default model."""
        return wire.model_from_proto(self._call(self._stub.GetModel, pb.GetModelRequest(model=name), timeout_s))

    def get_status(self, *, timeout_s: float | None = None) -> ServerStatus:
        """How the server is doing: what became of every frame, and how long the recent ones took."""
        return status_from_proto(self._call(self._stub.GetStatus, pb.GetStatusRequest(), timeout_s))

    def is_ready(self, *, timeout_s: float = 2.0) -> bool:
        """Whether the server reports that it serves. A server that cannot be reached is not ready."""
        try:
            reply = self._health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(reply.status == _SERVING)

    def wait_until_ready(self, timeout_s: float = 30.0) -> None:
        """Wait for a server that is starting.

        Raises:
            UnreachableError: it was not ready in time.
        """
        until = time.monotonic() + timeout_s
        while not self.is_ready(timeout_s=max(0.1, min(2.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                raise UnreachableError(
                    f"no inspection server was ready at {self.address} within {timeout_s:g} s; "
                    "check the address and the server's log"
                )
            time.sleep(_READY_PAUSE_S)

    def shared_memory(
        self, *, slots: int, slot_bytes: int, timeout_s: float | None = None
    ) -> AbstractContextManager[SharedMemory]:
        """Memory that the server reads frames from, for cameras on the server's machine.

        ::

            with client.shared_memory(slots=4, slot_bytes=4000 * 3000) as memory, memory.take() as slot:
                image = slot.raw(4000, 3000, PixelFormat.MONO8)
                camera.grab(image.pixels)  # uint8 [3000, 4000], written in place
                reply = client.inspect(image, camera_id="left")

        The server gives it up at the end of the ``with``, or when this process ends. A server that is started anew has
        lost it: its frames meet a ``SharedMemoryError``, and the memory has to be shared again.

        Args:
            slots: frames that can be out or in the making at once.
            slot_bytes: of the largest frame.
            timeout_s: for the server's consent.

        Raises:
            SharedMemoryError: the server is on another machine, or refuses; or there is not so much memory.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return share(self._stub, self.address, slots, slot_bytes, limit_s)

    def inspect_stream(
        self,
        requests: Iterable[FrameRequest],
        *,
        in_flight: int = 8,
        timeout_s: float | None = None,
        newest_frame_wins: bool = False,
    ) -> Generator[StreamAnswer, None, None]:
        """Inspect many frames over one call; answers come as they are ready, so perhaps out of order.

        ``requests`` is read as answers come in, from another thread, with at most ``in_flight`` frames out at once, or
        fewer while the server gives fewer credits. A bad frame is an answer with its error. If the stream itself
        breaks, the frames that are out are answered with the error, and it is raised afterwards; so is an error of
        ``requests``, once what was sent is answered.

        Args:
            timeout_s: deadline of the whole stream; none by default.
            newest_frame_wins: for live pictures: a frame whose inference has not begun when the next one of its camera
                comes in is answered with ``SupersededError``, so that a slow server never falls behind.
        """
        ledger = Ledger(time.monotonic, in_flight=in_flight, newest_frame_wins=newest_frame_wins)
        changed = threading.Condition()
        over, all_sent = threading.Event(), threading.Event()
        source_errors: list[BaseException] = []

        def send() -> Iterator[pb.InspectRequest]:
            try:
                for item in requests:
                    request = as_request(item)
                    with changed:
                        changed.wait_for(lambda: over.is_set() or ledger.has_room)
                        if over.is_set():
                            return
                        message = ledger.send(request)
                    yield message
                all_sent.set()
            except Exception as error:  # the caller's iterator may raise anything; the caller gets it back
                source_errors.append(error)

        call = self._stub.InspectStream(send(), timeout=timeout_s, metadata=trace_metadata())
        try:
            for message in call:
                with changed:
                    answer = ledger.answer(message)
                    changed.notify()
                yield answer
        except grpc.RpcError:
            over.set()
            if all_sent.is_set() and not len(ledger):
                return  # a server that shuts down after its last answer has done all that was asked
            broken = error_of(call, self.address)
            yield from ledger.fail_rest(broken)
            raise broken from None
        finally:
            over.set()
            with changed:
                changed.notify()
            call.cancel()
        if source_errors:
            raise source_errors[0]
        if len(ledger):
            lost = DefectLensError("the server ended the stream without an answer to this frame; send it again")
            yield from ledger.fail_rest(lost)

    def _call(self, method: Callable[..., T], message: Any, timeout_s: float | None) -> T:
        until = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        pauses, metadata = self._retry.pauses(), trace_metadata()
        while True:
            try:
                return method(message, timeout=max(0.0, until - time.monotonic()), metadata=metadata)
            except grpc.RpcError as failure:
                error = error_of(failure, self.address)
            pause = next(pauses, None)
            if not isinstance(error, RETRIED) or pause is None:
                raise error
            pause = pause_after(error, pause)
            if time.monotonic() + pause >= until:
                raise error
            time.sleep(pause)
