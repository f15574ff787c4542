"""Answers on their way: submitted, read as they come, and given up when nobody waits for them any longer.

Knows: the scheduler's tickets, what its refusals mean over HTTP, and clients that go away. Does not know which form a
reply has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from utils.clients import Clients, TooMany
from utils.generation import Answer
from utils.scheduling import Closed, Full, Piece, Scheduler, Ticket, TimedOut
from utils.service.asked import Asked
from utils.service.problems import GONE, Problem, failed

log = logging.getLogger("utils.service")
Value = TypeVar("Value")


class UnderWay:
    """The answers to one request. To be closed, whatever happens: that frees their slots."""

    def __init__(self, scheduler: Scheduler, asked: Asked, clients: Clients, client: str) -> None:
        """Submits them.

        Raises:
            Problem: 429, 503 or 400; then nothing is under way.
        """
        self.asked, self._clients, self._client = asked, clients, client
        self.began = time.perf_counter()
        self._tickets: list[Ticket] = []
        self._is_open = True
        try:
            with clients.taking(client, len(asked.prompts)):
                for prompt, seed in zip(asked.prompts, asked.seeds, strict=True):
                    ticket = scheduler.submit(prompt, asked.settings, adapter=asked.model, stop=asked.stop, seed=seed)
                    self._tickets.append(ticket)
        except Exception as error:
            self._cancel()
            raise _refusal(error) from error

    async def pieces(self) -> AsyncIterator[tuple[int, Piece | None]]:
        """(which answer, a piece of it), as they come; None where one has ended.

        Raises:
            Problem: 504 or 500; then the others are of no use.
        """
        come: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue()

        async def read(number: int, ticket: Ticket) -> None:
            try:
                async for piece in ticket:
                    come.put_nowait((number, piece))
            except Exception as error:
                come.put_nowait((number, error))
            else:
                come.put_nowait((number, None))

        tasks = [asyncio.create_task(read(*each)) for each in enumerate(self._tickets)]
        left = len(tasks)
        try:
            while left:
                number, piece = await come.get()
                if isinstance(piece, Exception):
                    raise _failure(piece) from piece
                left -= piece is None
                yield number, piece
        finally:
            for task in tasks:
                task.cancel()

    async def answers(self) -> list[Answer]:
        """All of them, once they are complete.

        Raises:
            Problem: 504 or 500.
        """
        async for _ in self.pieces():
            pass
        return [self.answer(number) for number in range(len(self._tickets))]

    def answer(self, number: int) -> Answer:
        """One that has ended."""
        answer = self._tickets[number].answer
        if answer is None:
            raise failed() from RuntimeError("an answer ended, and is not there")
        return answer

    def ids(self, number: int) -> Sequence[int]:
        """Of one that has ended: all that were decoded, what ended it included."""
        return self._tickets[number].ids

    def close(self) -> None:
        """What is not complete is given up."""
        if self._is_open:
            self._is_open = False
            self._cancel()
            self._clients.give_back(self._client, len(self.asked.prompts))

    def _cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()


async def unless_gone(request: Request, work: Awaitable[Value]) -> Value:
    """What the work gives; it is given up when the client goes.

    Raises:
        Problem: 499, the client has gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Problem(GONE, "the client has gone")
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.wait((task, gone))


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Events(StreamingResponse):
    """Server-sent events; what is under way ends with them, however they end."""

    def __init__(self, events: AsyncIterator[bytes], under_way: UnderWay) -> None:
        headers = {"X-Accel-Buffering": "no"}  # or nginx would collect them
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._under_way = under_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._under_way.close()


def _refusal(error: Exception) -> Problem:
    """Why an answer was not begun."""
    if isinstance(error, Full):
        wait = {"Retry-After": str(max(1, int(error.retry_after)))}
        message = f"too many wait already: try again in {wait['Retry-After']} seconds"
        return Problem(429, message, code="queue_full", headers=wait)
    if isinstance(error, TooMany):
        return Problem(429, str(error), code="too_many_requests", headers={"Retry-After": "1"})
    if isinstance(error, Closed):
        return Problem(503, "the server is shutting down", code="shutting_down", headers={"Connection": "close"})
    if isinstance(error, ValueError):
        return Problem(400, str(error), code="invalid_value")
    return _failure(error)


def _failure(error: Exception) -> Problem:
    """Why an answer did not come to its end."""
    if isinstance(error, TimedOut):
        message = "the answer took too long: ask for a shorter one (max_tokens), or when fewer ask"
        return Problem(504, message, code="timed_out")
    if isinstance(error, Closed):
        return Problem(503, "the server is shutting down", code="shutting_down")
    log.error("an answer failed", exc_info=error)
    return failed()
