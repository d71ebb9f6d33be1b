"""One camera under watch: fed a few numbers a frame, it says whether the camera changed or the parts got worse.

Two questions are asked of every signal. *Against the calibration*: is this the picture that the model was calibrated
with? Only bets on large changes are made there, since a camera of several is rarely like all of them. *Against its own
first frames*: has it changed since? There small changes count too, after ``LEARNING_FRAMES``. Each question has its own
evidence (``vision.drift.betting``); the promise about false alarms is divided among all of them.

Memory is bounded: values are kept as counts in some 130 cells a signal, and the last 64 frames. A camera's first
``SCALE_FRAMES`` frames set the cells of its own pool and are in it no more: so the values in it stay exchangeable.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.drift.betting import EDGES, LARGE, SMALL_AND_LARGE, upward_bets
from vision.drift.reference import ANOMALY, CAMERA_SIGNALS, EMBEDDING, SIGNALS, Reference
from vision.drift.signals import BLOCK, Look, dirt
from vision.types import FloatArray

FRAMES_PER_ALARM = 100_000
"""The promise unless another is asked for: on average at most one false alarm of a camera in so many frames."""
SCALE_FRAMES = 50
LEARNING_FRAMES = 150
"""A camera's own frames before it is compared with them; the first ones of them set the scale."""
# An alarm stays for so many looks after the evidence was last complete.
HOLD = 100
_RECENT = 64
# Cells of the pools: quantiles of the reference, and beyond its ends steps in spreads.
_QUANTILES = 120
_BEYOND = (0.25, 0.5, 1.0, 2.0, 4.0)
# Of a camera's own pool: from its median outwards, in its own spreads.
_OUTWARDS = np.concatenate([np.arange(0.05, 4.0, 0.1), np.geomspace(4.0, 64.0, 13)])
_OWN_CELLS = np.concatenate([-_OUTWARDS[::-1], _OUTWARDS])
# With this share of the evidence needed (on the log scale) for a change of the camera, worse parts are put down to it.
_SUSPICION = 0.5
_CALIBRATION, _OWN = 0, 1


class DriftState(enum.IntEnum):
    """What is said; the numbers are the contract's."""

    NOT_WATCHED = 0
    STEADY = 1
    LEARNING = 2
    CAMERA_CHANGED = 3
    PARTS_WORSE = 4
    LOOK_CHANGED = 5

    @property
    def is_alarm(self) -> bool:
        return self >= DriftState.CAMERA_CHANGED


@dataclass(frozen=True, slots=True)
class Drift:
    """The state after a frame. ``signal`` has the most evidence; ``strength`` is its share, 0..1, of what an alarm
    takes (on the log scale), and ``shift`` how far its recent values are off, in spreads of the reference.
    """

    state: DriftState
    signal: str = ""
    strength: float = 0.0
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """One signal's alarm. Frames are counted from 1, times are the caller's clock.

    ``against_calibration``: else against the camera's own first frames. ``since_frame`` and ``since``: when the change
    most probably began. ``shift``: how far the values since then are off, in spreads of the reference. ``evidence``:
    how improbable this is, as log10 of the odds.
    """

    signal: str
    against_calibration: bool
    frame: int
    time: float
    since_frame: int
    since: float
    shift: float
    evidence: float


