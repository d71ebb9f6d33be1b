"""The application: all wiring of the page is here."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.staticfiles import StaticFiles

from serving.audit import Store
from serving.client import InspectionClient
from serving.inspector import (
    oidc,
    pages_accounts,
    pages_feedback,
    pages_history,
    pages_models,
    pages_oidc,
    pages_pictures,
    pages_report,
    pages_review,
    pages_sign_in,
    pages_wall,
)
from serving.inspector.feed import Feed
from serving.inspector.guard import Guard
from serving.inspector.pictures import Pictures
from serving.inspector.settings import PageSettings
from serving.inspector.site import HERE, SignInNeededError, Site, make_templates, site_of
from vision.errors import AuditError, DefectLensError, InputError

_STATUS_TIMEOUT_S = 2.0
_PAGES = (
    pages_sign_in, pages_oidc, pages_review, pages_pictures, pages_wall, pages_history, pages_report, pages_feedback,
    pages_models, pages_accounts,
)  # fmt: skip


class _Files(StaticFiles):
    """Our own files; their addresses change with their content."""

    def file_response(self, *args: object, **fields: object) -> Response:
        response = super().file_response(*args, **fields)  # type: ignore[arg-type]
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def create_app(settings: PageSettings, store: Store) -> FastAPI:
    """The page over an open store, which stays the caller's."""
    client = InspectionClient(settings.server, timeout_s=_STATUS_TIMEOUT_S) if settings.server else None
    feed = Feed(store, None if client is None else client.get_status, poll_s=settings.poll_s, clock_ns=store.now_ns)
    provider = None if settings.oidc is None else oidc.Provider(settings.oidc)
    site = Site(settings, store, feed, Pictures(store), make_templates(), provider)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await feed.close()
        if client is not None:
            client.close()

    app = FastAPI(title="defectlens inspector", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.site = site
    app.mount("/static", _Files(directory=HERE / "static"), name="static")
    for page in _PAGES:
        app.include_router(page.router)
    app.add_exception_handler(SignInNeededError, _to_sign_in)
    app.add_exception_handler(DefectLensError, _own_error)
    app.add_exception_handler(StarletteHTTPException, _refused)
    if provider is not None:
        _remember_the_way(app, settings)
    app.add_middleware(Guard, hosts=settings.allowed_hosts)
    return app


def _remember_the_way(app: FastAPI, settings: PageSettings) -> None:
    """Keep what a sign-in at the provider needs until it comes back; Lax, since it comes back from elsewhere."""
    from starlette.middleware.sessions import SessionMiddleware

    app.add_middleware(
        SessionMiddleware,
        secret_key=secrets.token_hex(32),  # a sign-in that a restart cuts short is begun anew
        session_cookie=oidc.COOKIE,
        max_age=oidc.LIFETIME_S,
        path=oidc.PATH,
        same_site="lax",
        https_only=settings.certificate is not None,
    )


def _asks_for_page(request: Request) -> bool:
    """Whether a person typed or followed an address, rather than a script or a picture asking."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "") and not _is_htmx(request)


def _is_htmx(request: Request) -> bool:
    return "hx-request" in request.headers


async def _to_sign_in(request: Request, _: Exception) -> Response:
    address = f"/sign-in?next={quote(request.url.path)}"
    if _asks_for_page(request):
        return RedirectResponse(address, 303)
    headers = {"hx-redirect": "/sign-in"} if _is_htmx(request) else {}
    return PlainTextResponse("sign in first", 401, headers=headers)


async def _own_error(request: Request, error: Exception) -> Response:
    status = 400 if isinstance(error, InputError) else 404 if isinstance(error, AuditError) else 502
    return _problem(request, status, str(error))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException | StarletteHTTPException)  # noqa: S101, it is registered for these alone
    return _problem(request, error.status_code, str(error.detail))


def _problem(request: Request, status: int, text: str) -> Response:
    if not _asks_for_page(request):
        return PlainTextResponse(text, status)
    response = site_of(request).render(request, "problem.html", status=status, text=text)
    response.status_code = status
    return response
