"""The pixel threshold: from which value of the anomaly map on a pixel is drawn as part of a defect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vision.types import FloatArray

ENOUGH_MASKS = 8
"""With fewer defects with a mask, choosing by them is choosing by chance."""


def best_pixel_threshold(maps: Sequence[FloatArray], truths: Sequence[NDArray[np.bool_]]) -> float | None:
    """The map value with the best pixel F1 over images; None where too few of them have a defective pixel.

    Args:
        maps, truths: ``[h, w]`` each, of one size in a pair.
    """
    if sum(bool(truth.any()) for truth in truths) < ENOUGH_MASKS:
        return None
    values = np.concatenate([anomaly_map.ravel() for anomaly_map in maps])
    truth = np.concatenate([one.ravel() for one in truths])
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    return float(values[order[int(np.argmax(f1))]])
