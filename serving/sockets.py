"""The care that the file of a Unix domain socket needs."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vision.errors import SettingsError

_OWNER_ONLY = 0o600


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Make room for a socket at ``path``, to be bound inside the ``with``: only its owner may then connect.

    gRPC would replace any socket that is there, that of a live server too. So a live one is refused and a dead one's
    file removed, under a lock of the folder, so that of two servers that start at once one is refused.

    Raises:
        SettingsError: a live server or another kind of file is there, or the folder cannot be used.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SettingsError(
            f"the folder of unix:{path} cannot be used ({error.strerror}); create it, or choose another path"
        ) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        _remove_stale(path)
        mask = os.umask(0o777 & ~_OWNER_ONLY)  # before it is bound: permissions given later would leave a gap
        try:
            yield
        finally:
            os.umask(mask)
    finally:
        os.close(folder)


def identity_of(path: Path) -> tuple[int, int]:
    """What tells one file from another that takes its name later."""
    found = path.stat()
    return found.st_dev, found.st_ino


def remove_socket(path: Path, identity: tuple[int, int]) -> None:
    """Remove the file, unless another server has put its own there since."""
    with suppress(FileNotFoundError):
        if identity_of(path) == identity:
            path.unlink()


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SettingsError(f"{path} exists and is no socket; choose another path or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a live server may be too busy to take the connection
        number = probe.connect_ex(os.fspath(path))
    if number != errno.ECONNREFUSED:
        raise SettingsError(
            f"unix:{path} cannot be listened on: another server is there "
            f"({os.strerror(number) if number else 'it answers'}); stop it or choose another path"
        )
    path.unlink()
