"""Accounts, and one's own password."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response

from serving.audit import Account, Role, accounts, add_account, change_account
from serving.inspector.passwords import SHORTEST, hash_password, is_right
from serving.inspector.site import Acting, Person, looking, site_of
from vision.errors import DefectLensError, SettingsError

router = APIRouter(prefix="/accounts")
Administering = Annotated[Person, Depends(Acting(Role.ADMIN))]


@router.get("")
def show(request: Request, person: Annotated[Person, Depends(looking)]) -> Response:
    """One's own password; for an admin, everybody's account."""
    return _page(request, person)


@router.post("/password")
def own_password(
    request: Request,
    person: Annotated[Person, Depends(Acting(Role.VIEWER))],
    old: Annotated[str, Form()],
    new: Annotated[str, Form()],
) -> Response:
    """Change one's own password; all sessions end."""
    site = site_of(request)
    key = f"name {person.name}"
    if site.brake.wait_s(key) > 0 or not is_right(old, person.account.password):
        site.brake.failed(key)
        return _page(request, person, problem="The password so far is not right.")
    try:
        change_account(site.store, person.name, by=person.name, password=hash_password(new))
    except SettingsError as error:
        return _page(request, person, problem=str(error))
    return Response(status_code=204, headers={"hx-redirect": "/sign-in"})


@router.post("")
def add(
    request: Request,
    person: Administering,
    name: Annotated[str, Form()],
    role: Annotated[Role, Form()],
    password: Annotated[str, Form()],
) -> Response:
    """Make an account."""
    try:
        add_account(
            site_of(request).store, Account(name.strip().lower(), role, hash_password(password)), by=person.name
        )
    except SettingsError as error:
        return _page(request, person, problem=str(error))
    return _page(request, person, done=f"{name} can sign in now.")


@router.post("/{name}")
def change(
    request: Request,
    person: Administering,
    name: str,
    role: Annotated[Role | None, Form()] = None,
    disabled: Annotated[bool | None, Form()] = None,
) -> Response:
    """Change the role of an account, or disable it."""
    try:
        if name == person.name:
            raise SettingsError("Another admin has to change your own account.")
        change_account(site_of(request).store, name, by=person.name, role=role, disabled=disabled)
    except DefectLensError as error:
        return _page(request, person, problem=str(error))
    return _page(request, person, done=f"{name} is changed.")


def _page(request: Request, person: Person, *, problem: str = "", done: str = "") -> Response:
    site = site_of(request)
    everybody = accounts(site.store) if person.may("admin") else []
    template = "accounts_body.html" if "hx-request" in request.headers else "accounts.html"
    return site.render(
        request,
        template,
        accounts=everybody,
        roles=[role.value for role in Role],
        shortest=SHORTEST,
        problem=problem,
        done=done,
    )
