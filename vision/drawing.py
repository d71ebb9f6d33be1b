"""Text, symbols and colours of the overlay; everything in RGB and drawn with OpenCV alone."""

from __future__ import annotations

import unicodedata

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.types import FloatArray, Verdict

Canvas = NDArray[np.uint8]
"""uint8 ``[H, W, 3]`` RGB, drawn upon in place."""
Colour = tuple[int, int, int]

BACKGROUND: Colour = (22, 24, 28)
INK: Colour = (236, 238, 240)
SOFT_INK: Colour = (166, 172, 180)
# Okabe and Ito, "Color Universal Design" (2008): told apart with every common kind of colour blindness.
_GREEN, _VERMILION, _ORANGE, _GREY = (0, 158, 115), (213, 94, 0), (230, 159, 0), (150, 150, 150)
CONTOUR: Colour = (86, 220, 255)

_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Inferno is even in lightness, so it reads without colour vision and in print, but its first fifth is nearly black and
# would darken the part: the table starts behind it.
_DARK_PART = 0.22
STRENGTH = 0.65
"""Opacity at the top of a scale: what lies under it stays visible."""
# Places for labels are searched on a grid of this many pixels.
_GRID = 4


def colour_table() -> NDArray[np.uint8]:
    """256 RGB colours ``[256, 3]`` from low to high."""
    index = np.linspace(255 * _DARK_PART, 255, 256).round().astype(np.uint8)
    table = cv2.applyColorMap(index[:, None], cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(table[:, 0, ::-1]).astype(np.uint8, copy=False)


def printable(text: str) -> str:
    """What OpenCV's line font can draw: ASCII; accents are dropped, anything else becomes ``?``."""
    flat = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in flat if not unicodedata.combining(letter)).encode("ascii", "replace").decode()


def text_size(text: str, scale: float, *, bold: bool = False) -> tuple[int, int]:
    """Width and height in pixels, with what hangs below the line."""
    (width, height), below = cv2.getTextSize(text, _FONT, scale, 2 if bold else 1)
    return width, height + below


def put_text(
    canvas: Canvas, text: str, left: int, top: int, scale: float, colour: Colour, *, bold: bool = False
) -> int:
    """Draw ASCII text whose box starts at ``(left, top)``; the x where it ends."""
    thickness = 2 if bold else 1
    (width, height), _ = cv2.getTextSize(text, _FONT, scale, thickness)
    cv2.putText(canvas, text, (left, top + height), _FONT, scale, colour, thickness, cv2.LINE_AA)
    return left + width


