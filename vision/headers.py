"""What an image file says about itself, looked at before any pixel is decoded (see docs/decisions/0004)."""

from __future__ import annotations

import io

from PIL import Image

from vision import jpeg
from vision.errors import (
    EmptyRequestError,
    ImageError,
    ImageTooLargeError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedFormatError,
)

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
# A file may have this many bytes behind its end.
_PADDING = 4096
_SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
    "WEBP": (b"RIFF",),
}


def check_header(data: bytes, max_pixels: int) -> tuple[str, tuple[int, int]]:
    """The format, and the height and width that its header tells.

    Raises:
        EmptyRequestError, NotAnImageError, UnsupportedFormatError, ImageTooLargeError, TruncatedImageError.
    """
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
        raise ImageTooLargeError(too_large(width, height, max_pixels))
    if not _is_complete(data, name):
        raise TruncatedImageError(
            f"the {name} image of {width}x{height} px ends too early (got {len(data)} bytes); send the complete file"
        )
    return name, (height, width)


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
        return jpeg.is_complete(data)
    if name == "PNG":
        return b"IEND" in data[-_PADDING:]
    if name == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return True  # BMP and TIFF decoders refuse missing pixels themselves


def too_large(width: int, height: int, max_pixels: int) -> str:
    """The words for a frame beyond the limit."""
    return (
        f"the frame has {width}x{height} = {width * height} pixels, the limit is {max_pixels}; "
        "send a smaller frame or raise the limit (--max-pixels)"
    )
