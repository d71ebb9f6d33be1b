"""Between the public contract and our own words: operating points and what they rest on."""

from __future__ import annotations

from protos.inspection.v1 import inspection_pb2 as pb
from vision.calibration.evidence import Evidence
from vision.calibration.intervals import Rate
from vision.calibration.probability import ClassCalibration
from vision.decision import OperatingPoint


def point_to_proto(point: OperatingPoint) -> pb.OperatingPoint:
    """As the server sends it."""
    return pb.OperatingPoint(
        image_threshold=point.image_threshold,
        review_threshold=point.review_threshold,
        pixel_threshold=point.pixel_threshold,
        class_threshold=point.class_threshold,
        evidence=point.evidence,
        class_thresholds=point.class_thresholds,
        class_pixel_thresholds=point.class_pixel_thresholds,
        unknown_below=point.unknown_below,
        basis=None if point.basis is None else _basis_to_proto(point.basis),
    )


def point_from_proto(message: pb.OperatingPoint) -> OperatingPoint:
    """As the client reads it."""
    return OperatingPoint(
        image_threshold=message.image_threshold if message.HasField("image_threshold") else None,
        review_threshold=message.review_threshold if message.HasField("review_threshold") else None,
        pixel_threshold=message.pixel_threshold if message.HasField("pixel_threshold") else None,
        class_threshold=message.class_threshold,
        evidence=message.evidence,
        class_thresholds=dict(message.class_thresholds),
        class_pixel_thresholds=dict(message.class_pixel_thresholds),
        unknown_below=message.unknown_below if message.HasField("unknown_below") else None,
        basis=_basis_from_proto(message.basis) if message.HasField("basis") else None,
    )


def calibration_to_proto(calibration: ClassCalibration | None) -> pb.ClassCalibration | None:
    """As the server sends it; None where there is nothing to send."""
    if calibration is None:
        return None
    return pb.ClassCalibration(
        method=calibration.method,
        scale=calibration.scale,
        bias=calibration.bias,
        images=calibration.images,
        mix=calibration.mix,
        source=calibration.source,
        figures=calibration.figures,
    )


def calibration_from_proto(message: pb.ClassCalibration) -> ClassCalibration:
    """As the client reads it."""
    return ClassCalibration(
        method="vector" if message.method == "vector" else "temperature",
        scale=tuple(message.scale),
        bias=tuple(message.bias),
        images=message.images,
        mix=dict(message.mix),
        source=message.source,
        figures=dict(message.figures),
    )


def _basis_to_proto(basis: Evidence) -> pb.Basis:
    measured = {
        name: pb.Rate(hits=rate.hits, of=rate.of, low=rate.low, high=rate.high) for name, rate in basis.measured.items()
    }
    return pb.Basis(
        rule=basis.rule,
        asked=basis.asked,
        method=basis.method,
        confidence=basis.confidence,
        not_passed_bound=basis.not_passed_bound,
        rejected_bound=basis.rejected_bound,
        recall_bound=basis.recall_bound,
        good_images=basis.good_images,
        defective_images=basis.defective_images,
        lots=basis.lots,
        data=basis.data,
        data_digest=basis.data_digest,
        assumption=basis.assumption,
        measured=measured,
        figures=basis.figures,
        class_policy=basis.class_policy,
        notes=basis.notes,
    )


def _basis_from_proto(message: pb.Basis) -> Evidence:
    return Evidence(
        rule=message.rule,
        asked=dict(message.asked),
        method=message.method,
        confidence=message.confidence if message.HasField("confidence") else None,
        not_passed_bound=message.not_passed_bound if message.HasField("not_passed_bound") else None,
        rejected_bound=message.rejected_bound if message.HasField("rejected_bound") else None,
        recall_bound=message.recall_bound if message.HasField("recall_bound") else None,
        good_images=message.good_images,
        defective_images=message.defective_images,
        lots=message.lots if message.HasField("lots") else None,
        data=message.data,
        data_digest=message.data_digest,
        assumption=message.assumption,
        measured={
            name: Rate(int(rate.hits), int(rate.of), rate.low, rate.high) for name, rate in message.measured.items()
        },
        figures=dict(message.figures),
        class_policy=dict(message.class_policy),
        notes=tuple(message.notes),
    )
