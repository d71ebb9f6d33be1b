from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from serving.audit import AuditPlace, Store
from tests.serving.audit import postgresql

_numbers = count()


class Clock:
    """ns since 1970, a second later at every look unless a test says otherwise."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000_000
        self.step = 1_000_000_000

    def __call__(self) -> int:
        self.now += self.step
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    if not postgresql.INSTALLED:
        pytest.skip(postgresql.MISSING)
    with postgresql.running() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> AuditPlace:
    """An empty place, in either database."""
    if request.param == "sqlite":
        return AuditPlace.of(tmp_path / "audit")
    server = request.getfixturevalue("postgresql_server")
    url = postgresql.create_database(server, f"audit{next(_numbers)}")
    return AuditPlace.of(url, files=tmp_path / "files")


@pytest.fixture
def store(place: AuditPlace, clock: Clock) -> Iterator[Store]:
    with Store.open(place, create=True, clock_ns=clock) as opened:
        yield opened
