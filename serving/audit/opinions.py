"""What several people said about the same answers, and what one person said last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import func, select

from serving.audit import schema
from serving.audit.counts import Span, between, which
from serving.audit.records import Disagreement, PersonVerdict
from serving.audit.search import AnswerRow, ReviewRow, read_answers, stands
from serving.audit.store import Store
from vision.types import Verdict

_answers, _reviews = schema.answers.c, schema.reviews.c
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a person said last about an answer; ``blind``: before seeing what the model said."""

    person: str
    verdict: PersonVerdict
    label: str
    blind: bool


@dataclass(frozen=True, slots=True)
class Opinions:
    """All opinions about one answer that nobody took back, one a person."""

    answer: int
    verdict: Verdict
    predicted: str
    people: tuple[Opinion, ...]


def opinions(store: Store, wanted: Span | None = None) -> Iterator[Opinions]:
    """Of every reviewed answer in a span, in the order of the answers."""
    wanted = wanted or Span()
    names = (_reviews.person, _reviews.verdict, _reviews.label, _reviews.blind)
    with store.reading() as connection:
        query = (
            select(_answers.seq, _answers.verdict.label("said"), _answers.predicted, *names)
            .join_from(schema.reviews, schema.answers, _reviews.answer == _answers.seq)
            .where(*between(connection, wanted), *which(wanted))
            .order_by(_answers.seq, _reviews.seq)
        )
        key: tuple[int, Verdict, str] | None = None
        people: dict[str, Opinion] = {}
        for row in connection.execute(query):
            if key is None or key[0] != row.seq:
                if key is not None and people:
                    yield Opinions(*key, tuple(people.values()))
                key, people = (row.seq, Verdict(row.said), row.predicted), {}
            if row.verdict == PersonVerdict.WITHDRAWN:
                people.pop(row.person, None)
            else:
                people[row.person] = Opinion(row.person, PersonVerdict(row.verdict), row.label, row.blind)
        if key is not None and people:
            yield Opinions(*key, tuple(people.values()))


def last_standing_review(store: Store, person: str) -> ReviewRow | None:
    """The latest review of a person that nobody replaced or took back: what an undo takes back."""
    query = select(*(_reviews[name] for name in ReviewRow.__dataclass_fields__))
    with store.reading() as connection:
        row = connection.execute(
            query.where(_reviews.person == person, stands()).order_by(_reviews.seq.desc()).limit(1)
        ).first()
    if row is None:
        return None
    known = {"verdict": PersonVerdict(row.verdict), "disagreement": Disagreement(row.disagreement)}
    return ReviewRow(**{**row._mapping, **known})


def standing_answers(store: Store, *, limit: int, before: int | None = None) -> list[AnswerRow]:
    """Answers that a person called good or defective, whoever spoke last about them; the latest review first.

    Args:
        before: only reviews with lower numbers.
    """
    said = (PersonVerdict.GOOD.value, PersonVerdict.DEFECT.value)
    query = select(_reviews.answer).where(stands(), _reviews.verdict.in_(said)).order_by(_reviews.seq.desc())
    if before is not None:
        query = query.where(_reviews.seq < before)
    with store.reading() as connection:
        seqs = list(connection.execute(query.limit(limit)).scalars())
        found: dict[int, AnswerRow] = {}
        for start in range(0, len(seqs), _CHUNK):
            rows = select(schema.answers).where(schema.answers.c.seq.in_(seqs[start : start + _CHUNK]))
            found |= {row.seq: row for row in read_answers(connection, rows)}
    return [found[seq] for seq in seqs]


def head(store: Store) -> int:
    """The number of the last record; 0 in an empty store."""
    with store.reading() as connection:
        return connection.execute(select(func.max(schema.records.c.seq))).scalar() or 0
