"""Names and times as people read them in a terminal."""

from __future__ import annotations


def printable(name: str) -> str:
    """Names come from cameras, and must not steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def duration(seconds: float) -> str:
    """Two units at most: ``3 s``, ``5 min 3 s``, ``2 h 5 min``, ``4 d 2 h``."""
    for size, name, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size:.0f} {name} {seconds % size // smaller:.0f} {small}"
    return f"{seconds:.0f} s"
