"""One question on its way: its prompt, its place in the queue, and what comes back piece by piece.

Knows: the scheduler, how much fits into the context, and which answers of which session are under way. Does not know
components: what went wrong is a `Trouble`, said in the reader's language elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from utils import adapters
from utils.assistant import BASE
from utils.clients import Clients, TooMany, address_of
from utils.conversation import Room
from utils.page import markup
from utils.page.parameters import SEED, settings_of
from utils.page.texts import Trouble
from utils.readers import check_record
from utils.scheduling import Closed, Full, Piece, TimedOut
from utils.templates import Record
from utils.tokens import control_ids

SHOWN_EVERY = 0.05
"""Seconds between two states of an answer on the page: more often, a browser only redraws."""


class Ticket(Protocol):
    """What the page needs of `utils.scheduling.Ticket`."""

    answer: Any

    def __aiter__(self) -> AsyncIterator[Piece]: ...
    def cancel(self) -> None: ...


class Scheduler(Protocol):
    """What the page needs of `utils.scheduling.Scheduler`."""

    def submit(
        self, prompt: Sequence[int], settings: Mapping[str, Any], *, adapter: str | None, stop: Sequence[str], seed: int
    ) -> Ticket: ...


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """Who asks."""

    session: str
    """One for each open page."""
    address: str

    @classmethod
    def of(cls, request: Any) -> Visitor:
        """Of one of Gradio's requests."""
        return cls(session=str(request.session_hash), address=address_of(request))


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt that fits, and how it is answered."""

    ids: Sequence[int]
    settings: Mapping[str, Any]
    adapter: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer so far."""

    text: str = ""
    ended: Literal["", "stop", "length", "interrupted"] = ""
    """Empty: more may come."""
    tokens: int = 0
    """Once it has ended."""
    used: int = 0
    """Tokens of prompt and answer together, once it has ended."""
    seconds: float = 0.0
    """Since it was asked."""
    trouble: Trouble | None = None
    """Why it ended before its time."""


@dataclass(kw_only=True, eq=False)
class _Asked:
    ticket: Ticket
    stopped: bool = False


