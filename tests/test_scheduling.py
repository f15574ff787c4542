"""Requests to a scheduler over a tiny random model: what each gets is what it gets alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import RECORDS

from utils import cli, generation
from utils.assistant import BASE, Assistant
from utils.scheduling import Closed, Full, Scheduler, Ticket, TimedOut

GREEDY = cli.greedy_settings(16)
SAMPLED = {**GREEDY, "do_sample": True, "temperature": 2.0, "top_p": 1.0, "top_k": 0}
QUESTIONS = [{"instruction": record["instruction"], "input": record["input"]} for record in RECORDS]
LONG = cli.greedy_settings(400)


@pytest.fixture(scope="module")
def endless(opened: Assistant) -> dict[str, Any]:
    """A request that goes on for 400 tokens: it says one token, whatever the model means."""
    return {"prompt": [1, 5, 6], "settings": {**LONG, "prefix_allowed_tokens_fn": lambda *_: [77]}}


@pytest.fixture
def scheduler(opened: Assistant) -> Iterator[Scheduler]:
    made = Scheduler(opened)
    yield made
    made.close(wait=0)


def until(condition: Any) -> None:
    """Waits for another thread, at most 20 s."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def text(ticket: Ticket) -> str:
    return "".join(piece.text for piece in ticket)


def texts(tickets: list[Ticket]) -> list[str]:
    return [text(ticket) for ticket in tickets]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_everybody_gets_what_they_get_alone(settings: Any, scheduler: Scheduler, opened: Assistant) -> None:
    asked = [(opened.prompt_ids(record), adapter) for record in QUESTIONS for adapter in (None, BASE)]
    expected = [
        generation.generate(opened.model, opened.tokenizer, [ids], ends=opened.ends(), settings=settings, seeds=[seed])
        if adapter is None
        else opened.answer_ids([ids], settings, ends=opened.ends(), adapter=BASE, seeds=[seed])
        for seed, (ids, adapter) in enumerate(asked)
    ]
    tickets = [scheduler.submit(ids, settings, adapter=who, seed=seed) for seed, (ids, who) in enumerate(asked)]
    assert texts(tickets) == [answer.text for (answer,) in expected]
    assert [ticket.answer for ticket in tickets] == [answer for (answer,) in expected]
    figures = scheduler.figures()
    assert (figures["answered"], figures["waiting"], figures["running"]) == (len(asked), 0, 0)
    assert figures["prompt_tokens"] == sum(len(ids) for ids, _ in asked)
    assert figures["new_tokens"] == sum(answer.new_tokens for (answer,) in expected)


def test_who_comes_late_joins_those_who_are_on_their_way(scheduler: Scheduler, opened: Assistant, endless: Any) -> None:
    first = scheduler.submit(**endless)
    next(iter(first.row.new), None)
    until(lambda: scheduler.figures()["running"] == 1)
    second = scheduler.submit(endless["prompt"], {**endless["settings"], "max_new_tokens": 3})
    assert text(second) == opened.tokenizer.decode([77] * 3)
    assert scheduler.figures()["running"] == 1, "the first is still at it"
    first.cancel()


def test_other_settings_take_their_turn_and_are_not_starved(
    scheduler: Scheduler, opened: Assistant, endless: Any
) -> None:
    busy = scheduler.submit(endless["prompt"], {**endless["settings"], "max_new_tokens": 30})
    other = scheduler.submit(endless["prompt"], GREEDY, adapter=BASE)
    behind = scheduler.submit(endless["prompt"], {**endless["settings"], "max_new_tokens": 2})
    order: list[str] = []
    threads = [
        threading.Thread(target=lambda name=name, ticket=ticket: (list(ticket), order.append(name)))
        for name, ticket in (("busy", busy), ("other", other), ("behind", behind))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert order == ["busy", "other", "behind"]


def test_it_can_be_read_in_asyncio(scheduler: Scheduler, opened: Assistant) -> None:
    async def read(ticket: Ticket) -> str:
        return "".join([piece.text async for piece in ticket])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(read(scheduler.submit(opened.prompt_ids(q), GREEDY)) for q in QUESTIONS))

    found = asyncio.run(all_of_them())
    assert found == [answer.text for answer in opened.answers(QUESTIONS, GREEDY)]


