from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import delete, select, text, update

from serving.audit import Action, Answer, AuditPlace, Blob, Disagreement, PersonVerdict, Review, Store, schema
from serving.audit.chain import first_digest, link
from serving.audit.records import disagreement, short
from tests.serving.audit.conftest import Clock
from tests.serving.audit.making import add, answer, full_answer
from vision.errors import AuditError, SettingsError
from vision.types import Verdict


def test_a_record_comes_back_as_it_went_in(store: Store) -> None:
    review = Review(
        answer=1, person="eva", verdict=PersonVerdict.DEFECT, label="crack", note="line 1\nline 2", seconds=2.5
    )
    action = Action(
        action="promote", person="ulf", subject="parts", reason="better", details={"version": "3", "n": [1]}
    )
    assert store.append([full_answer()]) == [1]
    assert store.append([review, action]) == [2, 3]
    assert store.answer(1) == full_answer()
    assert [stored.record for stored in store.many([3, 2, 1])] == [full_answer(), review, action]
    assert store.get(2).body["disagreement"] == ""


def test_each_record_holds_the_digest_of_the_one_before(store: Store) -> None:
    store.append([full_answer()])
    store.append([answer(), answer()])
    with store.reading() as connection:
        rows = connection.execute(select(schema.records).order_by(schema.records.c.seq)).all()
    before = first_digest(store.store_id)
    for row in rows:
        assert row.previous == before
        assert row.digest == link(before, row.body)
        before = row.digest
    assert [row.seq for row in rows] == [1, 2, 3]


def test_the_migrations_make_the_tables_of_the_schema(store: Store) -> None:
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


@pytest.mark.parametrize("table", ["records", "checkpoints"])
@pytest.mark.parametrize("change", [delete, update])
def test_records_cannot_be_changed_by_accident(store: Store, table: str, change: object) -> None:
    add(store, answer())
    statement = delete(schema.metadata.tables[table])
    if change is update:
        statement = update(schema.metadata.tables[table]).values(seq=9)
    with store.engine.begin() as connection:
        connection.execute(schema.checkpoints.insert(), {"seq": 1, "statement": "", "signature": b"", "key": ""})
    with pytest.raises(Exception, match="never changed or removed"), store.engine.begin() as connection:
        connection.execute(statement)


def test_all_records_of_an_append_are_there_or_none(store: Store) -> None:
    add(store, answer())
    with pytest.raises(SettingsError, match="record 9 is no answer"):
        store.append([answer(), Review(answer=9, person="eva", verdict=PersonVerdict.GOOD)])
    assert store.append([answer()]) == [2]


def test_the_same_content_lies_in_the_store_once_and_a_changed_file_is_refused(store: Store) -> None:
    add(store, answer(), answer(), content=b"pixels")
    add(store, answer(), content=b"pixels")
    sha256 = Blob.of(b"pixels", "image/png").ref.sha256
    assert [path.name for path in store.place.files.rglob("*") if path.is_file()] == [sha256]
    assert store.files.read(sha256) == b"pixels"
    store.files.path(sha256).write_bytes(b"pixelz")
    with pytest.raises(AuditError, match="changed after it was stored"):
        store.files.read(sha256)
    store.files.path(sha256).unlink()
    with pytest.raises(AuditError, match="not in the store"):
        store.files.read(sha256)


def test_a_file_that_cannot_be_written_leaves_no_record(store: Store) -> None:
    add(store, answer())
    store.place.files.parent.mkdir(exist_ok=True)
    store.place.files.write_bytes(b"in the way")  # stands for a full disk
    with pytest.raises(AuditError, match="nothing could be written"):
        add(store, answer(), content=b"pixels")
    store.place.files.unlink()
    assert add(store, answer(), content=b"pixels") == [2]


def test_times_never_go_back(store: Store, clock: Clock) -> None:
    add(store, answer())
    first = store.get(1).time_ns
    clock.now -= 3600 * 10**9
    add(store, answer())
    assert store.get(2).time_ns == first


