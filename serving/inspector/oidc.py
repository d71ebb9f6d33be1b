"""Signing in with OpenID Connect: the authorization-code flow with PKCE, by Authlib.

Authlib makes and compares state, nonce and PKCE's verifier, and checks the ID token's signature and times. What it
leaves to its callers is done here: that the provider found is the one that was named, that no token counts that is
signed with the client's own secret or not at all, and that the token was made for this page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from serving.audit import Account, Role, Store, account_of, add_account, change_account
from vision.errors import DefectLensError, SettingsError

COOKIE = "defectlens_oidc"
"""Holds state, nonce and verifier while somebody is at the provider; signed, and for ten minutes."""
PATH = "/sign-in/oidc"
LIFETIME_S = 600
BY = "oidc"
"""Who makes and changes accounts on a provider's word, in the records."""
NEEDED = ("authlib", "httpx2", "itsdangerous", "joserfc")
# None of these can be made with what a client knows.
_SIGNATURES = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_CLOCKS_APART_S = 60
_NAMES = ("preferred_username", "email", "sub")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class OidcError(DefectLensError):
    """Somebody cannot be signed in by the provider; the text may be shown to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcSettings:
    """Which provider, and what its people may do.

    Args:
        issuer: as the provider's tokens name it; its address.
        secret: of this client; empty for a client without one, which PKCE alone protects.
        title: what the provider is called on the page.
        role_claim: claim with a person's groups; dots lead into objects (``realm_access.roles``).
        roles: by group, the role that its people have. Empty: roles are given on the page.
        mapped_only: nobody comes in without a group that is mapped.
    """

    issuer: str
    client_id: str
    secret: str = ""
    title: str = "company account"
    role_claim: str = "groups"
    roles: Mapping[str, Role] | None = None
    mapped_only: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.issuer)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise SettingsError(
                f"an OpenID provider is an https address: whoever could change what it says could be anybody here; got "
                f"{self.issuer!r}"
            )
        if not self.client_id:
            raise SettingsError("name this page's --oidc-client-id, as the OpenID provider knows it")
        if self.mapped_only and not self.roles:
            raise SettingsError("--oidc-mapped-only lets nobody in without --oidc-role GROUP=ROLE")


class Provider:
    """One provider, found by its issuer when somebody first wants to sign in."""

    def __init__(self, settings: OidcSettings) -> None:
        from authlib.integrations.starlette_client import OAuth

        self.settings = settings
        self._client = OAuth().register(
            "oidc",
            client_id=settings.client_id,
            client_secret=settings.secret or None,
            server_metadata_url=f"{settings.issuer.rstrip('/')}/.well-known/openid-configuration",
            client_kwargs={
                "scope": "openid profile email",
                "code_challenge_method": "S256",
                "token_endpoint_auth_method": "client_secret_basic" if settings.secret else "none",
            },
        )

    async def send_there(self, request: Request, back: str) -> Response:
        """The way to the provider; ``back``: where it is to send people afterwards.

        Raises:
            OidcError: it cannot be reached, or is not who it should be.
        """
        await self._found()
        response: Response = await self._client.authorize_redirect(request, back)
        return response

    async def claims(self, request: Request) -> dict[str, Any]:
        """What the provider says about whoever comes back from it.

        Raises:
            OidcError: anything about it is not right.
        """
        from authlib.common.errors import AuthlibBaseError
        from httpx2 import HTTPError
        from joserfc.errors import JoseError

        await self._found()
        wanted = {
            "iss": {"essential": True, "value": self.settings.issuer},
            "aud": {"essential": True, "value": self.settings.client_id},
        }
        try:
            token = await self._client.authorize_access_token(request, claims_options=wanted, leeway=_CLOCKS_APART_S)
        except (AuthlibBaseError, JoseError, HTTPError, ValueError, KeyError, RuntimeError) as error:
            raise OidcError(f"the sign-in was not accepted: {error}") from error
        if not token.get("userinfo"):
            raise OidcError("the provider sent no ID token")
        return dict(token["userinfo"])

    async def leave_address(self, back: str) -> str:
        """Where a session at the provider ends; empty where it offers none. Else the next one at this screen is in."""
        metadata = await self._found()
        end = str(metadata.get("end_session_endpoint") or "")
        if not end:
            return ""
        mark = "&" if "?" in end else "?"
        return end + mark + urlencode({"client_id": self.settings.client_id, "post_logout_redirect_uri": back})

    async def _found(self) -> Mapping[str, Any]:
        from httpx2 import HTTPError

        issuer = self.settings.issuer
        try:
            metadata: dict[str, Any] = await self._client.load_server_metadata()
        except (HTTPError, ValueError) as error:
            raise OidcError(f"the provider {issuer} does not answer: {error}") from error
        if metadata.get("issuer") != issuer:
            metadata.pop("_loaded_at", None)  # ask again next time
            raise OidcError(f"{issuer} calls itself {metadata.get('issuer')!r}; --oidc has to be the same text")
        offered = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        metadata["id_token_signing_alg_values_supported"] = [one for one in offered if one in _SIGNATURES] or ["RS256"]
        return metadata


def account_for(store: Store, settings: OidcSettings, claims: Mapping[str, Any]) -> Account:
    """The account of whoever these claims are about, made or changed as they say.

    People are known by issuer and subject alone: names can be given to others, and chosen.

    Raises:
        OidcError: no account may be made, or it is disabled.
    """
    subject = str(claims["sub"])[:255]
    role = mapped_role(settings, claims)
    if role is None and settings.mapped_only:
        raise OidcError("none of your groups may use this page; ask whoever looks after accounts")
    found = account_of(store, settings.issuer, subject)
    if found is None:
        name = account_name(claims)
        new = Account(name, role or Role.VIEWER, "", issuer=settings.issuer, subject=subject)
        try:
            add_account(store, new, by=BY)
        except SettingsError as error:
            raise OidcError(
                f"there is an account {name!r} that is not yours as far as anybody knows. If it is, an admin types: "
                f"defectlens inspector user link {name} --issuer {settings.issuer} --subject {subject} --db ..."
            ) from error
        return new
    if found.disabled:
        raise OidcError(f"the account {found.name!r} is disabled")
    if settings.roles and found.role is not (role or Role.VIEWER):
        change_account(store, found.name, by=BY, role=role or Role.VIEWER)
    return found


def mapped_role(settings: OidcSettings, claims: Mapping[str, Any]) -> Role | None:
    """The highest role of the person's groups; None where none is mapped."""
    value: Any = claims
    for key in settings.role_claim.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    groups = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    roles = [role for group, role in (settings.roles or {}).items() if group in groups]
    return max(roles, key=list(Role).index, default=None)


def account_name(claims: Mapping[str, Any]) -> str:
    """A name for a new account, from what the provider calls the person."""
    text = next((str(claims[name]) for name in _NAMES if claims.get(name)), "")
    name = re.sub(r"[^a-z0-9._-]+", "-", text.partition("@")[0].lower()).strip("-._")[:40]
    if not name or name == "server":
        raise OidcError("the provider calls you by no name that an account could have")
    return name
