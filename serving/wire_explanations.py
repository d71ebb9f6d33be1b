"""Between the public contract and our own words: what a bundle says about its explanations."""

from __future__ import annotations

from typing import Any

from protos.inspection.v1 import inspection_pb2 as pb
from vision.explanations import ClassCheck, Estimate, Explanations, Status

_STATUS: dict[Status, pb.ExplanationStatus.ValueType] = {
    "unchecked": pb.EXPLANATION_UNCHECKED,
    "passed": pb.EXPLANATION_PASSED,
    "failed": pb.EXPLANATION_FAILED,
}
_ESTIMATES = ("mass_in_mask", "random_mass", "insertion", "deletion", "randomised")


def explanations_to_proto(explanations: Explanations) -> pb.Explanations:
    """As the server sends it."""
    return pb.Explanations(
        biases=explanations.biases,
        top_share=explanations.top_share,
        evidence_scale=explanations.evidence_scale,
        classes=[
            pb.ClassExplanation(
                class_name=name,
                status=_STATUS[check.status],
                why=check.why,
                frames=check.frames,
                **{field: _estimate_to_proto(getattr(check, field)) for field in _ESTIMATES},
            )
            for name, check in explanations.checks.items()
        ],
        measured=explanations.measured,
    )


def explanations_from_proto(message: pb.Explanations) -> Explanations:
    """As the client reads it."""
    return Explanations(
        biases=tuple(message.biases),
        top_share=message.top_share,
        evidence_scale=tuple(message.evidence_scale),
        checks={one.class_name: _check_from_proto(one) for one in message.classes},
        measured=message.measured,
    )


def _check_from_proto(message: Any) -> ClassCheck:
    # A status of a later contract must never be taken for a pass.
    status = next((name for name, number in _STATUS.items() if number == message.status), "unchecked")
    estimates = {name: getattr(message, name) for name in _ESTIMATES if message.HasField(name)}
    return ClassCheck(
        status,  # type: ignore[arg-type]
        message.why,
        message.frames,
        **{name: Estimate(one.value, one.low, one.high) for name, one in estimates.items()},
    )


def _estimate_to_proto(estimate: Estimate | None) -> pb.Estimate | None:
    return None if estimate is None else pb.Estimate(value=estimate.value, low=estimate.low, high=estimate.high)
