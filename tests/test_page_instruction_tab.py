"""The page's instructions, with the real prompts and a scheduler that says what a test wants."""

from __future__ import annotations

import asyncio
from typing import Any

import gradio
import pytest
from page_around import VISITOR, Session, all_states, made

from utils import scheduling
from utils.page.instruction_tab import PLACE, Instruction
from utils.page.markup import harmless
from utils.page.shared import buttons
from utils.page.texts import say


def test_an_instruction_and_its_input_are_asked_as_they_were_trained(opened: Any) -> None:
    around, scheduler = made(opened, {"pieces": ["蓝", "色 <b>"]})
    first, *_, last = all_states(Instruction(around).ask, "说一个颜色。", "🌏", around=around, prompt=True)
    assert first[:2] == ("", say("status.waiting", "en"))
    assert first[3:] == buttons(True)
    assert (last[0], last[3:]) == (harmless("蓝色 <b>"), buttons(False))
    assert "2 tokens" in last[1]
    assert "<kbd>&lt;s&gt;</kbd>" in last[2]
    (asked,) = scheduler.asked
    assert asked["prompt"] == opened.prompt_ids({"instruction": "说一个颜色。", "input": "🌏"})


@pytest.mark.parametrize(
    ("instruction", "outcomes", "told"),
    [
        ("  ", [], say("status.empty", "zh")),
        ("为什么？", [scheduling.Full(7)], say("status.full", "zh", seconds=7)),
    ],
)
def test_what_cannot_be_asked_leaves_the_answer_as_it_was(
    instruction: str, outcomes: Any, told: str, opened: Any
) -> None:
    around, _ = made(opened, *outcomes)
    (shown,) = all_states(Instruction(around).ask, instruction, "", around=around, language="zh")
    assert shown == (gradio.skip(), told, gradio.skip(), *buttons(False))


def test_one_answer_at_a_time_and_it_can_be_stopped(opened: Any) -> None:
    around, scheduler = made(opened, {"pieces": ["some"], "waits": True})
    tab, values = Instruction(around), ["en", "run", False, *around.parameters.defaults.values()]

    async def stopped() -> list[Any]:
        states = []
        async for shown in tab.ask(Session, "q", "", *values):  # pyright: ignore[reportArgumentType]
            states.append(shown)
            if len(states) == 2:
                again = [state async for state in tab.ask(Session, "q", "", *values)]  # pyright: ignore[reportArgumentType]
                assert [state[1] for state in again] == [say("status.busy", "en")]
                tab.stop(Session)  # pyright: ignore[reportArgumentType]
        return states

    last = asyncio.run(stopped())[-1]
    assert (last[0], last[1]) == ("some", say("status.stopped", "en"))
    assert scheduler.tickets[0].is_cancelled
    assert not around.answering.is_busy(VISITOR, PLACE)
