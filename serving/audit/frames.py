"""Recorded frames as pixels, and what was seen in them as pictures."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.audit.maps import ANOMALY, read_sheet
from serving.audit.records import Answer
from serving.audit.store import Store
from serving.messages import EncodedImage, RawImage
from vision.drawing import CONTOUR, blend
from vision.errors import AuditError
from vision.postprocess import resize_map
from vision.preprocess import PixelFormat, decode_image, decode_raw
from vision.scales import anomaly_range
from vision.types import FloatArray, Frame

JPEG_QUALITY = 85


def stored_image(store: Store, answer: Answer) -> EncodedImage | RawImage:
    """The frame as it came in.

    Raises:
        AuditError: it was not kept, was pruned, or is not what it was.
    """
    if answer.frame is None:
        raise AuditError(f"no frame was kept of request {answer.request_id}: {answer.reason}")
    data, layout = store.files.read(answer.frame.sha256), answer.layout
    if layout is None:
        return EncodedImage(data)
    return RawImage(data, layout.width, layout.height, PixelFormat[layout.pixel_format], layout.stride)


def stored_frame(store: Store, answer: Answer) -> Frame:
    """Its pixels, uint8 ``[H, W, 3]`` RGB or ``[H, W]``.

    Raises:
        AuditError: as ``stored_image``.
        ImageError: it is no image; that may be what the answer says.
    """
    image = stored_image(store, answer)
    if isinstance(image, EncodedImage):
        return decode_image(image.data)
    return decode_raw(
        image.data, width=image.width, height=image.height, stride=image.stride, pixel_format=image.pixel_format
    )


def stored_maps(store: Store, answer: Answer) -> dict[str, FloatArray]:
    """The maps by name on the model's grid, float32; see ``serving.audit.maps``. Empty where there are none.

    Raises:
        AuditError: they were pruned, or are not what they were.
    """
    return {} if answer.maps is None else read_sheet(store.files.read(answer.maps.sha256), answer.planes)


def picture(frame: Frame, longest: int) -> NDArray[np.uint8]:
    """The frame, reduced to ``longest`` pixels on its longer side, uint8 ``[H, W, 3]`` RGB."""
    if frame.ndim == 2:
        frame = np.repeat(frame[:, :, None], 3, axis=2)
    height, width = frame.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def seen_picture(frame: Frame, answer: Answer, maps: dict[str, FloatArray], longest: int) -> NDArray[np.uint8] | None:
    """The same with the anomaly map over it and the regions' outlines, or the predicted class's saliency where there is
    no anomaly map; None where there is neither.
    """
    values = maps.get(ANOMALY)
    if values is None:
        values = maps.get(answer.predicted)
    if values is None:
        return None
    canvas = picture(frame, longest)
    height, width = canvas.shape[:2]
    pixel_threshold = None if answer.model is None else answer.model.point.get("pixel_threshold")
    # Without a threshold, the map's own range.
    low, high = float(values.min()), float(values.max())
    if ANOMALY in maps and pixel_threshold is not None:
        low, high = anomaly_range(float(pixel_threshold))
    share = np.clip((resize_map(values, height, width) - low) / max(high - low, 1e-12), 0.0, 1.0)
    canvas = blend(canvas, share.astype(np.float32))
    factors = np.array([width / max(answer.frame_width, 1), height / max(answer.frame_height, 1)])
    for region in answer.regions:
        points = (np.array(region.outline, np.float64).reshape(-1, 2) * factors).round().astype(np.int32)
        cv2.polylines(canvas, [points], isClosed=True, color=CONTOUR, thickness=2, lineType=cv2.LINE_AA)
    return canvas


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """RGB pixels as JPEG."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
