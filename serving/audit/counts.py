"""Counts over a span of time that add up: what the server said, and what people said about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select

from serving.audit import schema
from serving.audit.records import Disagreement, PersonVerdict
from serving.audit.search import distinct, span, stands
from serving.audit.store import Store
from vision.types import Verdict

_answers, _reviews = schema.answers.c, schema.reviews.c


@dataclass(slots=True)
class Tally:
    """Answers by verdict. ``total`` is their sum."""

    by_verdict: Counter[Verdict] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.by_verdict.values())


@dataclass(frozen=True, slots=True)
class Reviewed:
    """Standing reviews of answers in a span. ``pairs``: how often a verdict of the model met one of a person."""

    pairs: Counter[tuple[Verdict, PersonVerdict]]
    disagreements: Counter[Disagreement]


@dataclass(frozen=True, slots=True)
class Sampled:
    """For the escape estimate: ``passed`` parts, how many of those that were drawn from them a person ``checked``, and
    how many of these were ``found`` defective; ``caught``: other parts that a person called defective.

    A drawn part about which the person was unsure is not counted as checked; ``unsure`` says how many there are.
    """

    passed: int
    checked: int
    found: int
    caught: int
    unsure: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Which answers are counted; as in ``serving.audit.search.Search``. ``up_to``: number of the last one."""

    since_ns: int | None = None
    until_ns: int | None = None
    camera: str | None = None
    lot: str | None = None
    up_to: int | None = None


def by_camera(store: Store, wanted: Span | None = None) -> dict[str, Tally]:
    """Answers of each camera by verdict, errors among the NO_VERDICTs."""
    wanted = wanted or Span()
    tallies: dict[str, Tally] = {}
    with store.reading() as connection:
        placed = list(between(connection, wanted))
        if wanted.lot is not None:
            groups = (_answers.camera, _answers.verdict)
            query = select(*groups, func.count()).where(*placed, *which(wanted)).group_by(*groups)
            for camera, verdict, number in connection.execute(query):
                tallies.setdefault(camera, Tally()).by_verdict[Verdict(verdict)] = number
            return dict(sorted(tallies.items()))
        for camera in distinct(connection, _answers.camera) if wanted.camera is None else [wanted.camera]:
            counted = _count(connection, camera, placed)
            if counted:
                tallies[camera] = Tally(counted)
    return tallies


def _count(connection: Connection, camera: str, placed: Sequence[ColumnElement[bool]]) -> Counter[Verdict]:
    """Of one camera. Asked verdict by verdict, it is a stretch of an index: grouped, a database would read the rows."""
    counted: Counter[Verdict] = Counter()
    for verdict in Verdict:
        query = (
            select(func.count())
            .select_from(schema.answers)
            .where(_answers.camera == camera, _answers.verdict == int(verdict), *placed)
        )
        if number := connection.execute(query).scalar_one():
            counted[verdict] = number
    return counted


def by_class(store: Store, wanted: Span | None = None) -> Counter[str]:
    """Rejected parts by predicted class: for the Pareto chart."""
    wanted = wanted or Span()
    with store.reading() as connection:
        query = select(_answers.predicted, func.count()).where(
            _answers.verdict == int(Verdict.REJECT), *between(connection, wanted), *which(wanted)
        )
        return Counter({str(row[0]): int(row[1]) for row in connection.execute(query.group_by(_answers.predicted))})


def reviewed(store: Store, wanted: Span | None = None) -> Reviewed:
    """What people said about the answers of a span."""
    wanted = wanted or Span()
    pairs: Counter[tuple[Verdict, PersonVerdict]] = Counter()
    differ: Counter[Disagreement] = Counter()
    groups = (_answers.verdict, _reviews.verdict, _reviews.disagreement)
    with store.reading() as connection:
        query = _standing(connection, wanted, select(*groups, func.count())).group_by(*groups)
        for verdict, said, kind, count in connection.execute(query):
            pairs[Verdict(verdict), PersonVerdict(said)] += count
            differ[Disagreement(kind)] += count
    return Reviewed(pairs, differ)


def sampled(store: Store, wanted: Span | None = None) -> Sampled:
    """What the random checks of passed parts show, for ``vision.calibration.escapes.estimate_escapes``."""
    wanted = wanted or Span()
    passed = sum(tally.by_verdict[Verdict.PASS] for tally in by_camera(store, wanted).values())
    groups = (_answers.verdict, _answers.sampled, _reviews.verdict)
    counts: Counter[str] = Counter()
    with store.reading() as connection:
        query = _standing(connection, wanted, select(*groups, func.count())).group_by(*groups)
        for verdict, drawn, said, count in connection.execute(query):
            is_defect = said == PersonVerdict.DEFECT
            if verdict != Verdict.PASS:
                counts["caught"] += count * is_defect
            elif drawn:
                counts["unsure" if said == PersonVerdict.UNSURE else "checked"] += count
                counts["found"] += count * is_defect
    return Sampled(passed, counts["checked"], counts["found"], counts["caught"], counts["unsure"])


def _standing(connection: Connection, wanted: Span, query: Select[Any]) -> Select[Any]:
    joined = query.join_from(schema.reviews, schema.answers, _reviews.answer == _answers.seq)
    return joined.where(stands(), *between(connection, wanted), *which(wanted))


def between(connection: Connection, wanted: Span) -> Iterator[ColumnElement[bool]]:
    """The span in numbers, which the reviews' answers can be compared with too."""
    first, behind = span(connection, wanted.since_ns, wanted.until_ns)
    if wanted.since_ns is not None:
        yield _answers.seq >= (first if first is not None else 2**62)
    if behind is not None:
        yield _answers.seq < behind
    if wanted.up_to is not None:
        yield _answers.seq <= wanted.up_to


def which(wanted: Span) -> Iterator[ColumnElement[bool]]:
    """The conditions of a span that are not about time."""
    for name in ("camera", "lot"):
        value = getattr(wanted, name)
        if value is not None:
            yield _answers[name] == value
