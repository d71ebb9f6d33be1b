"""What both clients share: the channel's options, requests, retries and the way back to our own errors."""

from __future__ import annotations

import random
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import grpc

from protos.inspection.v1 import inspection_pb2 as pb
from serving.messages import EncodedImage, FrameRequest, RawImage, StreamAnswer
from serving.settings import is_loopback
from serving.status import ERROR_KEY, RETRY_KEY, from_proto, from_status, retry_from_metadata
from serving.wire import request_to_proto
from serving.wire_reply import reply_from_proto
from vision.errors import DefectLensError, OverloadedError, SettingsError, ShuttingDownError, UnreachableError
from vision.types import Frame

RETRIED = (UnreachableError, ShuttingDownError, OverloadedError)
"""After these the same call may succeed. Inspecting a frame changes nothing, so repeating it is safe."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How single calls are repeated after ``RETRIED`` errors, always within the deadline of the call.

    The n-th pause lasts ``first_pause_s`` × 2ⁿ, at most ``longest_pause_s``, times a random factor in 0.5..1 so that
    cameras do not come back in step; it is longer where an overloaded server asks for that. ``attempts`` counts the
    first one too; 1 never repeats.
    """

    attempts: int = 4
    first_pause_s: float = 0.05
    longest_pause_s: float = 1.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_pause_s < 0 or self.longest_pause_s < self.first_pause_s:
            raise SettingsError(f"a retry policy needs attempts >= 1 and 0 <= first <= longest pause; got {self}")

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each further attempt."""
        for index in range(self.attempts - 1):
            # 0.5..1 of the pause; no secret depends on this randomness.
            yield min(self.longest_pause_s, self.first_pause_s * 2**index) * random.uniform(0.5, 1.0)  # noqa: S311


def pause_after(error: DefectLensError, pause_s: float) -> float:
    """The policy's pause, or what an overloaded server asks for if that is longer, and up to a quarter more."""
    if not isinstance(error, OverloadedError) or error.retry_after_s is None:
        return pause_s
    # Refused together, they should not come back together; no secret depends on this randomness.
    return max(pause_s, error.retry_after_s * random.uniform(1.0, 1.25))  # noqa: S311


def channel_options(address: str) -> list[tuple[str, int]]:
    """No limit on messages (the server's counts), own retries only, quick reconnection, dead servers found out."""
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    if is_loopback(address):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def as_request(image: bytes | Frame | EncodedImage | RawImage | FrameRequest, **fields: Any) -> FrameRequest:
    """A whole request from whatever shows a frame; it gets an id if it has none."""
    if isinstance(image, FrameRequest):
        request = replace(image, **fields)
    elif isinstance(image, EncodedImage | RawImage):
        request = FrameRequest(image, **fields)
    elif isinstance(image, bytes):
        request = FrameRequest(EncodedImage(image), **fields)
    else:
        request = FrameRequest(RawImage.from_frame(image), **fields)
    return request if request.request_id else replace(request, request_id=uuid.uuid4().hex)


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """The active span of the caller as W3C ``traceparent``, for the server to join; empty where there is none.

    OpenTelemetry is never loaded for it: who has an active span has loaded it already.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())


def error_of(call: Any, address: str) -> DefectLensError:
    """From a failed call (``grpc.RpcError``) to the error that the server raised."""
    metadata = dict(call.trailing_metadata() or ())
    code, details = call.code() or grpc.StatusCode.UNKNOWN, call.details() or ""
    error = from_status(code, details, metadata.get(ERROR_KEY), address)
    if isinstance(error, OverloadedError):
        error.retry_after_s = retry_from_metadata(metadata.get(RETRY_KEY))
    return error


class Ledger:
    """Which frames of a stream are out, and since when: every one gets exactly one answer.

    Args:
        clock: monotonic, in seconds.
        in_flight: most frames out at once; the server's credits may make it fewer.
        newest_frame_wins: of each camera, a frame that is not in an inference yet gives way to the next one.
    """

    def __init__(self, clock: Callable[[], float], *, in_flight: int, newest_frame_wins: bool) -> None:
        self._clock = clock
        self._in_flight = in_flight
        self._newest_frame_wins = newest_frame_wins
        self._credits = in_flight
        self._sent: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def has_room(self) -> bool:
        """Whether another frame may go out."""
        return len(self._sent) < self._credits

    def send(self, request: FrameRequest) -> pb.InspectRequest:
        """Note a frame that goes out, and put it into words.

        Raises:
            SettingsError: another frame with its id is still out.
        """
        if request.request_id in self._sent:
            raise SettingsError(
                f"request id {request.request_id!r} is in use by a frame without an answer; give every frame its own"
            )
        self._sent[request.request_id] = self._clock()
        message = request_to_proto(request)
        if self._newest_frame_wins:
            message.stream.newest_frame_wins = True
        return message

    def answer(self, message: pb.InspectResponse) -> StreamAnswer:
        """The answer that has come in."""
        latency_ms = self._take(message.request_id)
        if message.credits:
            self._credits = min(self._in_flight, message.credits)
        if message.HasField("error"):
            return StreamAnswer(message.request_id, latency_ms, error=from_proto(message.error))
        return StreamAnswer(message.request_id, latency_ms, reply_from_proto(message, latency_ms))

    def fail_rest(self, error: DefectLensError) -> Iterator[StreamAnswer]:
        """Answers for the frames that the end of the stream left without one."""
        for request_id in list(self._sent):
            yield StreamAnswer(request_id, self._take(request_id), error=error)

    def _take(self, request_id: str) -> float:
        sent = self._sent.pop(request_id, None)
        if sent is None:
            raise DefectLensError(f"the server answered a frame {request_id!r} that is not out")
        return (self._clock() - sent) * 1000.0
