"""Signing in by way of an OpenID provider that is really there, with tokens that are really signed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from click.testing import CliRunner
from joserfc.jwk import OctKey, RSAKey

from defectlens import main
from serving.audit import Role, Store, account, actions, change_account
from serving.inspector.oidc import OidcSettings, mapped_role
from tests.serving.inspector.conftest import Page, running
from tests.serving.inspector.openid_provider import CLIENT, SECRET, OpenIdProvider, running_provider
from vision.errors import SettingsError


@pytest.fixture(scope="module")
def shared() -> Iterator[OpenIdProvider]:
    with running_provider() as running:
        yield running


@pytest.fixture
def provider(shared: OpenIdProvider) -> OpenIdProvider:
    fresh = OpenIdProvider(issuer=shared.issuer, signing_key=shared.signing_key)
    shared.__dict__.update(fresh.__dict__)
    return shared


def settings(provider: OpenIdProvider, **options: Any) -> OidcSettings:
    return OidcSettings(issuer=provider.issuer, client_id=CLIENT, secret=SECRET, **options)


@pytest.fixture
def oidc_page(store: Store, provider: OpenIdProvider, request: pytest.FixtureRequest) -> Iterator[Page]:
    yield from running(store, oidc=settings(provider, **getattr(request, "param", {})))


def visit(page: Page, address: str = "/sign-in/oidc") -> tuple[httpx.Client, httpx.Response]:
    """To the provider and back with one browser; the last answer."""
    client = httpx.Client(base_url=page.url, headers={"accept": "text/html"}, follow_redirects=True)
    _open.append(client)
    return client, client.get(address)


_open: list[httpx.Client] = []


@pytest.fixture(autouse=True)
def _closing() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def test_the_first_sign_in_makes_an_account_with_the_least_role(oidc_page: Page, provider: OpenIdProvider) -> None:
    client, reply = visit(oidc_page, "/sign-in/oidc?next=/history")
    assert reply.status_code == 200
    assert 'content="0;url=/history"' in reply.text
    assert client.get("/wall").status_code == 200
    made = account(oidc_page.store, "olga")
    assert made is not None
    assert (made.role, made.issuer, made.subject, made.password) == (Role.VIEWER, provider.issuer, "0001", "")
    told = [one.body for one in actions(oidc_page.store, limit=2)]
    assert [one["action"] for one in told] == ["login", "account-added"]
    assert told[0]["details"]["subject"] == "0001"
    assert provider.seen[0]["nonce"]
    # No password leads to it: there is none.
    token = client.get("/wall").text.split('csrf-token" content="')[1].split('"')[0]
    left = client.post("/sign-out", headers={"x-csrf-token": token})
    client.get(left.headers["hx-redirect"])
    assert provider.ended[0]["client_id"] == CLIENT
    assert client.get("/wall").url.path == "/sign-in"
    assert actions(oidc_page.store, action="logout")


def refused(page: Page) -> str:
    client, reply = visit(page)
    assert reply.status_code == 403, reply.text
    assert client.get("/wall").url.path == "/sign-in"
    assert account(page.store, "olga") is None
    return str(actions(page.store, action="login-failed")[0].body["reason"])


def test_tokens_that_are_not_for_this_sign_in_are_refused(oidc_page: Page, provider: OpenIdProvider) -> None:
    lies: dict[str, Any] = {
        "nonce": lambda claims: claims.update(nonce="another"),
        "aud": lambda claims: claims.update(aud="another-page", azp=CLIENT),
        "expired": lambda claims: claims.update(exp=int(time.time()) - 600),
        "iss": lambda claims: claims.update(iss="https://evil.example"),
    }
    for word, lie in lies.items():
        provider.lie = lie
        assert word in refused(oidc_page), word
    provider.lie = lambda claims: claims.pop("nonce")
    assert "nonce" in refused(oidc_page)


def test_signatures_of_others_and_none_are_refused(oidc_page: Page, provider: OpenIdProvider) -> None:
    real = provider.signing_key
    provider.published_key, provider.signing_key = real, RSAKey.generate_key(2048, {"kid": "k1"})
    assert "signature" in refused(oidc_page)
    # A secret that both sides know signs nothing, whatever the provider says that it can do.
    provider.signing_key, provider.header = OctKey.import_key(SECRET), {"alg": "HS256", "kid": "k1"}
    refused(oidc_page)
    provider.signing_key, provider.header = real, {"alg": "RS256", "kid": "k1"}


def test_a_state_that_this_browser_never_had_is_refused(oidc_page: Page, provider: OpenIdProvider) -> None:
    client = httpx.Client(base_url=oidc_page.url)
    _open.append(client)
    there = client.get("/sign-in/oidc").headers["location"]
    back = httpx.get(there).headers["location"]
    # Somebody else's browser: it has no cookie of this sign-in.
    other = httpx.get(back, headers={"accept": "text/html"})
    assert other.status_code == 403
    assert "defectlens_session" not in str(other.headers)
    state = parse_qs(urlsplit(back).query)["state"][0]
    assert client.get(back.replace(state, state[::-1])).status_code == 403
    # And once used, it is used.
    assert client.get(back).status_code == 403
    assert {one.body["person"] for one in actions(oidc_page.store, action="login-failed")} == {"nobody"}


@pytest.mark.parametrize("oidc_page", [{"roles": {"qm": Role.ENGINEER, "line": Role.INSPECTOR}}], indirect=True)
def test_the_provider_s_groups_decide_at_every_sign_in(oidc_page: Page, provider: OpenIdProvider) -> None:
    expected = ((["line", "qm", "x"], Role.ENGINEER), (["line"], Role.INSPECTOR), ([], Role.VIEWER))
    for groups, role in expected:
        provider.person = {"sub": "7", "preferred_username": "Jürgen Müller", "groups": groups}
        visit(oidc_page)
        found = account(oidc_page.store, "j-rgen-m-ller")
        assert found is not None
        assert found.role is role
    assert len(actions(oidc_page.store, action="account-changed", person="oidc")) == 2


@pytest.mark.parametrize("oidc_page", [{"roles": {"line": Role.INSPECTOR}, "mapped_only": True}], indirect=True)
def test_who_has_no_group_stays_outside_where_that_is_wanted(oidc_page: Page) -> None:
    assert "none of your groups" in refused(oidc_page)


def test_a_name_is_no_proof_of_who_somebody_is(oidc_page: Page, provider: OpenIdProvider) -> None:
    provider.person = {"sub": "666", "preferred_username": "ada"}  # there is an admin of this name
    client, reply = visit(oidc_page)
    assert reply.status_code == 403
    assert client.get("/wall").url.path == "/sign-in"
    command = re.search(r"defectlens inspector user link ada --issuer (\S+) --subject (\S+)", reply.text)
    assert command is not None
    words = ["user", "link", "ada", "--issuer", command[1], "--subject", command[2]]
    done = CliRunner().invoke(main, ["inspector", *words, "--db", str(Path(oidc_page.store.place.files).parent)])
    assert done.exit_code == 0, done.output
    client, reply = visit(oidc_page)
    assert "ada" in client.get("/accounts").text
    change_account(oidc_page.store, "ada", by="tests", disabled=True)
    assert client.get("/wall").url.path == "/sign-in"
    assert visit(oidc_page)[1].status_code == 403


def test_a_provider_that_is_away_or_somebody_else_is_told(store: Store, provider: OpenIdProvider) -> None:
    provider.metadata = {"issuer": "https://elsewhere.example"}
    for page in running(store, oidc=settings(provider)):
        _, reply = visit(page)
        assert reply.status_code == 502
        assert "elsewhere.example" in reply.text
        provider.metadata = {}
        assert visit(page)[1].status_code == 200
    nowhere = OidcSettings(issuer="http://127.0.0.1:9", client_id=CLIENT)
    for page in running(store, oidc=nowhere):
        _, reply = visit(page)
        assert "does not answer" in reply.text
        assert 'name="password"' in reply.text


def test_what_cannot_be_right_is_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match="https"):
        OidcSettings(issuer="http://sso.example", client_id="x")
    with pytest.raises(SettingsError, match="client-id"):
        OidcSettings(issuer="https://sso.example", client_id="")
    with pytest.raises(SettingsError, match="oidc-role"):
        OidcSettings(issuer="https://sso.example", client_id="x", mapped_only=True)
    nested = OidcSettings(
        issuer="https://sso.example", client_id="x", role_claim="realm_access.roles", roles={"a": Role.ADMIN}
    )
    assert mapped_role(nested, {"realm_access": {"roles": ["a"]}}) is Role.ADMIN
    assert mapped_role(nested, {"realm_access": ["a"]}) is None


@pytest.mark.slow
def test_in_a_browser_by_keyboard(browser: Any, oidc_page: Page, provider: OpenIdProvider) -> None:
    from tests.serving.inspector.test_browser import Window

    provider.asks = True
    window = Window(browser, oidc_page)
    window.go("/history")
    window.tab.wait_for_selector("#provider")
    assert window.axe() == []
    window.tab.locator("#provider").press("Enter")
    window.tab.locator("#yes").press("Enter")
    # The session's cookie is strict, and the way came from another site all the same.
    window.tab.wait_for_url("**/history")
    assert "olga" in window.tab.inner_text("header.top")
    cookie = next(one for one in window.context.cookies() if one["name"] == "defectlens_session")
    assert (cookie["sameSite"], cookie["httpOnly"]) == ("Strict", True)
    window.tab.wait_for_load_state("networkidle")
    window.tab.locator("text=Sign out").press("Enter")
    window.tab.wait_for_selector("#provider")
    assert provider.ended
    window.context.close()
    assert window.problems == []
