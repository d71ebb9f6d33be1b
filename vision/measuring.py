"""How long engines take, measured in turns: what else the machine does then hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vision.engine import Engine

K = TypeVar("K")


def one_round(cases: Mapping[K, tuple[Engine, int]], frames: NDArray[np.uint8]) -> dict[K, float]:
    """Run each case (engine, batch size) once on ``frames`` ``[M, H, W, 3]``, repeated as needed; ms a frame."""
    times: dict[K, float] = {}
    for key, (engine, size) in cases.items():
        batch = frames[np.arange(size) % len(frames)]
        start = time.perf_counter()
        engine.run(batch)
        times[key] = (time.perf_counter() - start) * 1000.0 / size
    return times
