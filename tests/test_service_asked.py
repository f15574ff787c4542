"""Requests, read without a server."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from utils.assistant import BASE, Assistant
from utils.service.asked import Reader
from utils.service.limits import Limits
from utils.service.problems import Problem
from utils.service.schema import ChatRequest, TextRequest
from utils.templates import TEMPLATES


def changed(opened: Assistant, **changes: Any) -> Assistant:
    return replace(opened, origins={name: replace(origin, **changes) for name, origin in opened.origins.items()})


def chat(*contents: str, **fields: Any) -> ChatRequest:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return ChatRequest.model_validate({"messages": messages, **fields})


def test_a_run_that_saw_dialogues_alone_is_asked_in_dialogues(opened: Assistant) -> None:
    run = next(iter(opened.origins.values())).run
    assert run is not None
    instruction, dialogue = (
        {"instruction": "为什么？", "input": ""},
        {"conversation": [{"role": "user", "content": "为什么？"}]},
    )
    for shape, record in (("instruction/input/output", instruction), ("ShareGPT", dialogue), ("messages", dialogue)):
        other = changed(opened, run=replace(run, sources=[{"name": "d", "shape": shape}]))
        for model in ("run", BASE):
            asked = Reader(other, Limits()).chat(chat("为什么？", model=model))
            assert asked.prompts == [opened.prompt_ids(record)]
    unknown = Reader(changed(opened, run=None), Limits())
    assert unknown.chat(chat("为什么？")).prompts == [opened.prompt_ids(instruction)]


def test_a_chat_template_that_does_not_take_a_conversation_says_so(opened: Assistant, chat_tokenizer: Any) -> None:
    strict = copy.deepcopy(chat_tokenizer)
    strict.chat_template = "{{ raise_exception('no system message, please') }}"
    other = changed(opened, template=TEMPLATES["chat"], tokenizer=strict)
    with pytest.raises(Problem, match="no system message, please") as caught:
        Reader(other, Limits()).chat(chat("Hi"))
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_a_limit_below_the_model_s_context_counts(opened: Assistant) -> None:
    reader = Reader(opened, Limits(context=60, answer=512))
    count = len(opened.prompt_ids({"instruction": "Hi", "input": ""}))
    assert reader.chat(chat("Hi")).settings["max_new_tokens"] == 60 - count
    assert reader.chat(chat("Hi", max_tokens=60 - count)).settings["max_new_tokens"] == 60 - count
    message = f"^the prompt has {count} tokens and its answer may have {61 - count}; together they may have 60: shorten it, or lower max_tokens to {60 - count}$"
    with pytest.raises(Problem, match=message) as caught:
        reader.chat(chat("Hi", max_tokens=61 - count))
    assert caught.value.code == "context_length_exceeded"
    exactly = TextRequest.model_validate({"prompt": [5] * 59})
    assert reader.text(exactly).settings["max_new_tokens"] == 1
    with pytest.raises(Problem, match="^the prompt has 60 tokens; together they may have 60: shorten it$"):
        reader.text(TextRequest.model_validate({"prompt": [5] * 60}))


def test_where_a_model_has_no_context_the_limit_is_all(opened: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.service.asked.adapters.context_length", lambda model: None)
    monkeypatch.setattr("utils.service.asked.adapters.virtual_tokens", lambda model: 7)
    reader = Reader(opened, Limits(context=1000))
    asked = reader.text(TextRequest.model_validate({"prompt": [5] * 900, "max_tokens": 93}))
    assert asked.settings["max_new_tokens"] == 93
    with pytest.raises(Problem, match="together they may have 993"):
        reader.text(TextRequest.model_validate({"prompt": [5] * 900, "max_tokens": 94}))


def test_prompts_of_a_request_are_counted_once_each_and_asked_n_times(opened: Assistant) -> None:
    asked = Reader(opened, Limits()).text(TextRequest.model_validate({"prompt": ["a", "世界"], "n": 2}))
    assert len(asked.prompts) == len(set(asked.seeds)) == 4
    assert asked.prompts[0] == asked.prompts[1] != asked.prompts[2]
    assert asked.prompt_tokens == len(asked.prompts[0]) + len(asked.prompts[2])
    assert list(asked.texts) == ["a", "世界"]