@dataclass(kw_only=True)
class Answering:
    """A model behind a scheduler, for many sessions at once."""

    opened: Any
    """An `utils.assistant.Assistant`."""
    scheduler: Scheduler
    clients: Clients = field(default_factory=Clients)
    """What each address waits for."""
    stop: Sequence[str] = ()
    """Texts that end every answer."""
    _under_way: dict[tuple[str, str], set[_Asked]] = field(default_factory=dict)
    """By session and tab."""

    @property
    def models(self) -> tuple[str, ...]:
        """Who can be asked: the adapters, then the base."""
        return (*self.opened.names, BASE)

    @property
    def context(self) -> int | None:
        """Tokens that a prompt and its answer may take together; None: any number."""
        found = adapters.context_length(self.opened.model)
        return found and found - adapters.virtual_tokens(self.opened.model)

    def count(self, record: Record, model: str) -> int:
        """Tokens of what is sent for a record."""
        return len(self.opened.prompt_ids(record, model))

    def room(self, longest_answer: int) -> Room | None:
        """For `Conversation.prompt`; None where the context has no limit."""
        return None if self.context is None else Room(context=self.context, longest_answer=longest_answer)

    def question(self, record: Record, model: str, values: Mapping[str, Any]) -> Question:
        """A record as what is sent.

        Raises:
            Trouble: no model of this name, nothing to ask, or too much.
        """
        if model not in self.models:
            raise Trouble("status.refused", why=f"{model!r}: {', '.join(self.models)}")
        try:
            check_record(record, "the question", answered=False)
            ids = self.opened.prompt_ids(record, model)
        except ValueError as error:
            raise Trouble("status.refused", why=str(error)) from error
        settings, room = settings_of(values), self.room(values["max_new_tokens"])
        if room is not None:
            if len(ids) + room.kept > room.context:
                raise Trouble("status.too_long", tokens=len(ids), kept=room.kept, context=room.context)
            settings["max_new_tokens"] = min(settings["max_new_tokens"], room.context - len(ids))
        return Question(ids=ids, settings=settings, adapter=model, seed=values[SEED])

    def shown_prompt(self, question: Question) -> str:
        """The prompt as HTML, control tokens framed."""
        tokenizer = self.opened.origin(question.adapter).tokenizer
        return markup.marked_ids(question.ids, tokenizer, control_ids(tokenizer))

    def is_busy(self, visitor: Visitor, place: str) -> bool:
        """Whether an answer is under way in one of a visitor's tabs."""
        return bool(self._under_way.get((visitor.session, place)))

    def interrupt(self, visitor: Visitor, place: str | None = None) -> None:
        """Ends the answers of a visitor's tab, or of all the tabs."""
        for (whose, where), under_way in list(self._under_way.items()):
            if whose == visitor.session and place in (None, where):
                for asked in under_way:
                    asked.stopped = True
                    asked.ticket.cancel()

    async def replies(self, question: Question, visitor: Visitor, place: str) -> AsyncGenerator[Reply]:
        """The answer as it grows; the last one has ended. Closing this frees the answer's place.

        Raises:
            Trouble: the queue is full or closed, or refuses the question, or the visitor waits for too many answers;
                nothing has begun then.
        """
        asked = _Asked(ticket=self._submitted(question, visitor))
        mine = self._under_way.setdefault((visitor.session, place), set())
        mine.add(asked)
        began, shown = time.monotonic(), 0.0
        reply = Reply()
        try:
            yield reply
            async for piece in asked.ticket:
                reply = replace(reply, text=reply.text + piece.text)
                if time.monotonic() - shown >= SHOWN_EVERY:
                    shown = time.monotonic()
                    yield reply
            reply = _ended(reply, asked, len(question.ids))
        except TimedOut:
            reply = replace(reply, ended="interrupted", trouble=Trouble("status.timed_out"))
        except Closed:
            reply = replace(reply, ended="interrupted", trouble=Trouble("status.closed"))
        except ValueError as error:
            reply = replace(reply, ended="interrupted", trouble=Trouble("status.refused", why=str(error)))
        except Exception:
            logging.getLogger(__name__).exception("an answer on the page failed")
            reply = replace(reply, ended="interrupted", trouble=Trouble("status.failed"))
        finally:
            if not reply.ended:
                asked.ticket.cancel()
            mine.discard(asked)
            if not mine:
                self._under_way.pop((visitor.session, place), None)
            self.clients.give_back(visitor.address)
        yield replace(reply, seconds=time.monotonic() - began)

    async def all_replies(
        self, questions: Sequence[Question], visitor: Visitor, place: str
    ) -> AsyncGenerator[list[Reply]]:
        """The answers to several questions as they grow, side by side. All are in the queue, or none.

        Raises:
            Trouble: as `replies`.
        """
        found = [Reply()] * len(questions)
        changed = asyncio.Event()
        refused: list[Trouble] = []

        async def follow(number: int) -> None:
            try:
                async with aclosing(self.replies(questions[number], visitor, place)) as replies:
                    async for reply in replies:
                        found[number] = reply
                        changed.set()
            except Trouble as trouble:
                refused.append(trouble)
            changed.set()

        tasks = [asyncio.create_task(follow(number)) for number in range(len(questions))]
        try:
            while not all(task.done() for task in tasks):
                await changed.wait()
                changed.clear()
                if refused:
                    raise refused[0]
                yield list(found)
                await asyncio.sleep(SHOWN_EVERY)
            if refused:
                raise refused[0]
            yield list(found)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _submitted(self, question: Question, visitor: Visitor) -> Ticket:
        try:
            with self.clients.taking(visitor.address):
                return self.scheduler.submit(
                    question.ids, question.settings, adapter=question.adapter, stop=self.stop, seed=question.seed
                )
        except TooMany as many:
            raise Trouble("status.too_many", most=many.most) from many
        except Full as full:
            raise Trouble("status.full", seconds=full.retry_after) from full
        except Closed as closed:
            raise Trouble("status.closed") from closed
        except ValueError as error:
            raise Trouble("status.refused", why=str(error)) from error


def _ended(reply: Reply, asked: _Asked, prompt_tokens: int) -> Reply:
    """The answer once its pieces are through."""
    answer = asked.ticket.answer
    if asked.stopped or answer is None:
        return replace(reply, ended="interrupted", used=prompt_tokens)
    return replace(
        reply,
        text=answer.text,
        ended=answer.finish_reason,
        tokens=answer.new_tokens,
        used=answer.prompt_tokens + answer.new_tokens,
    )
