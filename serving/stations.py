"""Stations: lines of a factory that are checked with master parts, and stopped where the check fails."""

from __future__ import annotations

import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serving.live import StationStatus
from serving.logs import Event
from vision.errors import NotAuthorizedError, SettingsError, StationStoppedError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MasterResult:
    """One master part. ``margin``: how far its score lies on the right side of the threshold, negative on the wrong
    one; None without an anomaly score. ``last_margin``, ``first_margin``: of the last and the first check that passed
    with the same bundle. ``problem`` is empty if all is well.
    """

    name: str
    good: bool
    verdict: str
    anomaly_score: float | None
    margin: float | None
    last_margin: float | None = None
    first_margin: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class StationCheck:
    """One check of a station; ``compared``: there was an earlier one that passed with the same bundle."""

    station: str
    by: str
    model: str
    bundle_digest: str
    parts: tuple[MasterResult, ...]
    problems: tuple[str, ...]
    compared: bool

    @property
    def passed(self) -> bool:
        return not self.problems


@dataclass
class _Station:
    cameras: tuple[str, ...]
    serving: bool = True
    reason: str = "not checked yet"
    checked_at: float | None = None
    passed: bool = False
    overridden_by: str = ""
    # By bundle digest: margins of master parts in the first and in the last check that passed.
    first: dict[str, dict[str, float]] = field(default_factory=dict)
    last: dict[str, dict[str, float]] = field(default_factory=dict)


class Stations:
    """All stations of a server. What happened to them is kept in a file of JSON lines, and holds after a new start.

    Args:
        cameras: of each station. A frame belongs to the station that it names, or else to its camera's.
        path: the file; it is added to and never rewritten.
        token: of those who may override a failed check; empty: nobody may.
        clock: seconds since 1970.

    Raises:
        SettingsError: the file cannot be read or written, or a camera belongs to two stations.
    """

    def __init__(
        self,
        cameras: Mapping[str, tuple[str, ...]],
        path: Path | None = None,
        token: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.changed: Callable[[str, bool], None] = lambda station, serving: None  # noqa: ARG005
        """Called with a station and whether it serves, after a check or an override."""
        self._stations = {name: _Station(known) for name, known in cameras.items()}
        self._of_camera = {camera: name for name, known in cameras.items() for camera in known}
        if len(self._of_camera) != sum(map(len, cameras.values())):
            raise SettingsError(f"a camera belongs to one station; got {dict(cameras)}")
        self._path, self._token, self._clock = path, token, clock
        self._lock = threading.Lock()
        if path is not None and self._stations:
            self._replay(path)

    def admit(self, station: str, camera: str) -> None:
        """Let a frame through.

        Raises:
            SettingsError: it names a station that there is not.
            StationStoppedError: its station is stopped.
        """
        if not self._stations and not station:
            return
        name = station or self._of_camera.get(camera, "")
        if not name:
            return
        found = self._get(name)
        if not found.serving:
            raise StationStoppedError(f"station {name} is stopped: {found.reason}")

    def margins(self, station: str, bundle_digest: str) -> tuple[dict[str, float], dict[str, float]]:
        """Of the master parts, by name: in the first and in the last check that passed with a bundle."""
        found = self._get(station)
        return found.first.get(bundle_digest, {}), found.last.get(bundle_digest, {})

    def record(self, check: StationCheck) -> None:
        """Write a check down; the station serves if it passed, and stops if not."""
        entry = {"event": "check", **asdict(check), "passed": check.passed}
        self._note(check.station, entry)
        event = Event("station_checked", station=check.station, passed=check.passed, by=check.by)
        (_log.info if check.passed else _log.error)(event)

    def override(self, station: str, *, token: str, by: str, reason: str) -> StationStatus:
        """Let a stopped station serve until its next check.

        Raises:
            NotAuthorizedError: the token is not the server's.
            SettingsError: no such station, or it is not stopped; nobody is named, or no reason.
        """
        found = self._get(station)
        if not self._token or not hmac.compare_digest(token.encode(), self._token.encode()):
            why = "this one is not the server's" if self._token else "the server was started without one"
            _log.error(Event("override_refused", station=station, by=by))
            raise NotAuthorizedError(f"an override needs the token of --override-token-file, and {why}")
        if not by.strip() or not reason.strip():
            raise SettingsError("an override needs who does it and why: --by NAME --reason TEXT")
        if found.serving:
            raise SettingsError(f"station {station} is not stopped; there is nothing to override")
        self._note(station, {"event": "override", "station": station, "by": by, "reason": reason})
        _log.warning(Event("station_overridden", station=station, by=by, reason=reason))
        return self.status(station)

    def status(self, station: str) -> StationStatus:
        """One station."""
        found = self._get(station)
        return StationStatus(
            station,
            found.serving,
            found.reason,
            found.checked_at,
            found.passed,
            found.overridden_by,
            found.cameras,
        )

    def all(self) -> tuple[StationStatus, ...]:
        """Every station."""
        return tuple(self.status(name) for name in self._stations)

    def _get(self, name: str) -> _Station:
        if name not in self._stations:
            known = ", ".join(map(repr, self._stations)) or "none"
            raise SettingsError(f"no station is called {name!r}; this server was started with {known} (--station)")
        return self._stations[name]

    def _note(self, station: str, entry: dict[str, Any]) -> None:
        """First on disk, then in force: what was said must be what is found after a new start."""
        entry = {"at": self._clock(), **entry}
        with self._lock:
            if self._path is not None:
                line = json.dumps(entry, ensure_ascii=False) + "\n"
                with self._path.open("a", encoding="utf-8") as stream:
                    stream.write(line)
                    stream.flush()
                    os.fsync(stream.fileno())
            _apply(self._stations[station], entry)
        self.changed(station, self._stations[station].serving)

    def _replay(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            lines = path.read_text(encoding="utf-8").splitlines()
            for line in lines:
                entry = json.loads(line)
                if entry["station"] in self._stations:
                    _apply(self._stations[entry["station"]], entry)
        except OSError as error:
            raise SettingsError(f"the stations' file {path} cannot be used: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"the stations' file {path} is damaged ({error}); mend or move it: without it, a station that was "
                "stopped would serve again"
            ) from error


def _apply(station: _Station, entry: Mapping[str, Any]) -> None:
    if entry["event"] == "override":
        station.serving, station.overridden_by = True, str(entry["by"])
        station.reason = f"overridden by {entry['by']}: {entry['reason']} (the last check failed)"
        return
    passed = bool(entry["passed"])
    station.serving = station.passed = passed
    station.checked_at, station.overridden_by = float(entry["at"]), ""
    problems = [str(problem) for problem in entry["problems"]]
    station.reason = f"all {len(entry['parts'])} master parts are as they should be" if passed else "; ".join(problems)
    if passed:
        margins = {part["name"]: part["margin"] for part in entry["parts"] if part["margin"] is not None}
        station.first.setdefault(entry["bundle_digest"], margins)
        station.last[entry["bundle_digest"]] = margins
