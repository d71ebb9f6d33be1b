"""How long frames take: histograms since the start, and quantiles of the last seconds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from serving.live import RecentFrames, StageTimes
from serving.messages import Timings

STAGES = tuple(field.name.removesuffix("_ms") for field in fields(Timings))
# Upper bounds in ms: fine around a camera's usual deadline of some 50 ms, and up to what nobody waits for.
STAGE_BOUNDS_MS = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 200, 500, 1000, 2000, 5000)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64)
WINDOW_S = 10.0
# Bounds memory and the work of a question; a server that answers more in WINDOW_S looks back less far.
_MOST_FRAMES = 4096


class Histogram:
    """Counts of values by bucket; a value belongs to the first bucket whose bound is at or above it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float], counts: Sequence[int] = (), total: float = 0.0) -> None:
        self.bounds = bounds
        self.counts = list(counts) or [0] * (len(bounds) + 1)
        self.total = total

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        return Histogram(self.bounds, self.counts, self.total)


@dataclass(frozen=True, slots=True)
class Histograms:
    """Of the answered frames: ms of each stage in the order of ``STAGES``, and the size of the batch they rode in."""

    stages: tuple[Histogram, ...]
    batch_size: Histogram


class Durations:
    """The timings of the answered frames."""

    def __init__(self) -> None:
        self._stages = tuple(Histogram(STAGE_BOUNDS_MS) for _ in STAGES)
        self._batch_size = Histogram(BATCH_BOUNDS)
        # A ring of rows: when, ms of each stage, batch size. float64, as `when` is a monotonic clock's large number.
        self._rows = np.zeros((_MOST_FRAMES, len(STAGES) + 2))
        self._count = 0

    def add(self, now: float, timings: Timings, batch_size: int) -> None:
        row = (
            now,
            timings.queue_ms,
            timings.decode_ms,
            timings.preprocess_ms,
            timings.inference_ms,
            timings.postprocess_ms,
            timings.total_ms,
            batch_size,
        )
        self._rows[self._count % _MOST_FRAMES] = row
        self._count += 1
        for histogram, value in zip(self._stages, row[1:], strict=False):
            histogram.add(value)
        self._batch_size.add(batch_size)

    def histograms(self) -> Histograms:
        """A copy of the counts since the start."""
        return Histograms(tuple(histogram.copy() for histogram in self._stages), self._batch_size.copy())

    def rows(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """A copy of the frames that are remembered, in no order; for ``recent``."""
        return self._rows[: min(self._count, _MOST_FRAMES)].copy()


def recent(rows: np.ndarray[tuple[int, int], np.dtype[np.float64]], now: float, uptime_s: float) -> RecentFrames | None:
    """What ``Durations.rows`` say about the last ``WINDOW_S`` seconds; None if no frame was answered then."""
    full = len(rows) == _MOST_FRAMES
    rows = rows[rows[:, 0] > now - WINDOW_S]
    if not len(rows):
        return None
    reach_s = min(WINDOW_S, uptime_s)
    if full and len(rows) == _MOST_FRAMES:  # the window holds more frames than are remembered
        reach_s = min(reach_s, now - float(rows[:, 0].min()))
    sizes = rows[:, -1]
    p50, p99, largest = np.percentile(rows[:, 1:-1], [50, 99, 100], axis=0)
    stages = zip(STAGES, p50.tolist(), p99.tolist(), largest.tolist(), strict=True)
    return RecentFrames(
        seconds=max(reach_s, 1e-3),
        frames=len(rows),
        # Each of a batch's n frames stands for 1/n of an inference.
        mean_batch_size=len(rows) / float((1.0 / sizes).sum()),
        stages=tuple(StageTimes(*stage) for stage in stages),
    )
