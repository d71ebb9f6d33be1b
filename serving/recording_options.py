"""What can be chosen about recording, without loading what recording needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import click

from vision.errors import SettingsError

SERVER = "server"
"""Stands where a record names a person, for what the server did by itself."""
AuditMode = Literal["strict", "best-effort"]
_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """How a server records its answers.

    Args:
        where: folder or URL of the store.
        mode: ``strict``: no verdict leaves before its record is durable. ``best-effort``: answers wait for nothing;
            records that cannot be written are counted and told.
        files: folder of frames and maps; None takes the store's usual one.
        key: private key of the checkpoints; None takes the store's usual one.
        checkpoint_every: records between two signed checkpoints.
        sample: share of passed parts that a person is to check, 0..1.
    """

    where: str
    mode: AuditMode = "strict"
    files: Path | None = None
    key: Path | None = None
    checkpoint_every: int = 1000
    sample: float = 0.01

    def __post_init__(self) -> None:
        if self.mode not in get_args(AuditMode):
            raise SettingsError(f"the audit mode is one of {', '.join(get_args(AuditMode))}; got {self.mode!r}")
        if self.checkpoint_every < 1:
            raise SettingsError(f"a checkpoint is made after 1 record or more; got {self.checkpoint_every}")
        if not 0.0 <= self.sample <= 1.0:
            raise SettingsError(f"the share of passed parts to be checked is in 0..1; got {self.sample}")


_OPTIONS = (
    click.option("--audit", metavar="DIR_OR_URL", help="Record every answer in this store (docs/audit.md)."),
    click.option(
        "--audit-mode",
        type=click.Choice(get_args(AuditMode)),
        default="strict",
        show_default=True,
        help="strict: no verdict leaves unrecorded; best-effort: answers never wait, what is lost is counted.",
    ),
    click.option("--audit-files", type=_FOLDER, help="Where frames and maps lie; needed for PostgreSQL."),
    click.option("--audit-key", type=_FILE, help="Private key of the checkpoints; made at first use."),
    click.option(
        "--audit-sample", type=float, default=0.01, show_default=True, help="Share of passed parts for a person."
    ),
)


def audit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ``audit_settings`` to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def audit_settings(options: dict[str, Any]) -> AuditSettings | None:
    """Take the options out of a command's; None where nothing is to be recorded."""
    where, mode, files = options.pop("audit"), options.pop("audit_mode"), options.pop("audit_files")
    key, sample = options.pop("audit_key"), options.pop("audit_sample")
    return None if where is None else AuditSettings(where=where, mode=mode, files=files, key=key, sample=sample)
