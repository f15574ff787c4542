"""Answers on their way: failures, clients that go away, pieces."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import openai_client
import pytest
import service_server
from openai_client import ask
from service_server import KEY, PIECES, TEXT, Scripted, until

from utils.scheduling import Closed, TimedOut

served, scheduler, url = service_server.served, service_server.scheduler, service_server.url
opened, options, client = openai_client.opened, openai_client.options, openai_client.client


def test_a_full_queue(client: openai.OpenAI, scheduler: Scripted) -> None:
    scheduler.room = 2
    with pytest.raises(openai.RateLimitError, match="too many wait already: try again in 7 seconds") as caught:
        ask(client, n=3)
    assert caught.value.response.headers["Retry-After"] == "7"
    assert scheduler.running == 0, "what was submitted before is given up"
    assert ask(client, n=2).choices[1].message.content == TEXT


@pytest.mark.parametrize("stream", [False, True])
def test_failures_of_the_engine(stream: bool, client: openai.OpenAI, scheduler: Scripted) -> None:
    scheduler.fails = TimedOut(300)
    with pytest.raises(openai.InternalServerError, match="the answer took too long") as caught:
        list(ask(client, stream=stream))
    assert (caught.value.status_code, caught.value.code) == (504, "timed_out")
    scheduler.fails = RuntimeError("CUDA error in /home/me/secret.py")
    with pytest.raises(openai.InternalServerError, match="the server failed at this request") as caught:
        list(ask(client, stream=stream))
    assert caught.value.status_code == 500
    assert "secret" not in str(caught.value.body)
    scheduler.refuses = RuntimeError("/home/me/secret.py")
    with pytest.raises(openai.InternalServerError, match="the server failed at this request"):
        list(ask(client, stream=stream))
    scheduler.refuses, scheduler.fails = None, None
    scheduler.closed = True
    with pytest.raises(openai.InternalServerError, match="the server is shutting down") as caught:
        list(ask(client, stream=stream))
    assert caught.value.status_code == 503
    scheduler.closed = False
    until(lambda: scheduler.running == 0, "the end of all")
    assert (ask(client).choices[0].message.content) == TEXT


def test_what_the_engine_refuses_is_the_request_s_fault(client: openai.OpenAI, scheduler: Scripted) -> None:
    scheduler.refuses = ValueError("the prompt has 600 tokens")
    with pytest.raises(openai.BadRequestError, match="the prompt has 600 tokens") as caught:
        ask(client)
    assert caught.value.code == "invalid_value"


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_is_shut_down_meanwhile(stream: bool, client: openai.OpenAI, scheduler: Scripted) -> None:
    scheduler.fails = Closed()
    with pytest.raises(openai.InternalServerError, match="the server is shutting down") as caught:
        list(ask(client, stream=stream))
    assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")


def test_an_answer_that_ends_and_is_not_there_is_a_failure(client: openai.OpenAI, scheduler: Scripted) -> None:
    scheduler.goes_on.clear()
    with ThreadPoolExecutor(1) as another:
        asked = another.submit(ask, client)
        until(lambda: scheduler.asked, "the question")
        scheduler.asked[0].cancel()
        with pytest.raises(openai.InternalServerError, match="the server failed at this request"):
            asked.result()


def test_a_failure_in_the_middle_of_a_stream_is_an_event(client: openai.OpenAI, scheduler: Scripted) -> None:
    scheduler.fails, scheduler.fails_at = TimedOut(300), 2
    seen: list[str] = []
    stream = (chunk.choices[0].delta.content or "" for chunk in ask(client, stream=True))
    with pytest.raises(openai.APIError, match="the answer took too long"):
        seen.extend(iter(lambda: next(stream), None))
    assert seen == ["", *PIECES[:2]]
    until(lambda: scheduler.running == 0, "the end")


@pytest.mark.parametrize("halts_at", [0, 2], ids=["before the first piece", "in the middle"])
def test_a_client_that_goes_away_frees_its_slots(halts_at: int, client: openai.OpenAI, scheduler: Scripted) -> None:
    scheduler.goes_on.clear()
    scheduler.halts_at = halts_at
    if halts_at:
        stream = ask(client, stream=True, n=2)
        next(iter(stream))
        assert scheduler.running == 2
        stream.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            ask(client.with_options(timeout=0.2), stream=True, n=2)
    until(lambda: scheduler.running == 0, "the end", seconds=1)
    assert all(asked.cancelled and asked.answer is None for asked in scheduler.asked)


def test_a_client_that_does_not_wait_for_a_whole_answer(client: openai.OpenAI, scheduler: Scripted) -> None:
    scheduler.goes_on.clear()
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.2), n=2)
    until(lambda: scheduler.running == 0, "the end", seconds=1)
    assert len(scheduler.asked) == 2


def test_pieces_come_as_they_are_decoded(client: openai.OpenAI, scheduler: Scripted) -> None:
    scheduler.goes_on.clear()
    scheduler.halts_at = 1
    stream = iter(ask(client, stream=True))
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", PIECES[0]]
    scheduler.goes_on.set()
    assert [chunk.choices[0].delta.content for chunk in stream] == [*PIECES[1:], None]


def test_what_is_streamed_is_json_a_line(url: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    headers = {"Authorization": f"bearer {KEY}"}
    reply = httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers)
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    *events, done, end = reply.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert (
        "".join(json.loads(e.removeprefix("data: "))["choices"][0]["delta"].get("content", "") for e in events) == TEXT
    )
