"""What the tabs of the page share: the model that is asked, its parameters, the language, how an answer is reported.

Knows: the components beside the tabs. Does not know what a tab asks.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio

from utils.page import markup
from utils.page.answering import Answering, Question, Reply
from utils.page.parameters import Parameters
from utils.page.texts import Labels, Text, say

EXAMPLES = Path(__file__).with_name("examples.toml")
HTML: Mapping[str, Any] = {"latex_delimiters": [], "sanitize_html": True}
"""Of a `gradio.Markdown` that shows HTML of ours: a dollar sign is one."""
LATEX = [{"left": "$$", "right": "$$", "display": True}, {"left": "\\(", "right": "\\)", "display": False}]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What stands beside the tabs when a question is asked."""

    language: str
    model: str
    shows_prompt: bool
    values: Sequence[Any]
    """Of the parameters' components."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The page around the tabs."""

    answering: Answering
    parameters: Parameters
    labels: Labels
    language: Any
    model: Any
    shows_prompt: Any
    sliders: Sequence[Any]
    on_open: list[tuple[Callable[..., Any], list[Any], list[Any]]] = field(default_factory=list)
    """(function, inputs, outputs) of what is shown once the page is open."""

    @property
    def inputs(self) -> list[Any]:
        """The components that `wish` reads, in order."""
        return [self.language, self.model, self.shows_prompt, *self.sliders]

    def wish(self, values: Sequence[Any]) -> Wish:
        """What they say."""
        language, model, shows_prompt, *sliders = values
        return Wish(language=language, model=model, shows_prompt=bool(shows_prompt), values=sliders)

    def prompt_of(self, wish: Wish, *questions: Question) -> str:
        """The exact prompts, if they are wanted."""
        if not wish.shows_prompt:
            return ""
        heads = [say("page.prompt_info", wish.language, tokens=len(question.ids)) for question in questions]
        shown = [self.answering.shown_prompt(question) for question in questions]
        return "\n\n".join(f"{head}\n\n{body}" for head, body in zip(heads, shown, strict=True))

    def status(self, reply: Reply, language: str, *, forgotten: int = 0) -> str:
        """How an answer goes or went, in a line."""
        if not reply.ended:
            return "" if reply.text else say("status.waiting", language)
        if reply.trouble:
            return reply.trouble.said(language)
        if reply.ended == "interrupted":
            return say("status.stopped" if reply.text.strip() else "status.stopped_early", language)
        speed = f"{reply.tokens / max(reply.seconds, 1e-9):.1f}"
        parts = [say("status.answered", language, tokens=reply.tokens, speed=speed)]
        if context := self.answering.context:
            parts.append(say("status.context", language, used=reply.used, context=context))
        if forgotten:
            parts.append(say("chat.forgotten", language, count=forgotten))
        if reply.ended == "length":
            parts.append(say("status.cut", language))
        return " · ".join(parts)

    def status_line(self, name: str) -> Any:
        """The component for it."""
        return gradio.Markdown(elem_id=f"{name}-status", elem_classes="status", latex_delimiters=[])

    def answer(self, name: str) -> Any:
        """A component for an answer."""
        return gradio.Markdown(
            elem_id=name, elem_classes="answer", sanitize_html=True, latex_delimiters=LATEX, line_breaks=True
        )

    def prompt_panel(self, name: str) -> Any:
        """The component for the exact prompt."""
        return gradio.Markdown(elem_id=f"{name}-prompt", **HTML)

    def examples(self, name: str, inputs: Sequence[Any], headers: Sequence[Text] = ()) -> None:
        """Questions to choose from; several inputs make them a table, whose columns `headers` name."""
        made = gradio.Examples(list(map(list, read_examples()[name])), list(inputs), label=say("page.examples", "en"))
        named = {"headers": headers} if headers else {}
        self.labels.shown.append((made.dataset, {"label": Text("page.examples"), **named}))


@functools.cache
def read_examples() -> Mapping[str, Sequence[Sequence[str]]]:
    """The questions of each tab, as the values of its fields."""
    return tomllib.loads(EXAMPLES.read_text(encoding="utf-8"))


def buttons(is_asking: bool) -> tuple[Any, Any]:
    """What the buttons that send and stop become."""
    return gradio.update(visible=not is_asking), gradio.update(visible=is_asking)


def shown_answer(reply: Reply) -> str:
    """An answer as Markdown without HTML."""
    return markup.harmless(reply.text)
