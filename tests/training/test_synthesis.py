from __future__ import annotations

import numpy as np
import pytest

from tests.images import texture
from training.augment import Augmentation
from training.synthesis import add_defect, perlin


def _frame(name: str) -> np.ndarray:
    return np.repeat(texture(name)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("seed", range(40))
def test_a_defect_is_where_its_mask_says(seed: int) -> None:
    frame = _frame("a")
    damaged, mask = add_defect(frame, _frame("b"), np.random.default_rng(seed))
    assert damaged.shape == frame.shape
    assert damaged.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert mask.mean() < 0.3
    changed = np.abs(damaged.astype(int) - frame).max(axis=2)
    assert changed[mask == 1].mean() > 2
    # A soft rim may reach a little beyond the mask, but nothing far from it may change.
    assert changed[mask == 0].mean() < changed[mask == 1].mean() / 3


def test_the_same_seed_gives_the_same_defect() -> None:
    one, other = (add_defect(_frame("a"), _frame("b"), np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_perlin_noise_is_smooth_centred_and_zero_on_the_lattice() -> None:
    noise = perlin(64, 96, (4, 6), np.random.default_rng(0))
    assert np.abs(noise).max() <= 1.1
    assert abs(noise.mean()) < 0.1
    assert np.abs(np.diff(noise, axis=0)).max() < 0.2
    np.testing.assert_allclose(noise[::16, ::16], 0, atol=1e-6)


def test_augmentation_moves_frame_and_mask_together_and_depends_on_the_seed_alone() -> None:
    frame = np.full((64, 96, 3), 100, np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    frame[10:30, 20:50], mask[10:30, 20:50] = 200, 1
    augment = Augmentation(flips=True, strength=1.0)
    seen = set()
    for seed in range(20):
        moved, moved_mask = augment(frame, mask, seed)
        again, again_mask = augment(frame, mask, seed)
        np.testing.assert_array_equal(moved, again)
        np.testing.assert_array_equal(moved_mask, again_mask)
        bright = moved[:, :, 0] > (float(moved.min()) + float(moved.max())) / 2
        assert (bright == moved_mask.astype(bool)).mean() > 0.97
        seen.add(moved_mask.tobytes())
    assert len(seen) > 10


def test_without_flips_nothing_is_mirrored() -> None:
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:, :20] = 255
    augment = Augmentation(flips=False, strength=0.3)
    for seed in range(30):
        moved, _ = augment(frame, np.zeros((64, 64), np.uint8), seed)
        assert moved[:, :10].mean() > moved[:, -10:].mean()
