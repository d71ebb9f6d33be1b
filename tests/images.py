"""Small real image files for tests: folders in the MVTec layout, full of synthetic parts."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 64, 96


def texture(name: str, *, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """A grey part ``[H, W]`` around 128, different for every name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.integers(118, 139, (height, width), dtype=np.uint8)


def spot_mask(*, height: int = HEIGHT, width: int = WIDTH, at: tuple[int, int] = (16, 24)) -> NDArray[np.uint8]:
    """A 16x16 square of 255 with its top left corner at (row, column)."""
    mask = np.zeros((height, width), np.uint8)
    mask[at[0] : at[0] + 16, at[1] : at[1] + 16] = 255
    return mask


def write(path: Path, pixels: NDArray[Any]) -> Path:
    """Encode by the suffix, ``[H, W]`` or OpenCV's BGR(A) order, and make the folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(path.suffix, pixels)
    assert done, path
    path.write_bytes(data.tobytes())
    return path


def write_defect(path: Path, *, value: int = 255, at: tuple[int, int] = (16, 24)) -> Path:
    """A part with a 16x16 spot of one grey value."""
    pixels = texture(path.as_posix()[-40:])
    pixels[spot_mask(at=at) > 0] = value
    return write(path, pixels)


def make_folder(
    root: Path,
    *,
    train: Mapping[str, int] | None = None,
    test: Mapping[str, int] | None = None,
    masks: bool = True,
    values: Mapping[str, int] | None = None,
) -> Path:
    """``train/<label>/t000.png``, ``test/<label>/e000.png`` and masks of all defects.

    Args:
        train, test: label to number of images; None leaves the folder out.
        values: label to the grey value of its spot, 255 by default.
    """
    root.mkdir(parents=True, exist_ok=True)
    for side, letter, labels in (("train", "t", train), ("test", "e", test)):
        for label, count in (labels or {}).items():
            for index in range(count):
                path = root / side / label / f"{letter}{index:03d}.png"
                if label == "good":
                    write(path, texture(f"{side} {label} {index}"))
                    continue
                at = (8 * (index % 5), 8 * (index % 9))
                write_defect(path, value=(values or {}).get(label, 255), at=at)
                if masks:
                    write(root / "ground_truth" / label / f"{path.stem}_mask.png", spot_mask(at=at))
    return root


def write_folds(path: Path, folds: Mapping[str, Mapping[str, Sequence[str]]]) -> Path:
    path.write_text(json.dumps({"about": "made up", "folds": folds}))
    return path
