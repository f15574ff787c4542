"""The page's comparison."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from page_around import VISITOR, made

from utils import scheduling
from utils.page import compare_tab
from utils.page.answering import Answering, Question, Reply
from utils.page.texts import Trouble


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
