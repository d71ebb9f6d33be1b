"""The hash chain, format 1: how a record becomes bytes, and how its digest depends on every record before it.

A record's *body* is JSON text: keys sorted, no spaces, UTF-8 without escapes for letters, numbers as Python's ``repr``
writes them (the shortest text that reads back as the same float64), no NaN, no infinity. The text is stored as it was
digested and never written anew, so a reader needs no serialiser of ours to check it:

    digest(0) = SHA-256("defectlens audit 1\\n" + store id)
    digest(n) = SHA-256("defectlens audit 1\\n" + digest(n - 1), 32 bytes + body(n), UTF-8)

The body itself holds the record's number ``seq`` (1, 2, 3, ... without a gap), its kind, its time and the format ``v``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

FORMAT = 1
_PREFIX = b"defectlens audit 1\n"


def canonical(values: Mapping[str, Any]) -> str:
    """The body as text."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def first_digest(store_id: str) -> bytes:
    """What stands before record 1."""
    return hashlib.sha256(_PREFIX + store_id.encode()).digest()


def link(previous: bytes, body: str) -> bytes:
    """The digest of a record, from that of the record before it and its own body."""
    return hashlib.sha256(_PREFIX + previous + body.encode()).digest()


def finite(value: float | None) -> float | None:
    """As a body holds it: NaN and infinity, which JSON does not know, become null."""
    return None if value is None or not math.isfinite(value) else float(value)
