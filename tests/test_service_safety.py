"""Who may ask, how much, and what is never said: over plain HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from service_server import PIECES, Scripted, serving, until
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from utils import cli
from utils.assistant import Assistant, open_run
from utils.clients import Clients
from utils.service import Access, Limits
from utils.service.access import Gate

KEY = "sk-0123456789abcdef"
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
TEXT = "".join(PIECES)
LIMITS = Limits(body_bytes=10_000, body_seconds=0.3)


def page(app: Any) -> None:
    """Where web.py mounts its own."""
    app.mount("/", Starlette(routes=[Route("/", lambda request: HTMLResponse("the page"))]))


@pytest.fixture(scope="module")
def opened(finished: Path) -> Assistant:
    return open_run(finished)


@pytest.fixture(scope="module")
def served(opened: Assistant) -> Iterator[tuple[Scripted, str]]:
    scheduler = Scripted()
    with serving(opened, scheduler, limits=LIMITS, clients=Clients(3), edit=page) as address:
        yield scheduler, address


@pytest.fixture(scope="module")
def locked(opened: Assistant) -> Iterator[str]:
    with serving(opened, Scripted(), access=Access(api_key=KEY), edit=page) as address:
        yield address


@pytest.fixture
def scheduler(served: tuple[Scripted, str]) -> Scripted:
    until(lambda: served[0].running == 0, "the end of the test before")
    served[0].__init__()
    return served[0]


@pytest.fixture
def url(served: tuple[Scripted, str], scheduler: Scripted) -> str:
    return served[1]


def error(reply: httpx2.Response, status: int) -> dict[str, Any]:
    """What a reply of that status says, if it says it in OpenAI's form."""
    assert reply.status_code == status, reply.text
    assert reply.headers["Content-Type"] == "application/json"
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert not re.search(r"Traceback|\.py|/home|/work|/tmp", reply.text)
    return body["error"]


