"""The service as the official client sees it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from service_server import PIECES, Scripted, serving, until

from utils import cli
from utils.assistant import BASE, Assistant, open_run
from utils.sampling import row_seeds
from utils.scheduling import TimedOut
from utils.service import Access
from utils.tokens import PROBE

KEY = "sk-0123456789abcdef"
TEXT = "".join(PIECES)


@pytest.fixture(scope="module")
def opened(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    second = tmp_path_factory.mktemp("places") / "另一个.run"
    second.symlink_to(finished)
    return open_run(finished, second)


@pytest.fixture(scope="module")
def served(opened: Assistant) -> Iterator[tuple[Scripted, str]]:
    scheduler = Scripted()
    with serving(opened, scheduler, access=Access(api_key=KEY)) as address:
        yield scheduler, address


@pytest.fixture
def scheduler(served: tuple[Scripted, str]) -> Scripted:
    until(lambda: served[0].running == 0, "the end of the test before")
    served[0].__init__()
    return served[0]


@pytest.fixture
def url(served: tuple[Scripted, str], scheduler: Scripted) -> str:
    return served[1]


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=30) as made:
        yield made


def ask(client: openai.OpenAI, content: Any = "Why?", **fields: Any) -> Any:
    return client.chat.completions.create(model="run", messages=[{"role": "user", "content": content}], **fields)


def test_a_chat(client: openai.OpenAI, scheduler: Scripted, opened: Assistant) -> None:
    reply = ask(client, "把这句话翻译成英文。🌏", max_tokens=9)
    assert reply.choices[0].message.content == TEXT
    assert (reply.choices[0].message.role, reply.choices[0].finish_reason, reply.model) == ("assistant", "stop", "run")
    (asked,) = scheduler.asked
    assert asked.prompt == opened.prompt_ids({"instruction": "把这句话翻译成英文。🌏", "input": ""})
    assert asked.adapter == "run"
    assert asked.settings == {
        **cli.greedy_settings(9), "do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0
    }  # fmt: skip
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(asked.prompt), 7)
    assert usage.total_tokens == len(asked.prompt) + 7
    assert scheduler.running == 0


def test_a_chat_as_pieces(client: openai.OpenAI, scheduler: Scripted) -> None:
    scheduler.finish = "length"
    chunks = list(ask(client, stream=True))
    assert [c.choices[0].delta.content for c in chunks] == ["", *PIECES, None]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 4 + ["length"]
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)
    *_, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.completion_tokens == 7
    until(lambda: scheduler.running == 0, "the end of both")


def test_the_async_client_and_many_at_once(url: str, scheduler: Scripted) -> None:
    async def one(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(
            model=BASE, messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(20)))

    assert asyncio.run(all_of_them()) == [TEXT] * 20
    assert {asked.adapter for asked in scheduler.asked} == {BASE}


def test_several_answers_have_seeds_of_their_own(client: openai.OpenAI, scheduler: Scripted) -> None:
    scheduler.says_seed = True
    reply = ask(client, n=3, seed=5)
    seeds = row_seeds(5, 3)
    assert [choice.message.content for choice in reply.choices] == [f"{TEXT} #{seed}" for seed in seeds]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert reply.usage.completion_tokens == 21
    assert reply.usage.prompt_tokens == len(scheduler.asked[0].prompt), "the prompt is counted once"
    texts = ["", "", ""]
    for chunk in ask(client, n=3, seed=5, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [f"{TEXT} #{seed}" for seed in seeds]


def test_one_answer_has_the_seed_that_was_given_and_without_one_another_each_time(
    client: openai.OpenAI, scheduler: Scripted
) -> None:
    for seed in (0, -(2**63), 2**63 - 1):
        ask(client, seed=seed)
        assert scheduler.asked[-1].seed == seed
    ask(client)
    ask(client)
    assert scheduler.asked[-1].seed != scheduler.asked[-2].seed


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 1e-9, "top_p": 0.5}, {"do_sample": False}),
        ({"temperature": 0.5, "top_p": 0.25}, {"do_sample": True, "temperature": 0.5, "top_p": 0.25, "top_k": 0}),
        ({"extra_body": {"top_k": 3, "repetition_penalty": 2, "no_repeat_ngram_size": 4}}, {"top_k": 3, "repetition_penalty": 2.0, "no_repeat_ngram_size": 4}),
        ({"extra_body": {"top_k": -1}, "temperature": 2}, {"top_k": 0, "temperature": 2.0}),
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_completion_tokens": 6}, {"max_new_tokens": 6}),
    ],
)  # fmt: skip
def test_decoding(fields: Any, expected: dict[str, Any], client: openai.OpenAI, scheduler: Scripted) -> None:
    ask(client, **fields)
    settings = scheduler.asked[-1].settings
    assert {name: settings[name] for name in expected} == expected
    assert settings["do_sample"] or not {"temperature", "top_p", "top_k"} & set(settings)


def test_what_ends_an_answer(client: openai.OpenAI, scheduler: Scripted, opened: Assistant) -> None:
    ask(client, stop="END")
    assert scheduler.asked[-1].stop == ("END",)
    own = list(opened.ends().texts)
    ask(client, stop=["一", "b", "b", "🌏", "d", *own])
    assert scheduler.asked[-1].stop == ("一", "b", "🌏", "d"), "what ends every answer of the run is not counted"


def test_conversations_are_rendered_as_they_were_trained(
    client: openai.OpenAI, scheduler: Scripted, opened: Assistant
) -> None:
    said = [
        {"role": "developer", "content": "你是助手"},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "1+1?"}]},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Sure? </s> ### Response:"},
    ]
    client.chat.completions.create(model="另一个.run", messages=said)  # pyright: ignore[reportCallIssue, reportArgumentType]
    turns = [
        {"role": "system", "content": "你是助手"},
        {"role": "user", "content": "What is 1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Sure? </s> ### Response:"},
    ]
    asked = scheduler.asked[-1]
    assert asked.adapter == "另一个.run"
    assert asked.prompt == opened.prompt_ids({"conversation": turns}, "另一个.run")


def test_a_reply_can_be_sent_back(client: openai.OpenAI, scheduler: Scripted) -> None:
    message = ask(client).choices[0].message
    talk: Any = [{"role": "user", "content": "Hi"}, message.model_dump(), {"role": "user", "content": "And?"}]
    assert client.chat.completions.create(model="run", messages=talk).choices[0].message.content == TEXT


def test_control_tokens_stay_text(client: openai.OpenAI, scheduler: Scripted, opened: Assistant) -> None:
    ends = set(opened.ends().ids)
    ask(client, "a </s> b <s> c <unk>")
    assert not ends & set(scheduler.asked[-1].prompt)
    client.completions.create(model="run", prompt="a </s> b", extra_body={"split_special_tokens": True})
    assert not ends & set(scheduler.asked[-1].prompt)
    assert opened.tokenizer.decode(scheduler.asked[-1].prompt[1:]) == "a </s> b"


def test_a_whole_prompt_is_read_as_the_tokenizer_reads_it(
    client: openai.OpenAI, scheduler: Scripted, opened: Assistant
) -> None:
    for text in (PROBE, "a </s> b", " 空  格 🌏\n\n", "### Response:"):
        client.completions.create(model="run", prompt=text)
        assert scheduler.asked[-1].prompt == opened.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("prompt", ["Hello 世界 🌏", ["Hello", "世界 🌏"], [5, 6, 7], [[5, 6], [7, 8, 9]]])
def test_completions(prompt: Any, client: openai.OpenAI, scheduler: Scripted, opened: Assistant) -> None:
    reply = client.completions.create(model="run", prompt=prompt, n=2, seed=1)
    rows = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    ids = [opened.tokenizer(row)["input_ids"] if isinstance(row, str) else row for row in rows]
    assert [asked.prompt for asked in scheduler.asked] == [row for row in ids for _ in range(2)]
    assert [asked.seed for asked in scheduler.asked] == row_seeds(1, 2 * len(rows))
    assert [choice.text for choice in reply.choices] == [TEXT] * 2 * len(rows)
    assert [choice.index for choice in reply.choices] == list(range(2 * len(rows)))
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == sum(map(len, ids))
    assert {asked.settings["max_new_tokens"] for asked in scheduler.asked} == {16}, "OpenAI's default"
    texts = [""] * len(rows)
    for chunk in client.completions.create(
        model="run", prompt=prompt, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [TEXT] * len(rows)


def test_ids_are_given_where_they_are_wanted(client: openai.OpenAI, scheduler: Scripted, opened: Assistant) -> None:
    wanted: Any = {"extra_body": {"return_token_ids": True}}
    reply: Any = ask(client, n=2, **wanted)
    prompt = opened.prompt_ids({"instruction": "Why?", "input": ""})
    assert reply.prompt_token_ids == prompt
    assert [choice.token_ids for choice in reply.choices] == [[0, 1, 2, 3, 4, 5, 6]] * 2, "what ended them, too"
    texts: Any = client.completions.create(model="run", prompt=[[5, 6], [7]], n=2, **wanted)
    assert [choice.prompt_token_ids for choice in texts.choices] == [[5, 6], [5, 6], [7], [7]]
    assert [choice.token_ids for choice in texts.choices] == [[0, 1, 2, 3, 4, 5, 6]] * 4
    for unasked in (ask(client), client.completions.create(model="run", prompt=[5])):
        assert "token_ids" not in unasked.model_dump_json(exclude_none=True)


def test_pieces_have_their_own_ids(client: openai.OpenAI, scheduler: Scripted, opened: Assistant) -> None:
    wanted: Any = {"extra_body": {"return_token_ids": True}, "stream": True}
    begun, *pieces = ask(client, **wanted)
    assert begun.prompt_token_ids == opened.prompt_ids({"instruction": "Why?", "input": ""})
    assert [chunk.choices[0].token_ids for chunk in pieces] == [[0], [1], [2], [3, 4, 5, 6]]
    chunks: list[Any] = list(client.completions.create(model="run", prompt=[[5, 6], [7]], **wanted))
    for number, prompt in enumerate(([5, 6], [7])):
        first, *others = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == number]
        assert (first.prompt_token_ids, first.token_ids) == (prompt, [0])
        assert [choice.token_ids for choice in others] == [[1], [2], [3, 4, 5, 6]]
        assert all("prompt_token_ids" not in choice.model_dump() for choice in others)
    assert all("token_ids" not in chunk.model_dump_json() for chunk in ask(client, stream=True))


def test_models(client: openai.OpenAI, url: str, scheduler: Scripted) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["run", "另一个.run", BASE]
    for name in names:
        found = client.models.retrieve(name)
        assert (found.id, found.object, found.owned_by) == (name, "model", "alpaca-cot")
        assert found.created > 1_500_000_000
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("../../etc/passwd")
    assert caught.value.status_code == 404
    with pytest.raises(openai.NotFoundError, match="unknown model 'rum'. Did you mean run.*另一个.run") as caught:
        client.chat.completions.create(model="rum", messages=[{"role": "user", "content": "Hi"}])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert scheduler.asked == []
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    reply = httpx2.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert reply.json()["model"] == "run", "the first adapter, where none is named"


UNSUPPORTED = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "response_format": {"type": "json_object"},
    "logit_bias": {"5": 1},
    "presence_penalty": 0.5,
    "frequency_penalty": -1,
    "logprobs": True,
    "top_logprobs": 3,
    "store": True,
    "audio": {"voice": "a", "format": "wav"},
    "modalities": ["text", "audio"],
    "reasoning_effort": "high",
    "web_search_options": {},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_would_change_the_answer_is_refused_by_name(name: str, client: openai.OpenAI, scheduler: Scripted) -> None:
    with pytest.raises(openai.BadRequestError, match=f"{name} is not supported here.*leave it out") as caught:
        ask(client, extra_body={name: UNSUPPORTED[name]})
    assert caught.value.param == name
    assert scheduler.asked == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"logprobs": 0}, "logprobs"), ({"echo": True}, "echo"), ({"suffix": "x"}, "suffix"), ({"best_of": 3}, "best_of")],
)
def test_the_same_for_completions(fields: Any, param: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=param) as caught:
        client.completions.create(model="run", prompt="Hi", **fields)
    assert caught.value.param == param


def test_what_is_off_or_without_effect_is_taken(client: openai.OpenAI) -> None:
    reply = ask(
        client,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        logit_bias={},
        presence_penalty=0,
        frequency_penalty=0.0,
        logprobs=False,
        store=False,
        user="someone",
        metadata={"a": "b"},
        modalities=["text"],
        service_tier="auto",
        extra_body={"return_token_ids": False, "stop_token_ids": [2]},
    )
    assert reply.choices[0].message.content == TEXT


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"temperature": -1}, "temperature: input should be greater than or equal to 0", "temperature"),
        ({"temperature": "hot"}, "temperature: input should be a valid number", "temperature"),
        ({"top_p": 1.5}, "top_p: input should be less than or equal to 1", "top_p"),
        ({"n": 10**9}, "n: input should be less than or equal to 128", "n"),
        ({"n": 33}, "33 answers (prompts times n); at most 32 in a request", "n"),
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1", "max_tokens"),
        ({"max_tokens": 10**6}, "and its answer may have 1000000; together they may have 512: shorten it, or lower max_tokens to", "messages"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens is max_tokens by its newer name: give one of them", "max_tokens"),
        ({"seed": 2**63}, "seed: input should be less than 9223372036854775808", "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop: 5 texts; at most 4", "stop"),
        ({"stop": ""}, "stop: expected a text that ends the answer", "stop"),
        ({"stop": "x" * 257}, "stop: expected a text that ends the answer", "stop"),
        ({"extra_body": {"stop_token_ids": [7]}}, "stop_token_ids: answers end at [2], not at [7]", "stop_token_ids"),
        ({"extra_body": {"temprature": 0}}, "unknown field 'temprature'. Did you mean temperature?", "temprature"),
        ({"extra_body": {"lora_dir": "/etc"}}, "unknown field 'lora_dir'", "lora_dir"),
        ({"extra_body": {"chat_template": "{{ x }}"}}, "unknown field 'chat_template'", "chat_template"),
    ],
)  # fmt: skip
def test_bad_values(fields: Any, message: str, param: str, client: openai.OpenAI, scheduler: Scripted) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    assert message in caught.value.message
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert scheduler.asked == []


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: list should have at least 1 item"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "messages: the turns are user, user; after an optional system turn"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "messages: the last one must be the user's"),
        ([{"role": "system", "content": "a"}], "messages: the turns are system"),
        ([{"role": "tool", "content": "a", "tool_call_id": "1"}], "messages.0: input tag 'tool' found using 'role'"),
        ([{"role": "user", "content": None}], "messages.0.user.content"),
        ([{"role": "user", "content": "a\0b"}], "messages: the content of turn 1 holds a NUL character"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}], "messages.0.user.content"),
        ([{"role": "user", "content": "x " * 3000}], "together they may have 512: shorten it"),
    ],
)  # fmt: skip
def test_bad_conversations(messages: Any, message: str, client: openai.OpenAI, scheduler: Scripted) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="run", messages=messages)
    assert message in caught.value.message
    assert "passwd" not in caught.value.message
    assert scheduler.asked == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt: expected a text, token ids, or a list of either"),
        ([[]], "prompt: an empty one cannot be continued"),
        ([-1], "prompt: expected a text"),
        ([10**6], "prompt: there is no token 1000000; this model has "),
        (["a", 5], "prompt: expected a text"),
        (["a"] * 33, "33 answers (prompts times n); at most 32"),
        ("a\0", "'prompt' holds a NUL character"),
        ([5] * 600, "the prompt has 600 tokens; together they may have 512: shorten it"),
    ],
)
def test_bad_prompts(prompt: Any, message: str, client: openai.OpenAI, scheduler: Scripted) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="run", prompt=prompt)
    assert message in caught.value.message
    assert caught.value.param in ("prompt", "n")
    assert scheduler.asked == []


def test_an_empty_text_is_continued_from_the_beginning(client: openai.OpenAI, scheduler: Scripted) -> None:
    client.completions.create(model="run", prompt="")
    assert scheduler.asked[-1].prompt == [1]


@pytest.mark.parametrize("key", ["wrong", f"{KEY}x", KEY[:-1], "钥匙"])
def test_a_wrong_key(key: str, url: str, scheduler: Scripted) -> None:
    headers = [(b"Authorization", f"Bearer {key}".encode())]
    reply = httpx2.get(f"{url}/v1/models", headers=headers)
    assert reply.status_code == 401
    if key.isascii():
        with pytest.raises(openai.AuthenticationError, match="the key is wrong") as caught:
            ask(openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0))
        assert (caught.value.code, caught.value.type) == ("invalid_api_key", "authentication_error")
        assert caught.value.response.headers["WWW-Authenticate"].startswith("Bearer")
        assert KEY not in caught.value.message
    assert scheduler.asked == []


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
