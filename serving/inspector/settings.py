"""What the page is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from serving.inspector.oidc import OidcSettings
from vision.errors import SettingsError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSettings:
    """``db``: the audit store, see ``AuditPlace.of``. ``server``: the inspection server's address, for what only it
    knows (drift, the model's figures); empty shows pages without it. ``admin``: its admin address, for promotions.

    ``session_s``: how long a person stays signed in, at most. ``hosts``: names under which browsers may ask for the
    page, besides ``host``. ``certificate`` and ``certificate_key``: PEM files, for HTTPS.

    ``oidc``: the OpenID provider that people may sign in with.
    """

    db: str
    files: Path | None = None
    server: str = ""
    admin: str = ""
    host: str = "127.0.0.1"
    port: int = 8080
    hosts: tuple[str, ...] = ()
    session_s: float = 12 * 3600.0
    certificate: Path | None = None
    certificate_key: Path | None = None
    oidc: OidcSettings | None = None
    poll_s: float = field(default=0.1)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"a port is 0..65535, 0 taking a free one; got {self.port}")
        if (self.certificate is None) != (self.certificate_key is None):
            raise SettingsError("HTTPS needs a certificate and its key; give --certificate and --certificate-key")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in _LOOPBACK or self.host.startswith("127.")

    @property
    def allowed_hosts(self) -> tuple[str, ...]:
        """Names that the Host header may carry; empty: any, since nobody can know how a network calls this machine."""
        if self.is_loopback:
            return (*_LOOPBACK, self.host, *self.hosts)
        return (*_LOOPBACK, self.host, *self.hosts) if self.hosts else ()
