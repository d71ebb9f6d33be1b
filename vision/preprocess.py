"""The one definition of how bytes become the pixels that the model sees: training, evaluation and serving share it.

Encoded images keep the orientation of their stored pixels (EXIF is ignored, so that masks always fit; OpenCV applies
TIFF's own orientation tag all the same). Alpha is dropped. 16-bit values are scaled by the bundle's white level, the
same for every frame. The frame is stretched to the model's input size, which has the aspect ratio of the training
frames; normalisation happens inside the graph.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.errors import (
    EmptyRequestError,
    ImageTooLargeError,
    RawSizeError,
    SettingsError,
    TruncatedImageError,
    UnsupportedFormatError,
)
from vision.headers import check_header, too_large
from vision.jpeg import decode_jpeg
from vision.types import Frame

MAX_PIXELS = 64_000_000
"""Default limit on the pixels of one frame; three times a 20-megapixel camera."""

# Of all frames of a batch; inner values of the network take some 400 bytes for each.
_BATCH_PIXELS = 8 * 2**20
# Not tuned for GPUs.
_INFERENCE_BATCH = 16

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class PixelFormat(enum.IntEnum):
    """Raw layouts, named as in GenICam's naming convention; MONO12 and MONO16 are 2 bytes, little endian."""

    MONO8 = 1
    MONO12 = 2
    MONO16 = 3
    BAYER_RG8 = 4
    RGB8 = 5
    BGR8 = 6

    @property
    def bytes_per_pixel(self) -> int:
        """Of all channels together."""
        if self in (PixelFormat.RGB8, PixelFormat.BGR8):
            return 3
        return 2 if self in (PixelFormat.MONO12, PixelFormat.MONO16) else 1


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

    def most_frames(self, wanted: int) -> int:
        """How many of ``wanted`` frames go into one batch: of large ones fewer, since memory grows with the pixels, and
        more of them are no faster.
        """
        return max(1, min(wanted, _BATCH_PIXELS // (self.height * self.width)))

    @property
    def inference_batch(self) -> int:
        """How many frames go through a model at once where it learns nothing: 16, of large ones fewer."""
        return self.most_frames(_INFERENCE_BATCH)

    @property
    def goes_alone(self) -> bool:
        """Whether frames are so large that a batch holds one of them."""
        return self.most_frames(2) == 1


def decode_image(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS, white_level: int = 65535) -> Frame:
    """Decode JPEG, PNG, BMP, TIFF or WebP. The size is read from the header and checked before any pixel is decoded.

    Returns:
        uint8 ``[H, W]`` for grey images, ``[H, W, 3]`` RGB for colour.

    Raises:
        EmptyRequestError, NotAnImageError, UnsupportedFormatError, ImageTooLargeError, TruncatedImageError.
        ImageError: a JPEG is damaged inside.
    """
    return decode_for(data, None, max_pixels=max_pixels, white_level=white_level)[0]


def decode_for(
    data: bytes | memoryview, spec: InputSpec | None, *, max_pixels: int = MAX_PIXELS, white_level: int = 65535
) -> tuple[Frame, tuple[int, int]]:
    """As ``decode_image``, but a JPEG much larger than the input of ``spec`` is decoded at a reduced scale.

    Returns:
        The pixels, and the height and width of the whole frame, which may be more.
    """
    # Memory that another process shares may change at any time; decoders must not see a header change under them.
    data = bytes(data)
    name, size = check_header(data, max_pixels)
    if name == "JPEG":
        least = None if spec is None else (spec.height, spec.width)
        return decode_jpeg(data, max_pixels=max_pixels, least=least), size
    pixels = decode_pixels(data)
    if pixels.dtype == np.uint16:
        pixels = _to_uint8(pixels, white_level)
    if pixels.dtype != np.uint8:
        raise UnsupportedFormatError(f"pixels of type {pixels.dtype}; send 8- or 16-bit integer pixels")
    frame = to_rgb_order(pixels)
    return frame, (frame.shape[0], frame.shape[1])  # OpenCV turns a TIFF as its tag says


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
    if width * height > max_pixels:
        raise ImageTooLargeError(too_large(width, height, max_pixels))
    return _raw_frame(data, width, height, stride, pixel_format, white_level)


def _raw_frame(
    data: bytes | memoryview, width: int, height: int, stride: int, pixel_format: PixelFormat, white_level: int
) -> Frame:
    """A view of the bytes where they are a frame already, else the one conversion that makes them one."""
    pixels = raw_pixels(data, width, height, stride, pixel_format)
    if pixel_format is PixelFormat.MONO12:
        return _to_uint8(pixels, 4095)
    if pixel_format is PixelFormat.MONO16:
        return _to_uint8(pixels, white_level)
    if pixel_format is PixelFormat.BAYER_RG8:
        if width < 2 or height < 2:
            raise RawSizeError(f"a Bayer frame is at least 2x2 pixels; got {width}x{height}")
        return cv2.cvtColor(pixels, cv2.COLOR_BAYER_RGGB2RGB).astype(np.uint8, copy=False)
    if pixel_format is PixelFormat.BGR8:
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
    pixels.flags.writeable = False
    return pixels


def raw_pixels(
    data: bytes | memoryview, width: int, height: int, stride: int, pixel_format: PixelFormat
) -> NDArray[Any]:
    """The bytes seen as pixels, without a copy: ``[H, W]`` uint8 or, in two-byte formats, uint16; ``[H, W, 3]`` uint8.

    Raises:
        RawSizeError: the number of bytes does not fit width, height and stride.
    """
    if width < 1 or height < 1:
        raise RawSizeError(f"width and height must be >= 1; got {width}x{height}")
    row = width * pixel_format.bytes_per_pixel
    stride = stride or row
    needed = stride * (height - 1) + row
    if stride < row or not needed <= len(data) <= stride * height:
        raise RawSizeError(
            f"{width}x{height} {pixel_format.name} with a stride of {stride} bytes takes {needed} to {stride * height} "
            f"bytes and a stride of at least {row}; got {len(data)} bytes; check width, height, stride and pixel format"
        )
    if pixel_format in (PixelFormat.MONO12, PixelFormat.MONO16) and stride % 2:
        raise RawSizeError(f"{pixel_format.name} needs an even stride; got {stride}")
    channels = 3 if pixel_format in (PixelFormat.RGB8, PixelFormat.BGR8) else 1
    item = pixel_format.bytes_per_pixel // channels
    shape, strides = (height, width, channels), (stride, item * channels, item)
    view: NDArray[Any] = np.ndarray(shape, np.dtype(f"<u{item}"), data, strides=strides)
    return view if channels == 3 else view[:, :, 0]


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
