"""The one definition of how bytes become the pixels that the model sees: training, evaluation and serving share it.

Encoded images keep the orientation of their stored pixels (EXIF is ignored, so that masks always fit; OpenCV applies
TIFF's own orientation tag all the same). Alpha is dropped. 16-bit values are scaled by the bundle's white level, the
same for every frame. The frame is stretched to the model's input size, which has the aspect ratio of the training
frames; normalisation happens inside the graph.
"""

from __future__ import annotations

import enum
import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision.errors import (
    EmptyRequestError,
    ImageError,
    ImageTooLargeError,
    NotAnImageError,
    RawSizeError,
    SettingsError,
    TruncatedImageError,
    UnsupportedFormatError,
)
from vision.types import Frame

MAX_PIXELS = 64_000_000
"""Default limit on the pixels of one frame; three times a 20-megapixel camera."""

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Some cameras pad a JPEG after its end marker, by this many bytes at most.
_JPEG_PADDING = 4096
_SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
    "WEBP": (b"RIFF",),
}


class PixelFormat(enum.IntEnum):
    """Raw layouts, named as in GenICam's naming convention; MONO12 and MONO16 are 2 bytes, little endian."""

    MONO8 = 1
    MONO12 = 2
    MONO16 = 3
    BAYER_RG8 = 4
    RGB8 = 5
    BGR8 = 6


_BYTES_PER_PIXEL = {
    PixelFormat.MONO8: 1,
    PixelFormat.MONO12: 2,
    PixelFormat.MONO16: 2,
    PixelFormat.BAYER_RG8: 1,
    PixelFormat.RGB8: 3,
    PixelFormat.BGR8: 3,
}


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What the graph takes: uint8 ``[N, height, width, 3]`` RGB.

    ``white_level`` is the value of a 16-bit file or MONO16 frame that becomes 255 (4095 for 12-bit data in
    16 bits).
    """

    height: int
    width: int
    white_level: int = 65535

    def __post_init__(self) -> None:
        if self.height < 32 or self.width < 32 or self.height % 32 or self.width % 32:
            raise SettingsError(f"input height and width must be multiples of 32; got {self.height}x{self.width}")
        if not 255 <= self.white_level <= 65535:
            raise SettingsError(f"white_level must be in 255..65535; got {self.white_level}")


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, white_level: int = 65535) -> Frame:
    """Decode JPEG, PNG, BMP, TIFF or WebP. The size is read from the header and checked before any pixel is decoded.

    Returns:
        uint8 ``[H, W]`` for grey images, ``[H, W, 3]`` RGB for colour.

    Raises:
        EmptyRequestError, NotAnImageError, UnsupportedFormatError, ImageTooLargeError, TruncatedImageError.
    """
    _check_header(data, max_pixels)
    pixels = decode_pixels(data)
    if pixels.dtype == np.uint16:
        return to_rgb_order(_to_uint8(pixels, white_level))
    if pixels.dtype == np.uint8:
        return to_rgb_order(pixels)
    raise UnsupportedFormatError(f"pixels of type {pixels.dtype}; send 8- or 16-bit integer pixels")


def decode_pixels(data: bytes) -> NDArray[Any]:
    """Decode as stored: uint8 or uint16, ``[H, W]`` or ``[H, W, C]`` in OpenCV's BGR(A) order."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise TruncatedImageError(f"the image could not be decoded ({error.err}); send the complete file") from error
    if pixels is None:
        raise TruncatedImageError(
            f"an image header is there but its pixels cannot be decoded; got {len(data)} bytes; send the complete file"
        )
    return pixels


def to_rgb_order(pixels: NDArray[Any]) -> Frame:
    """OpenCV's channel order to ours: grey stays ``[H, W]``, BGR and BGRA become RGB, alpha is dropped."""
    if pixels.ndim == 2:
        return pixels
    channels = pixels.shape[2]
    if channels == 1:
        return pixels[:, :, 0]
    if channels == 2:  # grey and alpha
        return np.ascontiguousarray(pixels[:, :, 0])
    code = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}.get(channels)
    if code is None:
        raise UnsupportedFormatError(f"an image of {channels} channels; send grey, RGB or RGBA")
    return cv2.cvtColor(pixels, code).astype(np.uint8, copy=False)


