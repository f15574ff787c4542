"""What is said when something is wrong, and what never is: over plain HTTP."""

from __future__ import annotations

from typing import Any

import httpx2
import plain_http
import pytest
import service_server
from plain_http import CHAT, error
from service_server import Scripted, serving

from utils.assistant import Assistant

served, scheduler, url = service_server.served, service_server.scheduler, service_server.url
options = plain_http.options


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
