"""Frames that show many parts at once, put together from frames of one part: wide ones and large ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks.pictures import Grey, is_marked, read_grey, seeded_random, write_frame
from training.layout import GOOD
from training.scan import Source

# Of a strip: its size in px, its parts, and how many defects of each class a fold gives.
_STRIP_HEIGHT, _STRIP_WIDTH, _STRIP_PARTS = 256, 1600, 5
_STRIPS_OF_TRAINING_FOLDS, _STRIPS_OF_TEST_FOLD = 8, 10
# Of a board: its parts down and across, the size of each in px, and how many boards of each class there are.
_BOARD_ROWS, _BOARD_COLUMNS = 5, 8
_PART_HEIGHT, _PART_WIDTH = 320, 300
_BOARDS = {"train": 15, "test": 5}
_MOST_DEFECTS = 4


def strips(folds: Sequence[Sequence[Source]], out: Path) -> None:
    """Strips of ``_STRIP_PARTS`` parts of one fold side by side, one of them defective, labelled with its defect."""
    rng = seeded_random()
    for fold in folds:
        good = [one for one in fold if one.label == GOOD]
        if len(good) < _STRIP_PARTS - 1:
            raise SystemExit(f"a fold has {len(good)} good images; a strip needs {_STRIP_PARTS - 1}")
        for label in dict.fromkeys(one.label for one in fold if one.label != GOOD):
            of_class = sorted((one for one in fold if one.label == label), key=lambda one: one.path.name)
            rng.shuffle(of_class)
            count = _STRIPS_OF_TEST_FOLD if fold[0].side == "test" else _STRIPS_OF_TRAINING_FOLDS
            for one in of_class[:count]:
                if not is_marked(one):
                    continue
                parts = [one, *rng.sample(good, _STRIP_PARTS - 1)]
                rng.shuffle(parts)
                frame, mask = _strip(parts)
                if mask.any():
                    write_frame(out, one.side, label, one.path.stem, frame, mask)


def boards(sources: Sequence[Source], out: Path) -> None:
    """Boards of 2400x1600 px: parts at half their size, one to four of them with a defect of the board's class."""
    rng = seeded_random()
    cells = range(_BOARD_ROWS * _BOARD_COLUMNS)
    for side, count in _BOARDS.items():
        good = [one for one in sources if one.side == side and one.label == GOOD]
        if not good:
            raise SystemExit(f"there is no good image to {side}; a board is made of them")
        for label in sorted({one.label for one in sources if one.label != GOOD}):
            marked = [one for one in sources if one.side == side and one.label == label and is_marked(one)]
            for index in range(count if marked else 0):
                parts = [_part(rng.choice(good)) for _ in cells]
                for cell in rng.sample(cells, rng.randint(1, _MOST_DEFECTS)):
                    parts[cell] = _part(rng.choice(marked))
                frame, mask = (_board([part[layer] for part in parts]) for layer in (0, 1))
                if mask.any():
                    write_frame(out, side, label, f"{side}_{label}_{index:02d}", frame, mask)


def _strip(parts: Sequence[Source]) -> tuple[Grey, Grey]:
    """Parts side by side at the strip's height, mirrored on or cut off at its width: the frame and its mask (0, 1)."""
    frames, masks = [], []
    for one in parts:
        frame, mask = _read(one)
        size = (round(frame.shape[1] * _STRIP_HEIGHT / frame.shape[0]), _STRIP_HEIGHT)
        frames.append(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
        masks.append(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST))
    missing = max(0, _STRIP_WIDTH - sum(frame.shape[1] for frame in frames))
    wide = cv2.copyMakeBorder(np.hstack(frames), 0, 0, 0, missing, cv2.BORDER_REFLECT_101)
    marked = cv2.copyMakeBorder(np.hstack(masks), 0, 0, 0, missing, cv2.BORDER_REFLECT_101)
    return np.asarray(wide[:, :_STRIP_WIDTH], np.uint8), (marked[:, :_STRIP_WIDTH] > 0).astype(np.uint8)


def _part(one: Source) -> tuple[Grey, Grey]:
    """A part at half its size, repeated or cut off at the size of a board's part: the frame and its mask (0, 1)."""
    frame, mask = _read(one)
    size = (max(1, frame.shape[1] // 2), max(1, frame.shape[0] // 2))
    frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
    # A pixel that a defect of one pixel reaches is a defect's: nothing that can be seen stays unmarked.
    mask = np.asarray(cv2.resize((mask > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0, np.uint8)
    times = (-(-_PART_HEIGHT // size[1]), -(-_PART_WIDTH // size[0]))
    window = np.s_[:_PART_HEIGHT, :_PART_WIDTH]
    return np.tile(frame, times)[window], np.tile(mask, times)[window]


def _read(one: Source) -> tuple[Grey, Grey]:
    """A part's frame and its mask as the files have them; 0 everywhere without one."""
    frame = read_grey(one.path)
    return frame, np.zeros_like(frame) if one.mask is None else read_grey(one.mask)


def _board(parts: Sequence[Grey]) -> Grey:
    rows = [np.hstack(parts[start : start + _BOARD_COLUMNS]) for start in range(0, len(parts), _BOARD_COLUMNS)]
    return np.vstack(rows)
