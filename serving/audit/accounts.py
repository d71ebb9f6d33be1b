"""Accounts of the inspector's page, and who is signed in. They may change; that they did is recorded in the chain."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from serving.audit import append, schema
from serving.audit.database import writing
from serving.audit.records import Action
from serving.audit.store import Store
from serving.audit.verify_accounts import ADDED, CHANGED, said_password
from vision.errors import AuditError, SettingsError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
# Records of the server itself bear this name.
_RESERVED = "server"
_accounts, _sessions = schema.accounts, schema.sessions


class Role(enum.StrEnum):
    """What a person may do. Each may do what those before may.

    ``VIEWER`` looks; ``INSPECTOR`` says what parts are; ``ENGINEER`` changes models and takes data out; ``ADMIN`` makes
    accounts.
    """

    VIEWER = "viewer"
    INSPECTOR = "inspector"
    ENGINEER = "engineer"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Account:
    """One person. ``password``: as argon2 wrote it, never the password itself; empty where there is none.

    ``issuer`` and ``subject``: who this is to an OpenID provider; empty for those whom none knows.
    """

    name: str
    role: Role
    password: str
    disabled: bool = False
    created_ns: int = 0
    issuer: str = ""
    subject: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == _RESERVED:
            raise SettingsError(
                "the name of an account has 1 to 40 small letters, digits, dots, dashes and underscores, begins with a "
                f"letter or digit and is not {_RESERVED!r}; got {self.name!r}"
            )


def accounts(store: Store) -> list[Account]:
    """All of them, by name."""
    with store.reading() as connection:
        rows = connection.execute(select(_accounts).order_by(_accounts.c.name))
        return [_account(row._mapping) for row in rows]


def account(store: Store, name: str) -> Account | None:
    """One of them; None where there is none of this name."""
    with store.reading() as connection:
        return _find(connection, name)


def account_of(store: Store, issuer: str, subject: str) -> Account | None:
    """The account of a provider's person; None where there is none."""
    query = select(_accounts).where(_accounts.c.issuer == issuer, _accounts.c.subject == subject)
    with store.reading() as connection:
        row = connection.execute(query).first()
    return None if row is None else _account(row._mapping)


def add_account(store: Store, new: Account, *, by: str) -> None:
    """Make an account.

    Raises:
        SettingsError: there is one of this name already.
    """
    with _changing(store) as connection:
        if _find(connection, new.name) is not None:
            raise SettingsError(f"there is an account {new.name!r} already; accounts are kept, even disabled ones")
        row = {"name": new.name, "role": new.role.value, "password": new.password, "disabled": new.disabled}
        row |= {"issuer": new.issuer, "subject": new.subject}
        connection.execute(_accounts.insert(), row | {"created_ns": store.now_ns()})
        _record(store, connection, Action(action=ADDED, person=by, subject=new.name, details=_said(row)))


def change_account(
    store: Store,
    name: str,
    *,
    by: str,
    role: Role | None = None,
    password: str | None = None,
    disabled: bool | None = None,
    provider: tuple[str, str] | None = None,
) -> None:
    """Change what is given. Whoever gets another password or is disabled is signed out everywhere.

    Args:
        provider: issuer and subject of the person to whom the account belongs from now on.

    Raises:
        SettingsError: there is no such account.
    """
    given: dict[str, Any] = {"role": role and role.value, "password": password, "disabled": disabled}
    if provider is not None:
        given |= dict(zip(("issuer", "subject"), provider, strict=True))
    values = {key: value for key, value in given.items() if value is not None}
    with _changing(store) as connection:
        if _find(connection, name) is None:
            raise SettingsError(f"there is no account {name!r}; `defectlens inspector user list` shows all")
        connection.execute(update(_accounts).where(_accounts.c.name == name).values(values))
        if password is not None or disabled or provider is not None:
            connection.execute(delete(_sessions).where(_sessions.c.name == name))
        _record(store, connection, Action(action=CHANGED, person=by, subject=name, details=_said(values)))


def sign_in(store: Store, name: str, token: str, lifetime_s: float, details: Mapping[str, Any]) -> None:
    """Remember that ``token`` is this person's, and record that they came. Forgets sessions that are over."""
    now = store.now_ns()
    with _changing(store) as connection:
        connection.execute(delete(_sessions).where(_sessions.c.expires_ns < now))
        row = {"token": _digest(token), "name": name, "created_ns": now, "expires_ns": now + int(lifetime_s * 1e9)}
        connection.execute(_sessions.insert(), row)
        _record(store, connection, Action(action="login", person=name, details=details))


def sign_out(store: Store, token: str, name: str) -> None:
    """Forget the session, and record that they went."""
    with _changing(store) as connection:
        connection.execute(delete(_sessions).where(_sessions.c.token == _digest(token)))
        _record(store, connection, Action(action="logout", person=name))


def signed_in(store: Store, token: str) -> Account | None:
    """Whose session this is; None where it is over, or the account is disabled."""
    query = select(_accounts).join_from(_accounts, _sessions, _sessions.c.name == _accounts.c.name)
    valid = (_sessions.c.token == _digest(token), _sessions.c.expires_ns >= store.now_ns(), ~_accounts.c.disabled)
    with store.reading() as connection:
        row = connection.execute(query.where(*valid)).first()
    return None if row is None else _account(row._mapping)


@contextmanager
def _changing(store: Store) -> Iterator[Connection]:
    """A writing transaction whose failures are told as the store's own."""
    try:
        with writing(store.engine) as connection:
            yield connection
    except SQLAlchemyError as error:
        raise AuditError(
            f"the accounts in {store.place.shown} cannot be changed: {getattr(error, 'orig', None) or error}"
        ) from error


def _record(store: Store, connection: Connection, action: Action) -> None:
    append.append(connection, store.files, store.store_id, [action], [], store.now_ns())


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded of a change: never a password, only what tells whether it is still the same."""
    return {key: said_password(value) if key == "password" else value for key, value in values.items()}


def _find(connection: Connection, name: str) -> Account | None:
    row = connection.execute(select(_accounts).where(_accounts.c.name == name)).first()
    return None if row is None else _account(row._mapping)


def _account(row: Mapping[Any, Any]) -> Account:
    return Account(**{**row, "role": Role(row["role"])})


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
