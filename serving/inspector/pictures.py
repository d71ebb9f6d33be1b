"""Frames and maps of the store as pictures for the page."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.audit import Answer, RawLayout, Store, read_sheet
from serving.audit.maps import ANOMALY
from vision.drawing import colour_table, opacity
from vision.errors import AuditError, DefectLensError
from vision.postprocess import resize_map
from vision.preprocess import PixelFormat, decode_image, decode_pixels, decode_raw
from vision.scales import anomaly_range
from vision.types import FloatArray, Frame

TILE = 1024
"""Side of a tile of deep zoom, in pixels."""

_THUMBNAIL = 160
# Long side of a map's picture: finer than any model's grid, coarser than a frame, and quick to make.
_HEAT = 640
_QUALITY = 92
_FASTEST_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]
_DECODED, _DRAWN = 16, 2000
# White levels of 10-, 12-, 14- and 16-bit cameras: the lowest that the brightest pixel fits under is shown as white.
_WHITE_LEVELS = (255, 1023, 4095, 16383, 65535)

T = TypeVar("T")


class Kept:
    """The latest things that were made, by key; made once even where several threads ask at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                found: T = self._kept[key]
                return found
            making = self._locks.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]  # type: ignore[no-any-return]
            made = make()
            with self._lock:
                self._kept[key] = made
                self._locks.pop(key, None)
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            return made


@dataclass(frozen=True, slots=True)
class Scale:
    """What a map's colours mean: from ``low`` (clear) to ``high`` (full). ``mark``: the pixel threshold, if any."""

    low: float
    high: float
    mark: float | None = None


class Pictures:
    """Draws, and keeps what was drawn lately. All of it may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._answers = Kept(256)
        self._frames = Kept(_DECODED)
        self._drawn = Kept(_DRAWN)

    def answer(self, seq: int) -> Answer:
        """A record never changes, so it is read once."""
        return self._answers.get(seq, lambda: self._store.answer(seq))

    def frame(self, seq: int) -> Frame:
        """The frame of an answer, uint8 ``[H, W]`` or ``[H, W, 3]`` RGB.

        Raises:
            AuditError: it was not kept, was pruned or was changed.
        """
        answer = self.answer(seq)
        if answer.frame is None:
            raise AuditError(f"no frame was kept with record {seq}")
        sha256, layout = answer.frame.sha256, answer.layout
        return self._frames.get(sha256, lambda: decode_stored(self._store.files.read(sha256), layout))

    def tile(self, seq: int, level: int, column: int, row: int) -> tuple[bytes, str]:
        """One tile of deep zoom and its MIME type: lossless at full size, JPEG where it is reduced.

        Raises:
            AuditError: there is no such tile.
        """
        return self._drawn.get(("tile", seq, level, column, row), lambda: self._tile(seq, level, column, row))

    def whole(self, seq: int) -> bytes:
        """The frame as a PNG, for the loupe and for saving."""
        return self._drawn.get(("whole", seq), lambda: _png(self.frame(seq)))

    def thumbnail(self, seq: int) -> bytes:
        """A small JPEG."""
        return self._drawn.get(("thumbnail", seq), lambda: _jpeg(_fit(self.frame(seq), _THUMBNAIL)))

    def heat(self, seq: int, plane: str) -> bytes:
        """A map as a PNG with transparency, to be laid over the frame.

        Args:
            plane: ``anomaly``, or the class whose saliency it is.

        Raises:
            AuditError: the answer has no such map.
        """
        return self._drawn.get(("heat", seq, plane), lambda: self._heat(seq, plane))

    def scale(self, seq: int, plane: str) -> Scale:
        """What the colours of ``heat`` mean."""
        answer = self.answer(seq)
        if plane == ANOMALY:
            return anomaly_scale(_pixel_threshold(answer), answer)
        found = next((one for one in answer.planes if one.name == plane), None)
        if found is None:
            raise AuditError(f"record {seq} has no map {plane!r}")
        return Scale(0.0, _round_up(found.offset + found.scale * 65535))

    def likeness(self, one: int, other: int) -> float:
        """How much two frames differ: the mean difference of small grey pictures, 0..255."""
        first, second = (self._drawn.get(("small", seq), partial(self._small, seq)) for seq in (one, other))
        return float(np.abs(first - second).mean())

    def _small(self, seq: int) -> FloatArray:
        frame = self.frame(seq)
        grey = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        return cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)

    def _tile(self, seq: int, level: int, column: int, row: int) -> tuple[bytes, str]:
        frame = self.frame(seq)
        height, width = frame.shape[:2]
        top_level = levels(width, height)
        if not 0 <= level <= top_level or column < 0 or row < 0:
            raise AuditError(f"a frame of {width}x{height} px has levels 0..{top_level}; got {level}")
        if level < top_level:
            frame = self._frames.get((seq, level), lambda: _reduced(frame, top_level - level))
        tile = frame[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        if not tile.size:
            raise AuditError(f"level {level} has no tile {column}, {row}")
        return (_png(tile), "image/png") if level == top_level else (_jpeg(tile), "image/jpeg")

    def _heat(self, seq: int, plane: str) -> bytes:
        answer = self.answer(seq)
        found = [one for one in answer.planes if one.name == plane]
        if answer.maps is None or not found:
            raise AuditError(f"record {seq} has no map {plane!r}")
        values = read_sheet(self._store.files.read(answer.maps.sha256), found)[plane]
        scale = self.scale(seq, plane)
        width, height = answer.frame_width or values.shape[1], answer.frame_height or values.shape[0]
        factor = _HEAT / max(width, height)
        values = resize_map(values, max(1, round(height * factor)), max(1, round(width * factor)))
        return draw_heat(values, scale)


def levels(width: int, height: int) -> int:
    """The number of the level at full size; level 0 fits into one tile."""
    return max(0, math.ceil(math.log2(max(width, height) / TILE)))


def decode_stored(data: bytes, layout: RawLayout | None) -> Frame:
    """A stored frame as the page shows it.

    Raises:
        AuditError: it cannot be decoded.
    """
    try:
        if layout is not None:
            named = PixelFormat[layout.pixel_format]
            level = 65535
            if named is PixelFormat.MONO16:
                level = white_level(np.frombuffer(data[: len(data) // 2 * 2], "<u2"))
            return decode_raw(
                data,
                width=layout.width,
                height=layout.height,
                stride=layout.stride,
                pixel_format=named,
                white_level=level,
            )
        pixels = decode_pixels(data)
        return decode_image(data, white_level=white_level(pixels) if pixels.dtype == np.uint16 else 65535)
    except (DefectLensError, KeyError) as error:
        raise AuditError(f"the stored frame cannot be decoded: {error}") from error


def white_level(pixels: NDArray[Any]) -> int:
    """What is shown as white."""
    peak = int(pixels.max()) if pixels.size else 0
    return next(level for level in _WHITE_LEVELS if peak <= level)


def anomaly_scale(pixel_threshold: float | None, answer: Answer) -> Scale:
    """Fixed by the bundle's pixel threshold and never by the frame, so that two frames can be compared."""
    if pixel_threshold is None:
        plane = next((one for one in answer.planes if one.name == ANOMALY), None)
        if plane is None:
            raise AuditError("the answer has no anomaly map")
        return Scale(plane.offset, plane.offset + plane.scale * 65535)
    return Scale(*anomaly_range(pixel_threshold), pixel_threshold)


