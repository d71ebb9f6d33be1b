"""Whether a store is as it was written, and if not, what was changed, removed, inserted or reordered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from serving.audit import schema
from serving.audit.chain import first_digest, link
from serving.audit.projection import TABLES, Row, rows_of
from serving.audit.records import Kind
from serving.audit.signing import Checkpoint, PublicKey, kept_checkpoints
from serving.audit.store import Store
from serving.audit.verify_accounts import account_problems
from vision.errors import AuditError

_CHUNK = 2000
# Hashing lets other threads run, and reading waits for a disk.
_READERS = 4
_MOST_PROBLEMS = 1000
_TABLES = {table: kind for kind, table in TABLES.items()}


@dataclass(slots=True)
class Verification:
    """What was looked at, and what is wrong; ``problems`` has one line each, at most a thousand.

    ``files``: that were read; ``pruned``: that are gone, and whose removal is a record. ``signed``: the last record
    that a checkpoint with a valid signature speaks for; 0 without any. ``checkpoints``: how many of these there are.
    """

    records: int = 0
    files: int = 0
    pruned: int = 0
    checkpoints: int = 0
    signed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        return not self.problems

    def add(self, problem: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)
        elif len(self.problems) == _MOST_PROBLEMS:
            self.problems.append("there are more problems; these are the first")


@dataclass(frozen=True, slots=True)
class _Named:
    """A file that a record names."""

    sha256: str
    size: int
    seq: int
    what: str


def verify(
    store: Store,
    *,
    key: PublicKey | None = None,
    checkpoints: Sequence[Checkpoint] = (),
    files: bool = True,
    progress: Callable[[int], None] = lambda _: None,
) -> Verification:
    """Read every record, and every file that one names.

    Args:
        key: whose signatures count; None looks at no signature.
        checkpoints: exported ones, kept where nobody could change them; looked at beside those in the store.
        files: False leaves them out, which is a matter of seconds instead of all their bytes.
        progress: called with the number of records so far.

    Raises:
        AuditError: the database cannot be read.
    """
    found = Verification()
    try:
        kept = kept_checkpoints(store)
    except AuditError as error:
        kept = []
        found.add(str(error))
    signed = _Checkpoints(found, store.store_id, key, [*kept, *checkpoints])
    with store.reading() as connection, _FileCheck(store, found) as file_check:
        before, last = first_digest(store.store_id), 0
        for rows in _chunks(connection):
            bodies: list[dict[str, Any]] = []
            for row in rows:
                body = _check_record(row, before, last, found)
                before, last = row.digest, row.seq
                signed.at(row.seq, row.digest.hex())
                if body is not None:
                    bodies.append(body)
            _check_rows(connection, rows[0].seq, rows[-1].seq, bodies, found)
            if files:
                file_check.look_at(bodies)
            found.records += len(rows)
            progress(found.records)
        _check_strays(connection, last, found)
        _check_accounts(connection, found)
    signed.finish(last)
    return found


def _chunks(connection: Connection) -> Iterator[Sequence[Any]]:
    table = schema.records.c
    last = -(2**62)
    while True:
        query = select(schema.records).where(table.seq > last).order_by(table.seq).limit(_CHUNK)
        rows = connection.execute(query).all()
        if not rows:
            return
        yield rows
        last = rows[-1].seq


def _check_record(row: Any, before: bytes, last: int, found: Verification) -> dict[str, Any] | None:
    """One link of the chain; its body, if it can be read."""
    seq = row.seq
    if seq != last + 1:
        missing = f"record {last + 1} is" if seq == last + 2 else f"records {last + 1} to {seq - 1} are"
        found.add(f"{missing} missing: removed")
    if link(row.previous, row.body) != row.digest:
        found.add(f"record {seq} was changed: its content does not fit its digest")
    if row.previous != before and seq == last + 1:
        neighbour = f"record {last}" if last else "the beginning of this store"
        found.add(
            f"record {seq} does not follow {neighbour} as it stands now: one of the two was changed, exchanged or "
            "inserted"
        )
    try:
        body: dict[str, Any] = json.loads(row.body)
        says = body["seq"], body["kind"], body["time_ns"]
    except (ValueError, KeyError, TypeError):
        found.add(f"record {seq} was changed: it cannot be read")
        return None
    if says[0] != seq:
        found.add(f"record {seq} says that it is record {says[0]}: records were reordered, inserted or removed")
    elif says != (seq, row.kind, row.time_ns):
        found.add(f"record {seq} was changed: the kind or time that it is listed under is not its own")
    return body if says[0] == seq else None


def _check_rows(
    connection: Connection, first: int, last: int, bodies: Iterable[dict[str, Any]], found: Verification
) -> None:
    """What is searched must be what the records say."""
    expected: dict[str, dict[Any, Row]] = {table.name: {} for table in _TABLES}
    for body in bodies:
        try:
            table = TABLES[Kind(body["kind"])]
            for row in rows_of(body):
                expected[table.name][_key(row)] = row
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found.add(f"record {body['seq']} was changed: no record of its kind looks like that ({error!r})")
    for table in _TABLES:
        query = select(table).where(table.c.seq.between(first, last))
        wanted = expected[table.name]
        for stands in (dict(row) for row in connection.execute(query).mappings()):
            right = wanted.pop(_key(stands), None)
            if right is None:
                found.add(
                    f"the search table {table.name} has an entry of record {stands['seq']} that no record supports"
                )
            elif stands != right:
                names = ", ".join(name for name, value in right.items() if stands[name] != value)
                found.add(f"the search table {table.name} was changed: of record {stands['seq']}, {names}")
        for row in wanted.values():
            found.add(f"the search table {table.name} lacks an entry of record {row['seq']}: removed")


def _key(row: Row) -> Any:
    return row["seq"], row.get("sha256")


def _check_strays(connection: Connection, last: int, found: Verification) -> None:
    """Entries behind the last record."""
    for table in _TABLES:
        for seq in connection.execute(select(table.c.seq).where(table.c.seq > last).limit(_MOST_PROBLEMS)).scalars():
            found.add(f"the search table {table.name} has an entry of record {seq}, and the chain ends at {last}")


def _check_accounts(connection: Connection, found: Verification) -> None:
    """Who may use the page; unreadable records were told before."""
    try:
        for problem in account_problems(connection):
            found.add(problem)
    except (ValueError, KeyError, TypeError) as error:
        found.add(f"the accounts cannot be compared with the records: {error!r}")


class _FileCheck:
    """Reads every file once, a few at a time."""

    def __init__(self, store: Store, found: Verification) -> None:
        self._store = store
        self._found = found
        self._seen: set[bytes] = set()
        self._pool = ThreadPoolExecutor(_READERS)

    def __enter__(self) -> _FileCheck:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def look_at(self, bodies: Iterable[dict[str, Any]]) -> None:
        """Files that these records name."""
        named = [one for body in bodies for one in _named(body) if self._is_new(one.sha256)]
        missing = []
        for one, state in zip(named, self._pool.map(self._state, named), strict=True):
            if state is None:
                missing.append(one)
                continue
            self._found.files += 1
            if state:
                self._found.add(f"the {one.what} of record {one.seq} was changed: {state} ({one.sha256[:16]}...)")
        gone = self._pruned(missing)
        for one in missing:
            if gone.get(one.sha256, 0) > one.seq:
                self._found.pruned += 1
            else:
                self._found.add(
                    f"the {one.what} of record {one.seq} is missing, and no record says that it was pruned "
                    f"({one.sha256[:16]}...)"
                )

    def _is_new(self, sha256: str) -> bool:
        try:
            digest = bytes.fromhex(sha256)
        except ValueError:
            return True  # a changed record; it is told as a missing file too
        if digest in self._seen:
            return False
        self._seen.add(digest)
        return True

    def _state(self, one: _Named) -> str | None:
        """Empty if all is well, None if it is not there, else what is wrong."""
        path = self._store.files.path(one.sha256)
        try:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"it cannot be read, {error}"
        return "" if digest == one.sha256 else "its content does not fit its name"

    def _pruned(self, missing: Sequence[_Named]) -> dict[str, int]:
        """By file, the last record that says that it was removed."""
        table = schema.pruned.c
        last: dict[str, int] = {}
        for start in range(0, len(missing), 500):
            names = [one.sha256 for one in missing[start : start + 500]]
            query = select(table.sha256, table.seq).where(table.sha256.in_(names))
            # As it is by now: a file may have been pruned since this verification began.
            with self._store.reading() as connection:
                for sha256, seq in connection.execute(query):
                    last[sha256] = max(seq, last.get(sha256, 0))
        return last


def _named(body: dict[str, Any]) -> Iterator[_Named]:
    refs = [(body.get(what), what) for what in ("frame", "maps", "mask")]
    refs += [(ref, "attached file") for ref in body.get("attached", ())]
    for ref, what in refs:
        if ref is not None:
            yield _Named(ref["sha256"], ref["size"], body["seq"], what)


class _Checkpoints:
    """Compares what was signed with what stands."""

    def __init__(
        self, found: Verification, store_id: str, key: PublicKey | None, checkpoints: Sequence[Checkpoint]
    ) -> None:
        self._found = found
        self._valid: dict[int, set[str]] = {}
        self._good = 0
        self._told = False
        for one in {(one.seq, one.statement, one.signature): one for one in checkpoints}.values():
            if one.store_id != store_id:
                found.add(f"the checkpoint of record {one.seq} is of another store ({one.store_id})")
            elif key is not None and not key.signed(one):
                found.add(f"the checkpoint of record {one.seq} has no valid signature of the key {key.name[:16]}...")
            else:
                self._valid.setdefault(one.seq, set()).add(one.digest)
                found.checkpoints += key is not None

    def at(self, seq: int, digest: str) -> None:
        """A record's digest, in order."""
        said = self._valid.pop(seq, None)
        if said is None:
            return
        if said == {digest}:
            self._good = seq
            self._found.signed = seq
        elif not self._told:
            self._told = True  # every later one differs too
            self._found.add(
                f"record {seq} is not the one that was signed: one of the records {self._good + 1} to {seq} was "
                "changed, and the chain was computed anew behind it"
            )

    def finish(self, last: int) -> None:
        """Checkpoints that are left speak of records that are not there."""
        if behind := [seq for seq in self._valid if seq > last]:
            self._found.add(
                f"record {max(behind)} was signed and the store ends at {last}: the records {last + 1} to "
                f"{max(behind)} were removed"
            )
