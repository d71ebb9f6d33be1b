"""Pixel thresholds: of all defects together, and of classes whose defects have halos of their own."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vision.calibration.pixels import KnownPixels, best_pixel_thresholds

CLASSES = ("pit", "stain")
SIDE = 24


def image(label: str, *, favoured: int | None = None, quiet: bool = False) -> KnownPixels:
    """A pit: 2x2 cells at 9 in a halo of 6x6 at 4. A stain: 12x12 cells at 3. ``quiet``: nothing shows."""
    values, truth = np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.bool_)
    if label == "pit":
        values[4:10, 4:10] = 4.0
        values[6:8, 6:8] = 9.0
        truth[6:8, 6:8] = True
    elif label == "stain":
        values[6:18, 6:18] = 3.0
        truth[6:18, 6:18] = True
    place = CLASSES.index(label) if favoured is None and label in CLASSES else (favoured or 0)
    seen: NDArray[np.intp] = np.full((SIDE, SIDE), place, np.intp)
    return KnownPixels(np.zeros_like(values) if quiet else values, truth, label, seen)


def test_a_small_defect_in_its_halo_gets_a_threshold_of_its_own() -> None:
    images = [image("pit") for _ in range(5)] + [image("stain") for _ in range(5)] + [image("good")]
    found = best_pixel_thresholds(images, CLASSES)
    assert found.usual == 3.0  # the large ones decide
    assert found.by_class == {"pit": 9.0, "stain": 3.0}


def test_good_frames_in_which_a_class_is_favoured_count_for_its_threshold() -> None:
    noisy = KnownPixels(np.full((SIDE, SIDE), 3.0, np.float32), np.zeros((SIDE, SIDE), np.bool_), "good",
                        np.ones((SIDE, SIDE), np.intp))  # fmt: skip
    stains = [image("stain") for _ in range(8)]
    stains = [KnownPixels(one.anomaly_map + one.truth * np.float32(index % 2), *_rest(one))
              for index, one in enumerate(stains)]  # fmt: skip
    assert best_pixel_thresholds(stains, CLASSES).by_class == {"stain": 3.0}
    assert best_pixel_thresholds([*stains, *[noisy] * 9], CLASSES).by_class == {"stain": 4.0}


def _rest(one: KnownPixels) -> tuple[NDArray[np.bool_], str, NDArray[np.intp] | None]:
    return one.truth, one.label, one.favoured


@pytest.mark.parametrize("pits", [3, 4])
def test_a_class_with_few_masks_goes_by_the_usual_threshold(pits: int) -> None:
    images = [image("pit") for _ in range(pits)] + [image("stain") for _ in range(8)]
    assert ("pit" in best_pixel_thresholds(images, CLASSES).by_class) == (pits == 4)


def test_defects_that_are_taken_for_another_class_do_not_lower_the_threshold() -> None:
    """They cannot be found at any value: what is left of the class decides."""
    images = [image("pit") for _ in range(4)] + [image("pit", favoured=1) for _ in range(4)]
    assert best_pixel_thresholds(images, CLASSES).by_class == {"pit": 9.0}
    only_elsewhere = [image("pit", favoured=1) for _ in range(8)]
    assert best_pixel_thresholds(only_elsewhere, CLASSES).by_class == {}


def test_without_enough_masks_or_a_class_map_there_is_less_to_choose() -> None:
    assert best_pixel_thresholds([image("stain") for _ in range(7)], CLASSES).usual is None
    unnamed = [KnownPixels(one.anomaly_map, one.truth, one.label) for one in [image("stain") for _ in range(8)]]
    found = best_pixel_thresholds(unnamed, CLASSES)
    assert (found.usual, found.by_class) == (3.0, {})
