"""Masks at the model's input size and on the grid of its map, and the single defects in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data import Sample, read_mask
from vision.preprocess import InputSpec

# Specks of a mask that lie closer than this, in px, are one defect.
_TOGETHER_PX = 16

ENOUGH_MASKED = 0.5
"""From this ``masked_share`` of the defect images on, learning goes by their masks alone."""


def masked_share(defects: Sequence[Sample]) -> float:
    """How many of these defect images have a mask, in 0..1: 1 where there is no image, and 0 where a class has no mask
    at all, which learning from masks alone would leave out.
    """
    masked = [sample.label for sample in defects if sample.mask is not None]
    if {sample.label for sample in defects} - set(masked):
        return 0.0
    return len(masked) / len(defects) if defects else 1.0


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


@dataclass(frozen=True, slots=True)
class Blob:
    """A connected piece of a mask: bool ``[h, w]`` with its place in the frame."""

    top: int
    left: int
    mask: NDArray[np.bool_]

    def inside(self, top: int, left: int, height: int, width: int) -> int:
        """How many of its pixels lie in the window that begins at (top, left)."""
        down, across = max(0, top - self.top), max(0, left - self.left)
        bottom, right = top + height - self.top, left + width - self.left
        return int(self.mask[down : max(0, bottom), across : max(0, right)].sum())


def find_blobs(mask: NDArray[np.uint8]) -> list[Blob]:
    """The defects of a mask ``[H, W]`` of 0 and 1; specks close to each other are one."""
    around = cv2.dilate(mask, np.ones((_TOGETHER_PX, _TOGETHER_PX), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(around, connectivity=8)
    found = []
    for index in range(1, count):
        left, top, across, down = (int(value) for value in stats[index, :4])
        window = np.s_[top : top + down, left : left + across]
        found.append(Blob(top, left, (labels[window] == index) & (mask[window] > 0)))
    return found
