"""Masks at other sizes than their file's: at the model's input size, and on the grid of its map."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data import read_mask
from vision.preprocess import InputSpec


def mask_at_input(path: Path | None, spec: InputSpec) -> NDArray[np.uint8]:
    """The mask of a frame at input size, uint8 ``[H, W]`` of 0 and 1; nothing is defective where there is none.

    Area averaging with a low cut keeps defects of a few pixels, which nearest-neighbour sampling would lose.
    """
    if path is None:
        return np.zeros((spec.height, spec.width), np.uint8)
    share = shares_on_grid(read_mask(path).astype(np.float32), (spec.height, spec.width))
    highest = float(share.max())
    return (share >= min(0.5, highest)).astype(np.uint8) if highest > 0 else np.zeros(share.shape, np.uint8)


def mask_on_grid(mask: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask ``[H, W]`` of 0 and 1 on a map's grid ``[h, w]``: a cell counts where half of it is defective."""
    return np.asarray(shares_on_grid(mask.astype(np.float32), size) >= 0.5)


def shares_on_grid(values: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """What lies in each cell of a coarser grid, on the average: of a mask ``[H, W]`` of 0 and 1 the defective share."""
    return np.asarray(cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA), np.float32)
