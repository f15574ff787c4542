"""How much a request and a client may ask for, and connections that come to nothing: over plain HTTP."""

from __future__ import annotations

import json
import resource
import socket
import threading
from contextlib import ExitStack

import httpx2
import plain_http
import pytest
import service_server
from plain_http import CHAT, error, raw
from service_server import Scripted, serving, until

from utils.assistant import Assistant
from utils.service import Limits, limits

served, scheduler, url = service_server.served, service_server.scheduler, service_server.url
options = plain_http.options


@pytest.mark.parametrize("depth", [10_000, 1_000_000])
def test_json_that_is_nested_a_million_deep(depth: int, opened: Assistant) -> None:
    with serving(opened, Scripted(), limits=Limits(body_bytes=16 * 2**20)) as roomy:
        headers = {"Content-Type": "application/json"}
        body = b'{"messages":' * depth
        assert "body" in error(httpx2.post(f"{roomy}/v1/completions", content=body, headers=headers), 400)["message"]
        assert httpx2.get(f"{roomy}/health").status_code == 200


def test_bodies_that_are_too_long(opened: Assistant) -> None:
    long = json.dumps({"messages": [{"role": "user", "content": "x" * 10**7}]}).encode()
    headers, scheduler = {"Content-Type": "application/json"}, Scripted()
    chunks = iter([long[i : i + 4096] for i in range(0, len(long), 4096)])
    with serving(opened, scheduler, limits=Limits(body_bytes=10_000)) as patient:
        for content in (long, chunks, b"x" * 10_001):
            reply = httpx2.post(f"{patient}/v1/chat/completions", content=content, headers=headers)
            assert error(reply, 413)["message"] == "the body has more than 10000 bytes: shorten it"
        assert scheduler.asked == []
        fits = json.dumps({**CHAT, "user": "x" * 9_900}).encode()
        assert httpx2.post(f"{patient}/v1/chat/completions", content=fits, headers=headers).status_code == 200


def test_a_body_without_end_is_not_read_to_it(opened: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DRAINED", 50_000)
    with serving(opened, Scripted(), limits=Limits(body_bytes=10_000)) as patient:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
        assert b"HTTP/1.1 413 " in raw(patient, head, more=b"x" * 100_000)


def test_a_body_that_comes_too_slowly(url: str) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    found = raw(url, head + b"Content-Length: 100\r\n\r\n", more=b'{"mess')
    assert b"HTTP/1.1 408 " in found
    assert b"the request was not here after 0.3 seconds" in found
    found = raw(url, head + b"Transfer-Encoding: chunked\r\n\r\n", more=b'3\r\n{"m\r\n')
    assert b"HTTP/1.1 408 " in found
    assert b"HTTP/1.1 408 " in raw(url, head + b"Content-Length: 99999999999999\r\n\r\n", more=b"x")


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
