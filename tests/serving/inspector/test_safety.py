"""Who gets in, and what a page may do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from defectlens import main
from serving.audit import Account, Role, Store, account, accounts, actions, add_account, change_account, signed_in
from serving.inspector.passwords import Brake
from tests.serving.inspector.conftest import PASSWORD, Page, running
from vision.errors import SettingsError


class Visitor(httpx.Client):
    """A browser without a window; ``reply`` is the answer to signing in."""

    reply: httpx.Response


@contextmanager
def sign_in(url: str, name: str = "eva", password: str = PASSWORD) -> Iterator[Visitor]:
    """A visitor with a session and the token of its pages."""
    with Visitor(base_url=url, headers={"accept": "text/html"}) as client:
        form = re.search(r'name="form" value="([^"]+)"', client.get("/sign-in").text)
        assert form is not None
        values = {"name": name, "password": password, "form": form[1]}
        client.reply = client.post("/sign-in", data=values)
        token = re.search(r'name="csrf-token" content="(\w+)"', client.get("/wall").text)
        if token is not None:
            client.headers["x-csrf-token"] = token[1]
        yield client


@pytest.fixture
def eva(page: Page) -> Iterator[httpx.Client]:
    with sign_in(page.url) as client:
        yield client


def first_waiting(client: httpx.Client) -> int:
    found = re.search(r'data-seq="(\d+)"', client.get("/review/next").text)
    assert found is not None
    return int(found[1])


def test_every_answer_forbids_scripts_and_styles_from_elsewhere(page: Page, eva: httpx.Client) -> None:
    for address in ("/sign-in", "/review", "/wall", "/static/page.css", "/nothing", "/pictures/1/thumbnail.jpg"):
        policy = eva.get(address).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy


def test_pages_hold_no_inline_script_or_style(page: Page) -> None:
    with sign_in(page.url, "ada") as client:
        for address in ("/review", "/wall", "/history", "/report", "/feedback", "/models", "/accounts", "/part/7"):
            text = client.get(address).text
            assert re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=", text) is None, address
            assert re.search(r"https?://(?!www\.w3\.org/)", text) is None, address


def test_nobody_sees_anything_without_signing_in(page: Page) -> None:
    with httpx.Client(base_url=page.url) as client:
        for address in ("/review", "/wall/events", "/history", "/pictures/1/whole.png", "/part/1", "/models"):
            assert client.get(address).status_code == 401, address
            assert client.get(address, headers={"accept": "text/html"}).headers["location"].startswith("/sign-in")


def test_the_session_cookie_is_out_of_reach_for_scripts_and_other_pages(page: Page) -> None:
    with sign_in(page.url) as client:
        cookie = next(one for one in client.reply.headers.get_list("set-cookie") if "session" in one)
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    token = re.search(r"defectlens_session=([^;]+)", cookie)
    assert token is not None
    stored = page.store.place.sqlite_file
    assert stored is not None
    everything = b"".join(path.read_bytes() for path in stored.parent.glob("records.sqlite*"))
    assert token[1].encode() not in everything


def test_a_change_needs_the_token_of_the_page(page: Page, eva: httpx.Client) -> None:
    seq = first_waiting(eva)
    token = eva.headers.pop("x-csrf-token")
    assert eva.post(f"/review/{seq}", data={"verdict": "good"}).status_code == 403
    eva.headers["x-csrf-token"] = "0" * len(token)
    assert eva.post(f"/review/{seq}", data={"verdict": "good"}).status_code == 403
    eva.headers["x-csrf-token"] = token
    assert eva.post(f"/review/{seq}", data={"verdict": "good"}).status_code == 200


def test_a_request_of_another_page_is_refused(page: Page, eva: httpx.Client) -> None:
    seq = first_waiting(eva)
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
        assert eva.post(f"/review/{seq}", data={"verdict": "good"}, headers=headers).status_code == 403
    own = {"origin": page.url, "sec-fetch-site": "same-origin"}
    assert eva.post(f"/review/{seq}", data={"verdict": "good"}, headers=own).status_code == 200


def test_a_page_on_this_machine_answers_under_its_own_names_alone(page: Page) -> None:
    assert httpx.get(f"{page.url}/sign-in", headers={"host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(("name", "allowed"), [("vera", 403), ("eva", 200)])
def test_a_viewer_cannot_say_what_a_part_is(page: Page, name: str, allowed: int) -> None:
    with sign_in(page.url, name) as client:
        assert client.post("/review/7", data={"verdict": "good"}).status_code == allowed


def test_roles_hold_where_a_button_is_missing_too(page: Page, eva: httpx.Client) -> None:
    assert eva.post("/feedback").status_code == 403
    assert eva.post("/models/plate/promote", data={"reason": "x"}).status_code == 403
    new = {"name": "mallory", "role": "admin", "password": PASSWORD}
    assert eva.post("/accounts", data=new).status_code == 403
    assert account(page.store, "mallory") is None


def test_guessing_gets_slower_and_is_recorded(page: Page) -> None:
    for _ in range(5):
        with sign_in(page.url, "eva", "wrong password") as client:
            assert client.reply.status_code == 401
    with sign_in(page.url) as client:
        assert client.reply.status_code == 429
    failed = actions(page.store, action="login-failed")
    assert len(failed) == 5
    assert {one.body["person"] for one in failed} == {"eva"}


def test_the_brake_doubles_and_forgives() -> None:
    now = [0.0]
    brake = Brake(lambda: now[0])
    for _ in range(5):
        assert brake.wait_s("eva") == 0
        brake.failed("eva")
    first = brake.wait_s("eva", "other")
    now[0] += first
    assert brake.wait_s("eva") == 0
    brake.failed("eva")
    assert brake.wait_s("eva") == 2 * first
    brake.succeeded("eva")
    assert brake.wait_s("eva") == 0


def test_nobody_can_be_sent_elsewhere_by_signing_in(page: Page) -> None:
    for address in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"):
        text = httpx.get(f"{page.url}/sign-in", params={"next": address}).text
        assert 'name="next" value="/"' in text


def test_a_disabled_account_is_out_at_once(page: Page, eva: httpx.Client) -> None:
    assert eva.get("/wall").status_code == 200
    change_account(page.store, "eva", by="ada", disabled=True)
    assert eva.get("/wall/events").status_code == 303
    with sign_in(page.url) as client:
        assert client.reply.status_code == 401


def test_signing_out_ends_the_session(page: Page, eva: httpx.Client) -> None:
    token = eva.cookies["defectlens_session"]
    assert eva.post("/sign-out").status_code == 204
    assert signed_in(page.store, token) is None
    assert [one.body["person"] for one in actions(page.store, action="logout")] == ["eva"]


def test_an_admin_makes_accounts_on_the_page_and_every_step_is_recorded(page: Page) -> None:
    with sign_in(page.url, "ada") as client:
        headers = {"hx-request": "true"}
        new = {"name": "olga", "role": "inspector", "password": "olga's first one"}
        assert "can sign in now" in client.post("/accounts", data=new, headers=headers).text
        client.post("/accounts/olga", data={"role": "engineer"}, headers=headers)
        assert "own account" in client.post("/accounts/ada", data={"disabled": "true"}, headers=headers).text
    found = account(page.store, "olga")
    assert found is not None
    assert found.role is Role.ENGINEER
    said = [one.body for one in actions(page.store, person="ada") if one.body["subject"] == "olga"]
    assert [one["action"] for one in said] == ["account-changed", "account-added"]
    assert "argon2" not in json.dumps(said)


def test_one_s_own_password_takes_the_old_one(page: Page, eva: httpx.Client) -> None:
    headers = {"hx-request": "true"}
    wrong = eva.post("/accounts/password", data={"old": "guessed it?", "new": "another long one"}, headers=headers)
    assert "not right" in wrong.text
    right = eva.post("/accounts/password", data={"old": PASSWORD, "new": "another long one"}, headers=headers)
    assert right.headers["hx-redirect"] == "/sign-in"
    with sign_in(page.url, "eva", "another long one") as client:
        assert client.reply.status_code == 303


def test_names_that_could_be_mistaken_are_refused(store: Store) -> None:
    for name in ("server", "Eva", "", "eva smith", "a" * 41, "-eva"):
        with pytest.raises(SettingsError, match="name of an account"):
            Account(name, Role.VIEWER, "x")
    with pytest.raises(SettingsError, match="already"):
        add_account(store, Account("eva", Role.ADMIN, "x"), by="tests")
    found = account(store, "eva")
    assert found is not None
    assert found.role is Role.INSPECTOR


def test_accounts_by_command(tmp_path: Path) -> None:
    def run(*words: Any) -> Any:
        return CliRunner().invoke(main, ["inspector", *map(str, words)])

    secret, db = tmp_path / "secret", tmp_path / "audit"
    secret.write_text("a first password\n")
    done = run("user", "add", "ada", "--role", "admin", "--password-file", secret, "--db", db)
    assert done.exit_code == 0, done.output
    assert run("user", "add", "ada", "--role", "admin", "--password-file", secret, "--db", db).exit_code == 2
    assert run("user", "disable", "ada", "--db", db).exit_code == 0
    assert json.loads(run("user", "list", "--db", db, "--json").stdout) == {"ada": {"role": "admin", "disabled": True}}
    secret.write_text("short\n")
    refused = run("user", "add", "eva", "--role", "viewer", "--password-file", secret, "--db", db)
    assert refused.exit_code == 2
    assert "10 to 200" in refused.output


def test_the_first_start_says_what_to_type(tmp_path: Path) -> None:
    with Store.open(tmp_path / "audit", create=True) as store:
        assert accounts(store) == []
        for page in running(store):
            text = httpx.get(f"{page.url}/sign-in").text
            assert "defectlens inspector user add" in text
            assert "password" not in text
