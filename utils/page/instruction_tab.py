"""The tab that asks as the data are: an instruction and its input, without a conversation.

Knows: one question at a time. Does not know how an answer is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio

from utils.page.answering import Question, Visitor
from utils.page.shared import Shared, Wish, buttons, shown_answer
from utils.page.texts import Text, Trouble, say

PLACE = "instruction"


def build(page: Shared) -> None:
    """The tab's components and what they do."""
    put = page.labels.put
    instruction = put(
        gradio.Textbox,
        label=Text("instruction.instruction"),
        info=Text("instruction.instruction_info"),
        lines=2,
        max_lines=12,
        elem_id="instruction-instruction",
    )
    given = put(
        gradio.Textbox,
        label=Text("instruction.input"),
        info=Text("instruction.input_info"),
        lines=2,
        max_lines=12,
        elem_id="instruction-input",
    )
    with gradio.Row():
        send = put(gradio.Button, Text("do.answer"), variant="primary", elem_id="instruction-send", min_width=80)
        stop = put(
            gradio.Button, Text("do.stop"), variant="stop", visible=False, elem_id="instruction-stop", min_width=80
        )
    put(gradio.Markdown, Text("instruction.output"))
    answer = page.answer("instruction-answer")
    status = page.status_line("instruction")
    headers = [Text("instruction.instruction"), Text("instruction.input")]
    page.examples("instruction", [instruction, given], headers)
    prompt = page.prompt_panel("instruction")

    tab = Instruction(page)
    outputs = [answer, status, prompt, send, stop]
    send.click(tab.ask, [instruction, given, *page.inputs], outputs, show_progress="hidden", concurrency_limit=None)
    stop.click(tab.stop, show_progress="hidden", queue=False)


class Instruction:
    """What the tab's components do."""

    def __init__(self, page: Shared) -> None:
        self._page = page

    async def ask(
        self, request: gradio.Request, instruction: str, given: str, *values: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """The answer as it grows, and how it goes."""
        page, wish, visitor = self._page, self._page.wish(values), Visitor.of(request)
        if page.answering.is_busy(visitor, PLACE):
            yield (gradio.skip(), say("status.busy", wish.language), *[gradio.skip()] * 3)
            return
        try:
            question = await asyncio.to_thread(prepared, page, instruction, given, wish)
            shown = page.prompt_of(wish, question)
            async with aclosing(page.answering.replies(question, visitor, PLACE)) as replies:
                async for reply in replies:
                    status = page.status(reply, wish.language)
                    yield (shown_answer(reply), status, shown, *buttons(not reply.ended))
        except Trouble as trouble:
            yield (gradio.skip(), trouble.said(wish.language), gradio.skip(), *buttons(False))

    def stop(self, request: gradio.Request) -> None:
        """Ends the answer under way."""
        self._page.answering.interrupt(Visitor.of(request), PLACE)


def prepared(page: Shared, instruction: str, given: str, wish: Wish, model: str | None = None) -> Question:
    """An instruction and its input as what is sent.

    Raises:
        Trouble: there is none, or it cannot be asked.
    """
    if not str(instruction or "").strip():
        raise Trouble("status.empty")
    record = {"instruction": instruction, "input": given or ""}
    return page.answering.question(record, model or wish.model, page.parameters.taken(wish.values))
