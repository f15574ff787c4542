"""A server with faults, and below a real one."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import RECORDS
from openai_server import Fault, ModelServer, serving

import merge
from utils import cli, generation
from utils.encode import encode_prompt
from utils.generation import Answer
from utils.remote import Remote, ServerFailure
from utils.stopping import Ends
from utils.templates import TEMPLATES
from utils.tokens import PROBE

ENDS = Ends(ids=[2])
GREEDY = cli.greedy_settings(16)
KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def no_key_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [encode_prompt(record, TEMPLATES["alpaca"], tokenizer) for record in RECORDS]


@pytest.fixture
def server(tokenizer: Any) -> Iterator[ModelServer]:
    with serving(ModelServer(tokenizer=tokenizer)) as running:
        yield running


class Asker:
    """A `Remote` that does not sleep, and its waits."""

    def __init__(self, server: ModelServer, **options: Any) -> None:
        self.waits: list[float] = []
        options = {"base_url": server.url, "max_retries": 3, **options}
        self.remote = Remote(sleep=self._sleep, **options)
        self._tokenizer = server.tokenizer

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    def __call__(self, prompts: list[list[int]], settings: Any = GREEDY, **options: Any) -> list[Any]:
        return self.remote.answers(prompts, settings, **{"tokenizer": self._tokenizer, "ends": ENDS, **options})


def expected(server: ModelServer, prompts: list[list[int]]) -> list[Answer]:
    texts = [server.tokenizer.decode(ids[-server.answer :]) for ids in prompts]
    return [
        Answer(text=text, finish_reason="stop", prompt_tokens=len(ids), new_tokens=server.answer + 1)
        for ids, text in zip(prompts, texts, strict=True)
    ]


def error(status: int, message: str, **headers: str) -> Fault:
    return Fault(status=status, body=json.dumps({"error": {"message": message}}), headers=headers)


def raises(kind: type[Exception], message: str) -> Any:
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


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


def test_an_answer_that_takes_too_long_is_none(server: ModelServer, prompts: list[list[int]]) -> None:
    ask, ended = Asker(server, max_retries=1), threading.Event()
    ask(prompts[:1])
    server.before_answer = lambda: ended.wait(60)
    ask.remote._api.timeout = 0.05  # for what is answered at once, a busy machine may need more
    assert ask(prompts[:1]) == [ServerFailure(message="no answer within 0.05 seconds, 2 times", retry=True)]
    ended.set()


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


def test_the_key_comes_from_where_it_is_given_or_from_the_environment(
    server: ModelServer, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = KEY
    assert Asker(server, api_key=KEY)(prompts[:1]) == expected(server, prompts[:1])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Asker(server)(prompts[:1]) == expected(server, prompts[:1])


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


@pytest.fixture(scope="module")
def merged(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run as one checkpoint, by our script."""
    folder = tmp_path_factory.mktemp("merged") / "模型"
    assert merge.main(["--lora_dir", str(finished), "--merged_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def transformers_serve(merged: Path) -> Iterator[str]:
    """The address of `transformers serve`, which serves the merged run."""
    for name in ("fastapi", "uvicorn", "openai", "pydantic"):
        pytest.importorskip(name, reason="of transformers[serving], which requirements-dev.txt installs")
    command = [Path(sys.executable).with_name("transformers"), "serve", merged, "--host", "127.0.0.1", "--port", "0"]
    log = ""
    with subprocess.Popen(
        [*map(str, command), "--device", "cpu", "--dtype", "float32"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    ) as process:
        try:
            assert process.stdout
            for line in process.stdout:
                log += line
                if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    threading.Thread(target=process.stdout.read, daemon=True).start()  # or it would block on its log
                    yield f"{found[1]}/v1"
                    return
            raise AssertionError(f"transformers serve did not start:\n{log}")
        finally:
            process.terminate()


def test_a_real_server_answers_as_we_do(transformers_serve: str, merged: Path, tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    records = [record for record in RECORDS if "</s>" not in record["instruction"]]
    assert any("🌏" in record["input"] for record in records)
    prompts = [encode_prompt(record, TEMPLATES["alpaca"], tokenizer) for record in records]
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert str(model.dtype) == "torch.float32"
    here = generation.generate(model.eval(), tokenizer, prompts, ends=ENDS, settings=GREEDY)
    remote = Remote(base_url=transformers_serve, model=str(merged), prompt_form="text", concurrency=4)
    assert remote.answers(prompts, GREEDY, tokenizer=tokenizer, ends=ENDS) == here
    assert len({answer.text for answer in here}) > 1
    # What ends an answer of ours ends one of theirs.
    mark = next(answer.text for answer in here if len(answer.text) > 4)[2:4]
    ends = Ends(ids=[2], texts=[mark])
    cut = generation.generate(model, tokenizer, prompts, ends=ends, settings=GREEDY)
    found = remote.answers(prompts, GREEDY, tokenizer=tokenizer, ends=ends)
    assert found == cut
    assert any(len(one.text) < len(other.text) for one, other in zip(cut, here, strict=True))


def test_a_real_server_s_chat_is_asked_in_the_trained_prompt(
    transformers_serve: str, merged: Path, tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    first = [{"role": "user", "content": "把这句话翻译成英文。你好，世界 🌏"}]
    later = [*first, {"role": "assistant", "content": "Hello. 蓝色"}, {"role": "user", "content": " Why? "}]
    chats = [first, later, [{"role": "system", "content": "Be brief."}, *later]]
    records = [{"instruction": first[0]["content"], "input": ""}, *({"conversation": chat} for chat in chats[1:])]
    prompts = [encode_prompt(record, TEMPLATES["alpaca"], tokenizer) for record in records]
    model: Any = AutoModelForCausalLM.from_pretrained(merged).eval()
    here = generation.generate(model, tokenizer, prompts, ends=ENDS, settings=GREEDY)
    for messages, answer in zip(chats, here, strict=True):
        asked = {"model": str(merged), "messages": messages, "max_tokens": 16, "temperature": 0}
        found = httpx.post(f"{transformers_serve}/chat/completions", json=asked, timeout=60).json()
        assert found["choices"][0]["message"]["content"] == answer.text
        assert found["usage"]["prompt_tokens"] == answer.prompt_tokens


def test_a_real_server_that_takes_text_only_says_so(transformers_serve: str, merged: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="HTTP 422: Unexpected fields in the request: .*--api_prompt text$"):
        Remote(base_url=transformers_serve, model=str(merged)).answers([[1, 5]], GREEDY, tokenizer=tokenizer, ends=ENDS)
    with pytest.raises(ValueError, match="refuses such requests .HTTP 400: Server is pinned to .*; requested 'other'"):
        Remote(base_url=transformers_serve, model="other", prompt_form="text").answers(
            [[1, 5]], GREEDY, tokenizer=tokenizer, ends=ENDS
        )
