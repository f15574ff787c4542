"""The tab in which one talks with a model: questions and answers that follow each other.

Knows: how a conversation grows, is taken back, asked again and changed. Does not know how an answer is made
(`utils.page.answering`) or how much of a conversation fits (`utils.conversation`). The conversation is kept by the
server, for as long as the page is open; what a browser sends is only the question.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio

from utils.conversation import Conversation, Exchange, Prompt, asks_instructions
from utils.page import markup
from utils.page.answering import Question, Reply, Visitor
from utils.page.parameters import SEED
from utils.page.shared import LATEX, Shared, Wish, buttons
from utils.page.texts import Text, Trouble, say

PLACE = "chat"
HOURS = 12
"""For which a conversation is kept on an open page that does nothing."""
_SAME = gradio.skip()


def build(page: Shared) -> None:
    """The tab's components and what they do."""
    put = page.labels.put
    state = gradio.State(Conversation(exchanges=[]), time_to_live=HOURS * 3600)
    chatbot = put(
        gradio.Chatbot,
        label=Text("chat.conversation"),
        show_label=False,
        placeholder=Text("chat.placeholder"),
        height="58vh",
        editable="user",
        buttons=["copy", "copy_all"],
        sanitize_html=True,
        allow_tags=False,
        latex_delimiters=LATEX,
        feedback_options=None,
        elem_id="chat",
    )
    status = page.status_line("chat")
    box = put(
        gradio.Textbox,
        label=Text("chat.question"),
        info=Text("chat.hint"),
        lines=1,
        max_lines=10,
        elem_id="chat-question",
    )
    with gradio.Row():
        send = put(gradio.Button, Text("do.send"), variant="primary", elem_id="chat-send", min_width=80)
        stop = put(gradio.Button, Text("do.stop"), variant="stop", visible=False, elem_id="chat-stop", min_width=80)
        retry = put(gradio.Button, Text("do.retry"), elem_id="chat-retry", min_width=80)
        undo = put(gradio.Button, Text("do.undo"), elem_id="chat-undo", min_width=80)
        clear = put(gradio.Button, Text("do.clear"), elem_id="chat-clear", min_width=80)
    page.examples("chat", [box])
    with put(gradio.Accordion, label=Text("chat.system"), open=False):
        system = put(
            gradio.Textbox,
            label=Text("chat.system"),
            show_label=False,
            info=Text("chat.system_info"),
            lines=2,
            max_lines=6,
            elem_id="chat-system",
        )
    prompt = page.prompt_panel("chat")

    talk = Talk(page)
    outputs = [chatbot, box, status, state, prompt, send, stop]
    streamed: dict[str, Any] = {"outputs": outputs, "show_progress": "hidden", "concurrency_limit": None}
    gradio.on([send.click, box.submit], talk.send, [state, system, box, *page.inputs], **streamed)
    retry.click(talk.retry, [state, system, *page.inputs], **streamed)
    chatbot.edit(talk.edit, [state, system, *page.inputs], **streamed)
    undo.click(talk.undo, [state, page.language], outputs, show_progress="hidden", queue=False)
    gradio.on([clear.click, chatbot.clear], talk.clear, [state], outputs, show_progress="hidden", queue=False)
    stop.click(talk.stop, show_progress="hidden", queue=False)


