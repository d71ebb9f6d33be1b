"""The asynchronous client; the same words as ``InspectionClient`` with ``await`` and ``async for``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
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
from serving.shared_memory import AsyncSharedMemory, share_async
from serving.wire_reply import reply_from_proto
from serving.wire_status import status_from_proto
from vision.errors import DefectLensError, UnreachableError
from vision.types import Frame

T = TypeVar("T")
_READY_PAUSE_S = 0.1
_SERVING = health_pb2.HealthCheckResponse.SERVING


class AsyncInspectionClient:
    """A connection to one inspection server, for one event loop; arguments and errors as in ``InspectionClient``."""

    def __init__(self, address: str, *, timeout_s: float = 30.0, retry: RetryPolicy | None = None) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()
        self._channel = grpc.aio.insecure_channel(address, options=channel_options(address))
        self._stub = pb_grpc.InspectionServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def __aenter__(self) -> AsyncInspectionClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; calls that are under way fail."""
        await self._channel.close()

    async def inspect(
        self,
        image: bytes | Frame | EncodedImage | RawImage | FrameRequest,
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> InspectionReply:
        """Inspect one frame; see ``InspectionClient.inspect``."""
        start = time.monotonic()
        message = wire.request_to_proto(as_request(image, **fields))
        reply: pb.InspectResponse = await self._call(self._stub.Inspect, message, timeout_s)
        return reply_from_proto(reply, (time.monotonic() - start) * 1000.0)

    async def get_model(self, name: str = "", *, timeout_s: float | None = None) -> ModelInfo:
        """What the server serves under a name; empty takes the default model."""
        return wire.model_from_proto(await self._call(self._stub.GetModel, pb.GetModelRequest(model=name), timeout_s))

    async def get_status(self, *, timeout_s: float | None = None) -> ServerStatus:
        """How the server is doing: what became of every frame, and how long the recent ones took."""
        return status_from_proto(await self._call(self._stub.GetStatus, pb.GetStatusRequest(), timeout_s))

    async def is_ready(self, *, timeout_s: float = 2.0) -> bool:
        """Whether the server reports that it serves. A server that cannot be reached is not ready."""
        try:
            reply = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(reply.status == _SERVING)

    async def wait_until_ready(self, timeout_s: float = 30.0) -> None:
        """Wait for a server that is starting.

        Raises:
            UnreachableError: it was not ready in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not await self.is_ready():
                    await asyncio.sleep(_READY_PAUSE_S)
        except TimeoutError:
            raise UnreachableError(
                f"no inspection server was ready at {self.address} within {timeout_s:g} s; "
                "check the address and the server's log"
            ) from None

    def shared_memory(
        self, *, slots: int, slot_bytes: int, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[AsyncSharedMemory]:
        """As ``InspectionClient.shared_memory``, for ``async with`` and ``await memory.take()``."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return share_async(self._stub, self.address, slots, slot_bytes, limit_s)

    async def inspect_stream(
        self,
        requests: Iterable[FrameRequest] | AsyncIterable[FrameRequest],
        *,
        in_flight: int = 8,
        timeout_s: float | None = None,
        newest_frame_wins: bool = False,
    ) -> AsyncGenerator[StreamAnswer, None]:
        """Inspect many frames over one call; see ``InspectionClient.inspect_stream``."""
        ledger = Ledger(time.monotonic, in_flight=in_flight, newest_frame_wins=newest_frame_wins)
        answered, all_sent = asyncio.Event(), asyncio.Event()
        source_errors: list[BaseException] = []

        async def send() -> AsyncIterator[pb.InspectRequest]:
            try:
                async for item in _each(requests):
                    request = as_request(item)
                    while not ledger.has_room:
                        answered.clear()
                        await answered.wait()
                    yield ledger.send(request)
                all_sent.set()
            except Exception as error:  # the caller's iterator may raise anything; the caller gets it back
                source_errors.append(error)

        call = self._stub.InspectStream(send(), timeout=timeout_s, metadata=trace_metadata())
        try:
            async for message in call:
                answer = ledger.answer(message)
                answered.set()
                yield answer
        except grpc.RpcError as failure:
            if all_sent.is_set() and not len(ledger):
                return  # a server that shuts down after its last answer has done all that was asked
            broken = error_of(failure, self.address)
            for answer in ledger.fail_rest(broken):
                yield answer
            raise broken from None
        finally:
            call.cancel()
        if source_errors:
            raise source_errors[0]
        for answer in ledger.fail_rest(
            DefectLensError("the server ended the stream without an answer to this frame; send it again")
        ):
            yield answer

    async def _call(self, method: Callable[..., Awaitable[T]], message: Any, timeout_s: float | None) -> T:
        until = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        pauses, metadata = self._retry.pauses(), trace_metadata()
        while True:
            try:
                return await method(message, timeout=max(0.0, until - time.monotonic()), metadata=metadata)
            except grpc.RpcError as failure:
                error = error_of(failure, self.address)
            pause = next(pauses, None)
            if not isinstance(error, RETRIED) or pause is None:
                raise error
            pause = pause_after(error, pause)
            if time.monotonic() + pause >= until:
                raise error
            await asyncio.sleep(pause)


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    for item in items:
        yield item
