"""A folder of bundles: whatever is copied into it is served."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from pathlib import Path

from serving.fleet import Fleet
from serving.logs import Event
from vision.bundle import MANIFEST
from vision.errors import DefectLensError

_PAUSE_S = 1.0
_log = logging.getLogger(__name__)


class Watcher:
    """Looks at a folder's subfolders again and again, and installs each bundle that it has not tried yet.

    Polling works on every file system that a factory shares; notifications do not. A bundle that is still being copied
    is refused for its digests and tried again once anything in it has changed.
    """

    def __init__(self, folder: Path, fleet: Fleet) -> None:
        self._folder = folder
        self._fleet = fleet
        self._tried: dict[Path, str] = {}

    def skip_known(self) -> None:
        """The bundles that serve already are not new."""
        serving = {model.serving.info.model.bundle_digest for model in self._fleet.models.values()}
        for bundle in self._bundles():
            if _manifest_digest(bundle) in serving:
                self._tried[bundle] = _state(bundle)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_PAUSE_S)

    async def look(self) -> None:
        """Install what is new, the earliest made first, so that the latest version of a name serves in the end."""
        fresh = await asyncio.to_thread(self._fresh)
        for bundle, state in fresh:
            self._tried[bundle] = state
            try:
                await self._fleet.install(bundle)
            except DefectLensError:
                continue  # told by the fleet, with the reason
            except Exception:
                _log.exception(Event("bug", folder=str(bundle)))

    def _fresh(self) -> list[tuple[Path, str]]:
        states = [(bundle, _state(bundle)) for bundle in self._bundles()]
        fresh = [(bundle, state) for bundle, state in states if self._tried.get(bundle) != state]
        return sorted(fresh, key=lambda pair: (_created(pair[0]), str(pair[0])))

    def _bundles(self) -> list[Path]:
        try:
            return sorted(path.parent for path in self._folder.glob(f"*/{MANIFEST}"))
        except OSError as error:
            _log.error(Event("watch_failed", folder=str(self._folder), message=str(error)))
            return []


def _state(bundle: Path) -> str:
    """Changes with every file of the bundle: names, sizes and times."""
    entries = []
    for path in sorted(bundle.rglob("*")):
        try:
            status = path.stat()
        except OSError:  # gone in this moment
            continue
        entries.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(entries)


def _manifest_digest(bundle: Path) -> str:
    try:
        return hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return ""


def _created(bundle: Path) -> str:
    """ISO 8601, all in UTC; empty for what cannot be read, which is then refused first."""
    try:
        return str(json.loads((bundle / MANIFEST).read_bytes())["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
