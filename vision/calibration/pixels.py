"""Pixel thresholds: from which value of the anomaly map on a pixel is drawn as part of a defect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vision.types import FloatArray

ENOUGH_MASKS = 8
"""With fewer defects with a mask, choosing by them is choosing by chance."""

ENOUGH_MASKS_OF_A_CLASS = 4


@dataclass(frozen=True, slots=True)
class KnownPixels:
    """One image whose defective cells are known.

    ``anomaly_map`` and ``truth`` ``[h, w]``; ``label`` is its class; ``favoured`` ``[h, w]`` the defect class that the
    model favours in each cell, by its place among the defect classes; None of a model that has no class map.
    """

    anomaly_map: FloatArray
    truth: NDArray[np.bool_]
    label: str
    favoured: NDArray[np.intp] | None = None


@dataclass(frozen=True, slots=True)
class PixelThresholds:
    """On the raw anomaly scale. ``by_class``: of defect classes that have a threshold of their own, in place of
    ``usual``; None takes the image threshold.
    """

    usual: float | None = None
    by_class: Mapping[str, float] = field(default_factory=dict)


def best_pixel_thresholds(images: Sequence[KnownPixels], defect_classes: Sequence[str]) -> PixelThresholds:
    """The map values with the best pixel F1 over ``images``: of all defects together, and of each class by itself in
    the cells where it is favoured. None, and no class, where too few defects have a mask.

    A defect of ten pixels has a halo on the map that is larger than itself, one of a thousand has not: a threshold for
    all of them goes by the large ones, and draws the small ones several times too large.
    """
    masked = [one for one in images if one.truth.any()]
    if len(masked) < ENOUGH_MASKS:
        return PixelThresholds()
    usual = _best(
        np.concatenate([one.anomaly_map.ravel() for one in images]),
        np.concatenate([one.truth.ravel() for one in images]),
    )
    by_class = {}
    for place, name in enumerate(defect_classes):
        shown = [one.truth for one in masked if one.label == name]
        if len(shown) < ENOUGH_MASKS_OF_A_CLASS:
            continue
        cells = [(one, one.favoured == place) for one in images if one.favoured is not None]
        values = [one.anomaly_map[here] for one, here in cells]
        truth = [one.truth[here] & (one.label == name) for one, here in cells]
        if any(part.any() for part in truth):
            total = sum(int(part.sum()) for part in shown)
            by_class[name] = _best(np.concatenate(values), np.concatenate(truth), total)
    return PixelThresholds(usual, by_class)


def _best(values: FloatArray, truth: NDArray[np.bool_], total: int | None = None) -> float:
    """The value with the best F1; ``total`` defective cells where ``truth`` does not hold all of them."""
    order = np.argsort(-values, kind="stable")
    falling, hits = values[order], np.cumsum(truth[order])
    last = np.append(falling[1:] < falling[:-1], True)  # a threshold takes all cells of one value, or none
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + (hits[-1] if total is None else total))
    return float(falling[last][int(np.argmax(f1[last]))])
