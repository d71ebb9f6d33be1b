"""Read every file of a data set once, in threads, and find what is wrong with it before anything is trained on it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision.console import track
from vision.errors import ImageError, InputError
from vision.preprocess import decode_image, decode_pixels, to_rgb_order
from vision.types import Frame

CONTENT_DIGITS = 16
"""Of a pixel digest, in hex: 64 bits tell millions of images apart."""

_PNG_BIT_DEPTH = 24
"""Offset of the bit depth in a PNG file (PNG specification, 11.2.2: IHDR is always the first chunk)."""


class Source(NamedTuple):
    """One image as a layout found it; ``side`` is ``train`` or ``test``, ``part`` an explicit part id or empty."""

    path: Path
    label: str
    side: str
    mask: Path | None = None
    defect_probability: float = 0.0
    part: str = ""


@dataclass(frozen=True, slots=True)
class Scanned:
    """What one read of an image and its mask told.

    ``file_digest`` is over the bytes of both files, ``pixel_digest`` over the decoded image, so that the same picture
    in another container is found. ``peak`` is the largest value of a 16-bit image, 0 for 8-bit ones.
    ``mask_is_empty``: there is a mask and it marks nothing.
    """

    file_digest: str
    pixel_digest: str = ""
    peak: int = 0
    mask_is_empty: bool = False
    problems: tuple[str, ...] = ()


def scan(sources: Sequence[Source], root: Path) -> list[Scanned]:
    """Read all files, in the order of ``sources``; problems are collected, never raised."""
    workers = min(16, 2 * (os.cpu_count() or 1))  # decoding releases the GIL; the rest waits for the disk
    with ThreadPoolExecutor(workers) as pool:
        results: Iterable[Scanned] = pool.map(lambda source: _scan_one(source, root), sources)
        return list(track(results, "Checking the data", total=len(sources)))


def read_mask_pixels(data: bytes) -> NDArray[Any]:
    """A mask as stored, ``[H, W]``: of several channels the largest value counts, alpha does not."""
    decode_image(data)  # says what is wrong with a truncated or foreign file
    pixels = to_rgb_order(decode_pixels(data))
    return pixels if pixels.ndim == 2 else pixels.max(axis=2)


def relative(path: Path, root: Path) -> str:
    """How a file is named to people and in digests: relative to the data's folder, with forward slashes."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _scan_one(source: Source, root: Path) -> Scanned:
    name = relative(source.path, root)
    digest = hashlib.sha256()
    try:
        data = source.path.read_bytes()
        digest.update(data)
        frame = decode_image(data)
        pixels: NDArray[Any] = decode_pixels(data) if _may_be_deep(data) else frame
    except (OSError, InputError) as error:
        return Scanned(digest.hexdigest(), problems=(f"{name}: {_words(error)}",))
    peak = int(pixels.max()) if pixels.dtype == np.uint16 else 0
    mask_is_empty = False
    problems: tuple[str, ...] = ()
    if source.mask is not None:
        try:
            mask_data = source.mask.read_bytes()
            digest.update(mask_data)
            mask = read_mask_pixels(mask_data)
            mask_is_empty = not mask.any()
            problems = _mask_problems(relative(source.mask, root), source, frame, mask)
        except (OSError, InputError) as error:
            problems = (f"{relative(source.mask, root)}: {_words(error)}",)
    return Scanned(digest.hexdigest(), _pixel_digest(pixels), peak, mask_is_empty, problems)


def _mask_problems(name: str, source: Source, frame: Frame, mask: NDArray[Any]) -> tuple[str, ...]:
    if mask.shape != frame.shape[:2]:
        height, width = frame.shape[:2]
        return (
            f"{name}: the mask has {mask.shape[1]}x{mask.shape[0]} px and its image {width}x{height} px; "
            "save the mask in the size of the image",
        )
    values = np.unique(mask)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        shown = ", ".join(str(value) for value in values[:5])
        return (
            f"{name}: the mask is not binary: it has {len(values)} values ({shown}{', …' if len(values) > 5 else ''}); "
            "save it lossless, with 0 for good and 255 for defective pixels",
        )
    if source.defect_probability == 0 and mask.any():
        return (f"{name}: the mask marks a defect, but its image is labelled {source.label!r}; move one of the two",)
    return ()


def _pixel_digest(pixels: NDArray[Any]) -> str:
    if pixels.ndim == 3 and pixels.shape[2] == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]  # a grey picture saved as colour is the same picture
    pixels = np.ascontiguousarray(pixels)
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode())
    digest.update(pixels.data)
    return digest.hexdigest()


def _may_be_deep(data: bytes) -> bool:
    """Whether the file can hold 16-bit pixels, so that decoding it a second time as stored is worth the time."""
    is_png = data.startswith(b"\x89PNG")
    return data[_PNG_BIT_DEPTH] == 16 if is_png else data[:2] in (b"II", b"MM")


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, ImageError):
        return f"cannot be read ({error.strerror or error}); check that it exists and may be read"
    return str(error)
