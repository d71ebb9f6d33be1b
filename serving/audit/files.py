"""Files named by the SHA-256 of their content, so that the same content lies there once and a changed one is found out.

``FOLDER/ab/abcdef...``: two hex digits make the folder. A file that is there is whole and durable: it is written under
another name, flushed to the disk, and renamed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vision.errors import AuditError

# Flushing waits for the disk and not for a core: side by side it takes half of the time.
_WRITERS = 4
_PART = ".part"


class Files:
    """The files below one folder.

    Args:
        folder: made when the first file is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool: ThreadPoolExecutor | None = None

    def path(self, sha256: str) -> Path:
        """Where the file lies, if it does."""
        return self.folder / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def read(self, sha256: str) -> bytes:
        """The content.

        Raises:
            AuditError: the file is not there, or not what it was.
        """
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise AuditError(
                f"the file {path} is not in the store; it was pruned, or somebody removed it: `defectlens audit "
                "verify` tells which"
            ) from error
        except OSError as error:
            raise AuditError(f"the file {path} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise AuditError(f"the file {path} was changed after it was stored: its content does not fit its name")
        return data

    def write(self, blobs: Mapping[str, bytes | memoryview]) -> None:
        """Store contents by their SHA-256. When this returns, they survive a loss of power.

        Raises:
            OSError: the disk is full, or the folder cannot be written to. What was stored before stays.
        """
        missing = {sha256: data for sha256, data in blobs.items() if not self.has(sha256)}
        if not missing:
            return
        folders = {self.path(sha256).parent for sha256 in missing}
        made = [folder for folder in folders if not folder.is_dir()]
        for folder in made:
            folder.mkdir(parents=True, exist_ok=True)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_WRITERS, "audit-files")
        list(self._pool.map(self._write_one, missing.items()))
        list(self._pool.map(_flush_folder, [*folders, *([self.folder, self.folder.parent] if made else [])]))

    def remove(self, sha256s: Iterable[str]) -> None:
        """Take files away; those that are not there count as removed."""
        for sha256 in sha256s:
            self.path(sha256).unlink(missing_ok=True)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _write_one(self, item: tuple[str, bytes | memoryview]) -> None:
        sha256, data = item
        path = self.path(sha256)
        part = path.with_name(f"{sha256}.{os.getpid()}{_PART}")
        try:
            with part.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
