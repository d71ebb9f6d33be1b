"""Finding answers, and what people said about them. No question reads the whole store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, false, select

from serving.audit import schema
from serving.audit.records import Disagreement, PersonVerdict
from serving.audit.store import Store, Stored
from vision.types import Verdict

_answers, _reviews = schema.answers.c, schema.reviews.c
# Above any character of a name: what ends the range of names that begin alike.
_LAST = "\U0010ffff"
_FEW = 500


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """What a person said, in short; ``Store.get(seq)`` has the note and what was drawn."""

    seq: int
    time_ns: int
    answer: int
    person: str
    verdict: PersonVerdict
    label: str
    blind: bool
    disagreement: Disagreement


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """An answer in short; ``Store.answer(seq)`` has all of it.

    ``frame`` and ``maps``: SHA-256 of files (``Store.files``), empty where there are none. ``review``: what stands
    about the part, by whoever spoke last; None where nobody did, or took it back.
    """

    seq: int
    time_ns: int
    request_id: str
    part: str
    lot: str
    camera: str
    station: str
    verdict: Verdict
    predicted: str
    anomaly_score: float | None
    error: str
    model: str
    model_version: str
    bundle_digest: str
    frame: str
    media: str
    maps: str
    total_ms: float | None
    sampled: bool
    review: ReviewRow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Which answers; what is None is not asked about. Everything that is given must hold.

    ``since_ns`` (inclusive) and ``until_ns`` (exclusive): times of the records, ns since 1970. ``part_begins``: the
    beginning of the part's id. ``reviewed``: whether a person's verdict stands. ``disagreement``: the standing one;
    ``Disagreement.NONE``: a person spoke, and agreed or could not disagree. ``any_disagreement``: any but none.
    ``person``: whoever gave the standing review. ``person_verdict``: that review's verdict.
    """

    since_ns: int | None = None
    until_ns: int | None = None
    request_id: str | None = None
    part: str | None = None
    part_begins: str | None = None
    lot: str | None = None
    camera: str | None = None
    station: str | None = None
    verdict: Verdict | None = None
    predicted: str | None = None
    error: str | None = None
    model: str | None = None
    model_version: str | None = None
    bundle_digest: str | None = None
    sampled: bool | None = None
    reviewed: bool | None = None
    disagreement: Disagreement | None = None
    any_disagreement: bool = False
    person: str | None = None
    person_verdict: PersonVerdict | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some answers, and where to go on: ``next`` is the ``before`` (or ``after``) of the next page, None at the end."""

    answers: tuple[AnswerRow, ...]
    next: int | None


def search(
    store: Store, wanted: Search | None = None, *, limit: int = 50, before: int | None = None, after: int | None = None
) -> Page:
    """Answers, the newest first.

    Args:
        before: only records with lower numbers: the pages after the first.
        after: only records with higher numbers, and then the oldest first: for whoever follows what happens.
    """
    wanted = wanted or Search()
    with store.reading() as connection:
        conditions = [*_conditions(wanted), *_span(connection, wanted.since_ns, wanted.until_ns)]
        if wanted.part_begins is not None:
            conditions += _few_parts(connection, wanted.part_begins)
        if before is not None:
            conditions.append(_answers.seq < before)
        if after is not None:
            conditions.append(_answers.seq > after)
        order = _answers.seq if after is not None else _answers.seq.desc()
        query = select(schema.answers).where(*conditions).order_by(order).limit(limit + 1)
        rows = read_answers(connection, query)
    more = len(rows) > limit
    return Page(tuple(rows[:limit]), rows[limit - 1].seq if more else None)


def part_history(store: Store, part: str, *, limit: int = 1000) -> list[Stored]:
    """Everything about a part in the order of time: answers, and the reviews of them; the newest ``limit``."""
    with store.reading() as connection:
        of_part = select(_answers.seq).where(_answers.part == part).order_by(_answers.seq.desc()).limit(limit)
        seqs = list(connection.execute(of_part).scalars())
        seqs += connection.execute(select(_reviews.seq).where(_reviews.answer.in_(seqs))).scalars()
    return store.many(sorted(seqs)[-limit:])


def reviews_of(store: Store, answer: int) -> list[Stored]:
    """Every review of an answer, those that were replaced or taken back too, in the order of time."""
    with store.reading() as connection:
        seqs = connection.execute(select(_reviews.seq).where(_reviews.answer == answer)).scalars()
        found = list(seqs)
    return store.many(found)


def actions(
    store: Store,
    *,
    action: str | None = None,
    person: str | None = None,
    limit: int = 50,
    before: int | None = None,
) -> list[Stored]:
    """What people did, the newest first."""
    table = schema.actions.c
    given = {table.action: action, table.person: person}
    conditions: list[ColumnElement[bool]] = [column == value for column, value in given.items() if value is not None]
    if before is not None:
        conditions.append(table.seq < before)
    query = select(table.seq).where(*conditions).order_by(table.seq.desc()).limit(limit)
    with store.reading() as connection:
        seqs = list(connection.execute(query).scalars())
    return store.many(seqs)[::-1]


def latest_by_camera(store: Store) -> dict[str, AnswerRow]:
    """The newest answer of each camera."""
    found: dict[str, AnswerRow] = {}
    with store.reading() as connection:
        for camera in distinct(connection, _answers.camera):
            query = select(schema.answers).where(_answers.camera == camera).order_by(_answers.seq.desc()).limit(1)
            for row in read_answers(connection, query):
                found[camera] = row
    return found


def choices(store: Store) -> dict[str, list[str]]:
    """What there is to choose from in a search: cameras, predicted classes and models, in alphabetical order."""
    columns = {"camera": _answers.camera, "predicted": _answers.predicted, "model": _answers.model}
    with store.reading() as connection:
        return {name: [value for value in distinct(connection, column) if value] for name, column in columns.items()}


def distinct(connection: Connection, column: ColumnElement[str]) -> list[str]:
    """The values of an indexed column, by leaps from one to the next: ``SELECT DISTINCT`` would read every row."""
    values: list[str] = []
    query = select(column).order_by(column).limit(1)
    value = connection.execute(query).scalar()
    while value is not None:
        values.append(value)
        value = connection.execute(query.where(column > value)).scalar()
    return values


def read_answers(connection: Connection, query: Select[Any]) -> list[AnswerRow]:
    """Rows of ``answers`` with their standing reviews."""
    rows = [dict(row._mapping) for row in connection.execute(query)]
    standing = standing_reviews(connection, [row["seq"] for row in rows])
    return [
        AnswerRow(**{**row, "verdict": Verdict(row["verdict"]), "review": standing.get(row["seq"])}) for row in rows
    ]


def standing_reviews(connection: Connection, answers: Sequence[int]) -> dict[int, ReviewRow]:
    """By answer, the review that stands."""
    if not answers:
        return {}
    names = [_reviews[name] for name in ReviewRow.__dataclass_fields__]
    query = select(*names).where(_reviews.answer.in_(answers)).order_by(_reviews.seq)
    last = {row.answer: row for row in connection.execute(query)}
    return {
        answer: ReviewRow(
            **{**row._mapping, "verdict": PersonVerdict(row.verdict), "disagreement": Disagreement(row.disagreement)}
        )
        for answer, row in last.items()
        if row.verdict != PersonVerdict.WITHDRAWN
    }


def stands() -> ColumnElement[bool]:
    """Whether a row of ``reviews`` is the last one about its answer, and no withdrawal."""
    later = schema.reviews.alias("later")
    replaced = select(later.c.seq).where(later.c.supersedes == _reviews.seq).exists()
    return and_(_reviews.verdict != PersonVerdict.WITHDRAWN, ~replaced)


def span(connection: Connection, since_ns: int | None, until_ns: int | None) -> tuple[int | None, int | None]:
    """Times to numbers of answers: the first one in it, and the first one behind it; None where there is none.

    Numbers have the order of times, and every index knows them.
    """

    def first(time_ns: int) -> int | None:
        query = select(_answers.seq).where(_answers.time_ns >= time_ns).order_by(_answers.time_ns).limit(1)
        # Of answers with the very same time the index may give any; all of them are at or after that time.
        row = connection.execute(query.with_only_columns(_answers.time_ns)).scalar()
        if row is None:
            return None
        return connection.execute(
            select(_answers.seq).where(_answers.time_ns == row).order_by(_answers.seq).limit(1)
        ).scalar()

    return (None if since_ns is None else first(since_ns)), (None if until_ns is None else first(until_ns))


def _span(connection: Connection, since_ns: int | None, until_ns: int | None) -> Iterable[ColumnElement[bool]]:
    first, behind = span(connection, since_ns, until_ns)
    if since_ns is not None:
        yield false() if first is None else _answers.seq >= first
    if behind is not None:
        yield _answers.seq < behind


def _conditions(wanted: Search) -> Iterable[ColumnElement[bool]]:
    same = ("request_id", "part", "lot", "camera", "station", "verdict", "predicted", "error", "model")
    for name in (*same, "model_version", "bundle_digest", "sampled"):
        value = getattr(wanted, name)
        if value is not None:
            yield _answers[name] == (int(value) if name == "verdict" else value)
    if wanted.part_begins is not None:
        yield and_(_answers.part >= wanted.part_begins, _answers.part < wanted.part_begins + _LAST)
    yield from _review_conditions(wanted)


def _few_parts(connection: Connection, begins: str) -> Iterable[ColumnElement[bool]]:
    """The answers of parts that begin so, by number, where they are few.

    A database that cannot know how few they are walks through all of a camera instead (10 s a million answers).
    """
    query = select(_answers.seq).where(_answers.part >= begins, _answers.part < begins + _LAST).limit(_FEW + 1)
    found = list(connection.execute(query).scalars())
    if len(found) <= _FEW:
        yield _answers.seq.in_(found)


def _review_conditions(wanted: Search) -> Iterable[ColumnElement[bool]]:
    asked: list[ColumnElement[bool]] = []
    if wanted.any_disagreement:
        asked.append(_reviews.disagreement.in_([one.value for one in Disagreement if one is not Disagreement.NONE]))
    for name, value in (
        ("disagreement", wanted.disagreement),
        ("person", wanted.person),
        ("verdict", wanted.person_verdict),
    ):
        if value is not None:
            asked.append(_reviews[name] == str(value))
    if asked:
        yield _answers.seq.in_(select(_reviews.answer).where(*asked, stands()))
    if wanted.reviewed is not None:
        spoken = select(_reviews.seq).where(_reviews.answer == _answers.seq, stands()).exists()
        yield spoken if wanted.reviewed else ~spoken
