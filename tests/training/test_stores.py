"""Pictures in batches: one skipped, repeated or beside the mask of another would calibrate against the wrong truth."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data import Sample
from training.stores import in_batches
from vision.batching import stacked


class Counted:
    """Pictures and masks that say which they are, and how often they were looked at."""

    def __init__(self, count: int) -> None:
        self.samples = tuple(Sample(Path(f"{index}.png"), "good") for index in range(count))
        self.looks: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        self.looks[index] += 1
        return np.full((2, 3, 3), index, np.uint8), np.full((2, 3), index, np.uint8)


@pytest.mark.parametrize(("count", "most", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (0, 4, [])])
def test_each_picture_is_looked_at_once_beside_its_own_mask_and_sample(count: int, most: int, sizes: list[int]) -> None:
    store = Counted(count)
    batches = list(in_batches(store, most))
    assert [len(pictures) for _, pictures, _ in batches] == sizes
    seen = [
        (int(sample.path.stem), int(picture.max()), int(mask.max()))
        for samples, pictures, masks in batches
        for sample, picture, mask in zip(samples, pictures, masks, strict=True)
    ]
    assert seen == [(index, index, index) for index in range(count)]
    assert store.looks == Counter(range(count))


def test_frames_are_stacked_in_order_and_none_is_left_out() -> None:
    frames = [np.full((2, 3, 3), index, np.uint8) for index in range(5)]
    assert [batch[:, 0, 0, 0].tolist() for batch in stacked(frames, 2)] == [[0, 1], [2, 3], [4]]