@dataclass(frozen=True, slots=True)
class Level:
    """Where one signal stands: ``shift`` of the recent frames from the calibration in spreads, ``strength`` 0..1."""

    signal: str
    shift: float
    strength: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about one camera. ``alarms`` are those that stand, the one that says most first."""

    drift: Drift
    frames: int
    alarms: tuple[Alarm, ...]
    levels: tuple[Level, ...]
    alarms_so_far: dict[str, int]


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
        self.spread = np.array([_spread(column) for column in columns])
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
            self.weights[_CALIBRATION] = 0.0

    def row(self, name: str) -> int:
        """The place of a signal that is watched."""
        return next(row for row, signal in enumerate(self.signals) if signal.name == name)

    def _bets(self) -> tuple[FloatArray, FloatArray]:
        """Odds ``[cells, bets]``, and weights ``[2, signals, bets]`` for both questions."""
        small, large = upward_bets(SMALL_AND_LARGE, ends=True), upward_bets(LARGE, ends=False)
        odds = np.concatenate([large, large[:, ::-1], small, small[:, ::-1]])
        ends = np.cumsum([0, len(large), len(large), len(small), len(small)])
        weights = np.zeros((2, len(self.signals), len(odds)), np.float32)
        for row, signal in enumerate(self.signals):
            ways = 1 if signal in (ANOMALY, EMBEDDING) else 2  # a lower anomaly score is no bad news
            weights[_CALIBRATION, row, : ends[ways]] = 1.0 / ends[ways]
            own = slice(ends[2], ends[2 + ways])
            weights[_OWN, row, own] = 1.0 / (own.stop - own.start)
        return np.ascontiguousarray(odds.T), weights


def _spread(values: FloatArray) -> float:
    """Half of the range of the middle 68 %: a standard deviation that outliers do not move."""
    low, high = np.quantile(values, [0.16, 0.84])
    return max(float(high - low) / 2.0, 1e-6)


def _cells(values: FloatArray, spread: float) -> FloatArray:
    steps = np.array(_BEYOND) * spread
    inner = np.unique(np.quantile(values, np.linspace(0.0, 1.0, min(_QUANTILES, len(values)))))
    return np.concatenate([inner[0] - steps[::-1], inner, inner[-1] + steps])


class _Pool:
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


class Monitor:
    """One camera. Not for several threads at once.

    Args:
        seed: of the coins that break ties between equal values.
    """

    def __init__(self, rules: Rules, seed: int = 0) -> None:
        self.frames = 0
        self._rules = rules
        self._coins = np.random.default_rng(seed)
        signals, bets = len(rules.signals), rules.odds.shape[1]
        self._scale: list[FloatArray] = []  # the first values, until they have set the cells of the own pool
        self._with_reference = _Pool(rules.edges, rules.below)
        self._own = _Pool(np.full((signals, len(_OWN_CELLS)), np.inf))
        self._evidence = np.zeros((2, signals, bets))
        self._best = np.ones((2, signals, bets))  # of a bet begun at the best moment: tells when the change began
        self._began_frame = np.zeros((2, signals, bets), np.int64)  # that moment, as a frame and as a time
        self._began = np.zeros((2, signals, bets))
        self._recent = np.full((_RECENT, signals), np.nan)
        self._block: list[NDArray[np.int8]] = []
        self._alarms: dict[str, tuple[Alarm, int]] = {}  # with the frame at which the evidence was last complete
        self._so_far: dict[str, int] = {}
        self.drift = Drift(DriftState.LEARNING)

    def feed(
        self, look: Look, *, anomaly_score: float | None = None, embedding: FloatArray | None = None, now: float = 0.0
    ) -> tuple[Drift, list[Alarm]]:
        """Take in one frame; the state after it, and the alarms that began with it."""
        self.frames += 1
        values = self._values(look, anomaly_score, embedding)
        self._recent[self.frames % _RECENT] = values
        begun = self._bet(values, now)
        for name, (_, last) in list(self._alarms.items()):
            if self.frames - last > HOLD * self._rules.signals[self._rules.row(name)].period:
                del self._alarms[name]
        self.drift = self._say()
        return self.drift, begun

    def report(self) -> Report:
        """Everything that is known now."""
        strength = self._strengths().max(axis=0)
        levels = tuple(
            Level(signal.name, self._off(row), float(strength[row])) for row, signal in enumerate(self._rules.signals)
        )
        return Report(self.drift, self.frames, self._standing(), levels, dict(self._so_far))

    def _values(self, look: Look, anomaly_score: float | None, embedding: FloatArray | None) -> FloatArray:
        """In the order of the rules' signals; NaN for what this frame does not tell."""
        self._block.append(look.specks)
        marks = math.nan
        if len(self._block) == BLOCK:
            marks, self._block = dirt(np.stack(self._block)), []
        cloud = self._rules.reference.cloud
        distance = math.nan if cloud is None or embedding is None else cloud.distance(embedding)
        score = math.nan if anomaly_score is None else anomaly_score
        measured = np.append(look.values, [marks, score, distance])
        return np.asarray(measured[self._rules.places])

    def _bet(self, values: FloatArray, now: float) -> list[Alarm]:
        """All signals at once: this runs for every frame. ``values`` ``[signals]``, NaN where there is none."""
        rules = self._rules
        coins = self._coins.random((2, len(values)))
        cells, own_cells = self._with_reference.cells(values), self._own.cells(values)
        places = np.stack(
            [
                self._with_reference.places(cells, coins[_CALIBRATION]),
                self._own.places(own_cells, coins[_OWN]),
            ]
        )
        seen = np.isfinite(values)
        learned = self._own.totals * rules.periods >= LEARNING_FRAMES - SCALE_FRAMES
        active = np.stack([seen, seen & learned])
        self._take(rules.odds[np.searchsorted(EDGES, places)], active[:, :, None], now)
        begun: list[Alarm] = []
        complete = active & ((self._evidence * rules.weights).sum(axis=2) >= rules.thresholds)
        if complete.any():
            for question, row in np.argwhere(complete):
                begun += self._complete(int(question), int(row), now)
        if not self._alarms:  # what looks changed must not become what is usual
            self._with_reference.add(cells, seen)
            if len(self._scale) < SCALE_FRAMES:
                self._set_scale(values)
            else:
                self._own.add(own_cells, seen)
        return begun

    def _set_scale(self, values: FloatArray) -> None:
        self._scale.append(values)
        if len(self._scale) < SCALE_FRAMES:
            return
        first = np.stack(self._scale)
        for row in range(first.shape[1]):
            known = first[np.isfinite(first[:, row]), row]
            if len(known):
                self._own.edges[row] = np.median(known) + _spread(known) * _OWN_CELLS

    def _take(self, odds: FloatArray, active: NDArray[np.bool_], now: float) -> None:
        """``odds`` ``[2, signals, bets]``, ``active`` ``[2, signals, 1]``."""
        np.copyto(self._evidence, (1.0 + self._evidence) * odds, where=active)
        fresh = active & (self._best <= 1.0)
        self._began_frame[fresh] = self.frames
        self._began[fresh] = now
        np.copyto(self._best, np.maximum(self._best, 1.0) * odds, where=active)

    def _complete(self, question: int, row: int, now: float) -> list[Alarm]:
        """The evidence for one signal has reached its threshold: an alarm begins or goes on."""
        rules, name = self._rules, self._rules.signals[row].name
        worth = self._evidence[question, row] * rules.weights[question, row]
        leading = int(np.argmax(worth))
        frame = int(self._began_frame[question, row, leading])
        middle = self._own_middle(row) if question == _OWN else float(rules.middle[row])
        alarm = Alarm(
            signal=name,
            against_calibration=question == _CALIBRATION,
            frame=self.frames,
            time=now,
            since_frame=frame,
            since=float(self._began[question, row, leading]),
            shift=self._shift(row, middle, self.frames - frame + 1),
            evidence=math.log10(float(worth.sum())),
        )
        self._evidence[question, row] = 0.0
        self._best[question, row] = 1.0
        is_new = name not in self._alarms
        first = alarm if is_new else self._alarms[name][0]
        self._alarms[name] = (first, self.frames)
        if is_new:
            self._so_far[name] = self._so_far.get(name, 0) + 1
        return [alarm] if is_new else []

    def _own_middle(self, row: int) -> float:
        """Median of the camera's own frames, to the precision of a cell."""
        below = self._own.below[row]
        cell = max(0, int(np.searchsorted(below, below[-1] / 2.0)) - 1)
        return float(np.mean(self._own.edges[row][max(0, cell - 1) : cell + 1]))

    def _shift(self, row: int, middle: float, frames: int = _RECENT) -> float:
        """How far the median of a signal's last so many frames is off, in spreads; 0 where there is none."""
        count = max(1, min(frames, self.frames, _RECENT))
        values = self._recent[(self.frames - np.arange(count)) % _RECENT, row]
        values = values[np.isfinite(values)]
        if not len(values):
            return 0.0
        half = len(values) // 2
        return float((np.partition(values, half)[half] - middle) / self._rules.spread[row])

    def _off(self, row: int) -> float:
        return self._shift(row, float(self._rules.middle[row]))

    def _strengths(self) -> FloatArray:
        """``[2, signals]``: log evidence as a share of the threshold's, 0..1."""
        worth = (self._evidence * self._rules.weights).sum(axis=2)
        return np.asarray(np.clip(np.log1p(worth) / np.log(self._rules.thresholds), 0.0, 1.0))

    def _standing(self) -> tuple[Alarm, ...]:
        """The alarms, in the order in which they explain: a camera's before the parts', and the largest change first.

        What has moved stays at its place in every frame, as dirt does: so dirt comes after the others.
        """
        alarms = [alarm for alarm, _ in self._alarms.values()]

        def order(alarm: Alarm) -> tuple[bool, bool, bool, float]:
            name = alarm.signal
            return (name not in CAMERA_SIGNALS, name == EMBEDDING.name, name == "dirt", -abs(alarm.shift))

        return tuple(sorted(alarms, key=order))

    def _say(self) -> Drift:
        alarms = self._standing()
        strengths = self._strengths().max(axis=0)
        if not alarms:
            row = int(np.argmax(strengths))
            learning = self._own.totals[0] < LEARNING_FRAMES - SCALE_FRAMES
            state = DriftState.LEARNING if learning else DriftState.STEADY
            signal = self._rules.signals[row].name
            return Drift(state, signal, float(strengths[row]), self._off(row))
        row = self._rules.row(alarms[0].signal)
        state = DriftState.CAMERA_CHANGED
        if not self._rules.is_camera[row]:
            suspected = np.where(self._rules.is_camera, strengths, 0.0)
            if alarms[0].signal == EMBEDDING.name:
                state = DriftState.LOOK_CHANGED
            elif suspected.max(initial=0.0) >= _SUSPICION:
                row = int(np.argmax(suspected))
            else:
                state = DriftState.PARTS_WORSE
        return Drift(state, self._rules.signals[row].name, 1.0, self._off(row))
