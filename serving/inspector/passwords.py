"""Passwords: argon2id with the library's defaults (RFC 9106), and a brake on guessing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from vision.errors import SettingsError

SHORTEST = 10
_LONGEST = 200
_hasher = PasswordHasher()
# Of no password: names without an account take as long to refuse as those with one.
_NOBODY = _hasher.hash("no account has this password")

# Failures that are free, and how long the first one after them blocks, in seconds; it doubles each time.
_FREE, _FIRST_S, _LONGEST_S = 5, 2.0, 300.0
_REMEMBERED = 10_000


def hash_password(password: str) -> str:
    """As it may be kept.

    Raises:
        SettingsError: it is too short or too long.
    """
    if not SHORTEST <= len(password) <= _LONGEST:
        raise SettingsError(f"a password has {SHORTEST} to {_LONGEST} characters; got {len(password)}")
    return _hasher.hash(password)


def is_right(password: str, hashed: str | None) -> bool:
    """Whether this is the password; always False where there is none."""
    try:
        return _hasher.verify(hashed or _NOBODY, password[:_LONGEST]) and hashed is not None
    except (VerificationError, InvalidHashError):
        return False


class Brake:
    """Who failed too often has to wait: by name, so that one password is not guessed from many machines, and by
    machine, so that many names are not tried from one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def wait_s(self, *keys: str) -> float:
        """How long to wait before the next try; 0 where it may come now."""
        with self._lock:
            return max(self._left(key) for key in keys)

    def failed(self, *keys: str) -> None:
        with self._lock:
            for key in keys:
                count = self._failures.pop(key, (0, 0.0))[0] + 1
                self._failures[key] = (count, self._clock())
            while len(self._failures) > _REMEMBERED:
                self._failures.pop(next(iter(self._failures)))

    def succeeded(self, *keys: str) -> None:
        with self._lock:
            for key in keys:
                self._failures.pop(key, None)

    def _left(self, key: str) -> float:
        count, since = self._failures.get(key, (0, 0.0))
        if count < _FREE:
            return 0.0
        blocked = min(_LONGEST_S, _FIRST_S * 2.0 ** (count - _FREE))
        return max(0.0, since + blocked - self._clock())
