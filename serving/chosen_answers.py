"""Options of commands that look back at answers in an audit store, and what they choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from vision.bundle import Bundle
from vision.calibration.stored import StoredScore
from vision.errors import SettingsError

_OPTIONS = (
    click.option("--audit", metavar="DIR_OR_URL", help="Store of `serve --audit`, instead of a file."),
    click.option("--lot", help="With --audit: answers of this lot alone."),
    click.option("--camera", help="With --audit: answers of this camera alone."),
    click.option("--since", metavar="TIME", help="With --audit: ISO 8601, UTC unless it says else; inclusive."),
    click.option("--until", metavar="TIME", help="Likewise; exclusive."),
)
_NAMES = ("audit", "lot", "camera", "since", "until")


def chosen_answers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ``take_chosen`` to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(slots=True)
class Chosen:
    """Answers of a store; ``notes`` says in words what has to be known about them."""

    audit: str
    lot: str | None
    camera: str | None
    since_ns: int | None
    until_ns: int | None
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        named = [f"{name} {value}" for name, value in (("lot", self.lot), ("camera", self.camera)) if value]
        return ", ".join(["audit store", *named])

    def scores(self, bundle: Bundle | None) -> Iterator[StoredScore]:
        """Of one model: the bundle's, or that of the newest answer.

        Raises:
            AuditError, DataError: there is no store, or no such answer.
        """
        from serving.audit import AuditPlace, Search, Store
        from serving.audit.decisions import BIASED, scored_by, stored_scores

        wanted = Search(lot=self.lot, camera=self.camera, since_ns=self.since_ns, until_ns=self.until_ns)
        if bundle is not None:
            manifest = bundle.manifest
            wanted = replace(wanted, model=manifest.name, model_version=manifest.version)
        with Store.open(AuditPlace.of(self.audit, files=Path("files"))) as store:
            wanted = scored_by(store, wanted)
            self.notes.append(f"Answers of {wanted.model} {wanted.model_version} alone: scores of two models differ.")
            self.notes.append(BIASED)
            probabilities = bundle is not None and bool(bundle.manifest.operating_point.class_thresholds)
            yield from stored_scores(store, wanted, probabilities=probabilities)

    def escape_counts(self) -> dict[str, int]:
        """For ``estimate_escapes``.

        Raises:
            AuditError, DataError: there is no store, or nobody checked a part yet.
        """
        from serving.audit import AuditPlace, Span, Store
        from serving.audit.decisions import escape_counts

        wanted = Span(lot=self.lot, camera=self.camera, since_ns=self.since_ns, until_ns=self.until_ns)
        with Store.open(AuditPlace.of(self.audit, files=Path("files"))) as store:
            return escape_counts(store, wanted)


def take_chosen(options: dict[str, Any]) -> Chosen | None:
    """Take the options out of a command's; None without ``--audit``.

    Raises:
        SettingsError: answers are chosen, and from no store; or a time is none.
    """
    audit, lot, camera, since, until = (options.pop(name) for name in _NAMES)
    if audit is None:
        if any(value is not None for value in (lot, camera, since, until)):
            raise SettingsError("--lot, --camera, --since and --until choose answers of a store; name it with --audit")
        return None
    return Chosen(audit, lot, camera, nanoseconds(since), nanoseconds(until))


def nanoseconds(text: str | None) -> int | None:
    """A time as people write it, to ns since 1970.

    Raises:
        SettingsError: it is none.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingsError(f"{text!r} is no time; write it as 2026-01-31 or 2026-01-31T06:00:00+01:00") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.replace(microsecond=0).timestamp()) * 10**9 + moment.microsecond * 1000
