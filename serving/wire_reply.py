"""Between the public contract and our own words: replies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from protos.inspection.v1 import inspection_pb2 as pb
from serving import maps, wire, wire_drift
from serving.messages import FrameRequest, InspectionReply, MapFormat, MaskFormat, ModelInfo, Timings
from serving.status import to_proto
from vision.errors import DefectLensError
from vision.types import Box, DefectRegion, FloatArray, Inspection, Verdict

if TYPE_CHECKING:  # the client reads replies too, and needs no pipeline for that
    from serving.pipeline import FrameResult


def reply_to_proto(result: FrameResult, request: FrameRequest, info: ModelInfo, request_id: str) -> pb.InspectResponse:
    """As the server sends it."""
    inspection, timings, wanted = result.inspection, result.timings, request.outputs
    defects = inspection.regions if wanted.regions else ()
    probabilities = [None] * len(info.classes)
    if inspection.class_probabilities is not None:
        probabilities = inspection.class_probabilities.tolist()
    scores = zip(
        info.classes, inspection.class_scores.tolist(), inspection.class_logits.tolist(), probabilities, strict=True
    )
    return pb.InspectResponse(
        request_id=request_id,
        verdict=pb.Verdict.ValueType(inspection.verdict),
        reason=inspection.reason,
        predicted=inspection.predicted,
        class_scores=[
            pb.ClassScore(name=name, score=score, logit=logit, probability=probability)
            for name, score, logit, probability in scores
        ],
        anomaly_score=inspection.anomaly_score,
        calibrated_anomaly_score=inspection.calibrated_anomaly_score,
        defects=[_defect_to_proto(region, wanted.mask_format) for region in defects],
        anomaly_map=None if result.maps.anomaly is None else _map_to_proto("", result.maps.anomaly),
        saliency_maps=_maps_to_proto(result.maps.saliency),
        attention_maps=_maps_to_proto(result.maps.attention),
        class_maps=_maps_to_proto(result.maps.classes),
        overlay_jpeg=result.overlay_jpeg,
        timings=pb.Timings(
            queue_ms=timings.queue_ms,
            decode_ms=timings.decode_ms,
            preprocess_ms=timings.preprocess_ms,
            inference_ms=timings.inference_ms,
            postprocess_ms=timings.postprocess_ms,
            total_ms=timings.total_ms,
        ),
        batch_size=result.batch_size,
        model=wire.identity_to_proto(info.model),
        provider=wire.provider_to_proto(info),
        frame_width=inspection.frame_width,
        frame_height=inspection.frame_height,
        drift=None if result.drift is None else wire_drift.drift_to_proto(result.drift),
        unknown_defect=inspection.is_unknown,
        class_hits=inspection.class_hits,
    )


def error_to_proto(error: DefectLensError, info: ModelInfo, request_id: str) -> pb.InspectResponse:
    """The answer of a stream to a frame that could not be judged."""
    return pb.InspectResponse(
        request_id=request_id,
        verdict=pb.NO_VERDICT,
        reason=str(error),
        model=wire.identity_to_proto(info.model),
        provider=wire.provider_to_proto(info),
        error=to_proto(error),
    )


def reply_from_proto(message: pb.InspectResponse, latency_ms: float) -> InspectionReply:
    """As the client reads it; not for messages that carry an error."""
    classes = tuple(score.name for score in message.class_scores)
    timings = message.timings
    inspection = Inspection(
        verdict=_verdict(message.verdict),
        reason=message.reason,
        predicted=message.predicted,
        class_scores=np.array([score.score for score in message.class_scores], np.float32),
        class_logits=np.array([score.logit for score in message.class_scores], np.float32),
        anomaly_score=message.anomaly_score if message.HasField("anomaly_score") else None,
        calibrated_anomaly_score=(
            message.calibrated_anomaly_score if message.HasField("calibrated_anomaly_score") else None
        ),
        regions=tuple(_defect_from_proto(defect) for defect in message.defects),
        anomaly_map=_map_from_proto(message.anomaly_map) if message.HasField("anomaly_map") else None,
        saliency_map=_stack(message.saliency_maps, classes),
        attention_map=_stack(message.attention_maps, classes),
        class_map=np.stack([_map_from_proto(plane) for plane in message.class_maps]) if message.class_maps else None,
        frame_height=message.frame_height,
        frame_width=message.frame_width,
        class_probabilities=_probabilities(message.class_scores),
        class_hits=tuple(message.class_hits),
        is_unknown=message.unknown_defect,
    )
    return InspectionReply(
        request_id=message.request_id,
        inspection=inspection,
        classes=classes,
        timings=Timings(
            queue_ms=timings.queue_ms,
            decode_ms=timings.decode_ms,
            preprocess_ms=timings.preprocess_ms,
            inference_ms=timings.inference_ms,
            postprocess_ms=timings.postprocess_ms,
            total_ms=timings.total_ms,
        ),
        batch_size=message.batch_size,
        model=wire.identity_from_proto(message.model),
        provider=message.provider.name,
        provider_fallback=message.provider.fallback,
        precision=message.provider.precision,
        overlay_jpeg=message.overlay_jpeg or None,
        latency_ms=latency_ms,
        drift=wire_drift.drift_from_proto(message.drift) if message.HasField("drift") else None,
    )


def _probabilities(scores: Sequence[pb.ClassScore]) -> FloatArray | None:
    """``[C]``; None unless every class has one."""
    if not scores or not all(score.HasField("probability") for score in scores):
        return None
    return np.array([score.probability for score in scores], np.float32)


def _verdict(value: int) -> Verdict:
    # A verdict of a later contract must never be taken for a pass, nor break the client.
    try:
        return Verdict(value)
    except ValueError:
        return Verdict.UNSPECIFIED


def _defect_to_proto(region: DefectRegion, mask_format: MaskFormat) -> pb.Defect:
    box = region.box
    return pb.Defect(
        class_name=region.label,
        score=region.score,
        box=pb.Box(x=box.x, y=box.y, width=box.width, height=box.height),
        area_px=region.area_px,
        mask_run_lengths=maps.mask_to_runs(region.mask) if mask_format is MaskFormat.RUN_LENGTHS else (),
        polygon=maps.mask_to_polygon(region.mask, box) if mask_format is MaskFormat.POLYGON else (),
    )


def _defect_from_proto(message: pb.Defect) -> DefectRegion:
    box = Box(message.box.x, message.box.y, message.box.width, message.box.height)
    if message.mask_run_lengths:
        mask = maps.runs_to_mask(message.mask_run_lengths, box)
    elif message.polygon:
        mask = maps.polygon_to_mask(message.polygon, box)
    else:
        mask = np.zeros((0, 0), np.bool_)
    return DefectRegion(message.class_name, message.score, box, mask, message.area_px)


def _map_to_proto(name: str, encoded: maps.EncodedMap) -> pb.Map:
    return pb.Map(
        class_name=name,
        width=encoded.width,
        height=encoded.height,
        format=pb.MapFormat.ValueType(encoded.format),
        data=encoded.data,
        scale=encoded.scale,
        offset=encoded.offset,
    )


def _maps_to_proto(encoded: dict[str, maps.EncodedMap]) -> Iterator[pb.Map]:
    return (_map_to_proto(name, plane) for name, plane in encoded.items())


def _map_from_proto(message: pb.Map) -> FloatArray:
    return maps.decode_map(
        maps.EncodedMap(
            message.data, message.width, message.height, MapFormat(message.format), message.scale, message.offset
        )
    )


def _stack(planes: Iterable[pb.Map], classes: tuple[str, ...]) -> FloatArray:
    """``[C, h, w]`` in the order of the classes, NaN where a class was not asked for; ``[C, 0, 0]`` without any."""
    by_class = {plane.class_name: _map_from_proto(plane) for plane in planes}
    shape = next((plane.shape for plane in by_class.values()), (0, 0))
    absent = np.full(shape, np.nan, np.float32)
    return np.stack([by_class.get(name, absent) for name in classes])
