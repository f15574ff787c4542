"""A server's HTTP: further attempts, addresses, keys, proxies."""

from __future__ import annotations

import email.utils
import socket
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import asker
import pytest
from asker import KEY, Asker, error, expected, raises
from openai_server import Fault, ModelServer

from utils.remote import Remote, ServerFailure

no_key_and_no_proxy, prompts, server = asker.no_key_and_no_proxy, asker.prompts, asker.server


def test_500_twice_then_an_answer(server: ModelServer, prompts: list[list[int]]) -> None:
    server.faults = [error(500, "boom"), error(500, "boom")]
    ask = Asker(server, concurrency=1)
    assert ask(prompts[:1]) == expected(server, prompts[:1])
    first, second = ask.waits
    assert 0.5 <= first <= 1 <= second <= 2, "longer each time, and never the same"


def test_a_server_is_given_the_time_that_it_asks_for(server: ModelServer, prompts: list[list[int]]) -> None:
    date = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    server.faults = [
        error(429, "slow down", **{"Retry-After": "7"}),
        error(503, "loading", **{"Retry-After": date}),
        error(429, "slow down", **{"Retry-After": "soon"}),
    ]
    ask = Asker(server, concurrency=1)
    assert ask(prompts[:1]) == expected(server, prompts[:1])
    assert ask.waits[0] == 7
    assert 7 < ask.waits[1] <= 50
    assert 2 <= ask.waits[2] <= 4


def test_a_server_that_asks_for_too_much_time_is_reported(server: ModelServer, prompts: list[list[int]]) -> None:
    server.faults = [error(429, "quota exceeded", **{"Retry-After": "3600"})]
    ask = Asker(server, concurrency=1)
    message = (
        f"{server.url} answers nobody any more (HTTP 429: quota exceeded; it wants us to wait 3600 seconds): look into "
        "its log, and run the same command again when it is back"
    )
    with raises(ConnectionError, message):
        ask(prompts)
    assert ask.waits == []


def test_a_broken_connection_is_tried_again(server: ModelServer, prompts: list[list[int]]) -> None:
    server.faults = [Fault(cut=True), Fault(body='{"choices": [{"text": "half of', cut=True), Fault(body="<html>")]
    ask = Asker(server, concurrency=1)
    assert ask(prompts[:2]) == expected(server, prompts[:2])
    assert len(ask.waits) == 3


def test_an_answer_that_takes_too_long_is_none(server: ModelServer, prompts: list[list[int]]) -> None:
    ask, ended = Asker(server, max_retries=1), threading.Event()
    ask(prompts[:1])
    server.before_answer = lambda: ended.wait(60)
    ask.remote._api.timeout = 0.05  # for what is answered at once, a busy machine may need more
    assert ask(prompts[:1]) == [ServerFailure(message="no answer within 0.05 seconds, 2 times", retry=True)]
    ended.set()


def test_the_key_comes_from_where_it_is_given_or_from_the_environment(
    server: ModelServer, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = KEY
    assert Asker(server, api_key=KEY)(prompts[:1]) == expected(server, prompts[:1])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Asker(server)(prompts[:1]) == expected(server, prompts[:1])


def test_where_nothing_listens_there_is_one_attempt(server: ModelServer, prompts: list[list[int]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        ask = Asker(server, base_url=base)
        message = (
            f"nothing answers at {base} (All connection attempts failed): start the server, wait until it has loaded the "
            "model, or correct --api_base"
        )
    with raises(ConnectionError, message):
        ask(prompts)
    assert ask.waits == []


def test_a_proxy_is_not_asked_for_this_machine_s_own_ports(
    server: ModelServer, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert Asker(server)(prompts[:1]) == expected(server, prompts[:1])
    local = server.url.replace("127.0.0.1", "localhost")
    assert Asker(server, base_url=local)(prompts[:1]) == expected(server, prompts[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "127.0.0.1:8000/v1"}, "--api_base '127.0.0.1:8000/v1' is not an address such as http://127.0.0.1:8000/v1"),
        ({"base_url": ""}, "--api_base '' is not an address such as http://127.0.0.1:8000/v1"),
        ({"base_url": "http://a:b/v1"}, "--api_base 'http://a:b/v1': Port could not be cast to integer value as 'b'"),
        ({"base_url": "http://me:pw@a/v1"}, "--api_base holds a user or a password: put the key into a file and give it as --api_key_file"),
        ({"base_url": "http://a/v1/completions/"}, "--api_base 'http://a/v1/completions/': leave out /completions, which is added where it belongs"),
        ({"base_url": "http://a/v1/chat/completions"}, "--api_base 'http://a/v1/chat/completions': leave out /chat/completions, which is added where it belongs"),
        ({"api_key": ""}, "--api_key_file is empty: write the key into it, or leave the flag out"),
        ({"api_key": f"{KEY}\nmore"}, "the API's key (--api_key_file, or OPENAI_API_KEY) must be one word of plain characters"),
        ({"api_key": "钥匙"}, "the API's key (--api_key_file, or OPENAI_API_KEY) must be one word of plain characters"),
    ],
)  # fmt: skip
def test_addresses_and_keys_that_cannot_be_any(options: dict[str, Any], message: str) -> None:
    with raises(ValueError, message):
        Remote(**{"base_url": "http://127.0.0.1:9/v1", **options})
    assert KEY not in message
