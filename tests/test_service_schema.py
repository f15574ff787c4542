"""What the service refuses, and by which field; what it takes though it has no effect."""

from __future__ import annotations

from typing import Any

import openai
import openai_client
import pytest
import service_server
from openai_client import ask
from service_server import TEXT, Scripted

served, scheduler, url = service_server.served, service_server.scheduler, service_server.url
opened, options, client = openai_client.opened, openai_client.options, openai_client.client

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
