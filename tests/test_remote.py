"""Answers from a server that has faults: whose a failure is, and what comes of the others."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import asker
import pytest
from asker import ENDS, GREEDY, KEY, Asker, error, expected, raises
from conftest import RECORDS
from openai_server import Fault, ModelServer, serving

from utils import cli
from utils.remote import Remote, ServerFailure
from utils.tokens import PROBE

no_key_and_no_proxy, prompts, server = asker.no_key_and_no_proxy, asker.prompts, asker.server


def test_answers_come_in_order_to_the_ids_that_were_given(server: ModelServer, prompts: list[list[int]]) -> None:
    done: list[int] = []
    found = Asker(server)(prompts, on_done=done.append)
    assert found == expected(server, prompts)
    assert done == list(range(1, len(prompts) + 1))
    sent = {tuple(body["prompt"]): body for body in server.bodies}
    assert sorted(sent) == sorted(map(tuple, prompts))
    assert {body["model"] for body in server.bodies} == {"served"}
    assert all(body["temperature"] == 0 and "seed" not in body for body in server.bodies)


def test_no_prompts_ask_nothing() -> None:
    assert Remote(base_url="http://127.0.0.1:9/v1").answers([], GREEDY, tokenizer=None, ends=ENDS) == []


def test_seeds_are_the_rows_own_and_only_where_something_is_drawn(
    server: ModelServer, prompts: list[list[int]]
) -> None:
    sampled = {**GREEDY, "do_sample": True, "temperature": 0.5, "top_p": 1.0, "top_k": 0}
    ask, seeds = Asker(server), [2**62 + i for i in range(len(prompts))]
    ask(prompts, sampled, seeds=seeds)
    assert {tuple(body["prompt"]): body["seed"] for body in server.bodies} == dict(
        zip(map(tuple, prompts), seeds, strict=True)
    )
    server.bodies.clear()
    ask(prompts, seeds=seeds)
    assert all("seed" not in body for body in server.bodies)
    with pytest.raises(ValueError, match="zip"):
        ask(prompts, sampled, seeds=seeds[1:])


def test_the_server_is_tried_out_once_for_each_kind_of_request(server: ModelServer, prompts: list[list[int]]) -> None:
    ask = Asker(server)
    ask(prompts)
    ask(prompts)
    assert [probe["prompt"] for probe in server.probes] == [server.tokenizer(PROBE)["input_ids"]]
    ask(prompts, cli.greedy_settings(17))
    assert len(server.probes) == 2


def test_prompts_as_text_leave_out_what_the_tokenizer_adds(server: ModelServer, prompts: list[list[int]]) -> None:
    found = Asker(server, prompt_form="text")(prompts)
    which = next(i for i, record in enumerate(RECORDS) if "</s>" in record["instruction"])
    assert found[which] == ServerFailure(
        message="as text it would be read as other tokens than training saw; send it with --api_prompt ids", retry=False
    )
    assert found[:which] + found[which + 1 :] == [
        answer for i, answer in enumerate(expected(server, prompts)) if i != which
    ]
    assert len(server.bodies) == len(prompts) - 1
    assert all(body["prompt"].startswith("Below is") for body in server.bodies)


def test_a_server_with_another_tokenizer_is_found_out_before_any_row(
    server: ModelServer, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(server.tokenizer(PROBE)["input_ids"])
    monkeypatch.setattr(server, "ids_of", lambda prompt: [1, *server.tokenizer(prompt)["input_ids"]])
    with pytest.raises(ValueError, match=f"^the server read {count + 1} tokens where the prompt has {count}: its"):
        Asker(server, prompt_form="text")(prompts)
    assert server.bodies == []


def test_never_more_requests_than_allowed_and_not_fewer(server: ModelServer, prompts: list[list[int]]) -> None:
    together = threading.Barrier(3)
    server.before_answer = lambda: together.wait(timeout=60)  # no answer before there are three questions
    assert Asker(server, concurrency=3)(prompts * 3) == expected(server, prompts * 3)
    assert server.most == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(cut=True), r"the connection broke \(.+\), 4 times"),
        (error(500, "boom 爆炸"), "HTTP 500: boom 爆炸, 4 times"),
        (Fault(body="<html>\n<p>Log in"), "what it sent is not JSON: <html> <p>Log in, 4 times"),
        (Fault(body='{"choices": []}'), r"what it sent is no completion: \{'choices': \[\]\}, 4 times"),
    ],
    ids=["dropped", "500", "not JSON", "no completion"],
)
def test_a_row_that_gets_no_answer_does_not_end_the_others(
    fault: Fault, message: str, server: ModelServer, prompts: list[list[int]]
) -> None:
    server.faults = [fault] * 4
    failure, *answers = Asker(server, concurrency=1)(prompts[:3])
    assert re.fullmatch(message, failure.message)
    assert failure.retry
    assert answers == expected(server, prompts[:3])[1:]


def test_a_row_that_is_refused_is_not_asked_again(server: ModelServer, prompts: list[list[int]]) -> None:
    long = "This model's maximum context length is 512 tokens. However, you requested 600."
    server.refuse = lambda body: error(400, long) if body["prompt"] == prompts[2] else None
    ask = Asker(server)
    found = ask(prompts)
    assert found[2] == ServerFailure(message=f"the server refuses it (HTTP 400: {long})", retry=False)
    assert [a for i, a in enumerate(found) if i != 2] == [a for i, a in enumerate(expected(server, prompts)) if i != 2]
    assert ask.waits == []


def test_a_server_that_does_not_know_a_field_is_asked_once(server: ModelServer, prompts: list[list[int]]) -> None:
    asked: list[Any] = []

    def refuse(body: dict[str, Any]) -> Fault:
        asked.append(body)
        return Fault(status=422, body=json.dumps({"detail": "Unexpected fields in the request: {'top_k'}"}))

    server.refuse = refuse
    ask = Asker(server)
    message = (
        f"{server.url} refuses such requests (HTTP 422: Unexpected fields in the request: {{'top_k'}}). They have the "
        "fields max_tokens, temperature, top_k, repetition_penalty, stop_token_ids, return_token_ids, and a prompt of "
        "ids; a server that takes text only, or OpenAI's own fields only, is asked with --api_prompt text"
    )
    with raises(ValueError, message):
        ask(prompts)
    assert (len(asked), ask.waits) == (1, [])
    with pytest.raises(
        ValueError, match="a prompt of text; it may not know a field: --top_k 0 and --repetition_penalty 1"
    ):
        Asker(server, prompt_form="text")(prompts)


def test_a_wrong_key_ends_all_and_is_not_shown(server: ModelServer, prompts: list[list[int]]) -> None:
    server.key = "another"
    ask = Asker(server, api_key=KEY)
    message = (
        f"{server.url} does not accept the key (HTTP 401: Incorrect API key provided: …): give --api_key_file, or set "
        "OPENAI_API_KEY"
    )
    with raises(PermissionError, message):
        ask(prompts)
    with pytest.raises(PermissionError, match="wants a key .HTTP 401: .*: give --api_key_file, or set OPENAI_API_KEY"):
        Asker(server)(prompts)
    assert KEY not in repr(ask.remote) + str(vars(ask.remote)["_api"])


def test_a_key_that_stops_being_accepted_ends_all(server: ModelServer, prompts: list[list[int]]) -> None:
    server.faults = [error(403, "expired")]
    with pytest.raises(PermissionError, match="wants a key .HTTP 403: expired"):
        Asker(server)(prompts)


def test_which_model(server: ModelServer, prompts: list[list[int]]) -> None:
    server.names = ("base", "我的模型")
    with pytest.raises(ValueError, match=f"^{server.url} has base, 我的模型: say which with --api_model$"):
        Asker(server)(prompts)
    assert Asker(server, model="我的模型")(prompts[:1]) == expected(server, prompts[:1])
    with pytest.raises(
        ValueError, match=f"^{server.url} has no model 'other' but base, 我的模型: give --api_model one of these$"
    ):
        Asker(server, model="other")(prompts)
    server.names = ()
    with pytest.raises(ValueError, match=f"^{server.url} names no model: say which with --api_model$"):
        Asker(server)(prompts)
    server.list_fault = error(500, "no cache")
    message = f"{server.url} does not say which models it has (HTTP 500: no cache, 4 times): name one with --api_model"
    with raises(ValueError, message):
        Asker(server)(prompts)


@pytest.mark.parametrize("model", [None, "served"])
def test_an_address_without_completions(model: str | None, server: ModelServer, prompts: list[list[int]]) -> None:
    base = server.url.removesuffix("/v1")
    message = (
        f"{base} serves no completions (HTTP 404: Not Found): --api_base usually ends in /v1, as in "
        "http://127.0.0.1:8000/v1"
    )
    with raises(ValueError, message):
        Asker(server, base_url=f"{base}/", model=model)(prompts)


def test_an_address_that_has_moved_is_not_followed(server: ModelServer, prompts: list[list[int]]) -> None:
    server.refuse = lambda body: Fault(status=308, headers={"Location": "https://example.org/v1/completions"})
    message = (
        f"{server.url} is the old address (HTTP 308: moved to https://example.org/v1/completions): give the new one as "
        "--api_base"
    )
    with raises(ValueError, message):
        Asker(server)(prompts)


def test_a_server_that_is_gone_later_ends_all_after_some_attempts(tokenizer: Any, prompts: list[list[int]]) -> None:
    with serving(ModelServer(tokenizer=tokenizer)) as server:
        ask = Asker(server, concurrency=2)
        ask(prompts[:2])
    message = (
        f"{server.url} answers nobody any more (All connection attempts failed, 4 times): look into its log, and run the "
        "same command again when it is back"
    )
    with raises(ConnectionError, message):
        ask(prompts[:2])
    assert len(ask.waits) >= 3


def test_a_busy_server_ends_all_only_if_it_answers_nobody(server: ModelServer, prompts: list[list[int]]) -> None:
    done: list[int] = []

    async def until_another_row_is_answered(seconds: float) -> None:
        while not done:
            await asyncio.sleep(0)

    server.refuse = lambda body: error(503, "no room") if body["prompt"] == prompts[0] else None
    ask = Asker(server, concurrency=2)
    ask.remote._api.sleep = until_another_row_is_answered
    found = ask(prompts, on_done=done.append)
    assert found == [ServerFailure(message="HTTP 503: no room, 4 times", retry=True), *expected(server, prompts)[1:]]
    server.refuse = lambda body: error(503, "no room") if body["max_tokens"] > 1 else None
    with pytest.raises(ConnectionError, match="answers nobody any more .HTTP 503: no room, 4 times."):
        Asker(server, concurrency=2)(prompts)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal's: a suite that a shell runs in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_at_once(server: ModelServer, prompts: list[list[int]], ctrl_c: None) -> None:
    ended = threading.Event()

    def interrupt() -> None:
        if len(server.bodies) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        ended.wait(60)

    server.before_answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        Asker(server, concurrency=2)(prompts)
    assert server.at_once == 2, "nobody waited for the answers"
    ended.set()


def test_a_reader_of_progress_that_fails_ends_all(server: ModelServer, prompts: list[list[int]]) -> None:
    def full(done: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Asker(server)(prompts, on_done=full)
