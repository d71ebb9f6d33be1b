"""What waits for a person: rejects and reviews, with randomly drawn passed parts mixed in."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from sqlalchemy import ColumnElement, func, select

from serving.audit import schema
from serving.audit.search import AnswerRow, read_answers
from serving.audit.store import Store
from vision.errors import SettingsError

MIX = 0.1
"""Share of drawn passed parts among those that are shown, while there are any."""
_waiting = schema.worklist.c


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many answers wait. ``doubtful``: rejects, reviews and frames that the model could not judge; ``sampled``:
    passed parts that were drawn at random.
    """

    doubtful: int
    sampled: int


def waiting(store: Store, *, camera: str | None = None, lot: str | None = None) -> Waiting:
    """Counts of the worklist."""
    query = select(_waiting.sampled, func.count()).where(*_of(camera, lot)).group_by(_waiting.sampled)
    with store.reading() as connection:
        counts = {bool(sampled): count for sampled, count in connection.execute(query)}
    return Waiting(counts.get(False, 0), counts.get(True, 0))


def next_for_review(
    store: Store,
    *,
    limit: int = 20,
    after: tuple[int, int] = (0, 0),
    mix: float = MIX,
    camera: str | None = None,
    lot: str | None = None,
) -> list[AnswerRow]:
    """The next answers to look at, the longest waiting first.

    Passed parts come evenly between the others, at places that follow from the numbers of the answers, so that nobody
    can tell from the order alone which are which. When one kind is used up the other goes on.

    Args:
        after: numbers of the last doubtful and the last sampled answer that were seen already and left open.
        mix: share of passed parts, 0..1.

    Raises:
        SettingsError: ``mix`` is no share.
    """
    if not 0.0 <= mix <= 1.0:
        raise SettingsError(f"the share of passed parts among those shown is in 0..1; got {mix:g}")
    with store.reading() as connection:
        found: list[list[AnswerRow]] = []
        for sampled, behind in ((False, after[0]), (True, after[1])):
            conditions = (_waiting.sampled == sampled, _waiting.answer > behind, *_of(camera, lot))
            seqs = select(_waiting.answer).where(*conditions).order_by(_waiting.answer).limit(limit)
            query = select(schema.answers).where(schema.answers.c.seq.in_(list(connection.execute(seqs).scalars())))
            found.append(read_answers(connection, query.order_by(schema.answers.c.seq)))
    return _mixed(found[0], found[1], mix)[:limit]


def _of(camera: str | None, lot: str | None) -> list[ColumnElement[bool]]:
    given = ((_waiting.camera, camera), (_waiting.lot, lot))
    return [column == value for column, value in given if value is not None]


def _mixed(doubtful: list[AnswerRow], sampled: list[AnswerRow], mix: float) -> list[AnswerRow]:
    """One sampled answer in every 1/mix, at a place of that stretch that follows from its neighbour's number."""
    if not doubtful or not sampled or mix in (0.0, 1.0):
        first, second = (sampled, doubtful) if mix == 1.0 else (doubtful, sampled)
        return [*first, *(second if mix else [])]
    stretch = max(1, round(1.0 / mix) - 1)
    mixed: list[AnswerRow] = []
    left = iter(sampled)
    for start in range(0, len(doubtful), stretch):
        others = doubtful[start : start + stretch]
        drawn = next(left, None)
        if drawn is not None:
            # A multiplicative hash (Knuth): numbers that follow each other give places that do not.
            place = (drawn.seq * 2_654_435_761 % 2**32) * (len(others) + 1) // 2**32
            others.insert(place, drawn)
        mixed += others
    return list(chain(mixed, left))