def draw_heat(values: FloatArray, scale: Scale) -> bytes:
    """A map ``[h, w]`` as a PNG: colour and opacity grow with the value."""
    share = np.nan_to_num(np.clip((values - scale.low) / max(scale.high - scale.low, 1e-12), 0, 1))
    index = (share * 255).round().astype(np.uint8)
    picture = np.empty((*values.shape, 4), np.uint8)
    picture[:, :, :3] = colour_table()[index][:, :, ::-1]
    picture[:, :, 3] = (opacity(share) * 255).round()
    return cv2.imencode(".png", picture, _FASTEST_PNG)[1].tobytes()


def _pixel_threshold(answer: Answer) -> float | None:
    value = answer.model.point.get("pixel_threshold") if answer.model is not None else None
    return float(value) if isinstance(value, int | float) else None


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten, at least 0.1: nearby frames share a scale, and noise is not blown up."""
    value = max(value, 0.1)
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= value * 0.999)


def _reduced(frame: Frame, halvings: int) -> Frame:
    height, width = frame.shape[:2]
    size = (max(1, math.ceil(width / 2**halvings)), max(1, math.ceil(height / 2**halvings)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _fit(frame: Frame, side: int) -> Frame:
    factor = side / max(frame.shape[:2])
    size = (max(1, round(frame.shape[1] * factor)), max(1, round(frame.shape[0] * factor)))
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(frame, size, interpolation=way).astype(np.uint8, copy=False)


def _stored_order(frame: Frame) -> NDArray[np.uint8]:
    return np.ascontiguousarray(frame if frame.ndim == 2 else frame[:, :, ::-1])


def _png(frame: Frame) -> bytes:
    return cv2.imencode(".png", _stored_order(frame), _FASTEST_PNG)[1].tobytes()


def _jpeg(frame: Frame) -> bytes:
    return cv2.imencode(".jpg", _stored_order(frame), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
