"""Maps and masks as bytes, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.messages import MapFormat
from vision.errors import TruncatedImageError
from vision.postprocess import resize_map
from vision.types import Box, FloatArray

_PNG16_LEVELS = 65535


@dataclass(frozen=True, slots=True)
class EncodedMap:
    """One map as it travels; ``width`` and ``height`` in values, ``scale`` and ``offset`` for PNG16 only."""

    data: bytes
    width: int
    height: int
    format: MapFormat
    scale: float = 0.0
    offset: float = 0.0


def encoded_size(values: FloatArray, frame_height: int, frame_width: int, map_format: MapFormat) -> int:
    """The most bytes that ``encode_map`` can make of a map ``[h, w]``."""
    if map_format is MapFormat.FLOAT32_GRID:
        return values.size * 4
    return frame_height * frame_width * (2 if map_format is MapFormat.PNG16_FRAME else 4)


def encode_map(values: FloatArray, map_format: MapFormat, frame_height: int, frame_width: int) -> EncodedMap:
    """A map ``[h, w]`` on the model's grid, in the wanted format."""
    if map_format is MapFormat.PNG16_FRAME:
        return _encode_png16(resize_map(np.nan_to_num(values), frame_height, frame_width))
    if map_format is MapFormat.FLOAT32_FRAME:
        values = resize_map(values, frame_height, frame_width)
    height, width = values.shape
    return EncodedMap(np.ascontiguousarray(values, "<f4").tobytes(), width, height, map_format)


def _encode_png16(values: FloatArray) -> EncodedMap:
    offset = float(values.min())
    scale = (float(values.max()) - offset) / _PNG16_LEVELS or 1.0
    # In place and in float32, whose error is 1/256 of a level: in float64 20 megapixels cost half a second more.
    shifted = values - np.float32(offset)
    shifted *= np.float32(1.0 / scale)
    levels = np.rint(shifted, out=shifted).clip(0, _PNG16_LEVELS, out=shifted).astype(np.uint16)
    # Level 1: a map is smooth, and the higher levels take ten times as long for a few per cent.
    data = cv2.imencode(".png", levels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    height, width = values.shape
    return EncodedMap(data, width, height, MapFormat.PNG16_FRAME, scale, offset)


def decode_map(encoded: EncodedMap) -> FloatArray:
    """The inverse of ``encode_map``: float32 ``[height, width]``; PNG16 is exact to half a ``scale``."""
    shape = (encoded.height, encoded.width)
    if encoded.format is not MapFormat.PNG16_FRAME:
        return np.frombuffer(encoded.data, "<f4").reshape(shape).astype(np.float32, copy=False)
    levels = cv2.imdecode(np.frombuffer(encoded.data, np.uint8), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.shape != shape:
        raise TruncatedImageError(f"a map of {shape[1]}x{shape[0]} values cannot be decoded from its PNG")
    return (levels * encoded.scale + encoded.offset).astype(np.float32)


def mask_to_runs(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of alternating runs, row by row, the first run being false."""
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff(changes, prepend=0, append=flat.size).tolist()
    return [0, *runs] if flat[0] else runs


def runs_to_mask(runs: Sequence[int], box: Box) -> NDArray[np.bool_]:
    """The inverse of ``mask_to_runs``: bool ``[box.height, box.width]``."""
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(box.height, box.width)


def mask_to_polygon(mask: NDArray[np.bool_], box: Box) -> list[int]:
    """The outer outline of a connected mask: x0, y0, x1, y1, ... in frame pixels."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(box.x, box.y)
    )
    largest = max(contours, key=len)
    return [int(value) for value in largest.reshape(-1)]


def polygon_to_mask(points: Sequence[int], box: Box) -> NDArray[np.bool_]:
    """The filled outline: bool ``[box.height, box.width]``."""
    mask = np.zeros((box.height, box.width), np.uint8)
    corners = np.asarray(points, np.int32).reshape(-1, 1, 2)
    cv2.fillPoly(mask, [corners], 1, offset=(-box.x, -box.y))
    return mask.astype(bool)
