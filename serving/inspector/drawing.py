"""What a person drew on a frame, as a mask: brush strokes, polygons, and what was rubbed out again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.audit import Blob, DrawnRegion
from vision.errors import SettingsError

_KINDS = ("brush", "erase", "polygon")
_MOST_SHAPES, _MOST_POINTS = 1000, 100_000
# Of a region's outline, in pixels: it is for people to see, the mask says what was drawn.
_TOLERANCE_PX = 1.0


@dataclass(frozen=True, slots=True)
class Shape:
    """``points``: x0, y0, x1, y1, ... in frame pixels. ``width``: of a stroke, in frame pixels."""

    kind: str
    points: tuple[float, ...]
    width: float = 1.0


def read_shapes(text: str) -> list[Shape]:
    """What the page sent.

    Raises:
        SettingsError: it is something else.
    """
    try:
        found = [_shape(one) for one in json.loads(text or "[]")]
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"the drawing cannot be read: {error!r}; load the page again") from error
    if len(found) > _MOST_SHAPES or sum(len(one.points) for one in found) > _MOST_POINTS:
        raise SettingsError(f"a drawing has at most {_MOST_SHAPES} shapes and {_MOST_POINTS} numbers")
    return found


def rasterise(shapes: list[Shape], width: int, height: int) -> NDArray[np.uint8]:
    """The mask, uint8 ``[height, width]``: 255 where the part is defective; later shapes go over earlier ones."""
    mask = np.zeros((height, width), np.uint8)
    for shape in shapes:
        points = np.array(shape.points, np.float64).reshape(-1, 2)
        # Coordinates name edges of pixels, OpenCV's name their middles.
        corners = np.floor(points).astype(np.int32)
        if shape.kind == "polygon":
            cv2.fillPoly(mask, [corners], 255)
            continue
        value = 0 if shape.kind == "erase" else 255
        # OpenCV draws lines of 2 and more about two pixels wider than it is told.
        wanted = max(1, round(shape.width))
        thickness = wanted if wanted < 3 else max(2, wanted - 2)
        cv2.polylines(mask, [corners], isClosed=False, color=value, thickness=thickness)
        for x, y in corners[[0, -1]].tolist():
            cv2.circle(mask, (x, y), wanted // 2, value, -1)
    return mask


def drawn(shapes: list[Shape], width: int, height: int, label: str) -> tuple[tuple[DrawnRegion, ...], Blob | None]:
    """The regions of a review and its mask; none where nothing is left on the mask."""
    if not shapes:
        return (), None
    mask = rasterise(shapes, width, height)
    if not mask.any():
        return (), None
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    regions = tuple(
        DrawnRegion(label, tuple(int(value) for value in cv2.approxPolyDP(one, _TOLERANCE_PX, closed=True).reshape(-1)))
        for one in outlines
    )
    return regions, Blob.of(cv2.imencode(".png", mask)[1].tobytes(), "image/png")


def _shape(values: dict[str, Any]) -> Shape:
    shape = Shape(str(values["kind"]), tuple(float(value) for value in values["points"]), float(values.get("width", 1)))
    least = 6 if shape.kind == "polygon" else 2
    if shape.kind not in _KINDS or len(shape.points) < least or len(shape.points) % 2:
        raise ValueError(f"{shape.kind} of {len(shape.points)} numbers")
    if not all(abs(value) < 1e6 for value in (*shape.points, shape.width)):  # also false for what is no number
        raise ValueError("a point is far outside of every frame")
    return shape
