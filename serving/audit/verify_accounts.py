"""Whether the accounts are those that the records made: who gives themselves a role in the database is found out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, select

from serving.audit import schema

ADDED, CHANGED = "account-added", "account-changed"
_COMPARED = ("role", "disabled", "password", "issuer", "subject")
# Of accounts that were made before there was such a thing.
_USUAL = {"issuer": "", "subject": ""}


def said_password(password: str) -> str:
    """What a record says of a password: enough to recognise argon2's text, and nothing that could be tried out.

    The salt in that text is random and stands nowhere else, so that guesses cannot be compared with the digest.
    """
    return f"sha256 {hashlib.sha256(password.encode()).hexdigest()}" if password else ""


def account_problems(connection: Connection) -> Iterator[str]:
    """What the table says otherwise than the records, a line each."""
    recorded, table = _recorded(connection), schema.accounts
    for row in connection.execute(select(table).order_by(table.c.name)).mappings():
        wanted = recorded.pop(row["name"], None)
        if wanted is None:
            yield f"the account {row['name']!r} ({row['role']}) stands in the database, and no record made it"
            continue
        stands = {**row, "password": said_password(row["password"])}
        for name in _COMPARED:
            # Records of earlier versions only say that there is a password.
            if name in wanted and wanted[name] != stands[name] and wanted[name] != "changed":
                both = "" if name == "password" else f": the records say {wanted[name]!r}, it has {stands[name]!r}"
                yield f"the account {row['name']!r} was changed in the database, {name}{both}"
    for name in recorded:
        yield f"the account {name!r} was removed from the database; accounts are kept, even disabled ones"


def _recorded(connection: Connection) -> dict[str, dict[str, Any]]:
    """By name, what the records make of each account."""
    actions, records = schema.actions.c, schema.records.c
    query = (
        select(actions.action, records.body)
        .join_from(schema.actions, schema.records, actions.seq == records.seq)
        .where(actions.action.in_((ADDED, CHANGED)))
        .order_by(actions.seq)
    )
    found: dict[str, dict[str, Any]] = {}
    for action, text in connection.execute(query):
        body = json.loads(text)
        before = _USUAL if action == ADDED else found.get(body["subject"], _USUAL)
        found[body["subject"]] = {**before, **body["details"]}
    return found
