"""JPEG pixels straight from libjpeg-turbo, the only place that imports simplejpeg.

OpenCV uses the same library and gives the same pixels, but it passes over damage in silence.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from vision.errors import ImageError, ImageTooLargeError, TruncatedImageError
from vision.types import Frame

# Some cameras pad a JPEG after its end marker, by this many bytes at most.
_PADDING = 4096
# A reduced picture keeps this many pixels for each one of the model's input, each way: what averaging them down then
# gives comes close to the average of the whole picture (docs/experiments.md has the figures).
_OVERSAMPLING = 2
# libjpeg has quick code for these factors alone.
_FACTORS = (8, 4, 2)


def decode_jpeg(data: bytes, *, max_pixels: int, least: tuple[int, int] | None = None) -> Frame:
    """Decode a JPEG: uint8 ``[H, W]`` for grey, ``[H, W, 3]`` RGB for colour.

    Args:
        least: height and width that will be needed. The picture is then decoded at 1/2, 1/4 or 1/8 of its size if that
            leaves twice as much; in full otherwise.

    Raises:
        TruncatedImageError, ImageError: the compressed pixels are damaged, as far as a JPEG lets that be seen.
        ImageTooLargeError: libjpeg finds more pixels than ``max_pixels``.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > max_pixels:
            raise ImageTooLargeError(f"the JPEG image has {width}x{height} pixels, the limit is {max_pixels}")
        factor = 1 if least is None else _factor(height, width, least)
        # Four inks become RGB too, by the formula that OpenCV has.
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data,
            "GRAY" if colours == "Gray" else "RGB",
            min_height=-(-height // factor),
            min_width=-(-width // factor),
        )
    except ValueError as error:  # libjpeg's warnings, which mean that pixels are guessed, and its errors
        raise _damaged(str(error), len(data)) from error
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def is_complete(data: bytes) -> bool:
    """Whether the end marker is there: libjpeg takes any missing rows for grey ones."""
    return data.find(b"\xff\xd9", max(_scan_start(data), len(data) - _PADDING)) >= 0


def _factor(height: int, width: int, least: tuple[int, int]) -> int:
    rows, columns = (_OVERSAMPLING * side for side in least)
    return next((factor for factor in _FACTORS if height >= factor * rows and width >= factor * columns), 1)


def _damaged(reason: str, size: int) -> ImageError:
    kind = TruncatedImageError if "premature end" in reason.lower() else ImageError
    return kind(f"the JPEG image is damaged ({reason}; got {size} bytes); send the complete file again")


def _scan_start(data: bytes) -> int:
    """Where the compressed pixels begin: an end marker before it belongs to a thumbnail in the header."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        if data[position + 1] == 0xFF:  # a fill byte
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position
