"""The page's chat, with the real prompts and a scheduler that says what a test wants."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import gradio
import pytest
from page_around import VISITOR, Session, made, talk

from utils import scheduling
from utils.conversation import Conversation, Exchange
from utils.page import chat_tab, markup
from utils.page.parameters import Parameters
from utils.page.texts import LANGUAGES, say


def test_an_answer_grows_and_is_kept_with_the_conversation(opened: Any) -> None:
    around, scheduler = made(opened, {"pieces": ["你", "好", " <b>"]}, {"pieces": ["4"]})
    states = talk(around, "send", Conversation(exchanges=[]), "", " 你好？ ", prompt=True)
    assert states[0][2] == "waiting for its turn …"
    assert states[0][1] == ""
    assert states[0][5:] == chat_tab.buttons(True)
    assert states[-1][5:] == chat_tab.buttons(False)
    kept = states[-1][3]
    assert [(each.question, each.answer) for each in kept.exchanges] == [("你好？", "你好 <b>")]
    assert [turn["content"] for turn in states[-1][0]] == ["你好？", markup.harmless("你好 <b>")]
    assert "3 tokens" in states[-1][2]
    assert "of 512 in the context" in states[-1][2]
    assert "<kbd>&lt;s&gt;</kbd>" in states[-1][4]
    assert "你好？" in states[-1][4]

    states = talk(around, "send", kept, "Be brief.", "And 2+2?", language="zh")
    first, second = scheduler.asked
    assert first["prompt"] == opened.prompt_ids({"instruction": "你好？", "input": ""})
    turns = [("system", "Be brief."), ("user", "你好？"), ("assistant", "你好 <b>"), ("user", "And 2+2?")]
    record = {"conversation": [{"role": role, "content": content} for role, content in turns]}
    assert second["prompt"] == opened.prompt_ids(record)
    assert second["settings"]["max_new_tokens"] <= 512 - len(second["prompt"])
    assert second["adapter"] == "run"
    assert "每秒" in states[-1][2]
    assert states[-1][4] == ""


def test_a_chat_can_be_undone_retried_edited_and_cleared(opened: Any) -> None:
    pieces: dict[str, Any] = {"pieces": ["x"]}
    around, scheduler = made(opened, pieces, pieces, pieces)
    state = Conversation(exchanges=[Exchange(question=q, answer=a, seed=42) for q, a in (("q1", "a1"), ("q2", "a2"))])
    states = talk(around, "retry", state, "")
    assert scheduler.asked[0]["seed"] == 43
    assert [each.answer for each in states[-1][3].exchanges] == ["a1", "x"]
    assert states[-1][3].exchanges[-1].seed == 43

    event = gradio.EditData(None, {"index": 0, "previous_value": "q1", "value": markup.harmless("<b> q1!")})
    states = talk(around, "edit", event, state, "")
    assert [each.question for each in states[-1][3].exchanges] == ["<b> q1!"]
    for index, value in ((9, "x"), (-1, "x"), ("0", "x"), (0, {"path": "/etc/passwd"})):
        event = gradio.EditData(None, {"index": index, "previous_value": "", "value": value})
        assert talk(around, "edit", event, state, "")[-1][2] == say("status.nothing", "en")

    chat = chat_tab.Talk(around)
    undone = chat.undo(state, "en")
    assert undone[1] == "q2"
    assert [each.question for each in undone[3].exchanges] == ["q1"]
    assert chat.undo(Conversation(exchanges=[]), "zh")[2] == say("status.nothing", "zh")
    assert chat.clear(state, Session)[3].exchanges == []  # pyright: ignore[reportArgumentType]
    assert talk(around, "retry", Conversation(exchanges=[]), "")[-1][2] == say("status.nothing", "en")


@pytest.mark.parametrize("language", list(LANGUAGES))
@pytest.mark.parametrize(
    ("outcome", "key", "kept"),
    [
        (scheduling.Full(7), "status.full", ""),
        (scheduling.Closed(), "status.closed", ""),
        ({"pieces": [], "error": scheduling.TimedOut(3)}, "status.timed_out", ""),
        ({"pieces": ["half"], "error": scheduling.TimedOut(3)}, "status.timed_out", "half"),
        ({"pieces": ["half"], "error": RuntimeError("a secret path")}, "status.failed", "half"),
        ({"pieces": [], "error": scheduling.Closed()}, "status.closed", ""),
    ],
)
def test_what_goes_wrong_is_said_in_the_reader_s_language_and_nothing_is_lost(
    opened: Any, outcome: Any, key: str, kept: str, language: str
) -> None:
    around, _ = made(opened, outcome)
    state = Conversation(exchanges=[Exchange(question="q", answer="a")])
    messages, box, status, new, _, *shown = talk(around, "send", state, "", "还在吗？", language=language)[-1]
    assert status == say(key, language, **({"seconds": 7} if key == "status.full" else {}))
    assert "secret" not in status
    assert tuple(shown) == chat_tab.buttons(False)
    if kept:
        assert new.exchanges[-1].answer == "half"
        assert new.exchanges[-1].ended == "interrupted"
        assert box == gradio.skip()  # emptied when the answer began
    else:
        assert box == "还在吗？"
        assert [turn["content"] for turn in messages] == ["q", "a"]


def test_a_question_that_cannot_be_asked_stays_in_its_field(opened: Any) -> None:
    around, scheduler = made(opened)
    state = Conversation(exchanges=[])
    for question, words in (("  ", "先写下"), ("长" * 2000, "上下文"), ("a\0b", "NUL"), ("\ud800", "surrogate")):
        shown = talk(around, "send", state, "", question, language="zh")[-1]
        assert words in shown[2]
        assert shown[1] == question.strip()
    shown = talk(around, "send", state, "", "q", model="../../etc/passwd")[-1]
    assert "run, base" in shown[2]
    assert not scheduler.asked
    values = ["en", "run", False, *Parameters.of(512).defaults.values()]
    values[3] = 99  # top_p
    assert "top_p" in asyncio.run(first(chat_tab.Talk(around).send(Session, state, "", "q", *values)))[2]  # pyright: ignore[reportArgumentType]


async def first(states: AsyncIterator[Any]) -> Any:
    return await anext(states)


def test_a_long_conversation_is_sent_as_far_as_whole_turns_fit(opened: Any) -> None:
    around, scheduler = made(opened, {"pieces": ["x"]})
    state = Conversation(exchanges=[Exchange(question=f"第{i}个问题", answer="很长" * 20) for i in range(12)])
    states = talk(around, "send", state, "", "现在呢？", language="zh")
    gone = states[-1][3].forgotten
    assert 0 < gone < 12
    assert say("chat.forgotten", "zh", count=gone) in states[-1][2]
    assert len(states[-1][3].exchanges) == 13
    assert len(scheduler.asked[0]["prompt"]) < 512


def test_stop_and_a_page_that_closes_free_the_answers_place(opened: Any) -> None:
    around, scheduler = made(opened, *[{"pieces": ["some"], "waits": True} for _ in range(3)])
    answering, chat = around.answering, chat_tab.Talk(around)
    values = ["en", "run", False, *around.parameters.defaults.values()]
    state = Conversation(exchanges=[])

    async def stopped() -> list:
        states = []
        async for shown in chat.send(Session, state, "", "q", *values):  # pyright: ignore[reportArgumentType]
            states.append(shown)
            if len(states) == 2:
                assert answering.is_busy(VISITOR, "chat")
                again = await first(chat.send(Session, state, "", "q", *values))  # pyright: ignore[reportArgumentType]
                assert again[2] == say("status.busy", "en")
                answering.interrupt(dataclasses.replace(VISITOR, session="somebody else"))
                assert not scheduler.tickets[0].is_cancelled
                chat.stop(Session)  # pyright: ignore[reportArgumentType]
        return states

    assert asyncio.run(stopped())[-1][3].exchanges[0].answer == "some"
    assert scheduler.tickets[0].is_cancelled
    assert not answering.is_busy(VISITOR, "chat")

    async def closed() -> None:
        states = chat.send(Session, state, "", "q", *values)  # pyright: ignore[reportArgumentType]
        await anext(states)
        await states.aclose()

    asyncio.run(closed())
    assert scheduler.tickets[1].is_cancelled
    assert not answering.is_busy(VISITOR, "chat")

    async def cancelled() -> None:
        task = asyncio.create_task(stopped())
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert all(ticket.is_cancelled for ticket in scheduler.tickets)
