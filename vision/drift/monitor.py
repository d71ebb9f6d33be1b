"""One camera under watch: fed a few numbers a frame, it says whether the camera changed or the parts got worse.

Two questions are asked of every signal. *Against the calibration*: is this the picture that the model was calibrated
with? Only bets on large changes are made there, since a camera of several is rarely like all of them. *Against its own
first frames*: has it changed since? There small changes count too, after ``LEARNING_FRAMES``. Each question has its own
evidence (``vision.drift.betting``); the promise about false alarms is divided among all of them.

Memory is bounded: values are kept as counts in some 130 cells a signal, and the last 64 frames. A camera's first
``SCALE_FRAMES`` frames set the cells of its own pool and are in it no more: so the values in it stay exchangeable.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vision.drift.betting import EDGES
from vision.drift.reference import CAMERA_SIGNALS, EMBEDDING
from vision.drift.rules import CALIBRATION, OWN, Pool, Rules, spread_of
from vision.drift.signals import BLOCK, Look, dirt
from vision.drift.states import Alarm, Drift, DriftState, Level, Report
from vision.types import FloatArray

SCALE_FRAMES = 50
LEARNING_FRAMES = 150
"""A camera's own frames before it is compared with them; the first ones of them set the scale."""
# An alarm stays for so many looks after the evidence was last complete.
HOLD = 100
_RECENT = 64
# Of a camera's own pool: from its median outwards, in its own spreads.
_OUTWARDS = np.concatenate([np.arange(0.05, 4.0, 0.1), np.geomspace(4.0, 64.0, 13)])
_OWN_CELLS = np.concatenate([-_OUTWARDS[::-1], _OUTWARDS])
# Worse scores are put down to the parts only after so many frames: dust raises scores at once, and is itself seen in
# some frames more.
_DECIDING_FRAMES = 24
# With this share of the evidence needed (on the log scale) for a change of the camera, worse parts are put down to it.
_SUSPICION = 0.5


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
        self._with_reference = Pool(rules.edges, rules.below)
        self._own = Pool(np.full((signals, len(_OWN_CELLS)), np.inf))
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
                self._with_reference.places(cells, coins[CALIBRATION]),
                self._own.places(own_cells, coins[OWN]),
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
                self._own.edges[row] = np.median(known) + spread_of(known) * _OWN_CELLS

    def _take(self, odds: FloatArray, active: NDArray[np.bool_], now: float) -> None:
        """``odds`` ``[2, signals, bets]``, ``active`` ``[2, signals, 1]``. A bet nobody makes would grow for ever."""
        active = active & self._rules.is_made
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
        middle = self._own_middle(row) if question == OWN else float(rules.middle[row])
        alarm = Alarm(
            signal=name,
            against_calibration=question == CALIBRATION,
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

        What has moved stays at its place in every frame, as dirt does, and what is out of focus loses more of its
        finest direction: so dirt comes after the others, and streaks after focus.
        """
        alarms = [alarm for alarm, _ in self._alarms.values()]

        def order(alarm: Alarm) -> tuple[bool, bool, bool, float]:
            name = alarm.signal
            follows = name == "dirt" or (name == "streaks" and "focus" in self._alarms)
            return (name not in CAMERA_SIGNALS, name == EMBEDDING.name, follows, -abs(alarm.shift))

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
        first = alarms[0]
        row, state = self._rules.row(first.signal), DriftState.CAMERA_CHANGED
        if not self._rules.is_camera[row]:
            suspected = np.where(self._rules.is_camera, strengths, 0.0)
            if suspected.max(initial=0.0) >= _SUSPICION:
                row = int(np.argmax(suspected))
            elif first.signal == EMBEDDING.name or self.frames - first.since_frame < _DECIDING_FRAMES:
                state = DriftState.UNCLEAR
            else:
                state = DriftState.PARTS_WORSE
        return Drift(state, self._rules.signals[row].name, 1.0, self._off(row))
