"""Accounts that somebody changed behind the page's back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, delete, update

from serving.audit import Account, Role, Store, add_account, change_account
from serving.audit.schema import accounts
from serving.audit.verify import verify


@pytest.fixture
def people(store: Store) -> Store:
    add_account(store, Account("eva", Role.INSPECTOR, "$argon2id$one"), by="tests")
    add_account(store, Account("olga", Role.VIEWER, "", issuer="https://sso.example", subject="1"), by="oidc")
    change_account(store, "eva", by="ada", role=Role.ENGINEER)
    change_account(store, "eva", by="eva", password="$argon2id$two")  # noqa: S106, as argon2 would write it
    change_account(store, "olga", by="ada", disabled=True)
    change_account(store, "olga", by="ada", disabled=False, provider=("https://sso.example", "2"))
    return store


def test_accounts_that_the_page_made_and_changed_are_intact(people: Store) -> None:
    assert verify(people).problems == []


CHANGES: dict[str, tuple[Callable[[Connection], object], str]] = {
    "role": (lambda db: db.execute(update(accounts).where(accounts.c.name == "eva").values(role="admin")), "'admin'"),
    "password": (
        lambda db: db.execute(update(accounts).where(accounts.c.name == "eva").values({"password": "x"})),
        "password",
    ),
    "enabled": (
        lambda db: db.execute(update(accounts).where(accounts.c.name == "olga").values(disabled=True)),
        "disabled",
    ),
    "person": (lambda db: db.execute(update(accounts).where(accounts.c.name == "olga").values(subject="1")), "subject"),
    "removed": (lambda db: db.execute(delete(accounts).where(accounts.c.name == "olga")), "removed"),
    "added": (
        lambda db: db.execute(
            accounts.insert().values(
                {"name": "eve", "role": "admin", "password": "x", "disabled": False, "created_ns": 1}
            )
        ),
        "no record made it",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_account_that_was_changed_in_the_database_is_found(people: Store, what: str) -> None:
    change, word = CHANGES[what]
    with people.engine.begin() as connection:
        change(connection)
    problems = verify(people).problems
    assert len(problems) == 1
    assert word in problems[0]
