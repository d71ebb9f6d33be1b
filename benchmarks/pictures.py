"""Grey pictures and masks of the benchmarks' data sets: read, written, drawn from."""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.scan import Source

Grey = NDArray[np.uint8]


def read_grey(path: Path) -> Grey:
    """A picture in grey, uint8 ``[H, W]``."""
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise SystemExit(f"{path} is no picture")
    return np.asarray(picture, np.uint8)


def write_frame(root: Path, part: str, label: str, name: str, frame: Grey, mask: Grey | None) -> None:
    """One frame, and its mask (0 or 1) if it has one, where the MVTec layout wants them."""
    path = root / part / label / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), frame)
    if mask is not None:
        mask_path = root / "ground_truth" / label / f"{name}_mask.png"
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(mask_path), mask * 255)


def seeded_random() -> random.Random:
    """Python's own generator keeps its draws from version to version."""
    return random.Random(0)  # noqa: S311


def is_marked(source: Source) -> bool:
    return source.mask is not None and bool(read_grey(source.mask).any())
