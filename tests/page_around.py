"""The page's parts without a browser: what they share, a scheduler that says what a test wants, and a visitor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from utils import scheduling
from utils.generation import Answer
from utils.page import chat_tab, shared, texts
from utils.page.answering import Answering, Visitor
from utils.page.parameters import Parameters


class FakeTicket:
    """Says its pieces one by one, and then fails or waits for ever, if told so."""

    def __init__(self, pieces: Sequence[str], error: BaseException | None = None, waits: bool = False) -> None:
        self._pieces, self._error, self._waits = pieces, error, waits
        self._cancelled = asyncio.Event()
        self.answer: Answer | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        self._cancelled.set()

    async def __aiter__(self) -> AsyncIterator[scheduling.Piece]:
        for number, text in enumerate(self._pieces):
            yield scheduling.Piece(text, [number])
        if self._waits:
            await self._cancelled.wait()
        elif self._error:
            raise self._error
        else:
            text = "".join(self._pieces)
            self.answer = Answer(text=text, finish_reason="stop", prompt_tokens=3, new_tokens=len(self._pieces))


class FakeScheduler:
    """Hands out the tickets that it was given, or raises."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes, self.asked, self.tickets = list(outcomes), [], []

    def submit(self, prompt: Sequence[int], settings: Mapping[str, Any], **options: Any) -> Any:
        self.asked.append({"prompt": list(prompt), "settings": dict(settings), **options})
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        ticket = FakeTicket(**outcome)
        self.tickets.append(ticket)
        return ticket


def made(opened: Any, *outcomes: Any, parameters: Parameters | None = None) -> tuple[Any, FakeScheduler]:
    """(what the tabs share, without components; the scheduler that it asks)."""
    scheduler = FakeScheduler(*outcomes)
    around: Any = shared.Shared(
        answering=Answering(opened=opened, scheduler=scheduler),
        parameters=parameters or Parameters.of(512),
        labels=texts.Labels(),
        language=None,
        model=None,
        shows_prompt=None,
        sliders=[],
    )
    return around, scheduler


class Session:
    session_hash = "somebody"
    client = SimpleNamespace(host="127.0.0.1")


VISITOR = Visitor.of(Session)
BESIDE = {"language": "en", "model": "run", "prompt": False}


def all_states(handler: Any, *given: Any, around: Any, **wishes: Any) -> list[Any]:
    """All that one of a tab's handlers yields to the visitor; `wishes` are what stands beside the tabs."""
    language, model, prompt = (wishes.get(name, value) for name, value in BESIDE.items())
    values = [language, model, prompt, *around.parameters.defaults.values()]

    async def collect() -> list[Any]:
        return [state async for state in handler(Session, *given, *values)]

    return asyncio.run(collect())


def talk(around: Any, action: str, *given: Any, **wishes: Any) -> list[Any]:
    """The same of one of the chat's handlers."""
    return all_states(getattr(chat_tab.Talk(around), action), *given, around=around, **wishes)
