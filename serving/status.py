"""One table from the error tree to what a caller sees, in both directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from protos.inspection.v1 import inspection_pb2 as pb
from vision import errors

ERROR_KEY = "defectlens-error"
"""Trailing metadata of a failed call: the name of its ``ErrorCode``."""
RETRY_KEY = "defectlens-retry-after-ms"
"""Likewise of an overloaded server: when there should be room, in ms from now, as a whole number."""
PROVIDER_KEY = "defectlens-provider"
"""Initial metadata of health replies: the execution provider that really runs the model."""
FALLBACK_KEY = "defectlens-provider-fallback"
"""Likewise: ``true`` if that is another provider than the one asked for."""

# A status message travels as an HTTP/2 header, and many proxies cut the call above 8 KiB of headers.
_LONGEST_MESSAGE = 2000


@dataclass(frozen=True, slots=True)
class Status:
    grpc: grpc.StatusCode
    code: pb.ErrorCode.ValueType


_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

TABLE: dict[type[errors.DefectLensError], Status] = {
    errors.DefectLensError: Status(grpc.StatusCode.INTERNAL, pb.INTERNAL),
    errors.InputError: Status(_INVALID, pb.INVALID_INPUT),
    errors.DataError: Status(_INVALID, pb.INVALID_DATA),
    errors.SettingsError: Status(_INVALID, pb.INVALID_SETTINGS),
    errors.TooFewImagesError: Status(_INVALID, pb.TOO_FEW_IMAGES),
    errors.BundleError: Status(_PRECONDITION, pb.BUNDLE_REFUSED),
    errors.EmptyRequestError: Status(_INVALID, pb.EMPTY_REQUEST),
    errors.ImageError: Status(_INVALID, pb.UNREADABLE_IMAGE),
    errors.NotAnImageError: Status(_INVALID, pb.NOT_AN_IMAGE),
    errors.TruncatedImageError: Status(_INVALID, pb.TRUNCATED_IMAGE),
    errors.UnsupportedFormatError: Status(_INVALID, pb.UNSUPPORTED_FORMAT),
    errors.ImageTooLargeError: Status(_INVALID, pb.IMAGE_TOO_LARGE),
    errors.RawSizeError: Status(_INVALID, pb.RAW_SIZE_MISMATCH),
    errors.SharedMemoryError: Status(_PRECONDITION, pb.SHARED_MEMORY_REFUSED),
    errors.UnknownClassError: Status(_INVALID, pb.UNKNOWN_CLASS),
    errors.WrongModelError: Status(grpc.StatusCode.NOT_FOUND, pb.WRONG_MODEL),
    errors.NotAuthorizedError: Status(grpc.StatusCode.PERMISSION_DENIED, pb.NOT_AUTHORIZED),
    errors.DeadlineError: Status(grpc.StatusCode.DEADLINE_EXCEEDED, pb.DEADLINE_PASSED),
    errors.OverloadedError: Status(grpc.StatusCode.RESOURCE_EXHAUSTED, pb.OVERLOADED),
    errors.SupersededError: Status(grpc.StatusCode.ABORTED, pb.SUPERSEDED),
    errors.StationStoppedError: Status(_PRECONDITION, pb.STATION_STOPPED),
    errors.ShuttingDownError: Status(grpc.StatusCode.UNAVAILABLE, pb.SHUTTING_DOWN),
    errors.UnreachableError: Status(grpc.StatusCode.UNAVAILABLE, pb.UNREACHABLE),
    errors.ProviderError: Status(_PRECONDITION, pb.PROVIDER_UNAVAILABLE),
    errors.ParityError: Status(_PRECONDITION, pb.PARITY_BROKEN),
    errors.AuditError: Status(grpc.StatusCode.UNAVAILABLE, pb.AUDIT_FAILED),
    errors.TrainingError: Status(grpc.StatusCode.INTERNAL, pb.TRAINING_FAILED),
}
_BY_CODE = {status.code: kind for kind, status in TABLE.items()}
# For statuses that gRPC itself made up, which carry no code of ours.
_BY_STATUS: dict[grpc.StatusCode, type[errors.DefectLensError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.OverloadedError,
    grpc.StatusCode.UNAVAILABLE: errors.UnreachableError,
    grpc.StatusCode.UNIMPLEMENTED: errors.UnreachableError,
    grpc.StatusCode.CANCELLED: errors.ShuttingDownError,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InputError,
}
# What grpc.aio says when the connection ends while a message of a stream is being written.
_BROKEN_WRITE = "Internal error from Core"


def status_of(error: errors.DefectLensError) -> Status:
    """The row of the error's class, or of its nearest ancestor."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def message_of(error: BaseException) -> str:
    """The error's text, cut to what fits a header."""
    text = str(error)
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " ..."


async def abort(context: Any, error: errors.DefectLensError) -> NoReturn:
    """End a call with the error's status, and its name in the trailing metadata."""
    status = status_of(error)
    metadata = ((ERROR_KEY, pb.ErrorCode.Name(status.code)), *retry_metadata(error))
    await context.abort(status.grpc, message_of(error), metadata)
    raise AssertionError("abort always raises")  # pragma: no cover, tells the type checker


def to_proto(error: errors.DefectLensError) -> pb.Error:
    """The error as it stands in the answer of a stream."""
    return pb.Error(code=status_of(error).code, message=message_of(error), retry_after_ms=_retry_ms(error))


def from_proto(error: pb.Error) -> errors.DefectLensError:
    """The error that the server raised, of the same class."""
    made = _BY_CODE.get(error.code, errors.DefectLensError)(error.message)
    if isinstance(made, errors.OverloadedError) and error.retry_after_ms:
        made.retry_after_s = error.retry_after_ms / 1000.0
    return made


def retry_metadata(error: errors.DefectLensError) -> tuple[tuple[str, str], ...]:
    """When to try again, as trailing metadata; nothing where the error does not say."""
    milliseconds = _retry_ms(error)
    return ((RETRY_KEY, str(milliseconds)),) if milliseconds else ()


def _retry_ms(error: errors.DefectLensError) -> int:
    """0 where the error does not say."""
    if not isinstance(error, errors.OverloadedError) or error.retry_after_s is None:
        return 0
    return max(1, math.ceil(error.retry_after_s * 1000.0))


def retry_from_metadata(text: str | None) -> float | None:
    """Seconds, from the value of ``RETRY_KEY``; None where it is absent or no whole number."""
    return int(text) / 1000.0 if text is not None and text.isascii() and text.isdigit() else None


def from_status(code: grpc.StatusCode, details: str, error_name: str | None, address: str) -> errors.DefectLensError:
    """The error behind a failed call; ``error_name`` is the value of ``ERROR_KEY`` in its trailing metadata."""
    if error_name in pb.ErrorCode.keys():  # noqa: SIM118, an enum wrapper is no container
        return _BY_CODE.get(pb.ErrorCode.Value(error_name), errors.DefectLensError)(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in details.lower():
        return errors.ImageTooLargeError(
            f"the frame does not fit into a message of the server at {address} ({details}); "
            "send a smaller or compressed frame, or raise the limit (--max-pixels)"
        )
    if details == _BROKEN_WRITE:
        code = grpc.StatusCode.UNAVAILABLE
    kind = _BY_STATUS.get(code, errors.DefectLensError)
    if kind is errors.UnreachableError:
        return kind(f"no inspection server answers at {address} ({details}); check the address and whether it runs")
    return kind(f"{details or code.name} (server at {address})")
