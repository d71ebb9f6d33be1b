"""What all pages share: the store, the templates, who is signed in, and who may do what."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from fastapi import HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from starlette.templating import Jinja2Templates

from serving.audit import Account, Action, Role, Store, signed_in
from serving.inspector import words
from serving.inspector.feed import Feed
from serving.inspector.oidc import Provider
from serving.inspector.passwords import Brake
from serving.inspector.pictures import Pictures
from serving.inspector.plans import Plans
from serving.inspector.settings import PageSettings

HERE = Path(__file__).parent
COOKIE = "defectlens_session"
THEME_COOKIE = "defectlens_theme"
CSRF_HEADER = "x-csrf-token"


class SignInNeededError(Exception):
    """Nobody is signed in; the application answers with the way to the sign-in page."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks. ``csrf``: what requests that change something must bring along."""

    account: Account
    token: str

    @property
    def name(self) -> str:
        return self.account.name

    @property
    def csrf(self) -> str:
        return csrf_of(self.token)

    def may(self, role: str) -> bool:
        return self.account.role.includes(Role(role))


@dataclass(slots=True)
class Site:
    """One for each application; in ``request.app.state.site``."""

    settings: PageSettings
    store: Store
    feed: Feed
    pictures: Pictures
    templates: Jinja2Templates
    provider: Provider | None = None
    brake: Brake = field(default_factory=Brake)
    plans: Plans = field(default_factory=Plans)
    revealed: Revealed = field(default_factory=lambda: Revealed())

    def render(self, request: Request, name: str, **values: Any) -> HTMLResponse:
        """A page, with what every page needs."""
        known = {"request": request, "person": getattr(request.state, "person", None), "site": self}
        known["theme"] = request.cookies.get(THEME_COOKIE, "auto")
        return self.templates.TemplateResponse(request, name, known | values)

    def record(self, action: str, person: Person, subject: str = "", reason: str = "", **details: Any) -> None:
        """Write down what somebody did."""
        act = Action(action=action, person=person.name, subject=subject, reason=reason, details=details)
        self.store.append([act])


class Revealed:
    """To whom the model's opinion of which part was shown: what they say about it then is not blind any more."""

    _MOST = 100_000

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, person: str, answer: int) -> None:
        with self._lock:
            self._seen[person, answer] = None
            while len(self._seen) > self._MOST:
                self._seen.popitem(last=False)

    def has(self, person: str, answer: int) -> bool:
        with self._lock:
            return (person, answer) in self._seen


def csrf_of(token: str) -> str:
    """From the session's token, so that it ends with the session; the token cannot be found from it."""
    return hmac.new(token.encode(), b"defectlens csrf", hashlib.sha256).hexdigest()


def site_of(request: Request) -> Site:
    found: Site = request.app.state.site
    return found


def make_templates() -> Jinja2Templates:
    loader = jinja2.FileSystemLoader(HERE / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= words.FILTERS
    environment.globals["static"] = static_address
    return Jinja2Templates(env=environment)


def static_address(name: str) -> str:
    """Of one of our files; it changes with its content, so that browsers may keep it."""
    return f"/static/{name}?v={_content_digest(name)}"


_digests: dict[str, str] = {}


def _content_digest(name: str) -> str:
    if name not in _digests:
        _digests[name] = hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()[:12]
    return _digests[name]


def person_of(request: Request) -> Person:
    """Who asks.

    Raises:
        SignInNeededError: nobody that we know.
    """
    token = request.cookies.get(COOKIE, "")
    account = signed_in(site_of(request).store, token) if token else None
    if account is None:
        raise SignInNeededError
    request.state.person = Person(account, token)
    return Person(account, token)


def looking(request: Request) -> Person:
    """For whatever only shows something."""
    return person_of(request)


class Acting:
    """For what changes something: the role it takes, and the proof that the page itself asked."""

    def __init__(self, role: Role) -> None:
        self._role = role

    def __call__(self, request: Request) -> Person:
        person = person_of(request)
        if not hmac.compare_digest(request.headers.get(CSRF_HEADER, ""), person.csrf):
            raise HTTPException(403, "this page is too old; load it again")
        return self._check(person)

    def _check(self, person: Person) -> Person:
        if not person.account.role.includes(self._role):
            raise HTTPException(403, f"this takes the role {self._role}; {person.name} is {person.account.role}")
        return person


class Seeing(Acting):
    """For pages that only a role may see."""

    def __call__(self, request: Request) -> Person:
        return self._check(person_of(request))


def keep_forever(response: Response) -> Response:
    """What never changes under its address: frames and maps of a record."""
    response.headers["cache-control"] = "private, max-age=31536000, immutable"
    return response
