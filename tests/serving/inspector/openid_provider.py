"""An OpenID provider in this process on a real port: discovery, keys, authorization code with PKCE, RS256 ID tokens.

It asks nobody for a password: whoever comes is ``person``. Tests change ``claims`` and ``lie`` to make it wrong.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

CLIENT, SECRET = "defectlens-page", "a-secret-of-tests"


@dataclass
class OpenIdProvider:
    """``asks``: show a page with a link before going back, as a login form would. ``seen``: authorization requests."""

    issuer: str = ""
    person: dict[str, Any] = field(default_factory=lambda: {"sub": "0001", "preferred_username": "Olga@plant"})
    lie: Callable[[dict[str, Any]], None] = lambda _: None
    asks: bool = False
    signing_key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "k1"}))
    published_key: RSAKey | None = None
    header: dict[str, str] = field(default_factory=lambda: {"alg": "RS256", "kid": "k1"})
    metadata: dict[str, Any] = field(default_factory=dict)
    seen: list[dict[str, str]] = field(default_factory=list)
    ended: list[dict[str, str]] = field(default_factory=list)
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def app(self) -> Starlette:
        routes = {
            "/.well-known/openid-configuration": self.discovery,
            "/keys": self.keys,
            "/authorize": self.authorize,
            "/end": self.end,
            "/favicon.ico": self.icon,
        }
        made = [Route(path, endpoint) for path, endpoint in routes.items()]
        return Starlette(routes=[*made, Route("/token", self.token, methods=["POST"])])

    async def icon(self, _: Request) -> Response:
        return Response(status_code=204)

    async def discovery(self, _: Request) -> Response:
        where = {name: f"{self.issuer}/{path}" for name, path in _ENDPOINTS.items()}
        known = {
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
            "code_challenge_methods_supported": ["S256"],
        }
        return JSONResponse({"issuer": self.issuer, **where, **known, **self.metadata})

    async def keys(self, _: Request) -> Response:
        key = self.published_key or self.signing_key
        return JSONResponse({"keys": [key.as_dict(private=False) | {"kid": "k1", "use": "sig"}]})

    async def authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        self.seen.append(asked)
        if asked.get("client_id") != CLIENT or asked.get("code_challenge_method") != "S256":
            return Response("unknown client, or no PKCE", 400)
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        back = f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"
        if self.asks:
            link = f'<a id="yes" href="{back.replace("&", "&amp;")}">I am Olga</a>'
            return HTMLResponse(f"<!doctype html><title>Provider</title>{link}")
        return RedirectResponse(back, 302)

    async def token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {basic}":
            return JSONResponse({"error": "invalid_client"}, 401)
        asked = self._codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or challenge != asked["code_challenge"] or form["redirect_uri"] != asked["redirect_uri"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
        } | self.person
        self.lie(claims)
        id_token = jwt.encode(self.header, claims, self.signing_key)
        return JSONResponse({"access_token": "a", "token_type": "Bearer", "expires_in": 300, "id_token": id_token})

    async def end(self, request: Request) -> Response:
        self.ended.append(dict(request.query_params))
        return RedirectResponse(request.query_params["post_logout_redirect_uri"], 302)


_ENDPOINTS = {
    "authorization_endpoint": "authorize",
    "token_endpoint": "token",
    "jwks_uri": "keys",
    "end_session_endpoint": "end",
}


@contextmanager
def running_provider() -> Iterator[OpenIdProvider]:
    """On a free port, until the end of the block."""
    provider = OpenIdProvider()
    listening = socket.create_server(("127.0.0.1", 0))
    provider.issuer = f"http://localhost:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(provider.app(), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield provider
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
