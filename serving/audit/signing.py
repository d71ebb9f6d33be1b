"""Signed checkpoints: statements that the chain had a certain digest at a certain record, which only the key can make.

A statement is JSON as in ``serving.audit.chain``: ``digest``, ``key``, ``seq``, ``store``, ``time_ns`` and
``v``. Its signature is Ed25519 (RFC 8032) over ``"defectlens checkpoint 1\\n"`` and the statement in UTF-8. ``key`` is
the SHA-256 of the public key's 32 bytes, in hex.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import select

from serving.audit import schema
from serving.audit.append import head
from serving.audit.chain import canonical
from serving.audit.database import writing
from serving.audit.store import Store
from vision.errors import AuditError, SettingsError

FORMAT = 1
PUBLIC_SUFFIX = ".pub"
_PREFIX = b"defectlens checkpoint 1\n"
_OTHERS_MAY_READ = 0o077


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A statement and its signature. ``key``: which key is said to have signed it."""

    seq: int
    digest: str
    store_id: str
    time_ns: int
    key: str
    statement: str
    signature: bytes

    @classmethod
    def read(cls, statement: str, signature: bytes) -> Checkpoint:
        """From the text that was signed.

        Raises:
            AuditError: it is no statement of ours.
        """
        try:
            said = json.loads(statement)
            known = {name: said[name] for name in ("seq", "digest", "time_ns", "key")}
            if said["v"] != FORMAT:
                raise AuditError(f"a checkpoint has format {said['v']!r}, this program reads {FORMAT}")
            return cls(store_id=said["store"], statement=statement, signature=signature, **known)
        except (ValueError, KeyError, TypeError) as error:
            raise AuditError(f"no checkpoint can be read from {statement[:80]!r}: {error!r}") from error

    def line(self) -> str:
        """As it is exported: one JSON object."""
        return json.dumps({"statement": self.statement, "signature": self.signature.hex()})


class Signer:
    """A private key that makes checkpoints."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @classmethod
    def at(cls, path: Path) -> Signer:
        """The key in a file; it is made, readable for its owner alone, where there is none yet. Beside it lies the
        public key, ``PATH.pub``.

        Raises:
            SettingsError: others may read the key, or the file holds none.
        """
        if not path.exists():
            _make(path)
        try:
            if path.stat().st_mode & _OTHERS_MAY_READ:
                raise SettingsError(
                    f"the key {path} can be read by others than its owner, so its signatures prove nothing; "
                    f"`chmod 600 {path}`, or remove it if others may have read it, and a new one is made"
                )
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(f"the key {path} cannot be read: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingsError(f"{path} holds no Ed25519 key; name another file with --audit-key")
        return cls(key)

    def sign(self, seq: int, digest: bytes, store_id: str, time_ns: int) -> Checkpoint:
        values = {"v": FORMAT, "seq": seq, "digest": digest.hex(), "store": store_id, "time_ns": time_ns}
        statement = canonical(values | {"key": self.public.name})
        return Checkpoint.read(statement, self._key.sign(_PREFIX + statement.encode()))


class PublicKey:
    """What checks signatures. ``name`` is the SHA-256 of the key in hex."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.name = hashlib.sha256(raw).hexdigest()

    @classmethod
    def at(cls, path: Path) -> PublicKey:
        """The key in a PEM file.

        Raises:
            SettingsError: there is none.
        """
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError(f"the public key {path} cannot be read: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise SettingsError(f"{path} holds no Ed25519 key")
        return cls(key)

    def pem(self) -> bytes:
        return self._key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def signed(self, checkpoint: Checkpoint) -> bool:
        """Whether this key made the signature."""
        try:
            self._key.verify(checkpoint.signature, _PREFIX + checkpoint.statement.encode())
        except InvalidSignature:
            return False
        return checkpoint.key == self.name


def make_checkpoint(store: Store, signer: Signer, time_ns: int) -> Checkpoint | None:
    """Sign the end of the chain and keep the statement in the store; None where that was done already, or nothing is
    recorded yet.

    Raises:
        AuditError: it cannot be written.
    """
    table = schema.checkpoints
    with store.guarded(), writing(store.engine) as connection:
        last = head(connection, store.store_id)
        known = connection.execute(select(table.c.seq).where(table.c.seq == last.seq)).first()
        if last.seq == 0 or known is not None:
            return None
        made = signer.sign(last.seq, last.digest, store.store_id, max(time_ns, last.time_ns))
        row = {"seq": made.seq, "statement": made.statement, "signature": made.signature, "key": made.key}
        connection.execute(table.insert(), row)
        return made


def kept_checkpoints(store: Store) -> list[Checkpoint]:
    """All that the store holds, in order.

    Raises:
        AuditError: one of them is none of ours.
    """
    table = schema.checkpoints.c
    with store.reading() as connection:
        rows = connection.execute(select(table.statement, table.signature).order_by(table.seq)).all()
    return [Checkpoint.read(statement, signature) for statement, signature in rows]


def write_checkpoints(path: Path, checkpoints: Iterable[Checkpoint]) -> None:
    """Export as JSON lines."""
    path.write_text("".join(one.line() + "\n" for one in checkpoints), encoding="utf-8")


def read_checkpoints(path: Path) -> Iterator[Checkpoint]:
    """What ``write_checkpoints`` wrote.

    Raises:
        AuditError: a line is no checkpoint; says which.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the checkpoints {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            entry: dict[str, Any] = json.loads(line)
            yield Checkpoint.read(entry["statement"], bytes.fromhex(entry["signature"]))
        except (ValueError, KeyError, TypeError, AuditError) as error:
            raise AuditError(f"{path}, line {number}: no checkpoint ({error})") from error


def _make(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Never there with other permissions, and never over a key that another process made meanwhile.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(pem)
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError:
        return
    except OSError as error:
        raise SettingsError(f"the key {path} cannot be made: {error}; name a file with --audit-key") from error
    path.with_name(path.name + PUBLIC_SUFFIX).write_bytes(PublicKey(key.public_key()).pem())