def decode_raw(
    data: bytes | memoryview,
    *,
    width: int,
    height: int,
    stride: int,
    pixel_format: PixelFormat,
    max_pixels: int = MAX_PIXELS,
    white_level: int = 65535,
) -> Frame:
    """Raw camera pixels to a frame. ``stride`` is bytes from one row to the next; 0 means rows without padding.

    The last row may leave out its padding. MONO12 is scaled by 4095, MONO16 by ``white_level``.
    """
    if not len(data):
        raise EmptyRequestError("the request carries no pixels; set encoded or raw image bytes")
    if width < 1 or height < 1:
        raise RawSizeError(f"width and height must be >= 1; got {width}x{height}")
    if width * height > max_pixels:
        raise ImageTooLargeError(_too_large(width, height, max_pixels))
    size = _BYTES_PER_PIXEL[pixel_format]
    row = width * size
    stride = stride or row
    needed = stride * (height - 1) + row
    if stride < row or not needed <= len(data) <= stride * height:
        raise RawSizeError(
            f"{width}x{height} {pixel_format.name} with a stride of {stride} bytes takes {needed} to {stride * height} "
            f"bytes and a stride of at least {row}; got {len(data)} bytes; check width, height, stride and pixel format"
        )
    if pixel_format in (PixelFormat.MONO12, PixelFormat.MONO16) and stride % 2:
        raise RawSizeError(f"{pixel_format.name} needs an even stride; got {stride}")
    flat = np.frombuffer(data, np.uint8)
    rows = np.lib.stride_tricks.as_strided(flat, (height, row), (stride, 1), writeable=False)
    if pixel_format in (PixelFormat.MONO12, PixelFormat.MONO16):
        values = np.ascontiguousarray(rows).view("<u2").astype(np.uint16, copy=False)
        return _to_uint8(values, 4095 if pixel_format is PixelFormat.MONO12 else white_level)
    if pixel_format is PixelFormat.MONO8:
        return rows
    if pixel_format is PixelFormat.BAYER_RG8:
        if width < 2 or height < 2:
            raise RawSizeError(f"a Bayer frame is at least 2x2 pixels; got {width}x{height}")
        return cv2.cvtColor(np.ascontiguousarray(rows), cv2.COLOR_BAYER_RGGB2RGB).astype(np.uint8, copy=False)
    pixels = np.ascontiguousarray(rows).reshape(height, width, 3)
    return pixels if pixel_format is PixelFormat.RGB8 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8)


def to_model_input(frame: Frame, spec: InputSpec) -> NDArray[np.uint8]:
    """Stretch a frame to the model's input: uint8 ``[spec.height, spec.width, 3]`` RGB.

    Area averaging where both sides shrink (no aliasing), bilinear otherwise.
    """
    height, width = frame.shape[:2]
    if (height, width) != (spec.height, spec.width):
        shrinks = height >= spec.height and width >= spec.width
        frame = cv2.resize(
            frame, (spec.width, spec.height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        ).astype(np.uint8, copy=False)
    if frame.ndim == 2:
        frame = np.repeat(frame[:, :, None], 3, axis=2)
    return np.ascontiguousarray(frame)


def _to_uint8(pixels: NDArray[Any], white_level: int) -> NDArray[np.uint8]:
    return cv2.convertScaleAbs(pixels, alpha=255.0 / white_level).astype(np.uint8, copy=False)


def _check_header(data: bytes, max_pixels: int) -> None:
    if not data:
        raise EmptyRequestError("the request carries no image; set encoded or raw image bytes")
    try:
        with Image.open(io.BytesIO(data)) as image:
            name, (width, height) = image.format, image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(f"{error}; send a smaller frame") from error
    except Exception as error:  # strangers' bytes: Pillow's parsers raise whatever their code runs into
        raise _no_header(data) from error
    if name == "MPO":  # a JPEG with a second picture behind it, as some cameras write
        name = "JPEG"
    if name not in FORMATS:
        raise UnsupportedFormatError(f"a {name} image is not supported; send one of {', '.join(FORMATS)}")
    if width * height > max_pixels:
        raise ImageTooLargeError(_too_large(width, height, max_pixels))
    if not _is_complete(data, name):
        raise TruncatedImageError(
            f"the {name} image of {width}x{height} px ends too early (got {len(data)} bytes); send the complete file"
        )


def _no_header(data: bytes) -> ImageError:
    """Why no header can be read: the bytes begin like an image and end too early, or are none at all."""
    name = next((name for name, start in _SIGNATURES.items() if data.startswith(start)), None)
    if name is not None and (name != "WEBP" or data[8:12] == b"WEBP"):
        return TruncatedImageError(
            f"the bytes begin like a {name} image but its header cannot be read (got {len(data)} bytes); "
            "send the complete file"
        )
    return NotAnImageError(
        f"the bytes are no image: {len(data)} bytes starting with {data[:8].hex(' ')}; send one of "
        f"{', '.join(FORMATS)}, or raw pixels with width, height and pixel format"
    )


def _is_complete(data: bytes, name: str) -> bool:
    """Whether the end that the format promises is there: OpenCV fills what is missing with grey and says nothing."""
    if name == "JPEG":
        return data.find(b"\xff\xd9", max(_jpeg_scan_start(data), len(data) - _JPEG_PADDING)) >= 0
    if name == "PNG":
        return b"IEND" in data[-_JPEG_PADDING:]
    if name == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return True  # BMP and TIFF decoders refuse missing pixels themselves


def _jpeg_scan_start(data: bytes) -> int:
    """Where the compressed pixels begin: an end marker before it belongs to a thumbnail in the header."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        if data[position + 1] == 0xFF:  # a fill byte
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


def _too_large(width: int, height: int, max_pixels: int) -> str:
    return (
        f"the frame has {width}x{height} = {width * height} pixels, the limit is {max_pixels}; "
        "send a smaller frame or raise the limit (--max-pixels)"
    )
