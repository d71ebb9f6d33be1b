"""An open audit store: the front door for those who write and those who read."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.exc import SQLAlchemyError

from serving.audit import append, schema
from serving.audit.database import check_version, open_engine, tune, upgrade, writing
from serving.audit.files import Files
from serving.audit.place import AuditPlace
from serving.audit.records import KINDS, Answer, Kind, Record
from vision.errors import AuditError, SettingsError


@dataclass(frozen=True, slots=True)
class Stored:
    """One record as it stands in the store. ``digest`` in hex. ``body``: all of it, as it was digested."""

    seq: int
    time_ns: int
    digest: str
    record: Record
    body: dict[str, Any]


class Store:
    """A store, open until ``close``. Any number of threads and processes may read; writers take turns.

    Use ``Store.open``. Searching is in ``serving.audit.search``, ``worklist`` and ``counts``, with a store as the first
    argument.
    """

    def __init__(self, place: AuditPlace, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.place = place
        self.files = Files(place.files)
        self.engine = open_engine(place)
        self.store_id = ""
        self._clock_ns = clock_ns

    @classmethod
    def open(
        cls,
        where: str | Path | AuditPlace,
        *,
        files: Path | None = None,
        create: bool = False,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> Store:
        """Open a store.

        Args:
            where: folder or URL, see ``AuditPlace.of``.
            files: folder of the files, where it is not the usual one.
            create: make it, or bring its tables up to date, where that is needed.
            clock_ns: ns since 1970; what records are stamped with.

        Raises:
            SettingsError: no such place, or its driver is missing.
            AuditError: no store is there, one of another version, or it cannot be opened.
        """
        place = where if isinstance(where, AuditPlace) else AuditPlace.of(where, files=files)
        store = cls(place, clock_ns=clock_ns)
        try:
            store._open(create=create)
        except BaseException:
            store.close()
            raise
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.files.close()
        self.engine.dispose()

    def now_ns(self) -> int:
        """The time by the store's clock, ns since 1970."""
        return self._clock_ns()

    def append(self, records: Sequence[Record], blobs: Iterable[append.Blob] = ()) -> list[int]:
        """Add records, all or none, with the files that they name. Durable when this returns.

        Args:
            blobs: content of the files; those that are in the store already may be left out.

        Returns:
            The records' numbers.

        Raises:
            AuditError: the disk is full, the database cannot be reached, or it is held by somebody for too long.
            SettingsError: a review is of no answer.
        """
        with self.guarded(), writing(self.engine) as connection:
            return append.append(connection, self.files, self.store_id, records, blobs, self._clock_ns())

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Errors of the database and the disk, while something is written, become an ``AuditError``."""
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            cause = getattr(error, "orig", None) or error
            raise AuditError(f"nothing could be written to {self.place.shown}: {cause}") from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for questions; all of them see the store at one moment.

        Raises:
            AuditError: from inside the block too, where the database fails.
        """
        try:
            with self.engine.connect() as connection:
                if connection.dialect.name == "postgresql":  # SQLite does so by itself
                    connection.execution_options(isolation_level="REPEATABLE READ")
                yield connection
        except SQLAlchemyError as error:
            raise AuditError(f"{self.place.shown} cannot be read: {getattr(error, 'orig', None) or error}") from error

    def tune(self) -> None:
        """Have the database see to its choice of indexes; now and then, after the store has grown.

        Raises:
            AuditError: it cannot be written to.
        """
        with self.guarded():
            tune(self.engine)

    def get(self, seq: int) -> Stored:
        """One record, of whatever kind.

        Raises:
            SettingsError: there is none of this number.
        """
        found = self.many([seq])
        if not found:
            raise SettingsError(f"the store {self.place.shown} has no record {seq}")
        return found[0]

    def many(self, seqs: Iterable[int]) -> list[Stored]:
        """Records by their numbers, in the order of time; numbers that do not exist are left out."""
        table = schema.records
        columns = (table.c.seq, table.c.time_ns, table.c.digest, table.c.body)
        query = select(*columns).where(table.c.seq.in_(list(seqs))).order_by(table.c.seq)
        with self.reading() as connection:
            return [_stored(*row) for row in connection.execute(query)]

    def answer(self, seq: int) -> Answer:
        """What the server said, whole.

        Raises:
            SettingsError: there is no record of this number, or it is no answer.
        """
        record = self.get(seq).record
        if not isinstance(record, Answer):
            raise SettingsError(f"record {seq} is no answer but a record of kind {record.kind}")
        return record

    def _open(self, *, create: bool) -> None:
        path = self.place.sqlite_file
        if path is not None and not path.is_file():
            if not create:
                raise AuditError(f"there is no audit store at {path}; `serve --audit` makes one")
            path.parent.mkdir(parents=True, exist_ok=True)
        if create:
            upgrade(self.engine)
            with writing(self.engine) as connection:
                if connection.execute(select(schema.about.c.store_id)).first() is None:
                    row = {"store_id": str(uuid.uuid4()), "created_ns": self._clock_ns()}
                    connection.execute(schema.about.insert(), row)
        check_version(self.engine)
        with self.reading() as connection:
            self.store_id = connection.execute(select(schema.about.c.store_id)).scalar_one()


def _stored(seq: int, time_ns: int, digest: bytes, text: str) -> Stored:
    body = json.loads(text)
    return Stored(seq, time_ns, digest.hex(), KINDS[Kind(body["kind"])].from_body(body), body)
