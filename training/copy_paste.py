"""Labelled defects on other parts, so that a few pictures of a defect teach what it looks like anywhere.

Copying what a mask marks onto another picture is the augmentation of Ghiasi et al. (Simple Copy-Paste is a Strong Data
Augmentation Method for Instance Segmentation, 2021).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from training.augment import Augmentation
from training.data import Sample
from training.stores import Store

Pixels = NDArray[np.uint8]

# A defect that covers more of its picture is no local one: with it the part itself would be copied.
_LARGEST_SHARE = 0.3
# Masks are drawn tightly: so many pixels around them come along, before the copy fades out.
_MARGINS = (2, 3, 4)
_FADING_SIGMA = 1.5
# Brightness is compared on a ring of this width around the copy, and adapted within these factors.
_RING_PX = 4
_DARKEST, _BRIGHTEST = 0.5, 2.0
# Pixel values so low are noise; they make no factor.
_NOISE = 5.0
_TRIES = 4


class Pasted(NamedTuple):
    """``picture`` uint8 ``[H, W, 3]`` with the defect of ``sample``, and its ``mask`` uint8 ``[H, W]`` (0 or 1)."""

    picture: Pixels
    mask: Pixels
    sample: Sample


def copied_shares(samples: Sequence[Sample], good: str | None) -> dict[str, float]:
    """The share of each class among the copies: by the root of the number of its masks, as an epoch draws classes."""
    counts = Counter(sample.label for sample in samples if sample.label != good and sample.mask is not None)
    roots = {label: count**0.5 for label, count in counts.items()}
    return {label: root / sum(roots.values()) for label, root in roots.items()}


class CopyPaste:
    """Puts labelled defects onto pictures of good parts.

    A defect stays about where it was on its own part, since some defects belong to edges.
    """

    def __init__(self, store: Store, good: str | None, augment: Augmentation) -> None:
        self._store, self._augment = store, augment
        self._shares = copied_shares(store.samples, good)
        self._places: dict[str, list[int]] = {label: [] for label in self._shares}
        for index, sample in enumerate(store.samples):
            if sample.label in self._places and sample.mask is not None:
                self._places[sample.label].append(index)

    def __call__(self, picture: Pixels, rng: np.random.Generator) -> Pasted | None:
        """Put a defect onto a good ``picture`` uint8 ``[H, W, 3]``; None where none of those drawn can be copied."""
        labels = list(self._shares)
        for _ in range(_TRIES if labels else 0):
            indices = self._places[labels[int(rng.choice(len(labels), p=list(self._shares.values())))]]
            index = indices[int(rng.integers(len(indices)))]
            source, mask = self._augment(*self._store[index], seed=int(rng.integers(2**32)))
            if 0 < float(mask.mean()) <= _LARGEST_SHARE:
                margin = int(rng.choice(_MARGINS))
                return Pasted(_paste(source, mask, picture, margin), mask, self._store.samples[index])
        return None


def _paste(source: Pixels, mask: Pixels, target: Pixels, margin: int) -> Pixels:
    """What ``mask`` marks in ``source``, and ``margin`` px around it, on ``target``, as bright as its surroundings."""
    wide = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1)))
    alpha = np.maximum(cv2.GaussianBlur(wide.astype(np.float32), (0, 0), _FADING_SIGMA), mask)[:, :, None]
    ring = cv2.dilate(wide, np.ones((2 * _RING_PX + 1, 2 * _RING_PX + 1), np.uint8)) > wide
    factor = np.ones(3)
    if ring.any():
        factor = (target[ring].mean(axis=0) + _NOISE) / (source[ring].mean(axis=0) + _NOISE)
    copied = source * np.clip(factor, _DARKEST, _BRIGHTEST)
    return np.clip(np.rint(target + (copied - target) * alpha), 0, 255).astype(np.uint8)