def put_text_with_halo(canvas: Canvas, text: str, left: int, top: int, scale: float, colour: Colour) -> None:
    """Text that reads on light and dark pixels without a box that would hide them."""
    (_, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
    cv2.putText(canvas, text, (left, top + height), _FONT, scale, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(canvas, text, (left, top + height), _FONT, scale, colour, 1, cv2.LINE_AA)


def fitting(text: str, scale: float, width: int, *, bold: bool = False) -> tuple[str, float]:
    """The text and a scale at which it is no wider than ``width``: first smaller, then cut off with two dots."""
    smallest = min(scale, 0.38)
    while scale > smallest and text_size(text, scale, bold=bold)[0] > width:
        scale = max(smallest, scale - 0.02)
    if text_size(text, scale, bold=bold)[0] <= width:
        return text, scale
    while text and text_size(f"{text}..", scale, bold=bold)[0] > width:
        text = text[:-1]
    return f"{text}..", scale


def put_verdict(canvas: Canvas, verdict: Verdict, left: int, top: int, side: int) -> Colour:
    """The verdict's own shape, so that it is told by more than its colour; the colour it is drawn in."""
    middle, half = (left + side // 2, top + side // 2), side // 2
    if verdict is Verdict.PASS:
        cv2.circle(canvas, middle, half, _GREEN, -1, cv2.LINE_AA)
        _put_lines(canvas, middle, half, [(-0.45, 0.05), (-0.1, 0.4), (0.5, -0.35)])
        return _GREEN
    if verdict is Verdict.REJECT:
        angles = np.pi / 8 + np.arange(8) * np.pi / 4
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * half + middle
        cv2.fillConvexPoly(canvas, corners.round().astype(np.int32), _VERMILION, cv2.LINE_AA)
        _put_lines(canvas, middle, half, [(-0.4, -0.4), (0.4, 0.4)])
        _put_lines(canvas, middle, half, [(-0.4, 0.4), (0.4, -0.4)])
        return _VERMILION
    if verdict is Verdict.REVIEW:
        corners = np.array([(left + half, top), (left + side, top + side), (left, top + side)], np.int32)
        cv2.fillConvexPoly(canvas, corners, _ORANGE, cv2.LINE_AA)
        _put_lines(canvas, middle, half, [(0.0, -0.3), (0.0, 0.35)], (0, 0, 0))
        _put_lines(canvas, middle, half, [(0.0, 0.72), (0.0, 0.72)], (0, 0, 0))
        return _ORANGE
    cv2.rectangle(canvas, (left, top), (left + side, top + side), _GREY, 2, cv2.LINE_AA)
    _put_lines(canvas, middle, half, [(-0.5, 0.0), (0.5, 0.0)], _GREY)
    return _GREY


def _put_lines(
    canvas: Canvas,
    middle: tuple[int, int],
    half: int,
    points: list[tuple[float, float]],
    colour: Colour = (255, 255, 255),
) -> None:
    line = (np.array(points) * half + middle).round().astype(np.int32)
    cv2.polylines(canvas, [line], isClosed=False, color=colour, thickness=max(2, half // 5), lineType=cv2.LINE_AA)


def opacity(share: FloatArray, strength: float = STRENGTH) -> FloatArray:
    """How much a colour covers, 0..``strength``. It rises faster than the value: what is just above a threshold has to
    be seen on a bright part, too.
    """
    return np.sqrt(share) * np.float32(strength)


def blend(picture: Canvas, share: FloatArray, strength: float = STRENGTH, *, grey: bool = False) -> Canvas:
    """Colour over a picture: ``share`` ``[H, W]`` in 0..1 picks the colour and its opacity.

    ``grey``: nothing but light grey, for what is not to be relied on.
    """
    table = np.full((256, 3), _GREY, np.uint8) if grey else colour_table()
    colours = table[(share * 255).round().astype(np.uint8)]
    alpha = opacity(share, strength)[:, :, None]
    return (picture * (1 - alpha) + colours * alpha).round().astype(np.uint8)


def nearest_free(
    taken: NDArray[np.uint8], width: int, height: int, box: tuple[int, int, int, int]
) -> tuple[int, int] | None:
    """Top left corner of the free ``width`` x ``height`` place closest to ``box``, or None."""
    rows, columns = (taken.shape[0] - height) // _GRID, (taken.shape[1] - width) // _GRID
    if rows < 1 or columns < 1:
        return None
    sums = cv2.integral(taken)
    y, x = np.mgrid[0:rows, 0:columns] * _GRID
    inside = sums[y + height, x + width] - sums[y, x + width] - sums[y + height, x] + sums[y, x]
    left, top, right, bottom = box
    aside = np.maximum(0, np.maximum(left - (x + width), x - right))
    above = np.maximum(0, np.maximum(top - (y + height), y - bottom))
    # Of places equally near, the one whose middle is above the region's: there the eye looks first.
    distance = np.hypot(aside, above) + 0.1 * np.abs(x + width / 2 - (left + right) / 2) + 0.02 * y
    distance[inside > 0] = np.inf
    best = int(np.argmin(distance))
    row, column = divmod(best, columns)
    return (column * _GRID, row * _GRID) if np.isfinite(distance[row, column]) else None