def test_who_stops_reading_frees_the_place(scheduler: Scheduler, endless: Any) -> None:
    for leave in ("close", "cancel"):
        ticket = scheduler.submit(**endless)
        pieces = iter(ticket)
        assert next(pieces)
        pieces.close() if leave == "close" else ticket.cancel()  # pyright: ignore[reportAttributeAccessIssue]
        until(lambda: scheduler.figures()["running"] == 0)
        assert ticket.answer is None
    assert scheduler.figures()["cancelled"] == 2
    assert scheduler.figures()["new_tokens"] < 600


def test_a_full_queue_is_said_with_a_time(opened: Assistant, endless: Any) -> None:
    scheduler = Scheduler(opened, max_batch=1, max_queue=2)
    tickets = [scheduler.submit(**endless)]
    until(lambda: scheduler.figures()["running"] == 1)
    tickets += [scheduler.submit(**endless) for _ in range(2)]
    with pytest.raises(Full, match="too many requests are waiting; try again in") as full:
        scheduler.submit(**endless)
    assert full.value.retry_after >= 1
    for ticket in tickets:
        ticket.cancel()
    until(lambda: scheduler.figures()["waiting"] == 0)
    assert text(scheduler.submit([1, 5], cli.greedy_settings(1))) is not None
    scheduler.close(wait=0)


def test_time_that_is_over(opened: Assistant, endless: Any) -> None:
    scheduler = Scheduler(opened, max_batch=1, timeout=0.3)
    running, waiting = (scheduler.submit(endless["prompt"], endless["settings"]) for _ in range(2))
    for ticket in (running, waiting):
        with pytest.raises(TimedOut, match=r"no answer within 0\.3 s"):
            list(ticket)
    until(lambda: scheduler.figures()["running"] == 0)
    scheduler.close(wait=0)


def test_closing_lets_those_finish_who_are_in(opened: Assistant, endless: Any) -> None:
    scheduler = Scheduler(opened, max_batch=1)
    tickets = [scheduler.submit(endless["prompt"], {**endless["settings"], "max_new_tokens": 5}) for _ in range(3)]
    scheduler.close(wait=20)
    assert all(texts(tickets))
    with pytest.raises(Closed, match="the server is shutting down"):
        scheduler.submit([1, 5], GREEDY)


def test_closing_gives_up_what_takes_too_long(opened: Assistant, endless: Any) -> None:
    scheduler = Scheduler(opened)
    ticket = scheduler.submit(**endless)
    until(lambda: scheduler.figures()["running"] == 1)
    scheduler.close(wait=0)
    with pytest.raises(Closed):
        list(ticket)
    until(lambda: not scheduler._thread.is_alive())


def test_an_error_is_theirs_whose_request_it_was(scheduler: Scheduler, opened: Assistant) -> None:
    bad = scheduler.submit([1, 5], {**GREEDY, "no_such_setting": 1})
    with pytest.raises(ValueError, match="no_such_setting"):
        list(bad)
    after = scheduler.submit(opened.prompt_ids(QUESTIONS[0]), GREEDY)
    assert text(after) == opened.answers(QUESTIONS[:1], GREEDY)[0].text
    assert scheduler.figures()["failed"] == 1


def test_what_cannot_be_asked_is_refused_at_once(scheduler: Scheduler) -> None:
    with pytest.raises(ValueError, match="the prompt has 600 tokens"):
        scheduler.submit([5] * 600, GREEDY)
    with pytest.raises(ValueError, match="unknown adapter '没有'"):
        scheduler.submit([5], GREEDY, adapter="没有")


def test_beams_take_their_turn_alone(scheduler: Scheduler, opened: Assistant) -> None:
    beams = {**GREEDY, "num_beams": 2, "max_new_tokens": 4}
    tickets = [scheduler.submit(opened.prompt_ids(record), beams) for record in QUESTIONS[:3]]
    expected = [answer.text for answer in opened.answers(QUESTIONS[:3], beams)]
    assert texts(tickets) == expected
