"""A store with a line's parts in it, the page over it on a real port, and a real browser."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from argon2 import PasswordHasher

from serving.audit import Account, Role, Store, add_account
from serving.inspector import PageSettings, create_app, passwords
from tests.serving.inspector import plates

PASSWORD = "long enough for tests"  # noqa: S105
PEOPLE = {"vera": Role.VIEWER, "eva": Role.INSPECTOR, "ivan": Role.INSPECTOR, "erik": Role.ENGINEER, "ada": Role.ADMIN}


@dataclass(frozen=True)
class Page:
    """A running page; ``url`` without a slash at its end."""

    url: str
    store: Store
    app: Any


@pytest.fixture(scope="session", autouse=True)
def _quick_passwords() -> Iterator[None]:
    """Argon2 is slow on purpose; here it is only to be right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_hasher", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        yield


@pytest.fixture(scope="session")
def hashed(_quick_passwords: None) -> str:
    return passwords.hash_password(PASSWORD)


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory, hashed: str) -> Path:
    """A store to be copied: making the pictures takes a second."""
    folder = tmp_path_factory.mktemp("line") / "audit"
    with Store.open(folder, create=True) as store:
        for name, role in PEOPLE.items():
            add_account(store, Account(name, role, hashed), by="tests")
        plates.fill(store)
    return folder


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Iterator[Store]:
    shutil.copytree(filled, tmp_path / "audit")
    with Store.open(tmp_path / "audit") as opened:
        yield opened


@pytest.fixture
def page(store: Store) -> Iterator[Page]:
    yield from running(store)


def running(store: Store, **options: Any) -> Iterator[Page]:
    """The page on a free port until the generator is closed."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    app = create_app(PageSettings(db=str(store.place.url), port=port, **options), store)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield Page(f"http://127.0.0.1:{port}", store, app)
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


def chromium() -> str | None:
    """Where Debian's browser is; None where there is none."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; no longer than its module, for its event loop must not run beside those of other tests."""
    path = chromium()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("the tests of the page need chromium: apt-get install chromium")
        pytest.skip("no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()
