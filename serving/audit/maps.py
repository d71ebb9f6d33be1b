"""A sheet: all maps of one answer in one small picture, on the model's own grid.

A 16-bit grey PNG, the maps one below the other. Each has its own scale, so that the largest error of a value is half a
step of 1/65535 of its map's range. One file instead of one a map: writing it durably is what a record costs most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from serving.audit.records import MapPlane
from vision.errors import AuditError
from vision.types import FloatArray

ANOMALY = "anomaly"
"""The name of the anomaly map; the others have the name of the class whose saliency they are."""
MEDIA = "image/png"
_LEVELS = 65535
# As for the maps in replies: higher levels take ten times as long for a few per cent.
_COMPRESSION = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def write_sheet(maps: Mapping[str, FloatArray]) -> tuple[bytes, tuple[MapPlane, ...]]:
    """The sheet as PNG, and where each map ``[h, w]`` is on it. What is no number is written as the lowest value."""
    height = sum(values.shape[0] for values in maps.values())
    sheet = np.zeros((height, max(values.shape[1] for values in maps.values())), np.uint16)
    planes, top = [], 0
    for name, values in maps.items():
        finite = np.where(np.isfinite(values), values, values.min(where=np.isfinite(values), initial=np.inf))
        finite = np.nan_to_num(finite, posinf=0.0).astype(np.float64)
        offset = float(finite.min())
        scale = (float(finite.max()) - offset) / _LEVELS or 1.0
        rows, columns = finite.shape
        sheet[top : top + rows, :columns] = np.rint((finite - offset) / scale)
        planes.append(MapPlane(name, top, rows, columns, scale, offset))
        top += rows
    return cv2.imencode(".png", sheet, _COMPRESSION)[1].tobytes(), tuple(planes)


def read_sheet(data: bytes, planes: Sequence[MapPlane]) -> dict[str, FloatArray]:
    """The maps of a sheet by name, float32 ``[h, w]``.

    Raises:
        AuditError: the picture does not hold them.
    """
    sheet = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if sheet is None or sheet.ndim != 2 or any(plane.top + plane.height > sheet.shape[0] for plane in planes):
        raise AuditError("a sheet of maps cannot be read: it is no grey picture that holds all of them")
    return {
        plane.name: (sheet[plane.top : plane.top + plane.height, : plane.width] * plane.scale + plane.offset).astype(
            np.float32
        )
        for plane in planes
    }