class Talk:
    """What the tab's components do."""

    def __init__(self, page: Shared) -> None:
        self._page, self._answering = page, page.answering

    async def send(
        self, request: gradio.Request, state: Conversation, system: str, question: str, *values: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """Asks what is in the field."""
        wish = self._page.wish(values)
        async for shown in self._ask(state, state, question, system, wish, request):
            yield shown

    async def retry(
        self, request: gradio.Request, state: Conversation, system: str, *values: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """Asks the last question again, with the next seed."""
        wish = self._page.wish(values)
        if not state.exchanges:
            yield _told(say("status.nothing", wish.language))
            return
        last = state.exchanges[-1]
        async for shown in self._ask(
            state, state.before_last(), last.question, system, wish, request, seed=last.seed + 1
        ):
            yield shown

    async def edit(
        self, request: gradio.Request, event: gradio.EditData, state: Conversation, system: str, *values: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """Asks a changed question in its old place; what came after it is gone."""
        wish = self._page.wish(values)
        number = event.index // 2 if isinstance(event.index, int) else -1
        if not (0 <= number < len(state.exchanges) and isinstance(event.value, str)):
            yield _told(say("status.nothing", wish.language))
            return
        earlier = replace(state, exchanges=state.exchanges[:number], forgotten=min(state.forgotten, number))
        async for shown in self._ask(state, earlier, markup.as_written(event.value), system, wish, request):
            yield shown

    def undo(self, state: Conversation, language: str) -> tuple[Any, ...]:
        """Takes the last exchange back; its question is in the field again."""
        if not state.exchanges:
            return _told(say("status.nothing", language))
        left = state.before_last()
        return (messages(left), state.exchanges[-1].question, "", left, "", *buttons(False))

    def clear(self, state: Conversation, request: gradio.Request) -> tuple[Any, ...]:
        """Forgets all of it."""
        self._answering.interrupt(Visitor.of(request), PLACE)
        return ([], _SAME, "", replace(state, exchanges=[], forgotten=0), "", *buttons(False))

    def stop(self, request: gradio.Request) -> None:
        """Ends the answer under way."""
        self._answering.interrupt(Visitor.of(request), PLACE)

    async def _ask(
        self,
        state: Conversation,
        earlier: Conversation,
        question: str,
        system: str,
        wish: Wish,
        request: gradio.Request,
        *,
        seed: int | None = None,
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """Asks `question` after `earlier`. If no answer comes of it, the conversation stays `state`, and the question
        is in the field."""
        visitor, question, language = Visitor.of(request), str(question or "").strip(), wish.language
        if self._answering.is_busy(visitor, PLACE):
            yield _told(say("status.busy", language))
            return
        try:
            prompt, asked = await asyncio.to_thread(self._prepared, earlier, question, system, wish, seed)
            shown = self._page.prompt_of(wish, asked)
            reply, status, field = Reply(), "", ""
            async with aclosing(self._answering.replies(asked, visitor, PLACE)) as replies:
                async for reply in replies:
                    status = self._page.status(reply, language, forgotten=prompt.forgotten)
                    so_far = [*messages(earlier), *_turns(question, reply.text)]
                    yield (so_far, field, status, _SAME, shown, *buttons(True))
                    field = _SAME  # emptied once: the next question may be written while this one is answered
        except Trouble as trouble:
            yield (messages(state), question, trouble.said(language), _SAME, _SAME, *buttons(False))
            return
        if reply.ended == "interrupted" and not reply.text.strip():
            yield (messages(state), question, status, _SAME, _SAME, *buttons(False))
            return
        exchange = Exchange(question=question, answer=reply.text, ended=reply.ended or "stop", seed=asked.seed)
        grown = replace(earlier, exchanges=[*earlier.exchanges, exchange], forgotten=prompt.forgotten)
        if not asked.settings["do_sample"] and seed is not None:
            status += f" · {say('status.same_again', language)}"
        yield (messages(grown), _SAME, status, grown, shown, *buttons(False))

    def _prepared(
        self, earlier: Conversation, question: str, system: str, wish: Wish, seed: int | None
    ) -> tuple[Prompt, Question]:
        """The question after as much of the conversation as fits."""
        if not question:
            raise Trouble("status.empty")
        values = self._page.parameters.taken(wish.values)
        values[SEED] = values[SEED] if seed is None else seed
        answering, model = self._answering, wish.model
        # Alone first: that it is too long by itself is said in the reader's language.
        answering.question({"instruction": question, "input": ""}, model, values)
        run = answering.opened.origin(model).run
        asked = replace(
            earlier, system=str(system or "").strip(), asks_instructions=asks_instructions(run.sources if run else [])
        )
        answering.question(asked.record(question, len(asked.exchanges)), model, values)
        room = answering.room(values["max_new_tokens"])
        prompt = asked.prompt(question, lambda record: answering.count(record, model), room)
        return prompt, answering.question(prompt.record, model, values)


def messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation as `gradio.Chatbot` shows it."""
    return [turn for each in conversation.exchanges for turn in _turns(each.question, each.answer)]


def _turns(question: str, answer: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": markup.harmless(question)},
        {"role": "assistant", "content": markup.harmless(answer)},
    ]


def _told(status: str) -> tuple[Any, ...]:
    """Nothing changes but the line below."""
    return (_SAME, _SAME, status, _SAME, _SAME, _SAME, _SAME)
