"""Augmentation of training frames: the only place that knows albumentations."""

from __future__ import annotations

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_LARGEST_SEED = 2**32


class Augmentation:
    """Geometry and light changes that leave a good part good. The same seed gives the same change.

    Args:
        flips: mirror and turn upside down as well; right for surfaces, wrong for parts with a fixed orientation.
        strength: 0 changes nothing, 1 is made for labelled defects; frozen features of good parts want less.
    """

    def __init__(self, *, flips: bool, strength: float) -> None:
        mirror = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)] if flips else []
        self._compose = A.Compose(
            [
                *mirror,
                A.Affine(
                    scale=(1 - 0.10 * strength, 1 + 0.10 * strength),
                    translate_percent=(-0.06 * strength, 0.06 * strength),
                    rotate=(-8 * strength, 8 * strength),
                    border_mode=cv2.BORDER_REFLECT_101,
                    p=0.7,
                ),
                A.RandomBrightnessContrast(brightness_limit=0.15 * strength, contrast_limit=0.15 * strength, p=0.6),
                A.RandomGamma(gamma_limit=(100 - 20 * strength, 100 + 25 * strength), p=0.3),
                A.GaussNoise(std_range=(0.0, 0.02 * strength), per_channel=False, p=0.2),
            ]
        )

    def __call__(self, frame: Pixels, mask: Pixels, seed: int) -> tuple[Pixels, Pixels]:
        """uint8 ``[H, W, 3]`` and its mask ``[H, W]`` (0 or 1) to an augmented pair of the same shapes."""
        self._compose.set_random_seed(seed % _LARGEST_SEED)
        result = self._compose(image=frame, mask=mask)
        return np.ascontiguousarray(result["image"]), np.ascontiguousarray(result["mask"])
