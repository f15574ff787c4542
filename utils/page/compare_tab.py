"""The tab that asks the base and every adapter the same, with the same seed, and shows the answers side by side.

Knows: the cue for a chain of thought, in the language of the question. Does not know how an answer is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import gradio

from utils.assistant import BASE
from utils.page.answering import Question, Visitor
from utils.page.instruction_tab import prepared
from utils.page.markup import harmless
from utils.page.shared import Shared, Wish, buttons, shown_answer
from utils.page.texts import Text, Trouble, say
from utils.scoring import language as language_of

PLACE = "compare"
_LANGUAGES = {"cn": "zh", "en": "en"}
"""How the page names what `scoring.language` finds."""


def build(page: Shared) -> None:
    """The tab's components and what they do."""
    put = page.labels.put
    models = (BASE, *page.answering.opened.names)
    question = put(gradio.Textbox, label=Text("compare.question"), lines=2, max_lines=12, elem_id="compare-question")
    steps = put(
        gradio.Checkbox,
        value=False,
        label=Text("compare.steps"),
        info=Text("compare.steps_info"),
        elem_id="compare-steps",
    )
    with gradio.Row():
        send = put(gradio.Button, Text("do.compare"), variant="primary", elem_id="compare-send", min_width=80)
        stop = put(gradio.Button, Text("do.stop"), variant="stop", visible=False, elem_id="compare-stop", min_width=80)
    plain = _columns(page, models, "plain")
    with gradio.Column(visible=False) as below:
        cued = _columns(page, models, "with_cue")
    page.examples("compare", [question])
    prompt = page.prompt_panel("compare")
    cells = [*plain, *cued]

    comparison = Comparison(page, models, len(cells))
    send.click(
        comparison.ask,
        [question, steps, *page.inputs],
        [*(cell for cell, _ in cells), *(line for _, line in cells), prompt, send, stop],
        show_progress="hidden",
        concurrency_limit=None,
    )
    steps.change(lambda wanted: gradio.update(visible=bool(wanted)), steps, below, show_progress="hidden", queue=False)
    stop.click(comparison.stop, show_progress="hidden", queue=False)


class Comparison:
    """What the tab's components do.

    Args:
        cells: answers that there is room for.
    """

    def __init__(self, page: Shared, models: Sequence[str], cells: int) -> None:
        self._page, self._models, self._cells = page, models, cells

    async def ask(
        self, request: gradio.Request, question: str, with_steps: bool, *values: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """The answers of all models as they grow; then what each took."""
        page, wish, visitor = self._page, self._page.wish(values), Visitor.of(request)
        if page.answering.is_busy(visitor, PLACE):
            yield self._told(say("status.busy", wish.language), [gradio.skip(), gradio.skip()])
            return
        try:
            asked = await asyncio.to_thread(self._prepared, question, with_steps, wish)
            shown = page.prompt_of(wish, *asked)
            async with aclosing(page.answering.all_replies(asked, visitor, PLACE)) as states:
                async for replies in states:
                    empty = [""] * (self._cells - len(replies))
                    texts = [shown_answer(reply) for reply in replies]
                    lines = [page.status(reply, wish.language) for reply in replies]
                    is_over = all(reply.ended for reply in replies)
                    yield (*texts, *empty, *lines, *empty, shown, *buttons(not is_over))
        except Trouble as trouble:
            yield self._told(trouble.said(wish.language), buttons(False))

    def stop(self, request: gradio.Request) -> None:
        """Ends the answers under way."""
        self._page.answering.interrupt(Visitor.of(request), PLACE)

    def _prepared(self, question: str, with_steps: bool, wish: Wish) -> list[Question]:
        wordings = wordings_of(question, with_steps)
        return [prepared(self._page, wording, "", wish, model) for wording in wordings for model in self._models]

    def _told(self, status: str, pressed: Sequence[Any]) -> tuple[Any, ...]:
        """Nothing changes but the first line, and the buttons."""
        same = [gradio.skip()] * (self._cells - 1)
        return (gradio.skip(), *same, status, *same, gradio.skip(), *pressed)


def wordings_of(question: str, with_steps: bool) -> list[str]:
    """The question as it is; and with the cue behind it, if wanted."""
    question = str(question or "").strip()
    if not with_steps or not question:
        return [question]
    return [question, f"{question}\n{say('compare.cue', _LANGUAGES[language_of(question)])}"]


def _columns(page: Shared, models: tuple[str, ...], name: str) -> list[tuple[Any, Any]]:
    """(answer, line below it) of each model, side by side."""
    page.labels.put(gradio.Markdown, Text(f"compare.{name}"), elem_classes="heading")
    cells = []
    with gradio.Row(equal_height=False):
        for number, model in enumerate(models):
            with gradio.Column(min_width=250):
                gradio.Markdown(f"**{harmless(model)}**")
                cells.append((page.answer(f"compare-{name}-{number}"), page.status_line(f"compare-{name}-{number}")))
    return cells
