"""Real defects, cut out of their own frames and put on others."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from benchmarks.pictures import Grey, read_grey

# Of its own surroundings, what is cut out with a defect, in px.
_MARGIN = 6
# A defect lies at least so far from the edge of the frame that it is put on, in px.
_BORDER = 8


class PastedDefects:
    """Defects of the test part of a folder in the MVTec layout whose side, that of a square of the same area, is in
    ``smallest``..``largest`` px; every second one from ``first`` (0 or 1), so that two users share none.
    """

    def __init__(self, root: Path, *, smallest: float, largest: float, first: int) -> None:
        self._defects = []
        for path in sorted((root / "test").glob("*/*"))[first::2]:
            mask_path = root / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            if path.parent.name == "good" or not mask_path.is_file():
                continue
            mask = (read_grey(mask_path) > 0).astype(np.uint8)
            if smallest <= float(mask.sum()) ** 0.5 <= largest:
                x, y, across, down = cv2.boundingRect(mask)
                top, left = max(0, y - _MARGIN), max(0, x - _MARGIN)
                window = np.s_[top : y + down + _MARGIN, left : x + across + _MARGIN]
                self._defects.append((read_grey(path)[window], mask[window]))
        if not self._defects:
            raise SystemExit(f"{root} has no defects of {smallest:.0f} to {largest:.0f} px with masks")

    def paste(self, frame: Grey, rng: np.random.Generator) -> tuple[Grey, Grey]:
        """The frame with one defect at its own size, ``_BORDER`` px or more from the edge, and its mask (0 or 1)."""
        fitting = [
            one
            for one in self._defects
            if all(p + 2 * _BORDER < e for p, e in zip(one[1].shape, frame.shape, strict=True))
        ]
        picture, shape = fitting[int(rng.integers(len(fitting)))]
        y, x = (
            int(rng.integers(_BORDER, edge - part - _BORDER))
            for edge, part in zip(frame.shape, shape.shape, strict=True)
        )
        window = np.s_[y : y + shape.shape[0], x : x + shape.shape[1]]
        # The difference from the defect's own surroundings is what is carried over, softly at its edge.
        alpha = cv2.GaussianBlur(cv2.dilate(shape, np.ones((3, 3), np.uint8)).astype(np.float32), (0, 0), 1.0)
        around = float(np.median(picture[shape == 0]))
        result, mask = frame.copy(), np.zeros_like(frame)
        changed = frame[window] + alpha * (picture.astype(np.float32) - around)
        result[window] = np.clip(np.rint(changed), 0, 255)
        mask[window] = shape
        return result, mask
