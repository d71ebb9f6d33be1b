"""Which images a model has seen, and for what: so that nothing is measured or promised on what it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

from vision.errors import BundleError

SEEN_FILE = "seen.json"

Seen = dict[str, frozenset[str]]
"""By use (``train``, ``validation``, ``calibration``, ``test``), digests of the decoded pixels of the images."""


def write_seen(folder: Path, seen: Seen) -> None:
    """Into the folder of a run, or of a bundle that is being made."""
    document = {use: sorted(contents) for use, contents in seen.items()}
    (folder / SEEN_FILE).write_text(json.dumps(document) + "\n", encoding="utf-8")


def read_seen(folder: Path) -> Seen | None:
    """The inverse of ``write_seen``; None where an earlier version made the folder.

    Raises:
        BundleError: the file is not what ``write_seen`` writes.
    """
    path = folder / SEEN_FILE
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {str(use): frozenset(str(content) for content in contents) for use, contents in document.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BundleError(f"{path} cannot be read: {error}; export the bundle again") from error
