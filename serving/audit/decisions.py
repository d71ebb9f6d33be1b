"""What the store knows for `defectlens whatif` and `escapes`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from serving.audit import counts
from serving.audit.export import every
from serving.audit.records import PersonVerdict
from serving.audit.search import AnswerRow, Search, search
from serving.audit.store import Store
from vision.calibration.stored import StoredScore
from vision.errors import DataError

_CHUNK = 500
BIASED = (
    "Labels are what people said. They looked at nearly every part that was not passed and at few that were, so that "
    "among labelled parts defects are more frequent than in production, and so is overkill; compare the two columns, "
    "and take the share of escapes from `defectlens escapes --audit`."
)
"""To be said wherever rates over reviewed parts are shown."""


def scored_by(store: Store, wanted: Search) -> Search:
    """The same, of one model: that of the newest answer, unless one is named. Scores of two models do not compare.

    Raises:
        DataError: no model gave such an answer.
    """
    if wanted.bundle_digest is not None or wanted.model is not None:
        return wanted
    newest = next((row for row in search(store, wanted).answers if row.model), None)
    if newest is None:
        raise DataError("the store has no such answer of a model")
    return replace(wanted, model=newest.model, model_version=newest.model_version)


def stored_scores(store: Store, wanted: Search, *, probabilities: bool) -> Iterator[StoredScore]:
    """Answers of one model as `whatif` replays them; what a person said is the truth, if it was good or defective.

    Args:
        probabilities: read those of the classes too, which takes ten times as long.
    """
    batch: list[AnswerRow] = []
    for row in every(store, wanted):
        if row.error:
            continue
        if not probabilities:
            yield _score(row)
            continue
        batch.append(row)
        if len(batch) == _CHUNK:
            yield from _with_probabilities(store, batch)
            batch = []
    yield from _with_probabilities(store, batch)


def escape_counts(store: Store, wanted: counts.Span) -> dict[str, int]:
    """``checked``, ``found``, ``passed`` and ``caught`` of the passed parts that were drawn at random.

    Raises:
        DataError: nobody checked one yet.
    """
    found = counts.sampled(store, wanted)
    if not found.checked:
        raise DataError(
            f"of {found.passed} passed parts nobody has checked one that was drawn at random; `serve --audit-sample` "
            "says how many are drawn, and the review queue shows them"
        )
    return {"checked": found.checked, "found": found.found, "passed": found.passed, "caught": found.caught}


def _with_probabilities(store: Store, rows: list[AnswerRow]) -> Iterator[StoredScore]:
    bodies = {stored.seq: stored.body for stored in store.many(row.seq for row in rows)}
    for row in rows:
        classes = bodies[row.seq]["classes"]
        known = {one["name"]: one["probability"] for one in classes if one["probability"] is not None}
        yield replace(_score(row), class_probabilities=known)


def _score(row: AnswerRow) -> StoredScore:
    said = None if row.review is None else row.review.verdict
    is_defect = {PersonVerdict.GOOD: False, PersonVerdict.DEFECT: True}.get(said) if said is not None else None
    label = "" if row.review is None or is_defect is None else row.review.label or said or ""
    name = f"{row.part or row.request_id} (record {row.seq})"
    return StoredScore(name, row.verdict, row.anomaly_score, is_defect, str(label))
