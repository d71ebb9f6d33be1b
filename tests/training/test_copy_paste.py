from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.images import write
from training.augment import Augmentation
from training.copy_paste import CopyPaste
from training.data import Sample
from training.stores import FrameStore
from vision.preprocess import InputSpec

_SIZE = (96, 128)
_STILL = Augmentation(flips=False, strength=0.0)


def _store(root: Path, spots: Sequence[tuple[int, int]], *, dark: int = 60, side: int = 10) -> FrameStore:
    """Dark parts with a bright square at each of the places, of class ``spot``."""
    samples = []
    for number, (top, left) in enumerate(spots):
        frame, mask = np.full((*_SIZE, 3), dark, np.uint8), np.zeros(_SIZE, np.uint8)
        frame[top : top + side, left : left + side] = 2 * dark
        mask[top : top + side, left : left + side] = 255
        picture = write(root / f"{number}.png", frame)
        samples.append(Sample(picture, "spot", write(root / f"{number}_mask.png", mask), 1.0))
    return FrameStore(samples, InputSpec(*_SIZE))


def test_a_defect_is_copied_to_its_place_and_as_bright_as_the_new_part_makes_it(tmp_path: Path) -> None:
    store = _store(tmp_path, [(40, 60)])
    part = np.full((*_SIZE, 3), 100, np.uint8)
    pasted = CopyPaste(store, "good", _STILL)(part, np.random.default_rng(0))
    assert pasted is not None
    assert np.array_equal(pasted.mask, store[0][1])
    assert pasted.sample.label == "spot"
    # Twice as bright as its dark surroundings were, so about twice as bright as the new ones.
    assert pasted.picture[40:50, 60:70].mean() == pytest.approx(200, abs=8)
    far = np.ones(_SIZE, bool)
    far[25:65, 45:85] = False
    assert np.array_equal(pasted.picture[far], part[far])
    # No edge where the copy ends: the surroundings of the defect have the brightness of the new part.
    assert np.abs(pasted.picture[30:36, 60:70].astype(int) - 100).max() <= 6
    assert np.array_equal(part, np.full((*_SIZE, 3), 100, np.uint8))


def test_what_covers_most_of_a_part_is_not_copied(tmp_path: Path) -> None:
    store = _store(tmp_path, [(5, 5)], side=85)
    assert CopyPaste(store, "good", _STILL)(np.full((*_SIZE, 3), 100, np.uint8), np.random.default_rng(0)) is None


def test_without_masks_nothing_is_copied(tmp_path: Path) -> None:
    path = write(tmp_path / "crack.png", np.full((*_SIZE, 3), 60, np.uint8))
    store = FrameStore([Sample(path, "crack", None, 1.0)], InputSpec(*_SIZE))
    assert CopyPaste(store, "good", _STILL)(np.full((*_SIZE, 3), 100, np.uint8), np.random.default_rng(0)) is None


def test_a_defect_at_the_edge_is_copied_too(tmp_path: Path) -> None:
    store = _store(tmp_path, [(0, 118)])
    pasted = CopyPaste(store, "good", _STILL)(np.full((*_SIZE, 3), 100, np.uint8), np.random.default_rng(3))
    assert pasted is not None
    assert pasted.picture[0:10, 118:128].mean() == pytest.approx(200, abs=8)
