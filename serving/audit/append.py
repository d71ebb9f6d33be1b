"""Adding to the chain, inside a transaction that shuts out every other writer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from serving.audit import schema
from serving.audit.chain import FORMAT, canonical, first_digest, link
from serving.audit.files import Files
from serving.audit.projection import TABLES, Row, kept_longer, rows_of, waits_for_person
from serving.audit.records import FileRef, Kind, PersonVerdict, Record, Review, disagreement
from vision.errors import SettingsError
from vision.types import Verdict


@dataclass(frozen=True, slots=True)
class Blob:
    """The content of a file that a record names."""

    ref: FileRef
    data: bytes | memoryview

    @classmethod
    def of(cls, data: bytes | memoryview, media: str) -> Blob:
        return cls(FileRef.of(data, media), data)


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain."""

    seq: int
    digest: bytes
    time_ns: int


def head(connection: Connection, store_id: str) -> Head:
    """The last record; before the first one, number 0."""
    table = schema.records
    query = select(table.c.seq, table.c.digest, table.c.time_ns).order_by(table.c.seq.desc()).limit(1)
    row = connection.execute(query).first()
    return Head(0, first_digest(store_id), 0) if row is None else Head(*row)


def append(
    connection: Connection,
    files: Files,
    store_id: str,
    records: Sequence[Record],
    blobs: Iterable[Blob],
    now_ns: int,
) -> list[int]:
    """Add records in their order; files reach the disk first, so that no record names one that is not there.

    Raises:
        SettingsError: a review is of no answer.
        OSError: a file cannot be written.
    """
    if not records:
        return []
    last = head(connection, store_id)
    files.write({blob.ref.sha256: blob.data for blob in blobs})
    # Clocks are set back now and then. The order of numbers is the order of times all the same, which searches rely on.
    now_ns = max(now_ns, last.time_ns)
    rows: list[Row] = []
    derived: dict[Kind, list[Row]] = {}
    kept: dict[str, Row] = {}
    for seq, record in enumerate(records, last.seq + 1):
        body = record.body() | {"v": FORMAT, "seq": seq, "time_ns": now_ns, "kind": record.kind.value}
        if isinstance(record, Review):
            body |= _standing(connection, record, derived)
        text = canonical(body)
        previous = rows[-1]["digest"] if rows else last.digest
        shared = {"seq": seq, "kind": record.kind.value, "time_ns": now_ns}
        rows.append(shared | {"previous": previous, "digest": link(previous, text), "body": text})
        derived.setdefault(record.kind, []).extend(rows_of(body))
        _keep(kept, record.files, now_ns, longer=kept_longer(body))
        if isinstance(record, Review) and kept_longer(body):
            _keep(kept, _files_of(connection, record.answer), now_ns, longer=True)
    connection.execute(schema.records.insert(), rows)
    for kind, found in derived.items():
        if found:
            connection.execute(TABLES[kind].insert(), found)
    _update_worklist(connection, derived)
    if kept:
        _insert_or_update(connection, list(kept.values()))
    return [row["seq"] for row in rows]


def _standing(connection: Connection, review: Review, derived: dict[Kind, list[Row]]) -> dict[str, Any]:
    """What a review replaces, and how it stands to the model."""
    answers, reviews = schema.answers.c, schema.reviews.c
    query = select(answers.verdict, answers.predicted).where(answers.seq == review.answer)
    answer = connection.execute(query).first()
    if answer is None:
        raise SettingsError(f"record {review.answer} is no answer that could be reviewed")
    last = connection.execute(select(func.max(reviews.seq)).where(reviews.answer == review.answer)).scalar()
    fresh = [row["seq"] for row in derived.get(Kind.REVIEW, []) if row["answer"] == review.answer]
    stands = disagreement(Verdict(answer.verdict), answer.predicted, review.verdict, review.label)
    return {"supersedes": fresh[-1] if fresh else last, "disagreement": stands.value}


def _update_worklist(connection: Connection, derived: dict[Kind, list[Row]]) -> None:
    """Answers that wait for a person come in; those that a person spoke about go, unless that was taken back."""
    table = schema.worklist
    waiting = [row for row in derived.get(Kind.ANSWER, []) if waits_for_person(row)]
    last = {row["answer"]: row for row in derived.get(Kind.REVIEW, [])}
    if last:
        connection.execute(delete(table).where(table.c.answer.in_(last)))
        back = [seq for seq, row in last.items() if row["verdict"] == PersonVerdict.WITHDRAWN]
        query = select(schema.answers).where(schema.answers.c.seq.in_(back))
        waiting += [dict(row._mapping) for row in connection.execute(query)] if back else []
    if waiting:
        names = ("camera", "lot")
        entries = [
            {"answer": row["seq"], "sampled": row["verdict"] == Verdict.PASS, **{name: row[name] for name in names}}
            for row in waiting
        ]
        connection.execute(table.insert(), entries)


def _files_of(connection: Connection, answer: int) -> list[FileRef]:
    """The frame and maps of an answer, as far as they are still there."""
    answers, files = schema.answers.c, schema.files.c
    named = connection.execute(select(answers.frame, answers.maps).where(answers.seq == answer)).one()
    query = select(files.sha256, files.size, files.media).where(files.sha256.in_(list(named)))
    return [FileRef(*row) for row in connection.execute(query)]


def _keep(kept: dict[str, Row], refs: Iterable[FileRef], now_ns: int, *, longer: bool) -> None:
    for ref in refs:
        before = kept.get(ref.sha256)
        longer = longer or (before is not None and before["kept_longer"])
        named = {"sha256": ref.sha256, "size": ref.size, "media": ref.media}
        kept[ref.sha256] = named | {"time_ns": now_ns, "kept_longer": longer}


def _insert_or_update(connection: Connection, rows: list[Row]) -> None:
    """The list of files that are there; a file that is named again is kept from now on anew."""
    table = schema.files
    # The two dialects say it in the same words, but have no common function for it.
    insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table)
    longer = table.c.kept_longer | statement.excluded.kept_longer
    statement = statement.on_conflict_do_update(
        index_elements=["sha256"], set_={"time_ns": statement.excluded.time_ns, "kept_longer": longer}
    )
    connection.execute(statement, rows)
