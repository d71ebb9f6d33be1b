"""What all cameras of a reference share: cells for their values, bets, thresholds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vision.drift.betting import LARGE, SMALL_AND_LARGE, bets_on_ends, bets_on_outliers, bets_on_shifts
from vision.drift.reference import ANOMALY, CAMERA_SIGNALS, EMBEDDING, SIGNALS, Reference
from vision.types import FloatArray

FRAMES_PER_ALARM = 100_000
"""The promise unless another is asked for: on average at most one false alarm of a camera in so many frames."""
CALIBRATION, OWN = 0, 1
"""The two questions: against the calibration, and against the camera's own first frames."""
# Cells: quantiles of the reference, and beyond its ends steps in spreads.
_QUANTILES = 120
_BEYOND = (0.25, 0.5, 1.0, 2.0, 4.0)


class Rules:
    """What all cameras of a reference share: cells, bets, thresholds. Made once.

    Args:
        frames_per_alarm: of one camera; at most one false alarm in so many frames on average.
        against_calibration: ask the first question too; not for cameras of which each sees its own share of what the
            model was calibrated with.
    """

    def __init__(
        self, reference: Reference, frames_per_alarm: int = FRAMES_PER_ALARM, *, against_calibration: bool = True
    ) -> None:
        self.reference = reference
        self.frames_per_alarm = frames_per_alarm
        self.signals = reference.signals
        columns = [reference.values[signal.name] for signal in self.signals]
        self.middle = np.array([np.median(column) for column in columns])
        self.spread = np.array([spread_of(column) for column in columns])
        cells = [_cells(column, spread) for column, spread in zip(columns, self.spread, strict=True)]
        self.edges = np.full((len(columns), max(map(len, cells))), np.inf)
        # Values of the reference in the cells before each, and in all of them as the last column.
        self.below = np.zeros((len(columns), self.edges.shape[1] + 2), np.int64)
        for row, (edges, column) in enumerate(zip(cells, columns, strict=True)):
            self.edges[row, : len(edges)] = edges
            counts = np.bincount(np.searchsorted(edges, column, side="right"), minlength=self.edges.shape[1] + 1)
            self.below[row, 1:] = np.cumsum(counts)
        # Where they stand in what a monitor measures: all signals, in the order of ``SIGNALS``.
        self.places = np.array([list(SIGNALS).index(signal.name) for signal in self.signals])
        self.is_camera = np.array([signal.name in CAMERA_SIGNALS for signal in self.signals])
        self.periods = np.array([signal.period for signal in self.signals])
        # A union bound over all questions; a signal that is asked once in four frames may err four times as often.
        questions = 2 if against_calibration else 1
        self.thresholds = frames_per_alarm * questions * len(self.signals) / self.periods
        self.odds, self.weights = self._bets()
        if not against_calibration:
            self.weights[CALIBRATION] = 0.0
        self.is_made = self.weights > 0.0

    def row(self, name: str) -> int:
        """The place of a signal that is watched."""
        return next(row for row, signal in enumerate(self.signals) if signal.name == name)

    def _bets(self) -> tuple[FloatArray, FloatArray]:
        """Odds ``[cells, bets]``, and weights ``[2, signals, bets]`` for both questions."""
        large, small = bets_on_shifts(LARGE), np.concatenate([bets_on_shifts(SMALL_AND_LARGE), bets_on_ends()])
        kinds = (large, large[:, ::-1], small, small[:, ::-1], bets_on_outliers())
        ends = np.cumsum([0, *map(len, kinds)])
        above, below, own_above, own_below, outliers = (slice(*pair) for pair in pairwise(ends.tolist()))
        weights = np.zeros((2, len(self.signals), ends[-1]), np.float32)
        for row, signal in enumerate(self.signals):
            chosen = [(OWN, own_above)]
            # Some hundred frames do not tell where embeddings lie: every camera would be found far from them.
            if signal is not EMBEDDING:
                chosen.append((CALIBRATION, above))
            # A lower anomaly score is no bad news, and some bad parts among good ones are.
            one_way = signal in (ANOMALY, EMBEDDING)
            chosen += [(OWN, outliers)] if one_way else [(CALIBRATION, below), (OWN, own_below)]
            for question, bets in chosen:
                weights[question, row, bets] = 1.0
        weights /= np.maximum(weights.sum(axis=2, keepdims=True), 1.0)
        odds = np.concatenate(kinds)
        return np.ascontiguousarray(odds.T), weights


def spread_of(values: FloatArray) -> float:
    """Half of the range of the middle 68 %: a standard deviation that outliers do not move."""
    low, high = np.quantile(values, [0.16, 0.84])
    return max(float(high - low) / 2.0, 1e-6)


def _cells(values: FloatArray, spread: float) -> FloatArray:
    steps = np.array(_BEYOND) * spread
    inner = np.unique(np.quantile(values, np.linspace(0.0, 1.0, min(_QUANTILES, len(values)))))
    return np.concatenate([inner[0] - steps[::-1], inner, inner[-1] + steps])


class Pool:
    """Counts of values by cell. ``edges`` ``[signals, cells − 1]``; ``below`` ``[signals, cells + 1]``: values in the
    cells before each, and in all of them as the last column.
    """

    def __init__(self, edges: NDArray[np.float64], below: NDArray[np.int64] | None = None) -> None:
        self.edges = edges
        self.below = np.zeros((edges.shape[0], edges.shape[1] + 2), np.int64) if below is None else below.copy()
        self._rows, self._columns = np.arange(len(edges)), np.arange(self.below.shape[1])

    @property
    def totals(self) -> NDArray[np.int64]:
        return self.below[:, -1]

    def cells(self, values: FloatArray) -> NDArray[np.intp]:
        """One a signal; NaN falls into the first."""
        return np.asarray(np.count_nonzero(self.edges <= values[:, None], axis=1), np.intp)

    def places(self, cells: NDArray[np.intp], coins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Randomised ranks among all values, 0..1; ``coins`` break ties."""
        lower, upper = self.below[self._rows, cells], self.below[self._rows, cells + 1]
        return np.asarray((lower + coins * (upper - lower + 1.0)) / (self.totals + 1.0))

    def add(self, cells: NDArray[np.intp], seen: NDArray[np.bool_]) -> None:
        self.below += (self._columns > cells[:, None]) & seen[:, None]