def test_writers_take_turns(store: Store) -> None:
    """Two programs that append at once must never give the same number twice, nor break the chain."""
    others = [Store.open(store.place) for _ in range(3)]

    def write(one: Store) -> None:
        for _ in range(10):
            add(one, answer(), answer())

    threads = [threading.Thread(target=write, args=(one,)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in others:
        one.close()
    with store.reading() as connection:
        rows = connection.execute(select(schema.records).order_by(schema.records.c.seq)).all()
    assert [row.seq for row in rows] == list(range(1, 61))
    assert [row.previous for row in rows[1:]] == [row.digest for row in rows[:-1]]


def test_names_of_any_length_are_kept_apart(store: Store) -> None:
    long = "p" * 100_000
    add(store, answer(part=long + "1"), answer(part=long + "2"), answer(part="nul\0"))
    parts = [store.answer(seq).part for seq in (1, 2, 3)]
    assert parts == [short(long + "1"), short(long + "2"), "nul\ufffd"]
    assert len(set(parts)) == 3
    assert max(map(len, parts)) == 200


@pytest.mark.parametrize(
    ("verdict", "said", "label", "expected"),
    [
        (Verdict.REJECT, PersonVerdict.GOOD, "", Disagreement.OVERKILL),
        (Verdict.PASS, PersonVerdict.DEFECT, "crack", Disagreement.ESCAPE),
        (Verdict.REJECT, PersonVerdict.DEFECT, "dent", Disagreement.CLASS),
        (Verdict.REJECT, PersonVerdict.DEFECT, "crack", Disagreement.NONE),
        (Verdict.REJECT, PersonVerdict.DEFECT, "", Disagreement.NONE),
        (Verdict.REVIEW, PersonVerdict.GOOD, "", Disagreement.NONE),
        (Verdict.PASS, PersonVerdict.UNSURE, "", Disagreement.NONE),
    ],
)
def test_disagreement(verdict: Verdict, said: PersonVerdict, label: str, expected: Disagreement) -> None:
    assert disagreement(verdict, "crack", said, label) is expected


def test_a_place_that_is_no_store_is_told(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="there is no audit store"):
        Store.open(tmp_path / "nothing")
    (tmp_path / "records.sqlite").write_bytes(b"no database at all, and long enough to be looked at" * 30)
    with pytest.raises(AuditError, match="not a database"):
        Store.open(tmp_path)
    with pytest.raises(SettingsError, match="--audit-files"):
        AuditPlace.of("postgresql://audit@host/db")
    with pytest.raises(SettingsError, match="is a folder, sqlite"):
        AuditPlace.of("mysql://host/db")


def test_a_store_of_another_version_is_told(store: Store) -> None:
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(AuditError, match="version 9999"):
        Store.open(store.place)


def test_a_database_password_is_never_shown() -> None:
    place = AuditPlace.of("postgresql://audit:secret@127.0.0.1:1/nothing", files=Path("files"))
    with pytest.raises(AuditError) as caught:
        Store.open(place)
    assert "secret" not in str(caught.value)


def test_old_bodies_are_read_by_field() -> None:
    body = full_answer().body()
    assert Answer.from_body({**body, "seq": 1, "kind": "answer", "added later": 1}) == full_answer()


def test_everything_is_on_the_disk_before_a_record_is_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What survives a loss of power: a file and its name are flushed before the record that names it is written."""
    flushed: list[Path] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        with store.reading() as connection:
            assert connection.execute(select(schema.records)).first() is None
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    monkeypatch.setattr("serving.audit.files.os.fsync", note)
    add(store, answer(), content=b"pixels")
    ref = store.answer(1).frame
    assert ref is not None
    path = store.files.path(ref.sha256)
    assert flushed[0].parent == path.parent  # the content, under another name yet
    assert set(flushed[1:]) == {path.parent, store.place.files, store.place.files.parent}
    if store.place.sqlite_file is not None:
        with store.reading() as connection:
            assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
