"""Tampering: whoever has the database and its files changes them, and is found out."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.audit import Action, Answer, PersonVerdict, Review, Store
from serving.audit.chain import canonical, first_digest, link
from serving.audit.prune import Retention, prune
from serving.audit.signing import (
    Checkpoint,
    PublicKey,
    Signer,
    kept_checkpoints,
    make_checkpoint,
    read_checkpoints,
    write_checkpoints,
)
from serving.audit.verify import verify
from tests.serving.audit.conftest import Clock
from tests.serving.audit.making import add, answer, full_answer
from vision.errors import AuditError, SettingsError
from vision.types import Verdict


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """Ten answers (3 and 4 with the same frame), a review and an action: 12 records."""
    with Store.open(tmp_path / "audit", create=True, clock_ns=clock) as opened:
        add(opened, answer(), content=b"frame 1")
        add(opened, answer(Verdict.REJECT, part="A-2"), content=b"frame 2")
        add(opened, answer(part="A-3"), answer(part="A-4"), content=b"frame 3")
        for number in range(5, 11):
            add(opened, answer(part=f"A-{number}"), content=b"frame %d" % number)
        opened.append([Review(answer=2, person="eva", verdict=PersonVerdict.GOOD)])
        opened.append([Action(action="promote", person="ulf", subject="parts")])
        yield opened


@pytest.fixture
def signer(store: Store) -> Signer:
    return Signer.at(store.place.key)


@contextmanager
def tampering(store: Store) -> Iterator[sqlite3.Connection]:
    """The database in the hands of somebody who knows it well."""
    store.engine.dispose()
    connection = sqlite3.connect(store.place.sqlite_file or "", isolation_level=None)
    for table in ("records", "checkpoints"):
        for verb in ("update", "delete"):
            connection.execute(f"DROP TRIGGER IF EXISTS {table}_no_{verb}")
    yield connection
    connection.close()


def compute_anew(connection: sqlite3.Connection, store_id: str) -> None:
    """The whole chain, as the format is public."""
    before = first_digest(store_id)
    for seq, body in connection.execute("SELECT seq, body FROM records ORDER BY seq").fetchall():
        digest = link(before, body)
        connection.execute("UPDATE records SET previous = ?, digest = ? WHERE seq = ?", (before, digest, seq))
        before = digest


def problems(store: Store, *checkpoints: Checkpoint, key: PublicKey | None = None) -> str:
    return "\n".join(verify(store, key=key, checkpoints=checkpoints).problems)


def test_an_untouched_store_is_intact(store: Store, signer: Signer) -> None:
    make_checkpoint(store, signer, 0)
    found = verify(store, key=signer.public)
    assert found.problems == []
    assert (found.records, found.files, found.checkpoints, found.signed) == (12, 9, 1, 12)


def test_a_changed_record_is_named(store: Store) -> None:
    with tampering(store) as database:
        database.execute("UPDATE records SET body = replace(body, 'REJECT', 'PASS') WHERE seq = 2")
    assert "record 2 was changed: its content does not fit its digest" in problems(store)


def test_a_changed_record_with_its_own_digest_is_named_by_its_neighbour(store: Store) -> None:
    with tampering(store) as database:
        body, previous = database.execute("SELECT body, previous FROM records WHERE seq = 5").fetchone()
        body = body.replace("A-5", "A-6")
        database.execute("UPDATE records SET body = ?, digest = ? WHERE seq = 5", (body, link(previous, body)))
        database.execute("UPDATE answers SET part = 'A-6' WHERE seq = 5")
    assert problems(store) == (
        "record 6 does not follow record 5 as it stands now: one of the two was changed, exchanged or inserted"
    )


def test_a_chain_computed_anew_does_not_fit_what_was_signed(store: Store, signer: Signer, clock: Clock) -> None:
    kept = make_checkpoint(store, signer, clock())
    add(store, answer(), answer(), content=b"frame 1")
    later = make_checkpoint(store, signer, clock())
    assert kept is not None
    assert later is not None
    with tampering(store) as database:
        database.execute("UPDATE records SET body = replace(body, 'REJECT', 'PASS') WHERE seq = 2")
        database.execute("UPDATE answers SET verdict = 1 WHERE seq = 2")
        compute_anew(database, store.store_id)
    assert problems(store, key=signer.public) == (
        "record 12 is not the one that was signed: one of the records 1 to 12 was changed, and the chain was computed "
        "anew behind it"
    )
    with tampering(store) as database:  # and now the checkpoints in the store go too
        database.execute("DELETE FROM checkpoints")
    assert problems(store, key=signer.public) == ""  # what a store alone cannot prove
    assert "record 12 is not the one that was signed" in problems(store, kept, later, key=signer.public)


def test_a_removed_record_is_named(store: Store) -> None:
    with tampering(store) as database:
        database.execute("DELETE FROM records WHERE seq = 6")
    found = problems(store)
    assert "record 6 is missing: removed" in found
    assert "the search table answers has an entry of record 6 that no record supports" in found


def test_a_removed_record_is_found_though_the_others_moved_up(store: Store) -> None:
    with tampering(store) as database:
        database.execute("DELETE FROM records WHERE seq = 6")
        for seq in range(7, 13):
            database.execute("UPDATE records SET seq = ? WHERE seq = ?", (seq - 1, seq))
    found = problems(store)
    assert "record 6 says that it is record 7: records were reordered, inserted or removed" in found
    assert "record 6 does not follow record 5" in found


def test_records_cut_off_at_the_end_are_known_from_an_exported_checkpoint(
    store: Store, signer: Signer, tmp_path: Path
) -> None:
    made = make_checkpoint(store, signer, 0)
    assert made is not None
    write_checkpoints(tmp_path / "checkpoints", [made])
    with tampering(store) as database:
        for table in ("records", "checkpoints", "reviews", "actions", "answers"):
            database.execute(f"DELETE FROM {table} WHERE seq > 9")  # noqa: S608
    assert problems(store, key=signer.public) == ""  # nothing in the store speaks of them any more
    exported = list(read_checkpoints(tmp_path / "checkpoints"))
    assert problems(store, *exported, key=signer.public) == (
        "record 12 was signed and the store ends at 9: the records 10 to 12 were removed"
    )


def test_an_inserted_record_is_named(store: Store) -> None:
    with tampering(store) as database:
        for seq in range(12, 4, -1):
            database.execute("UPDATE records SET seq = ? WHERE seq = ?", (seq + 1, seq))
        previous = database.execute("SELECT digest FROM records WHERE seq = 4").fetchone()[0]
        body = canonical(full_answer().body() | {"v": 1, "seq": 5, "kind": "answer", "time_ns": 7})
        row = (5, "answer", 7, previous, link(previous, body), body)
        database.execute("INSERT INTO records (seq, kind, time_ns, previous, digest, body) VALUES (?,?,?,?,?,?)", row)
    found = problems(store)
    assert "record 6 does not follow record 5 as it stands now" in found
    assert "record 6 says that it is record 5" in found


def test_records_that_changed_places_are_named(store: Store) -> None:
    with tampering(store) as database:
        for old, new in ((3, 99), (7, 3), (99, 7)):
            database.execute("UPDATE records SET seq = ? WHERE seq = ?", (new, old))
    found = problems(store)
    assert "record 3 says that it is record 7" in found
    assert "record 7 says that it is record 3" in found


def test_a_changed_search_table_is_named(store: Store) -> None:
    with tampering(store) as database:
        database.execute("UPDATE answers SET verdict = 1, predicted = 'good' WHERE seq = 2")
        database.execute("DELETE FROM answers WHERE seq = 4")
        database.execute("UPDATE reviews SET person = 'ulf'")
        database.execute("INSERT INTO pruned (sha256, seq) VALUES ('00', 12)")
    found = problems(store).splitlines()
    assert found == [
        "the search table answers was changed: of record 2, verdict, predicted",
        "the search table answers lacks an entry of record 4: removed",
        "the search table reviews was changed: of record 11, person",
        "the search table pruned has an entry of record 12 that no record supports",
    ]


def test_an_altered_or_missing_file_is_named_with_its_record(store: Store) -> None:
    frame = {seq: store.answer(seq).frame for seq in (2, 3)}
    store.files.path(frame[2].sha256).write_bytes(b"frame 9")  # type: ignore[union-attr]
    store.files.path(frame[3].sha256).unlink()  # type: ignore[union-attr]
    found = verify(store).problems
    assert [one.partition(" (")[0] for one in found] == [
        "the frame of record 2 was changed: its content does not fit its name",
        "the frame of record 3 is missing, and no record says that it was pruned",
    ]
    assert verify(store, files=False).intact


def test_a_pruned_file_is_no_tampering_and_a_faked_prune_is(store: Store, clock: Clock) -> None:
    prune(store, Retention(passes_days=0), person="eva", clock_ns=clock)
    found = verify(store)
    assert found.problems == []
    assert (found.files, found.pruned) == (1, 8)  # the reject's frame is still there
    reject = store.answer(2).frame
    assert reject is not None
    store.files.path(reject.sha256).unlink()
    with tampering(store) as database:
        database.execute("INSERT INTO pruned (sha256, seq) VALUES (?, 13)", (reject.sha256,))
    assert "the search table pruned has an entry of record 13 that no record supports" in problems(store)


def test_a_checkpoint_of_another_key_or_store_does_not_count(store: Store, signer: Signer, tmp_path: Path) -> None:
    stranger = Signer.at(tmp_path / "stranger.pem")
    made = make_checkpoint(store, stranger, 0)
    assert made is not None
    assert "has no valid signature of the key" in problems(store, key=signer.public)
    assert problems(store, key=stranger.public) == ""
    foreign = signer.sign(12, b"0" * 32, "another", 0)
    assert "is of another store (another)" in problems(store, foreign, key=stranger.public)
    forged = Checkpoint.read(made.statement.replace('"seq":12', '"seq":11'), made.signature)
    assert "the checkpoint of record 11 has no valid signature" in problems(store, forged, key=stranger.public)


def test_a_store_under_another_name_is_noticed(store: Store) -> None:
    with tampering(store) as database:
        database.execute("UPDATE about SET store_id = 'other'")
    with Store.open(store.place) as renamed:
        assert "record 1 does not follow the beginning of this store" in problems(renamed)


def test_the_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "key.pem"
    first = Signer.at(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Signer.at(path).public.name == first.public.name
    assert PublicKey.at(path.with_name("key.pem.pub")).name == first.public.name
    path.chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        Signer.at(path)


def test_exported_checkpoints_are_proved_with_the_public_key_alone(
    store: Store, signer: Signer, tmp_path: Path, clock: Clock
) -> None:
    make_checkpoint(store, signer, clock())
    add(store, answer())
    make_checkpoint(store, signer, clock())
    assert make_checkpoint(store, signer, clock()) is None  # nothing new to sign
    write_checkpoints(tmp_path / "exported", kept_checkpoints(store))
    public = PublicKey.at(store.place.key.with_name("key.pem.pub"))
    exported = list(read_checkpoints(tmp_path / "exported"))
    assert [one.seq for one in exported] == [12, 13]
    assert all(public.signed(one) for one in exported)
    text = (tmp_path / "exported").read_text()
    (tmp_path / "exported").write_text(text.replace("12,", "11,", 1))
    assert not public.signed(next(read_checkpoints(tmp_path / "exported")))
    (tmp_path / "exported").write_text("{}\n")
    with pytest.raises(AuditError, match="line 1: no checkpoint"):
        list(read_checkpoints(tmp_path / "exported"))


@pytest.mark.parametrize("kind", [Answer, Review, Action])
def test_every_kind_of_record_is_checked_against_its_table(store: Store, kind: type) -> None:
    table: dict[type, Callable[[sqlite3.Connection], object]] = {
        Answer: lambda database: database.execute("UPDATE answers SET camera = 'x' WHERE seq = 1"),
        Review: lambda database: database.execute("UPDATE reviews SET label = 'x'"),
        Action: lambda database: database.execute("UPDATE actions SET subject = 'x'"),
    }
    with tampering(store) as database:
        table[kind](database)
    assert "was changed" in problems(store)
