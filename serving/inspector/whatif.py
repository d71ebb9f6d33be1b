"""What other thresholds would have made of stored parts, for the model room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serving.audit import AnswerRow, PersonVerdict, Search, Store, search, standing_answers
from serving.rate_chart import LINES, rate_chart
from vision.calibration.intervals import Rate
from vision.calibration.replay import CurvePoint, Replay, Thresholds
from vision.calibration.stored import StoredScore
from vision.charts import Mark
from vision.decision import OperatingPoint

_JUDGED, _RECENT = 5000, 3000
_COLOURS = {"overkill_rate": "--pass", "escape_rate": "--reject", "review_rate": "--review"}


@dataclass(frozen=True, slots=True)
class WhatIf:
    """``points``: the curve for the page's script. ``judged``: parts that a person called good or defective."""

    chart: str
    points: list[dict[str, Any]]
    now: float
    judged: int
    recent: int


def what_if(store: Store, point: OperatingPoint, model: str, bundle_digest: str) -> WhatIf | None:
    """Replay this bundle's stored scores; None where it has none, or no threshold to move."""
    thresholds = Thresholds.of(point)
    if thresholds is None:
        return None
    # Classes stay out: the store has their scores in every record's body, and reading thousands of them takes seconds.
    moved = Thresholds(thresholds.image, thresholds.review)
    judged = [row for row in standing_answers(store, limit=_JUDGED) if row.bundle_digest == bundle_digest]
    recent = search(store, Search(model=model, bundle_digest=bundle_digest), limit=_RECENT).answers
    known = {row.seq for row in judged}
    scores = [_score(row) for row in (*judged, *(row for row in recent if row.seq not in known))]
    if not any(score.anomaly_score is not None for score in scores):
        return None
    curve = Replay(scores).curve(moved)
    return WhatIf(
        chart=rate_chart(curve, [Mark("in force", thresholds.review)], _COLOURS),
        points=[_plain(one) for one in curve],
        now=thresholds.review,
        judged=len(judged),
        recent=len(recent),
    )


def _score(row: AnswerRow) -> StoredScore:
    said = None if row.review is None else row.review.verdict
    truth = {PersonVerdict.GOOD: False, PersonVerdict.DEFECT: True}.get(said) if said is not None else None
    return StoredScore(row.part or str(row.seq), row.verdict, row.anomaly_score, truth)


def _plain(point: CurvePoint) -> dict[str, Any]:
    return {"threshold": point.threshold} | {key: _words(point.rates[key]) for key in LINES if key in point.rates}


def _words(rate: Rate) -> list[float]:
    return [rate.value, rate.low, rate.high, rate.hits, rate.of]
