"""What other thresholds would have made of frames that were judged before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vision.calibration.images import ScoredImages
from vision.calibration.intervals import Rate, rate
from vision.calibration.stored import StoredScore
from vision.decision import OperatingPoint
from vision.errors import DataError
from vision.types import Verdict

Flags = NDArray[np.bool_]
_CURVE_POINTS = 150


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What decides in a replay; see ``OperatingPoint``."""

    image: float
    review: float
    classes: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, point: OperatingPoint) -> Thresholds | None:
        """Those of an operating point; None of one without an anomaly score."""
        if point.image_threshold is None or point.review_threshold is None:
            return None
        return cls(point.image_threshold, point.review_threshold, point.class_thresholds)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Rates of one set of verdicts, by name as in ``images.measure``; ``pass_rate``, ``review_rate`` and
    ``reject_rate`` are over all frames with a score, labelled or not.
    """

    rates: dict[str, Rate]


@dataclass(frozen=True, slots=True)
class Change:
    """One frame that other thresholds would have judged otherwise."""

    name: str
    label: str
    anomaly_score: float
    before: Verdict
    after: Verdict


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Rates with the review threshold here, and the image threshold where it is (or here, if that is lower)."""

    threshold: float
    rates: dict[str, Rate]


class Replay:
    """Stored frames, ready to be judged by any thresholds. Frames without a score are left out and counted.

    Args:
        stored: from wherever scores are kept.

    Raises:
        DataError: no frame has a score.
    """

    def __init__(self, stored: Iterable[StoredScore]) -> None:
        everything = list(stored)
        self.frames = [one for one in everything if one.anomaly_score is not None and math.isfinite(one.anomaly_score)]
        self.left_out = len(everything) - len(self.frames)
        if not self.frames:
            raise DataError(f"none of {len(everything)} stored frames has an anomaly score; there is nothing to replay")
        self.scores = np.array([one.anomaly_score for one in self.frames], np.float32)
        self.good = np.array([one.is_defect is False for one in self.frames])
        self.bad = np.array([one.is_defect is True for one in self.frames])

    @property
    def has_probabilities(self) -> bool:
        return all(one.class_probabilities for one in self.frames)

    def images(self, defect_classes: Sequence[str] = ()) -> ScoredImages:
        """The labelled frames, to choose thresholds by."""
        known = self.good | self.bad
        frames = [one for one, keep in zip(self.frames, known, strict=True) if keep]
        probabilities = None
        if defect_classes and self.has_probabilities:
            probabilities = np.array([[one.class_probabilities[name] for name in defect_classes] for one in frames])
        return ScoredImages(
            names=tuple(one.name for one in frames),
            scores=self.scores[known],
            is_defect=self.bad[known],
            defect_classes=tuple(defect_classes),
            probabilities=probabilities,
        )

    def stored_verdicts(self) -> list[Verdict]:
        return [one.verdict for one in self.frames]

    def verdicts(self, thresholds: Thresholds) -> list[Verdict]:
        """Of every frame, in order."""
        rejected, stopped = self._flags(thresholds)
        return [
            Verdict.REJECT if reject else Verdict.REVIEW if stop else Verdict.PASS
            for reject, stop in zip(rejected.tolist(), stopped.tolist(), strict=True)
        ]

    def outcome(self, verdicts: Sequence[Verdict]) -> Outcome:
        """The rates of these verdicts."""
        rejected = np.array([verdict is Verdict.REJECT for verdict in verdicts])
        passed = np.array([verdict is Verdict.PASS for verdict in verdicts])
        return Outcome(self._rates(rejected, ~passed))

    def changes(self, after: Sequence[Verdict], before: Sequence[Verdict] | None = None) -> list[Change]:
        """Frames whose verdict differs, the highest score first; ``before`` is what was stored, unless given."""
        pairs = zip(self.frames, before or self.stored_verdicts(), after, strict=True)
        found = [
            Change(one.name, one.label, float(one.anomaly_score or 0.0), old, new)
            for one, old, new in pairs
            if old is not new
        ]
        return sorted(found, key=lambda change: -change.anomaly_score)

    def curve(self, thresholds: Thresholds) -> list[CurvePoint]:
        """Rates for review thresholds over the whole range of scores; the image threshold stays where it can."""
        distinct = np.unique(self.scores)
        if len(distinct) > _CURVE_POINTS:
            distinct = distinct[np.linspace(0, len(distinct) - 1, _CURVE_POINTS).astype(np.intp)]
        above = np.nextafter(distinct[-1], np.float32(np.inf))
        found = []
        for value in [*distinct.tolist(), float(above)]:
            moved = Thresholds(max(value, thresholds.image), value, thresholds.classes)
            found.append(CurvePoint(value, self._rates(*self._flags(moved))))
        return found

    def _flags(self, thresholds: Thresholds) -> tuple[Flags, Flags]:
        """Which frames are rejected, and which are not passed."""
        hits = np.zeros(len(self.frames), np.bool_)
        if thresholds.classes:
            hits = np.array(
                [
                    any(one.class_probabilities.get(name, 0.0) >= least for name, least in thresholds.classes.items())
                    for one in self.frames
                ]
            )
        rejected = hits | (self.scores >= np.float32(thresholds.image))
        return rejected, rejected | (self.scores >= np.float32(thresholds.review))

    def _rates(self, rejected: Flags, stopped: Flags) -> dict[str, Rate]:
        review, everyone = stopped & ~rejected, np.ones(len(self.frames), np.bool_)
        asked = {
            "overkill_rate": (stopped, self.good),
            "good_rejected": (rejected, self.good),
            "good_to_review": (review, self.good),
            "escape_rate": (~stopped, self.bad),
            "defects_to_review": (review, self.bad),
            "pass_rate": (~stopped, everyone),
            "review_rate": (review, everyone),
            "reject_rate": (rejected, everyone),
        }
        return {
            name: rate(int((flags & among).sum()), int(among.sum()))
            for name, (flags, among) in asked.items()
            if among.any()
        }
