"""Who may ask, and what a browser may do with what it gets.

Knows: the key (as a bearer token, or as the cookie that the page's login leaves), this machine's own names, and
security headers. Does not know what is asked. No header allows another site to read answers (CORS).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import urllib.parse
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.service.problems import Problem

COOKIE = "alpaca_cot_key"
LOGIN = "/login"
OPEN = ("/health",)
"""What needs no key."""
API = ("/v1", "/health", "/metrics", "/query", "/openapi.json")
"""Paths that give no page."""
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Gradio writes its settings into the page; nothing comes from elsewhere."""
_API_POLICY = "default-src 'none'; frame-ancestors 'none'"
_FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Alpaca-CoT</title><style>body{font:1rem sans-serif;margin:20vh auto;max-width:20rem;padding:1rem}
input,button{box-sizing:border-box;font:inherit;margin:.3rem 0;padding:.5rem;width:100%}</style>
<form method="post" action="/login"><label>Key / <span lang="zh">密钥</span>
<input type="password" name="key" autocomplete="current-password" required autofocus></label>
<button>Enter / <span lang="zh">进入</span></button></form></html>"""


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask.

    Args:
        api_key: what each request must bring; None: nothing, and then only this machine's own names are answered to.

    Raises:
        ValueError: a key that no header can carry.
    """

    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("the API's key must be one word of plain characters")

    def refusal(self, path: str, headers: Headers) -> Problem | None:
        """Why a request is not answered; None: it is."""
        if self.api_key is None:
            return self._foreign_host(headers) or _foreign_site(headers)
        if path in OPEN or self._has_key(headers):
            return None
        if self._has_cookie(headers):
            return _foreign_site(headers)
        given = "the key is wrong" if "Authorization" in headers else "a key is needed"
        return Problem(
            401,
            f"{given}: send it as Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": 'Bearer realm="Alpaca-CoT"'},
        )

    def is_key(self, given: str) -> bool:
        """Compared in a time that does not depend on how much of it is right."""
        return self.api_key is not None and hmac.compare_digest(_sum(given), _sum(self.api_key))

    def cookie(self) -> str:
        """What the page's login leaves in the browser: not the key, but nobody has it without the key."""
        return hmac.new((self.api_key or "").encode(), b"the page's cookie", hashlib.sha256).hexdigest()

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.is_key(given.strip())

    def _has_cookie(self, headers: Headers) -> bool:
        # Not by http.cookies, which reads none of them if one has a name that it does not like.
        found = cookie_parser(headers.get("Cookie", "")).get(COOKIE, "")
        return hmac.compare_digest(found.encode(), self.cookie().encode())

    def _foreign_host(self, headers: Headers) -> Problem | None:
        """Another site's name that was made to point at this machine reads answers as its own (DNS rebinding)."""
        try:
            name = urllib.parse.urlsplit(f"//{headers.get('Host', '')}").hostname or ""
            if name == "localhost" or ipaddress.ip_address(name).is_loopback:
                return None
        except ValueError:
            pass
        return Problem(403, "without a key only localhost, 127.0.0.1 and [::1] are answered to", code="foreign_host")


def _foreign_site(headers: Headers) -> Problem | None:
    """A browser says whether another site's page asks (https://www.w3.org/TR/fetch-metadata/); a link may be followed
    from anywhere."""
    site, mode = headers.get("Sec-Fetch-Site", "none"), headers.get("Sec-Fetch-Mode", "")
    if site in ("none", "same-origin") or mode == "navigate":
        return None
    return Problem(403, "another site's page may not ask", code="foreign_site")


def _sum(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


class Gate:
    """Lets through who may ask, and takes the page's logins. An ASGI middleware."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        if path == LOGIN and scope["type"] == "http" and self._access.api_key is not None:
            await (await self._login(Request(scope, receive)))(scope, receive, send)
            return
        problem = self._access.refusal(path, headers)
        if problem is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif problem.status == 401 and scope["method"] == "GET" and not is_api(path) and _shows_pages(headers):
            await HTMLResponse(_FORM, 401, problem.headers)(scope, receive, send)
        else:
            await problem.response()(scope, receive, send)

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return HTMLResponse(_FORM)
        given = urllib.parse.parse_qs((await request.body()).decode("utf-8", "replace")).get("key", [""])[0]
        if not self._access.is_key(given.strip()):
            return HTMLResponse(_FORM, 401)
        response = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, self._access.cookie(), httponly=True, samesite="strict", secure=secure)
        return response


class SafeHeaders:
    """Security headers on every reply, where it has not its own. An ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                policy = _API_POLICY if is_api(scope["path"]) else _PAGE_POLICY
                headers.setdefault("Content-Security-Policy", policy)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("X-Frame-Options", "DENY")
                headers.setdefault("Referrer-Policy", "no-referrer")
                headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
                if is_api(scope["path"]):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, dressed)


def is_api(path: str) -> bool:
    """Whether a path gives no page."""
    return any(path == each or path.startswith(f"{each}/") for each in API)


def _shows_pages(headers: Headers) -> bool:
    return "text/html" in headers.get("Accept", "")
