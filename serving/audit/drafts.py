"""From what the server knows about a frame to the record of its answer. Runs in the recorder's thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cv2
import numpy as np

from serving.audit import maps
from serving.audit.append import Blob
from serving.audit.chain import finite
from serving.audit.records import Answer, ClassFigures, FileRef, ModelUsed, RawLayout, RegionFigures
from serving.messages import EncodedImage, FrameRequest, ModelInfo, RawImage
from serving.pipeline import FrameResult
from vision.preprocess import PixelFormat
from vision.types import DefectRegion, Inspection, Verdict

RAW_MEDIA = "application/octet-stream"
"""Of a frame that came as bare pixels; the record's ``layout`` says how they lie."""
_MEDIA = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"BM": "image/bmp", b"RIFF": "image/webp"}
_MEDIA |= {b"II*\0": "image/tiff", b"MM\0*": "image/tiff"}
_PACKAGES = ("defectlens", "onnxruntime-gpu", "openvino", "numpy", "opencv-python", "simplejpeg")
# Of the longest side of a region: its outline is for people to see, the map says what was decided.
_OUTLINE_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is known when an answer is about to leave. Either ``result`` or ``error_code`` with ``reason`` is set.

    ``image``: the frame as it came in, its bytes belonging to nobody else; None where they are not kept.
    """

    request_id: str
    received_ns: int
    request: FrameRequest | None = None
    image: EncodedImage | RawImage | None = None
    info: ModelInfo | None = None
    result: FrameResult | None = None
    error_code: str = ""
    reason: str = ""

    @property
    def size(self) -> int:
        """Bytes that it holds in memory, but for what all drafts hold."""
        return 0 if self.image is None else len(self.image.data)


def answer_of(draft: Draft, *, sample_rate: float, draw: Callable[[], float]) -> tuple[Answer, list[Blob]]:
    """The record of an answer, and its files.

    Args:
        sample_rate: share of passed parts that a person is to check.
        draw: a random number in 0..1, evenly spread, that nobody can foresee.
    """
    blobs: list[Blob] = []
    known: dict[str, Any] = {"request_id": draft.request_id, "received_ns": draft.received_ns}
    known |= _request(draft.request) | _frame(draft.image, blobs)
    known |= {"versions": _versions(), "sample_rate": sample_rate}
    if draft.info is not None:
        known["model"] = _model(draft.info)
    if draft.result is None:
        return Answer(verdict=Verdict.NO_VERDICT, reason=draft.reason, error=draft.error_code, **known), blobs
    known |= _result(draft.result, draft.info, blobs)
    known["sampled"] = known["verdict"] is Verdict.PASS and draw() < sample_rate
    return Answer(**known), blobs


def _request(request: FrameRequest | None) -> dict[str, Any]:
    if request is None:
        return {}
    return {
        "part": request.part_id,
        "lot": request.lot,
        "camera": request.camera_id,
        "station": request.station,
        "captured_ns": request.capture_time_ns,
    }


def _frame(image: EncodedImage | RawImage | None, blobs: list[Blob]) -> dict[str, Any]:
    if image is None:
        return {}
    if isinstance(image, RawImage):
        blobs.append(Blob.of(image.data, RAW_MEDIA))
        layout = RawLayout(image.width, image.height, image.stride, PixelFormat(image.pixel_format).name)
        return {"frame": blobs[-1].ref, "layout": layout}
    beginning = bytes(image.data[:4])
    media = next((name for magic, name in _MEDIA.items() if beginning.startswith(magic)), RAW_MEDIA)
    blobs.append(Blob.of(image.data, media))
    return {"frame": blobs[-1].ref}


def _result(result: FrameResult, info: ModelInfo | None, blobs: list[Blob]) -> dict[str, Any]:
    inspection, timings = result.inspection, result.timings
    classes = () if info is None else info.classes
    sheet, planes = _sheet(inspection, classes)
    if sheet is not None:
        blobs.append(sheet)
    ref: FileRef | None = None if sheet is None else sheet.ref
    return {
        "verdict": inspection.verdict,
        "reason": inspection.reason,
        "frame_width": inspection.frame_width,
        "frame_height": inspection.frame_height,
        "predicted": inspection.predicted,
        "anomaly_score": finite(inspection.anomaly_score),
        "calibrated_anomaly_score": finite(inspection.calibrated_anomaly_score),
        "classes": _classes(inspection, classes),
        "class_hits": tuple(inspection.class_hits),
        "unknown_defect": inspection.is_unknown,
        "regions": tuple(_region(region) for region in inspection.regions),
        "maps": ref,
        "planes": planes,
        "drift": "" if result.drift is None else result.drift.state.name,
        "timings_ms": asdict(timings),
        "batch_size": result.batch_size,
    }


def _sheet(inspection: Inspection, classes: tuple[str, ...]) -> tuple[Blob | None, tuple[Any, ...]]:
    planes = {} if inspection.anomaly_map is None else {maps.ANOMALY: inspection.anomaly_map}
    if inspection.saliency_map.size:
        planes |= dict(zip(classes, inspection.saliency_map, strict=True))
    if not planes:
        return None, ()
    data, places = maps.write_sheet(planes)
    return Blob.of(data, maps.MEDIA), places


def _classes(inspection: Inspection, classes: tuple[str, ...]) -> tuple[ClassFigures, ...]:
    probabilities: list[float | None] = [None] * len(classes)
    if inspection.class_probabilities is not None:
        probabilities = list(inspection.class_probabilities.tolist())
    rows = zip(classes, inspection.class_scores.tolist(), inspection.class_logits.tolist(), probabilities, strict=True)
    return tuple(ClassFigures(name, *(finite(value) for value in values)) for name, *values in rows)


def _region(region: DefectRegion) -> RegionFigures:
    box = region.box
    contours, _ = cv2.findContours(
        region.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(box.x, box.y)
    )
    outline = cv2.approxPolyDP(max(contours, key=len), _OUTLINE_TOLERANCE * max(box.width, box.height), closed=True)
    points = tuple(int(value) for value in outline.reshape(-1))
    return RegionFigures(region.label, region.score, (box.x, box.y, box.width, box.height), region.area_px, points)


def _model(info: ModelInfo) -> ModelUsed:
    model, point = info.model, info.operating_point
    thresholds = {
        "image_threshold": point.image_threshold,
        "review_threshold": point.review_threshold,
        "pixel_threshold": point.pixel_threshold,
        "class_threshold": point.class_threshold,
        "class_thresholds": dict(point.class_thresholds),
        "class_pixel_thresholds": dict(point.class_pixel_thresholds),
        "unknown_below": point.unknown_below,
    }
    return ModelUsed(
        model.name,
        model.version,
        model.bundle_digest,
        model.model_digest,
        info.provider,
        info.precision,
        info.provider_fallback,
        thresholds,
        info.fast_decode,
    )


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    """Of what a score depends on, as far as it is installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
