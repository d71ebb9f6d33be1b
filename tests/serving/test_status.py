from __future__ import annotations

import grpc
import pytest

from serving.status import TABLE, from_proto, from_status, status_of, to_proto
from vision import errors

EVERY = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.DefectLensError)
]


def test_no_error_class_is_missing_from_the_table() -> None:
    assert set(TABLE) == set(EVERY)


def test_every_class_has_a_code_of_its_own() -> None:
    assert len({status.code for status in TABLE.values()}) == len(TABLE)


@pytest.mark.parametrize("kind", EVERY)
def test_every_class_comes_back_as_itself(kind: type[errors.DefectLensError]) -> None:
    error = from_proto(to_proto(kind("what was wrong")))
    assert type(error) is kind
    assert str(error) == "what was wrong"


def test_an_unlisted_subclass_takes_its_parents_row() -> None:
    class Odd(errors.TruncatedImageError): ...

    assert status_of(Odd("x")) == TABLE[errors.TruncatedImageError]


def test_long_messages_are_cut_to_fit_a_header() -> None:
    assert len(to_proto(errors.DataError("x" * 100_000)).message) < 3000


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "refused", errors.UnreachableError),
        (grpc.StatusCode.UNIMPLEMENTED, "method not found", errors.UnreachableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", errors.DeadlineError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "concurrency", errors.OverloadedError),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "CLIENT: Received message larger than max (9 vs. 4)",
            errors.ImageTooLargeError,
        ),
        (grpc.StatusCode.INTERNAL, "Internal error from Core", errors.UnreachableError),
        (grpc.StatusCode.UNKNOWN, "boom", errors.DefectLensError),
    ],
)
def test_statuses_that_grpc_made_up_become_our_errors(
    code: grpc.StatusCode, details: str, kind: type[errors.DefectLensError]
) -> None:
    error = from_status(code, details, None, "here:1")
    assert type(error) is kind
    assert "here:1" in str(error)


def test_a_code_of_a_later_contract_is_still_an_error() -> None:
    assert type(from_status(grpc.StatusCode.INTERNAL, "new", "NEVER_HEARD_OF", "here:1")) is errors.DefectLensError


@pytest.mark.parametrize(("hint", "comes_back"), [(0.2504, 0.251), (0.0001, 0.001), (None, None)])
def test_in_a_stream_an_overloaded_server_says_when_to_come_back(hint: float | None, comes_back: float | None) -> None:
    error = from_proto(to_proto(errors.OverloadedError("full", hint)))
    assert isinstance(error, errors.OverloadedError)
    assert error.retry_after_s == comes_back
