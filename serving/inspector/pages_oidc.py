"""Signing in and out by way of an OpenID provider."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from serving.audit import Action
from serving.inspector.oidc import PATH, OidcError, Provider, account_for
from serving.inspector.pages_sign_in import begin_session, own_address, sign_in_form
from serving.inspector.site import site_of
from vision.errors import SettingsError

router = APIRouter(prefix=PATH)
_NEXT = "next"


@router.get("")
async def go(request: Request, next: str = "/") -> Response:  # noqa: A002, the name in the address
    """To the provider."""
    provider = _provider(request)
    try:
        response = await provider.send_there(request, _address(request, f"{PATH}/back"))
    except OidcError as error:
        return await asyncio.to_thread(sign_in_form, request, next, f"{error}.", 502)
    request.session[_NEXT] = own_address(next)
    return response


@router.get("/back")
async def back(request: Request) -> Response:
    """From the provider, with a code: a session begins, or the form says why not.

    The answer is a page that goes on by itself. A redirect would still count as coming from the provider's page, for
    which browsers keep a strict cookie back.
    """
    provider, following = _provider(request), str(request.session.get(_NEXT, "/"))
    address = request.client.host if request.client else "?"
    claims: dict[str, Any] = {}
    try:
        claims = await provider.claims(request)
        found = await asyncio.to_thread(account_for, site_of(request).store, provider.settings, claims)
    except OidcError as error:
        await asyncio.to_thread(_failed, request, claims, address, str(error))
        return await asyncio.to_thread(sign_in_form, request, following, f"{error}.", 403)
    finally:
        request.session.clear()
    response = site_of(request).render(request, "signed_in.html", who=found.name, following=following)
    details = {"address": address, "issuer": provider.settings.issuer, "subject": found.subject}
    await asyncio.to_thread(begin_session, request, response, found.name, details)
    return response


@router.get("/leave")
async def leave(request: Request) -> Response:
    """To the end of the session at the provider, for those whose session here has ended."""
    try:
        address = await _provider(request).leave_address(_address(request, "/sign-in"))
    except OidcError:
        address = ""
    return RedirectResponse(address or "/sign-in", 303)


def _failed(request: Request, claims: dict[str, Any], address: str, reason: str) -> None:
    name = str(claims.get("preferred_username") or claims.get("sub") or "nobody")[:200]
    details = {"address": address, "subject": str(claims.get("sub", "")), "by": "oidc"}
    act = Action(action="login-failed", person=name, reason=reason[:500], details=details)
    site_of(request).store.append([act])


def _provider(request: Request) -> Provider:
    provider = site_of(request).provider
    if provider is None:
        raise SettingsError("this page knows no OpenID provider; start it with --oidc")
    return provider


def _address(request: Request, path: str) -> str:
    return f"{request.url.scheme}://{request.url.netloc}{path}"
