"""Who may ask, and what a browser may do with what it gets: over plain HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import plain_http
import pytest
import service_server
from plain_http import CHAT, error
from service_server import KEY, Scripted

from utils.service import Access
from utils.service.access import Gate

served, scheduler, url = service_server.served, service_server.scheduler, service_server.url
options, locked = plain_http.options, plain_http.locked


def test_a_key_is_needed_everywhere_but_for_health(locked: str) -> None:
    assert httpx2.get(f"{locked}/health").json() == {"status": "ok"}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/docs", "/query/x", "/v1/nothing", "/health/x", "/"):
        reply = httpx2.get(locked + path)
        assert error(reply, 401)["message"] == "a key is needed: send it as Authorization: Bearer KEY"
        assert reply.headers["WWW-Authenticate"] == 'Bearer realm="Alpaca-CoT"'
        assert httpx2.get(locked + path, headers={"Authorization": f"Bearer {KEY}"}).status_code in (200, 404)
    for given in (KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}, Bearer {KEY}", f"Bearer {KEY.upper()}"):
        error(httpx2.get(f"{locked}/v1/models", headers={"Authorization": given}), 401)
    error(httpx2.post(f"{locked}/v1/chat/completions", json=CHAT), 401)


def test_a_browser_logs_in_with_the_key(locked: str) -> None:
    with httpx2.Client(base_url=locked, headers={"Accept": "text/html"}) as browser:
        asked = browser.get("/")
        assert (asked.status_code, asked.headers["Content-Type"]) == (401, "text/html; charset=utf-8")
        assert 'type="password"' in asked.text
        assert "密钥" in asked.text
        assert 'type="password"' in browser.get("/login").text
        for wrong in ("", "wrong", f"{KEY}x", "钥匙"):
            refused = browser.post("/login", data={"key": wrong})
            assert refused.status_code == 401
            assert "set-cookie" not in refused.headers
        entered = browser.post("/login", data={"key": KEY})
        assert (entered.status_code, entered.headers["Location"]) == (303, "/")
        cookie = entered.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert KEY not in cookie
        assert browser.get("/").text == "the page"
        beside = [(b"Cookie", f"another@program=1; 奇怪; {cookie.partition(';')[0]}".encode())]
        assert httpx2.get(f"{locked}/v1/models", headers=beside).status_code == 200, "whatever other cookies there are"
        assert browser.get("/v1/models").status_code == 200
        foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
        assert error(browser.get("/v1/models", headers=foreign), 403)["code"] == "foreign_site"
    error(httpx2.get(f"{locked}/v1/models", headers={"Cookie": cookie.replace("=", "=0", 1).partition(";")[0]}), 401)
    error(httpx2.get(f"{locked}/v1/models", headers={"Cookie": 'alpaca_cot_key="\\3'}), 401)


@pytest.mark.parametrize("key", [None, KEY])
def test_a_socket_of_the_page_needs_the_key_too(key: str | None) -> None:
    reached, sent = [], []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost")] + ([(b"authorization", f"Bearer {key}".encode())] if key else [])
    scope = {"type": "websocket", "path": "/queue", "headers": headers}
    asyncio.run(Gate(application, Access(api_key=KEY))(scope, receive, send))
    assert bool(reached) == bool(key)
    assert sent == ([] if key else [{"type": "websocket.close", "code": 1008}])


@pytest.mark.parametrize("key", ["", "two words", "钥匙", "line\n"])
def test_keys_that_cannot_be_any(key: str) -> None:
    with pytest.raises(ValueError, match="^the API's key must be one word of plain characters$"):
        Access(api_key=key)


def test_a_key_is_not_shown() -> None:
    assert KEY not in repr(Access(api_key=KEY))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.1", "", "[::1"])
def test_without_a_key_only_this_machine_s_names_are_answered_to(host: str, url: str) -> None:
    for path in ("/v1/models", "/"):
        assert error(httpx2.get(url + path, headers={"Host": host}), 403)["code"] == "foreign_host"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8410", "LOCALHOST:8410"])
def test_this_machine_s_names(host: str, url: str) -> None:
    assert httpx2.get(f"{url}/v1/models", headers={"Host": host}).status_code == 200


def test_another_site_s_page_may_not_ask(url: str, scheduler: Scripted) -> None:
    for site in ("cross-site", "same-site"):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Origin": "http://localhost:3000"}
        assert error(httpx2.get(f"{url}/query/x", headers=headers), 403)["code"] == "foreign_site"
        error(httpx2.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers), 403)
    same = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert httpx2.get(f"{url}/v1/models", headers=same).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert httpx2.get(f"{url}/", headers=link).text == "the page"
    # A form or a plain text needs no preflight, and so must not be read as JSON.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        sent = httpx2.post(f"{url}/v1/chat/completions", content=json.dumps(CHAT), headers={"Content-Type": kind})
        assert "sent as Content-Type: application/json" in error(sent, 400)["message"]
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert httpx2.options(f"{url}/v1/chat/completions", headers=preflight).status_code == 405
    assert scheduler.asked == []


def test_headers(url: str, locked: str) -> None:
    replies = [
        httpx2.get(f"{url}/v1/models"),
        httpx2.get(f"{url}/health", headers={"Origin": "http://evil.example"}),
        httpx2.get(f"{url}/"),
        httpx2.get(f"{url}/docs"),
        httpx2.get(f"{url}/nothing"),
        httpx2.post(f"{url}/v1/chat/completions", json={}),
        httpx2.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": True}),
        httpx2.get(f"{locked}/v1/models"),
        httpx2.get(f"{locked}/", headers={"Accept": "text/html"}),
    ]
    for reply in replies:
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Referrer-Policy"] == "no-referrer"
        policy = reply.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy, "nothing comes from elsewhere"
        assert not [name for name in reply.headers if name.lower().startswith("access-control-")]
    policies = [reply.headers["Content-Security-Policy"].startswith("default-src 'none'") for reply in replies]
    assert policies == [True, True, False, False, False, True, True, True, False], "pages may run their scripts"