def raw(url: str, sent: bytes, *, more: bytes = b"") -> bytes:
    """What comes back to these bytes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent + more)
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
        return found


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


def test_the_page_of_the_api_comes_from_here(url: str) -> None:
    shown = httpx2.get(f"{url}/docs")
    assert shown.status_code == 200
    assert not re.search(r"https?://", shown.text)
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', shown.text):
        assert httpx2.get(url + path).status_code == 200
    document = httpx2.get(f"{url}/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/health", "/metrics", "/query/{query}", "/",
    }  # fmt: skip
    assert document["paths"]["/query/{query}"]["get"]["deprecated"]


def test_unknown_places_and_methods(url: str) -> None:
    assert (
        error(httpx2.get(f"{url}/v1/embeddings"), 404)["message"]
        == "there is no GET /v1/embeddings; /docs lists what there is"
    )
    for path in ("/v1", "/v1/", "/v1/../v1/x", "/v1/models/a/b", "/v1/%00"):
        error(httpx2.get(url + path), 404)
    for method, path in (("GET", "/v1/chat/completions"), ("DELETE", "/v1/models/run"), ("PUT", "/v1/completions")):
        reply = httpx2.request(method, url + path)
        assert error(reply, 405)["message"] == f"{path} does not take {method}, but {reply.headers['Allow']}"
        assert reply.headers["Allow"] in ("POST", "GET")


def test_without_a_page_every_place_is_refused_in_the_same_form(opened: Assistant) -> None:
    with serving(opened, Scripted()) as alone:
        for path in ("/", "/nothing", "/../../etc/passwd", "/v1/x"):
            assert httpx2.get(alone + path).status_code in (404, 405)
        error(httpx2.get(f"{alone}/nothing"), 404)
        error(httpx2.get(f"{alone}/"), 405)
        error(httpx2.post(f"{alone}/health"), 405)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body must be a JSON object"),
        (b"null", "the body must be a JSON object"),
        (b"[]", "the body must be a JSON object"),
        (b"{", "the body is not JSON: Expecting property name"),
        (b'{"messages": "\xff\xfe"}', "the body cannot be read: send JSON in UTF-8"),
        (b"[" * 9000, "the body"),
        (b'{"messages":' + b'{"a":' * 100 + b"1" + b"}" * 101, "messages: "),
        (b'{"messages": [], "temperature": NaN}', "temperature: input should be a finite number"),
        (b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}', "temperature: input should be"),
        (b'{"messages": [{"role": "user", "content": "Hi"}], "top_p": -Infinity}', "top_p: input should be"),
        (b'{"messages": [{"role": "user", "content": "Hi"}], "n": 1e999}', "n: input should be a valid integer"),
        (b'{"messages": [{"role": "user", "content": "Hi"}], "seed": ' + b"9" * 5000 + b"}", "the body cannot be read"),
        (b'{"messages": [{"role": "user", "content": "a\\ud800"}]}', "messages: the content of turn 1 holds half a character"),
        (b'{"messages": [{"role": "user", "content": "Hi"}], "stop": ["a\\udc00"]}', "stop: expected a text"),
        (b'{"messages": [{"role": "user", "content": "Hi"}], "model": "\\udc00"}', "unknown model"),
        (b'{"messages": [{"role": "user", "content": "Hi"}], "\\udc00": 1}', "the body holds half a character"),
        ('{"messages": [{"role": "user", "content": "Hi"}], "温度": 1}'.encode(), "unknown field '温度'"),
        (b'{"messages": [{"role": "user", "content": "Hi"}], "model": "../../../etc/passwd"}', "unknown model '../../../etc/passwd'"),
    ],
)  # fmt: skip
def test_hostile_bodies(body: bytes, message: str, url: str, scheduler: Scripted) -> None:
    headers = {"Content-Type": "application/json"}
    reply = httpx2.post(f"{url}/v1/chat/completions", content=body, headers=headers)
    assert message in error(reply, 404 if "unknown model" in message else 400)["message"]
    assert scheduler.asked == []
    assert httpx2.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200


@pytest.mark.parametrize("depth", [10_000, 1_000_000])
def test_json_that_is_nested_a_million_deep(depth: int, opened: Assistant) -> None:
    with serving(opened, Scripted(), limits=Limits(body_bytes=16 * 2**20)) as roomy:
        headers = {"Content-Type": "application/json"}
        body = b'{"messages":' * depth
        assert "body" in error(httpx2.post(f"{roomy}/v1/completions", content=body, headers=headers), 400)["message"]
        assert httpx2.get(f"{roomy}/health").status_code == 200


def test_bodies_that_are_too_long(url: str, scheduler: Scripted) -> None:
    long = json.dumps({"messages": [{"role": "user", "content": "x" * 10**7}]}).encode()
    headers = {"Content-Type": "application/json"}
    chunks = iter([long[i : i + 4096] for i in range(0, len(long), 4096)])
    for content in (long, chunks, b"x" * 10_001):
        reply = httpx2.post(f"{url}/v1/chat/completions", content=content, headers=headers)
        assert error(reply, 413)["message"] == "the body has more than 10000 bytes: shorten it"
    assert scheduler.asked == []
    lying = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\nx"
    assert b" 408 " in raw(url, lying)
    fits = json.dumps({**CHAT, "user": "x" * 9_900}).encode()
    assert httpx2.post(f"{url}/v1/chat/completions", content=fits, headers=headers).status_code == 200


def test_a_body_that_comes_too_slowly(url: str) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    found = raw(url, head + b"Content-Length: 100\r\n\r\n", more=b'{"mess')
    assert b"HTTP/1.1 408 " in found
    assert b"the request was not here after 0.3 seconds" in found
    found = raw(url, head + b"Transfer-Encoding: chunked\r\n\r\n", more=b'3\r\n{"m\r\n')
    assert b"HTTP/1.1 408 " in found


def test_clients_that_leave_in_the_middle_of_a_request(url: str, scheduler: Scripted) -> None:
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(CHAT).encode()
    whole = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole += f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    scheduler.goes_on.clear()
    for length in (0, 1, 20, len(whole) - len(body), len(whole) - 5, len(whole)):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(whole[:length])
    until(lambda: all(asked.cancelled for asked in scheduler.asked), "the end", seconds=2)
    scheduler.goes_on.set()
    assert httpx2.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200


def test_one_client_waits_for_so_many_answers_at_a_time(url: str, scheduler: Scripted) -> None:
    scheduler.goes_on.clear()
    replies: list[httpx2.Response] = []

    def ask() -> None:
        replies.append(httpx2.post(f"{url}/v1/chat/completions", json={**CHAT, "n": 2}, timeout=30))

    waiting = threading.Thread(target=ask)
    waiting.start()
    until(lambda: scheduler.running == 2, "the first request")
    for body in ({**CHAT, "n": 2}, {**CHAT, "n": 2, "stream": True}):
        refused = httpx2.post(f"{url}/v1/chat/completions", json=body)
        told = error(refused, 429)
        assert told["message"] == "127.0.0.1 waits for 2 answers already, and asks for 2; at most 3 at the same time"
        assert (told["type"], refused.headers["Retry-After"]) == ("rate_limit_error", "1")
    assert httpx2.get(f"{url}/health").status_code == 200, "whoever waits, this is answered"
    scheduler.goes_on.set()
    waiting.join(30)
    assert replies[0].status_code == 200
    for _ in range(4):
        assert httpx2.post(f"{url}/v1/chat/completions", json={**CHAT, "n": 3}).status_code == 200
        assert httpx2.post(f"{url}/v1/chat/completions", json={**CHAT, "n": 3, "stream": True}).status_code == 200


def test_the_original_s_routes(url: str, scheduler: Scripted, opened: Assistant) -> None:
    found = httpx2.get(f"{url}/query/你好/世界? 🌏".replace("?", "%3F")).json()
    assert found.pop("time") >= 0
    assert found == {"query": "你好/世界? 🌏", "answer": TEXT}
    assert scheduler.asked[0].prompt == opened.prompt_ids({"instruction": "你好/世界? 🌏", "input": ""})
    settings = scheduler.asked[0].settings
    room = 512 - len(scheduler.asked[0].prompt)
    assert settings == {**{name: row[0] for name, row in cli.GENERATION.items()}, "max_new_tokens": room}
    assert scheduler.asked[0].seed == 42
    found = httpx2.post(f"{url}/", json={"prompt": "Why </s>?"}).json()
    assert found.pop("time") >= 0
    assert found == {"response": TEXT, "status": 200}
    assert scheduler.asked[1].settings["repetition_penalty"] == 1.8
    for body in ({}, {"prompt": None}, {"prompt": 5}, {"prompt": "a", "history": []}, []):
        error(httpx2.post(f"{url}/", json=body), 400)
    error(httpx2.get(f"{url}/query/{'x ' * 3000}"), 400)
    error(httpx2.get(f"{url}/query/%00"), 400)
    scheduler.fails = RuntimeError("/home/me/secret.py")
    error(httpx2.get(f"{url}/query/x"), 500)


def test_figures(url: str, scheduler: Scripted) -> None:
    httpx2.get(f"{url}/query/secret question")
    httpx2.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": True})
    httpx2.get(f"{url}/v1/nothing-secret")
    reply = httpx2.get(f"{url}/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain")
    for line in (
        r'alpaca_cot_requests_total\{route="/query/\{query:path\}",status="200"\} \d',
        r'alpaca_cot_requests_total\{route="/v1/chat/completions",status="200"\} \d',
        r'alpaca_cot_request_seconds_bucket\{le="0.005",route="/v1/chat/completions"\} \d',
        r"alpaca_cot_first_token_seconds_count \d",
        r"alpaca_cot_waiting 0",
        r"alpaca_cot_running 0",
        r"alpaca_cot_new_tokens_total 0",
        r"process_resident_memory_bytes \d",
    ):
        assert re.search(f"^{line}", reply.text, flags=re.MULTILINE), line
    assert "secret" not in reply.text


def test_what_is_asked_is_logged_only_if_wanted(url: str, opened: Assistant, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="utils.service")
    httpx2.get(f"{url}/query/secret")
    httpx2.post(f"{url}/v1/completions", json={"prompt": "secret"})
    httpx2.post(f"{url}/v1/completions", json={"prompt": "secret", "secret": 5})
    assert "POST /v1/completions 200" in caplog.text
    assert "secret" not in caplog.text
    assert TEXT not in caplog.text
    with serving(opened, Scripted(), log_prompts=True) as talkative:
        httpx2.post(f"{talkative}/v1/completions", json={"prompt": "secret\nPOST /v1/completions 200 你好"})
    lines = [record.getMessage() for record in caplog.records]
    assert (
        json.dumps({"prompts": ["secret\nPOST /v1/completions 200 你好"], "answers": [TEXT]}, ensure_ascii=False)
        in lines
    )


def test_what_nobody_expected_says_nothing_of_the_inside(
    url: str, opened: Assistant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Any, *_: Any) -> Any:
        raise KeyError("/home/me/secret.py")

    monkeypatch.setattr(Assistant, "prompt_ids", broken)
    reply = httpx2.post(f"{url}/v1/chat/completions", json=CHAT)
    assert error(reply, 500)["message"] == "the server failed at this request; its log says why"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert "secret.py" in caplog.text, "the log has it"


def test_the_scheduler_ends_with_the_service(opened: Assistant) -> None:
    scheduler = Scripted()
    with serving(opened, scheduler):
        assert not scheduler.closed
    assert scheduler.closed


def test_a_thousand_connections_that_say_nothing(url: str) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, most[1]), most[1]))  # both ends are of this process
    host, port = url.removeprefix("http://").split(":")
    try:
        with ExitStack() as idle:
            for number in range(1000):
                connection = idle.enter_context(socket.create_connection((host, int(port)), timeout=20))
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: loc"[: number % 40])
            assert httpx2.get(f"{url}/health", timeout=20).status_code == 200
            assert httpx2.post(f"{url}/v1/chat/completions", json=CHAT, timeout=20).status_code == 200
        assert httpx2.get(f"{url}/health", timeout=20).status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
