"""The page's comparison."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from page_around import VISITOR, Session, all_states, made

from utils import scheduling
from utils.assistant import BASE
from utils.page import compare_tab
from utils.page.answering import Answering, Question, Reply
from utils.page.shared import buttons
from utils.page.texts import Trouble, say


def test_the_cue_is_in_the_question_s_language() -> None:
    assert compare_tab.wordings_of("3+4?", False) == ["3+4?"]
    assert compare_tab.wordings_of("3+4?", True) == ["3+4?", "3+4?\nLet's think step by step."]
    assert compare_tab.wordings_of("三加四？", True)[1] == "三加四？\n让我们一步一步地思考。"
    assert compare_tab.wordings_of("", True) == [""]


def test_all_answers_of_a_comparison_are_under_way_together_or_none(opened: Any) -> None:
    question = Question(ids=[1, 5], settings={"max_new_tokens": 4}, adapter="run", seed=1)

    async def collect(answering: Answering) -> list[list[Reply]]:
        return [replies async for replies in answering.all_replies([question] * 2, VISITOR, "compare")]

    around, _ = made(opened, {"pieces": ["a", "b"]}, {"pieces": ["c"]})
    assert [reply.text for reply in asyncio.run(collect(around.answering))[-1]] == ["ab", "c"]
    around, scheduler = made(opened, {"pieces": ["a"], "waits": True}, scheduling.Full(3))
    with pytest.raises(Trouble) as caught:
        asyncio.run(collect(around.answering))
    assert "3 s" in caught.value.said("en")
    assert scheduler.tickets[0].is_cancelled
    assert not around.answering.is_busy(VISITOR, "compare")


def test_the_base_and_the_adapter_are_asked_the_same_with_and_without_the_cue(opened: Any) -> None:
    around, scheduler = made(opened, *[{"pieces": [text]} for text in ("一", "二", "三", "四 <b>")])
    comparison = compare_tab.Comparison(around, (BASE, "run"), 4)
    last = all_states(comparison.ask, "三加四？", True, around=around, language="zh")[-1]
    assert last[:3] == ("一", "二", "三")
    assert last[3].endswith("b>")
    assert "<b>" not in last[3]
    assert all("每秒" in line for line in last[4:8])
    assert last[-2:] == buttons(False)
    wordings = compare_tab.wordings_of("三加四？", True)
    asked = [(each["adapter"], each["prompt"]) for each in scheduler.asked]
    records = [{"instruction": wording, "input": ""} for wording in wordings for _ in range(2)]
    assert [adapter for adapter, _ in asked] == [BASE, "run"] * 2
    assert [prompt for _, prompt in asked] == [opened.prompt_ids(record) for record in records]
    assert len({each["seed"] for each in scheduler.asked}) == 1


def test_without_the_cue_half_of_the_columns_are_empty(opened: Any) -> None:
    around, _ = made(opened, {"pieces": ["a"]}, {"pieces": ["b"]})
    last = all_states(compare_tab.Comparison(around, (BASE, "run"), 4).ask, "q", False, around=around)[-1]
    assert last[:4] == ("a", "b", "", "")
    assert last[6:8] == ("", "")


def test_a_comparison_that_cannot_be_asked_says_so_once(opened: Any) -> None:
    around, scheduler = made(opened, {"pieces": ["a"], "waits": True}, scheduling.Full(3))
    comparison = compare_tab.Comparison(around, (BASE, "run"), 2)
    *_, last = all_states(comparison.ask, "q", False, around=around)
    assert last[2] == say("status.full", "en", seconds=3)
    assert last[-2:] == buttons(False)
    (empty,) = all_states(comparison.ask, " ", False, around=around)
    assert empty[2] == say("status.empty", "en")
    assert len(scheduler.asked) == 2


def test_one_comparison_at_a_time_and_it_can_be_stopped(opened: Any) -> None:
    around, scheduler = made(opened, *[{"pieces": ["some"], "waits": True}] * 2)
    comparison = compare_tab.Comparison(around, (BASE, "run"), 2)
    values = ["en", "run", False, *around.parameters.defaults.values()]

    async def stopped() -> list[Any]:
        states = []
        async for shown in comparison.ask(Session, "q", False, *values):  # pyright: ignore[reportArgumentType]
            states.append(shown)
            if shown[:2] == ("some", "some") and not scheduler.tickets[0].is_cancelled:
                again = [state async for state in comparison.ask(Session, "q", False, *values)]  # pyright: ignore[reportArgumentType]
                assert [state[2] for state in again] == [say("status.busy", "en")]
                comparison.stop(Session)  # pyright: ignore[reportArgumentType]
        return states

    last = asyncio.run(stopped())[-1]
    assert last[:4] == ("some", "some", *[say("status.stopped", "en")] * 2)
