"""Synthetic defects for normal parts: where there is no labelled defect, something has to show what one might be.

Shapes: thresholded Perlin noise (Perlin 1985; as in DRAEM, Zavrtanik et al. 2021), thin random-walk lines, and soft
blobs. Fillings: a patch of another place or another part, a change of brightness, a blur, or noise.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

# A defect covers between these shares of the frame; larger ones are no local defects any more.
_SMALLEST_SHARE, _LARGEST_SHARE = 0.0005, 0.15


def add_defect(frame: Pixels, other: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Put one defect on a good frame.

    Args:
        frame: uint8 ``[H, W, 3]`` RGB of a good part.
        other: another good frame of the same shape, a source of foreign texture.

    Returns:
        The frame with the defect, uint8 ``[H, W, 3]``, and its mask, uint8 ``[H, W]``, 0 or 1, never empty.
    """
    height, width = frame.shape[:2]
    for _ in range(8):  # a shape may come out too small or too large; another draw costs nothing
        alpha = _shape(height, width, rng)
        if _SMALLEST_SHARE <= float((alpha > 0.3).mean()) <= _LARGEST_SHARE:
            break
    else:
        alpha = _blob(height, width, rng)
    filling = _filling(frame, other, rng)
    mixed = frame + (filling - frame) * alpha[:, :, None]
    result = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    # Where the filling happens to equal the frame there is nothing to find.
    visible = np.abs(result.astype(np.int16) - frame).max(axis=2) >= 4
    mask = ((alpha > 0.3) & cv2.dilate(visible.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)).astype(
        np.uint8
    )
    if not mask.any():
        result[alpha > 0.3] = 255 - result[alpha > 0.3]
        mask = (alpha > 0.3).astype(np.uint8)
    return result, mask


def add_defect_in(
    frame: Pixels, other: Pixels, rng: np.random.Generator, piece: tuple[int, int]
) -> tuple[Pixels, Pixels]:
    """As ``add_defect``, with a defect as large as those of a ``piece`` (height, width in px) of the frame."""
    if frame.shape[:2] == piece:
        return add_defect(frame, other, rng)
    top, left = (int(rng.integers(side - part + 1)) for side, part in zip(frame.shape[:2], piece, strict=True))
    window = np.s_[top : top + piece[0], left : left + piece[1]]
    result, mask = frame.copy(), np.zeros(frame.shape[:2], np.uint8)
    result[window], mask[window] = add_defect(frame[window], other[window], rng)
    return result, mask


def _shape(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    kind = rng.choice(("perlin", "line", "blob"), p=(0.4, 0.35, 0.25))
    if kind == "perlin":
        return _perlin_islands(height, width, rng)
    return _line(height, width, rng) if kind == "line" else _blob(height, width, rng)


def perlin(height: int, width: int, cells: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Gradient noise in about −1..1, float32 ``[height, width]``, with ``cells`` lattice cells down and across."""
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    gradients = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    ys = np.linspace(0, cells[0], height, endpoint=False)[:, None]
    xs = np.linspace(0, cells[1], width, endpoint=False)[None, :]
    rows, columns = ys.astype(int), xs.astype(int)
    dy, dx = ys - rows, xs - columns

    def corner(down: int, right: int) -> NDArray[np.float64]:
        gradient = gradients[rows + down, columns + right]
        product: NDArray[np.float64] = gradient[..., 0] * (dy - down) + gradient[..., 1] * (dx - right)
        return product

    fade_y, fade_x = (t * t * t * (t * (t * 6 - 15) + 10) for t in (dy, dx))
    top = corner(0, 0) * (1 - fade_x) + corner(0, 1) * fade_x
    bottom = corner(1, 0) * (1 - fade_x) + corner(1, 1) * fade_x
    noise: NDArray[np.float64] = np.sqrt(2.0) * (top * (1 - fade_y) + bottom * fade_y)
    return noise.astype(np.float32)


def _perlin_islands(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    cells = (int(2 ** rng.integers(1, 6)), int(2 ** rng.integers(1, 6)))
    noise = perlin(height, width, cells, rng)
    islands = (noise > rng.uniform(0.45, 0.7)).astype(np.uint8)
    count, labels = cv2.connectedComponents(islands, connectivity=8)
    if count <= 1:
        return np.zeros((height, width), np.float32)
    chosen = rng.choice(np.arange(1, count), size=min(count - 1, int(rng.integers(1, 4))), replace=False)
    return _soften(np.isin(labels, chosen).astype(np.float32), rng)


def _line(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A scratch or crack: a random walk that keeps its direction."""
    canvas = np.zeros((height, width), np.float32)
    side = min(height, width)
    point = rng.uniform((0.05 * width, 0.05 * height), (0.95 * width, 0.95 * height))
    angle, wobble = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.6)
    thickness = max(1, round(side * rng.uniform(0.003, 0.02)))
    for _ in range(int(rng.integers(4, 24))):
        angle += rng.normal(0, wobble)
        step = side * rng.uniform(0.01, 0.05)
        following = point + step * np.array([np.cos(angle), np.sin(angle)])
        start, end = (tuple(round(float(value)) for value in place) for place in (point, following))
        cv2.line(canvas, start, end, 1.0, thickness, cv2.LINE_AA)
        point = following
    return canvas


def _blob(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    canvas = np.zeros((height, width), np.float32)
    side = min(height, width)
    axes = tuple(max(2, round(side * rng.uniform(0.015, 0.15))) for _ in range(2))
    center = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
    cv2.ellipse(canvas, center, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1, cv2.LINE_AA)
    return _soften(canvas, rng)


def _soften(alpha: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    sigma = rng.choice((0.0, 1.0, 3.0))
    return cv2.GaussianBlur(alpha, (0, 0), sigma).astype(np.float32) if sigma else alpha


def _filling(frame: Pixels, other: Pixels, rng: np.random.Generator) -> NDArray[np.float32]:
    base = frame.astype(np.float32)
    kind = rng.choice(("shift", "foreign", "brightness", "blur", "noise"), p=(0.2, 0.2, 0.4, 0.1, 0.1))
    if kind in ("shift", "foreign"):
        source = frame if kind == "shift" else other
        height, width = frame.shape[:2]
        moves = (int(rng.integers(height // 8, height)), int(rng.integers(width // 8, width)))
        moved = np.roll(np.rot90(source, 2) if rng.random() < 0.5 else source, moves, axis=(0, 1))
        return moved.astype(np.float32) * float(rng.uniform(0.7, 1.3))
    if kind == "brightness":
        amount = float(rng.uniform(15, 110)) * (1 if rng.random() < 0.4 else -1)
        texture = perlin(frame.shape[0], frame.shape[1], (16, 16), rng) * float(rng.uniform(0, 25))
        return base + amount + texture[:, :, None]
    if kind == "blur":
        return cv2.GaussianBlur(base, (0, 0), float(rng.uniform(3, 10))).astype(np.float32)
    return base + rng.normal(0, float(rng.uniform(15, 60)), frame.shape[:2])[:, :, None].astype(np.float32)
