"""The service as the official client sees it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai
import openai_client
import pytest
import service_server
from openai_client import ask
from service_server import KEY, PIECES, TEXT, Scripted, until

from utils import cli
from utils.assistant import BASE, Assistant
from utils.sampling import row_seeds
from utils.tokens import PROBE

served, scheduler, url = service_server.served, service_server.scheduler, service_server.url
opened, options, client = openai_client.opened, openai_client.options, openai_client.client


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
