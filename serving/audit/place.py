"""Where an audit store is: its database, its folder of files and its key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from vision.errors import SettingsError

DATABASE = "records.sqlite"
FILES = "files"
KEY = "key.pem"


@dataclass(frozen=True, slots=True)
class AuditPlace:
    """``url``: of the database, for SQLAlchemy. ``key``: the private key of checkpoints, made at first use."""

    url: str
    files: Path
    key: Path

    @classmethod
    def of(cls, text: str | Path, *, files: Path | None = None, key: Path | None = None) -> AuditPlace:
        """From what people write: a folder, ``sqlite:///PATH`` or ``postgresql://USER@HOST/NAME``.

        A folder holds everything. Beside an SQLite file, files and key lie in its folder. A PostgreSQL database needs
        a folder for the files.

        Raises:
            SettingsError: it is none of these, or a PostgreSQL database without a folder.
        """
        text = os.fspath(text)
        if "://" not in text:
            folder = Path(text)
            url = str(URL.create("sqlite", database=str(folder / DATABASE)))
            return cls(url, files or folder / FILES, key or folder / KEY)
        try:
            parsed = make_url(text)
        except ArgumentError as error:
            raise SettingsError(f"{text!r} is no address of an audit store: {error}") from error
        if parsed.get_backend_name() == "sqlite" and parsed.database and parsed.database != ":memory:":
            folder = Path(parsed.database).parent
            return cls(text, files or folder / FILES, key or folder / KEY)
        if parsed.get_backend_name() == "postgresql":
            if files is None:
                raise SettingsError(
                    "an audit store in PostgreSQL keeps frames and maps in a folder; name it with --audit-files DIR"
                )
            url = parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
            return cls(url, files, key or files.parent / KEY)
        raise SettingsError(f"an audit store is a folder, sqlite:///PATH or postgresql://USER@HOST/NAME; got {text!r}")

    @property
    def shown(self) -> str:
        """The database without its password, for people to read."""
        return make_url(self.url).render_as_string(hide_password=True)

    @property
    def sqlite_file(self) -> Path | None:
        """The database's file; None for PostgreSQL."""
        parsed = make_url(self.url)
        return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None
