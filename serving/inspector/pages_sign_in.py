"""Signing in and out."""

from __future__ import annotations

import hmac
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse

from serving.audit import Action, Role, account, accounts, sign_in, sign_out
from serving.inspector.passwords import is_right
from serving.inspector.site import COOKIE, Acting, Person, SignInNeededError, Site, person_of, site_of

router = APIRouter()
# Ties the form to the browser that got it: nobody can sign a visitor in under another name from elsewhere.
_FORM_COOKIE = "defectlens_form"
_WRONG = "This name and password do not fit."


@router.get("/sign-in")
def show(request: Request, next: str = "/") -> Response:  # noqa: A002, the name in the address
    """The form; on the very first start, how to make an account."""
    try:
        person_of(request)
        return RedirectResponse(own_address(next), 303)
    except SignInNeededError:
        return sign_in_form(request, next, "", 200)


@router.post("/sign-in")
def enter(
    request: Request,
    name: Annotated[str, Form()],
    password: Annotated[str, Form()],
    form: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/",  # noqa: A002
) -> Response:
    """Check name and password; a session begins."""
    site, address = site_of(request), request.client.host if request.client else "?"
    name = name.strip().lower()
    if not form or not hmac.compare_digest(form, request.cookies.get(_FORM_COOKIE, "")):
        return sign_in_form(request, next, "This page was too old. Please try again.", 403)
    keys = (f"name {name}", f"address {address}")
    wait_s = site.brake.wait_s(*keys)
    if wait_s > 0:
        return sign_in_form(request, next, f"Too many tries. Please wait {wait_s:.0f} seconds.", 429)
    found = account(site.store, name)
    hashed = None if found is None or found.disabled else found.password
    if not is_right(password, hashed):
        site.brake.failed(*keys)
        act = Action(action="login-failed", person=name[:200] or "nobody", details={"address": address})
        site.store.append([act])
        return sign_in_form(request, next, _WRONG, 401)
    site.brake.succeeded(*keys)
    response = RedirectResponse(own_address(next), 303)
    begin_session(request, response, name, {"address": address})
    response.delete_cookie(_FORM_COOKIE, path="/sign-in")
    return response


def begin_session(request: Request, response: Response, name: str, details: dict[str, Any]) -> None:
    """Somebody is who they say: remember it, record it, and give the browser its token."""
    site, token = site_of(request), secrets.token_urlsafe(32)
    sign_in(site.store, name, token, site.settings.session_s, details)
    _set(response, request, COOKIE, token, int(site.settings.session_s))


@router.post("/sign-out")
def leave(request: Request, person: Annotated[Person, Depends(Acting(Role.VIEWER))]) -> Response:
    """The session ends."""
    site = site_of(request)
    sign_out(site.store, person.token, person.name)
    site.plans.release(person.name)
    following = "/sign-in"
    if site.provider is not None and person.account.issuer:
        following = "/sign-in/oidc/leave"
    response = Response(status_code=204, headers={"hx-redirect": following})
    response.delete_cookie(COOKIE, path="/")
    return response


def sign_in_form(request: Request, following: str, problem: str, status: int) -> Response:
    """The page with the form, and with the way to the provider where there is one."""
    site, form = site_of(request), secrets.token_urlsafe(16)
    first = site.provider is None and not accounts(site.store)
    command = _first_command(site) if first else ""
    response = site.render(
        request,
        "sign_in.html",
        problem=problem,
        form=form,
        following=own_address(following),
        command=command,
        provider=None if site.provider is None else site.provider.settings.title,
    )
    response.status_code = status
    _set(response, request, _FORM_COOKIE, form, 3600, path="/sign-in")
    return response


def _first_command(site: Site) -> str:
    return f"defectlens inspector user add YOUR-NAME --role admin --db {site.store.place.shown}"


def _set(response: Response, request: Request, name: str, value: str, seconds: int, path: str = "/") -> None:
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path=path,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def own_address(address: str) -> str:
    """An address of this page, whatever somebody put into a link."""
    is_own = address.startswith("/") and not address.startswith("//") and "\\" not in address
    return address if is_own and address.isprintable() else "/"
