"""The database of a store: connections as an audit trail needs them, and its tables by Alembic."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError

from serving.audit.place import AuditPlace
from vision.errors import AuditError, SettingsError

# How long somebody who writes waits for another one who does: a prune of many files is the longest.
_LOCK_WAIT_S = 30
_CACHE_KIB = 64 * 1024
_MAPPED_BYTES = 1 << 30
# An answer takes some 3 KiB, those of models with many classes more than a page of the usual 4 KiB.
_PAGE_BYTES = 8192
# Of each index; all of them would take minutes.
_ANALYSED_ROWS = 400
_WRITING = "audit_writing"
# Any number that nobody else in the database uses.
_UPGRADE_LOCK = 4_402_022


def open_engine(place: AuditPlace) -> Engine:
    """Connections to the database; nothing is opened yet.

    Raises:
        SettingsError: the driver is not installed.
    """
    if place.sqlite_file is None:
        if importlib.util.find_spec("psycopg") is None:
            raise SettingsError(
                "an audit store in PostgreSQL needs psycopg; install it with `pip install 'defectlens[postgresql]'`"
            )
        engine = create_engine(place.url, pool_pre_ping=True)
        event.listen(engine, "connect", _set_up_postgresql)
        return engine
    engine = create_engine(place.url, connect_args={"timeout": _LOCK_WAIT_S, "check_same_thread": False})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction of the one who writes: others who want to write wait until it ends. Readers never wait.

    It is durable when the block has ended: SQLite has flushed its log, PostgreSQL too.
    """
    with engine.connect().execution_options(**{_WRITING: True}) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE records IN EXCLUSIVE MODE"))
        yield connection


def upgrade(engine: Engine) -> None:
    """Make the tables, or bring those of an earlier version up to date.

    Raises:
        AuditError: the database cannot be used.
    """
    try:
        with engine.connect().execution_options(**{_WRITING: True}) as connection, connection.begin():
            if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except SQLAlchemyError as error:
        raise AuditError(f"the audit store {engine.url!r} cannot be opened: {_cause(error)}") from error


def tune(engine: Engine) -> None:
    """Let SQLite look again at what its indexes hold, from which it chooses one. PostgreSQL does so by itself."""
    if engine.dialect.name == "sqlite":
        with writing(engine) as connection:
            connection.exec_driver_sql(f"PRAGMA analysis_limit={_ANALYSED_ROWS}")
            connection.exec_driver_sql("ANALYZE")


def check_version(engine: Engine) -> None:
    """Refuse a database that is no store, or of another version than this program's.

    Raises:
        AuditError: says which.
    """
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
    except SQLAlchemyError as error:
        raise AuditError(f"the audit store {engine.url!r} cannot be opened: {_cause(error)}") from error
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    if found != wanted:
        known = "it holds no audit store" if found is None else f"its tables are of version {found}"
        raise AuditError(
            f"{engine.url!r} cannot be read: {known}, this program needs version {wanted}; `serve --audit` makes and "
            "updates stores"
        )


def _cause(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "serving.audit:migrations")
    return config


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    cursor = connection.cursor()
    for pragma in (
        f"page_size={_PAGE_BYTES}",  # of a new file
        "journal_mode=WAL",  # readers and the writer do not wait for each other
        "synchronous=FULL",  # a commit has reached the disk
        "foreign_keys=ON",
        f"cache_size=-{_CACHE_KIB}",
        f"mmap_size={_MAPPED_BYTES}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the lock at once: a transaction that reads first and writes then could be refused in the middle.
    writes = connection.get_execution_options().get(_WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _set_up_postgresql(connection: Any, _: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit TO on")  # whatever the server's default
        cursor.execute(f"SET lock_timeout TO '{_LOCK_WAIT_S}s'")
    connection.commit()
