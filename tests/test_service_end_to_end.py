"""The service over the real scheduler and a tiny run: what comes over HTTP is what the engine says here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest
from conftest import RECORDS
from service_server import serving, until

from utils import cli, completions
from utils.assistant import BASE, Assistant
from utils.remote import Remote
from utils.sampling import row_seeds
from utils.scheduling import Scheduler
from utils.service import Limits
from utils.stopping import decoded

QUESTIONS = [record["instruction"] for record in RECORDS]
SAMPLED = {**cli.greedy_settings(12), "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}


@pytest.fixture(scope="module")
def served(opened: Assistant) -> Iterator[SimpleNamespace]:
    scheduler = Scheduler(opened, max_batch=4, max_queue=64)
    with (
        serving(opened, scheduler, limits=Limits(answers=16)) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield SimpleNamespace(url=address, client=client, scheduler=scheduler)


def local(opened: Assistant, questions: Any, settings: Any, **options: Any) -> list[Any]:
    records = [{"instruction": question, "input": ""} for question in questions]
    return opened.answers(records, settings, **options)


@pytest.mark.parametrize("model", ["run", BASE])
def test_many_at_once_get_the_answers_that_each_gets_alone(
    model: str, served: SimpleNamespace, opened: Assistant
) -> None:
    seeds = row_seeds(3, len(QUESTIONS))

    async def one(client: openai.AsyncOpenAI, question: str, seed: int) -> str:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0.7,
            top_p=0.9,
            max_tokens=12,
            seed=seed,
            stream=True,
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            asked = [one(client, *each) for each in zip(QUESTIONS, seeds, strict=True)]
            return list(await asyncio.gather(*asked))

    expected = local(opened, QUESTIONS, SAMPLED, adapter=model, seeds=seeds)
    assert asyncio.run(together()) == [answer.text for answer in expected]
    assert len({answer.text for answer in expected}) > 2


def test_whole_answers_with_their_numbers(served: SimpleNamespace, opened: Assistant) -> None:
    reply = served.client.chat.completions.create(
        model="run", messages=[{"role": "user", "content": QUESTIONS[1]}], temperature=0, max_tokens=8, n=2
    )
    (answer,) = local(opened, QUESTIONS[1:2], cli.greedy_settings(8))
    assert [choice.message.content for choice in reply.choices] == [answer.text] * 2
    assert {choice.finish_reason for choice in reply.choices} == {answer.finish_reason}
    assert reply.usage.prompt_tokens == answer.prompt_tokens
    assert reply.usage.completion_tokens == 2 * answer.new_tokens


def test_a_text_that_ends_answers(served: SimpleNamespace, opened: Assistant) -> None:
    (whole,) = local(opened, QUESTIONS[:1], cli.greedy_settings(12))
    mark = whole.text[2:4]
    assert mark
    for stream in (False, True):
        reply = served.client.chat.completions.create(
            model="run",
            messages=[{"role": "user", "content": QUESTIONS[0]}],
            temperature=0,
            max_tokens=12,
            stop=mark,
            stream=stream,
        )
        if stream:
            chunks = list(reply)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            said, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
        assert (said, reason) == (whole.text[: whole.text.index(mark)], "stop")


@pytest.mark.parametrize("form", ["ids", "text"])
@pytest.mark.parametrize("settings", [cli.greedy_settings(12), SAMPLED], ids=["greedy", "sampled"])
def test_our_own_client_gets_what_is_answered_here(
    form: Any, settings: Any, served: SimpleNamespace, opened: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    records = [record for record in RECORDS if form == "ids" or "</s>" not in record["instruction"]]
    prompts = [opened.prompt_ids(record) for record in records]
    seeds = row_seeds(9, len(prompts))
    here = opened.answer_ids(prompts, settings, ends=opened.ends(stop=["停"]), seeds=seeds)
    for model in ("run", BASE):
        remote = Remote(base_url=f"{served.url}/v1", model=model, prompt_form=form, concurrency=8)
        found = remote.answers(
            prompts, settings, tokenizer=opened.tokenizer, ends=opened.ends(stop=["停"]), seeds=seeds
        )
        assert (found == here) == (model == "run")
    assert len({answer.text for answer in here}) > 1


@pytest.mark.parametrize("ends_at_text", [False, True])
def test_ids_are_those_that_were_decoded_whole_and_in_pieces(
    ends_at_text: bool, served: SimpleNamespace, opened: Assistant
) -> None:
    for record in RECORDS:
        prompt = opened.prompt_ids(record)
        (alone,) = opened.answer_ids([prompt], cli.greedy_settings(24), ends=opened.ends())
        stop = [alone.text[2:4]] if ends_at_text and alone.text[2:4] else []
        (here,) = opened.answer_ids([prompt], cli.greedy_settings(24), ends=opened.ends(stop=stop))
        asked = {"model": "run", "prompt": prompt, "temperature": 0, "max_tokens": 24}
        asked |= {"stop": stop, "extra_body": {"return_token_ids": True}}
        (whole,) = served.client.completions.create(**asked).choices
        assert whole.prompt_token_ids == prompt
        assert len(whole.token_ids) == here.new_tokens
        ends = opened.ends(stop=stop)
        assert ends.cut(decoded(opened.tokenizer, whole.token_ids[: ends.end_of(whole.token_ids)]))[0] == here.text
        chunks = [chunk.choices[0] for chunk in served.client.completions.create(stream=True, **asked)]
        assert [token for chunk in chunks for token in chunk.token_ids] == whole.token_ids
        assert "".join(chunk.text for chunk in chunks) == whole.text == here.text


def test_what_our_own_client_asks_for_brings_ids_and_they_are_what_it_reads(
    served: SimpleNamespace, opened: Assistant
) -> None:
    prompt, ends, settings = opened.prompt_ids(RECORDS[1]), opened.ends(), cli.greedy_settings(12)
    body = {"model": "run", "prompt": prompt, **completions.request_fields(settings, ends, "ids")}
    reply = httpx2.post(f"{served.url}/v1/completions", json=body, timeout=60).json()
    (here,) = opened.answer_ids([prompt], settings, ends=ends)
    assert reply["choices"][0]["text"] == here.text
    reply["choices"][0]["text"] = "another text"
    assert completions.read_answer(reply, prompt, opened.tokenizer, ends) == here


def test_our_own_client_is_told_which_models_there_are(served: SimpleNamespace, opened: Assistant) -> None:
    remote = Remote(base_url=f"{served.url}/v1", api_key="none")
    with pytest.raises(ValueError, match="has run, base: say which with --api_model"):
        remote.answers([[1, 5]], cli.greedy_settings(4), tokenizer=opened.tokenizer, ends=opened.ends())


def test_a_client_that_goes_away_frees_its_place(served: SimpleNamespace) -> None:
    before = served.scheduler.figures()
    stream = served.client.chat.completions.create(
        model="run",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=450,
        temperature=1.5,
        stream=True,
        n=4,
        seed=1,
    )
    next(iter(stream))
    stream.close()
    until(lambda: served.scheduler.figures()["running"] == 0, "the end", seconds=2)
    after = served.scheduler.figures()
    assert after["cancelled"] + after["answered"] - before["cancelled"] - before["answered"] == 4
    assert after["cancelled"] > before["cancelled"]
    assert after["new_tokens"] - before["new_tokens"] < 4 * 450


def test_the_original_s_routes(served: SimpleNamespace, opened: Assistant) -> None:
    found = httpx2.get(f"{served.url}/query/{QUESTIONS[4]}", timeout=60).json()
    settings = {name: row[0] for name, row in cli.GENERATION.items()}
    settings["max_new_tokens"] = 512 - len(opened.prompt_ids({"instruction": QUESTIONS[4], "input": ""}))
    (answer,) = local(opened, [QUESTIONS[4]], settings, seeds=[42])
    assert found["answer"] == answer.text


def test_figures(served: SimpleNamespace) -> None:
    before = served.scheduler.figures()
    asked = {"prompt": "你好 🌏", "max_tokens": 3, "temperature": 0}
    assert httpx2.post(f"{served.url}/v1/completions", json=asked, timeout=60).status_code == 200
    text = httpx2.get(f"{served.url}/metrics").text
    figures = served.scheduler.figures()
    assert figures["answered"] == before["answered"] + 1
    assert 1 <= figures["new_tokens"] - before["new_tokens"] <= 3
    for name in ("answered", "cancelled", "failed", "prompt_tokens", "new_tokens"):
        assert f"alpaca_cot_{name}_total {float(figures[name])}" in text
