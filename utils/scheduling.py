"""Many people's requests to one model: queued, decoded together, streamed to each, given up where nobody waits.

Knows: one worker thread, a bounded queue, batches that requests join at the next token. Does not know HTTP, pages or
records; a prompt comes as ids.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from utils import adapters, decoding_memory, generation
from utils.assistant import Assistant
from utils.decoding import Batch, Row
from utils.generation import Answer
from utils.stopping import HeldBack
from utils.streaming import Streamer


class Full(Exception):
    """There is no room in the queue.

    Args:
        retry_after: seconds after which another attempt is worth making.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


class Closed(Exception):
    """No new requests are taken: the program is ending."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class TimedOut(Exception):
    """The time of a request is over."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer within {seconds:g} s")


class Piece(NamedTuple):
    """A part of an answer."""

    text: str
    """Not empty."""
    ids: Sequence[int]
    """Those decoded since the piece before. Behind the last piece some may be left that say nothing: what ended the
    answer; beams leave all of them."""


class Ticket:
    """A request on its way: iterating gives the answer in pieces, in a thread or in asyncio, once.

    Raises (to whoever iterates): what decoding raised; `TimedOut`.
    """

    def __init__(self, row: Row, tokenizer: Any, batch_of: tuple[Any, ...], deadline: float, seconds: float) -> None:
        self.answer: Answer | None = None
        """Complete once the pieces are through."""
        self.row, self.batch_of = row, batch_of
        """`batch_of`: only requests with the same can be decoded together."""
        self._deadline, self._seconds = deadline, seconds
        self._pieces: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
        self._wake: Callable[[], object] = lambda: None
        self._tokenizer, self._held = tokenizer, HeldBack(row.ends)
        self._streamer = Streamer(tokenizer, row.ends.ids, self._show)
        self._is_streamed = False
        self._ids: list[int] = []
        row.on_token = self._take

    def cancel(self) -> None:
        """Gives the request up: it frees its place at the next token."""
        self.row.cancelled = True

    @property
    def ids(self) -> Sequence[int]:
        """Of the complete answer: all that were decoded, what ended it included."""
        return self.row.new[: self.answer.new_tokens] if self.answer else ()

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more: it was cancelled, or its time is over."""
        if time.monotonic() > self._deadline and not self.row.cancelled:
            self.fail(TimedOut(self._seconds))
            self.row.cancelled = True
        return self.row.cancelled

    def __iter__(self) -> Iterator[Piece]:
        """The pieces; closing the iterator cancels the request."""
        try:
            while (piece := self._pieces.get()) is not None:
                yield _unless_error(piece)
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """The same without holding up the event loop."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(arrived.set)

        self._wake = wake
        arrived.set()  # for what came before there was somebody to wake
        try:
            while True:
                await arrived.wait()
                arrived.clear()
                while not self._pieces.empty():
                    piece = self._pieces.get()
                    if piece is None:
                        return
                    yield _unless_error(piece)
        finally:
            self.cancel()

    def finish(self) -> None:
        """Its row has ended; for the scheduler."""
        if not self.row.cancelled:
            self._streamer.end()
            for text in self._held.rest():
                self._say(text)
            self.answer = generation.answer_of(self.row, self._tokenizer)
            if not self._is_streamed and self.answer.text:  # beams come whole
                self._say(self.answer.text)
        self._put(None)

    def fail(self, error: BaseException) -> None:
        """Raises `error` to whoever iterates; for the scheduler."""
        self._put(error)

    def _take(self, token: int) -> None:
        self._ids.append(token)
        self._streamer.put(token)

    def _show(self, text: str) -> None:
        self._is_streamed = True
        for shown in self._held.add(text):
            self._say(shown)

    def _say(self, text: str) -> None:
        ids, self._ids = self._ids, []
        self._put(Piece(text, ids))

    def _put(self, piece: Piece | BaseException | None) -> None:
        self._pieces.put(piece)
        self._wake()


def _unless_error(piece: Piece | BaseException) -> Piece:
    if isinstance(piece, BaseException):
        raise piece
    return piece


class Scheduler:
    """Decodes requests in a thread of its own.

    Those with the same adapter and sampling parameters share a batch, and join it at the next token; others wait until
    it is empty, the oldest first.

    Args:
        max_batch: the most requests that are decoded together.
        max_queue: the most that wait.
        timeout: seconds that a request may take in all.
    """

    def __init__(self, opened: Assistant, *, max_batch: int = 32, max_queue: int = 64, timeout: float = 300.0) -> None:
        self._opened, self._max_batch, self._max_queue, self._timeout = opened, max_batch, max_queue, timeout
        self._room = decoding_memory.positions(opened.model)
        self._virtual = adapters.virtual_tokens(opened.model)
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._changed = threading.Condition()
        self._counts: Counter[str] = Counter()
        self._closing = self._ending = False
        self._seconds = 1.0
        """How long a request took lately."""
        self._thread = threading.Thread(target=self._work, daemon=True, name="decoding")
        self._thread.start()

    def submit(
        self,
        prompt: Sequence[int],
        settings: Mapping[str, Any],
        *,
        adapter: str | None = None,
        stop: Sequence[str] = (),
        seed: int = generation.SEED,
    ) -> Ticket:
        """Takes a request in, and returns at once.

        Raises:
            Full, Closed: it is not taken.
            ValueError: an unknown adapter, or a prompt that does not fit.
        """
        ends = self._opened.ends(adapter, stop)
        generation.check_length(self._opened.model, prompt, settings["max_new_tokens"])
        row = Row(prompt=list(prompt), ends=ends, max_new_tokens=settings["max_new_tokens"], seed=seed)
        shared = {name: value for name, value in settings.items() if name != "max_new_tokens"}
        alone = (object(),) if settings.get("num_beams", 1) > 1 else ()  # beams leave together
        batch_of = (adapter or self._opened.names[0], tuple(sorted(shared.items())), *alone)
        tokenizer = self._opened.origin(adapter).tokenizer
        with self._changed:
            if self._closing:
                raise Closed
            if len(self._waiting) >= self._max_queue:
                self._counts["refused"] += 1
                raise Full(max(1, math.ceil(self._seconds * len(self._waiting) / self._max_batch)))
            ticket = Ticket(row, tokenizer, batch_of, time.monotonic() + self._timeout, self._timeout)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def figures(self) -> dict[str, float]:
        """How many wait and run now; and counts since the beginning, of requests and of tokens."""
        names = ("answered", "cancelled", "failed", "refused", "prompt_tokens", "new_tokens")
        now = {"waiting": len(self._waiting), "running": len(self._running)}
        return {**now, **{name: self._counts[name] for name in names}}

    def close(self, *, wait: float = 30.0) -> None:
        """Takes no more requests; those that are taken end, within `wait` seconds, or are given up."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(wait)
        with self._changed:
            for ticket in [*self._waiting, *self._running]:
                ticket.fail(Closed())
                ticket.cancel()
            self._ending = True
            self._changed.notify()
        self._thread.join(5.0)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if self._ending or not self._waiting:
                    return
                first = self._waiting[0]
            try:
                self._run(first)
            except BaseException as error:  # it belongs to those whose requests were being answered
                for ticket in self._running:
                    ticket.fail(error)
                    self._counts["failed"] += 1
                self._running = []

    def _run(self, first: Ticket) -> None:
        """Decodes the batch of `first`, and whatever joins it, until it is empty."""
        adapter, shared, *_ = first.batch_of
        began: dict[int, float] = {}
        with self._opened.speaking(adapter) as model:
            batch = Batch(model, self._opened.origin(adapter).tokenizer, dict(shared))
            while True:
                late = self._next(first.batch_of, batch)
                self._running += late
                began.update((id(ticket), time.monotonic()) for ticket in late)
                over = batch.add([ticket.row for ticket in late]) if late else []
                if batch.rows and not over:
                    over = batch.run(lambda: self._should_pause(first.batch_of, batch))
                self._settle(over, began)
                if not batch.rows and not self._can_go_on(first.batch_of):
                    return

    def _next(self, batch_of: tuple[Any, ...], batch: Batch) -> list[Ticket]:
        """Takes those out of the queue that join the batch now. While somebody else waits in front of them, nobody
        joins: a busy adapter must not keep the others waiting for ever."""
        late: list[Ticket] = []
        with self._changed:
            self._drop_those_that_are_over()
            while self._waiting and self._waiting[0].batch_of == batch_of and batch.can_be_joined:
                rows = [*batch.rows, *(ticket.row for ticket in late), self._waiting[0].row]
                # Padding must not come between virtual tokens and a prompt (`assistant`): one at a time there.
                if len(rows) > (1 if self._virtual else self._max_batch) or not self._fits(rows):
                    break
                late.append(self._waiting.popleft())
        return late

    def _fits(self, rows: Sequence[Row]) -> bool:
        longest = max(len(row.prompt) + row.max_new_tokens for row in rows)
        return len(rows) == 1 or self._room is None or longest * len(rows) <= self._room

    def _can_go_on(self, batch_of: tuple[Any, ...]) -> bool:
        with self._changed:
            return bool(self._waiting) and self._waiting[0].batch_of == batch_of

    def _should_pause(self, batch_of: tuple[Any, ...], batch: Batch) -> bool:
        """Asked at every token: whether somebody can join, or has gone."""
        over = [ticket.is_over for ticket in self._running]
        with self._changed:
            self._drop_those_that_are_over()
        if any(over) or self._ending:
            return True
        if not self._waiting or len(batch.rows) >= self._max_batch or not batch.can_be_joined:
            return False
        with self._changed:
            waiting = self._waiting[0] if self._waiting else None
            if waiting is None or waiting.batch_of != batch_of:
                return False
            return self._fits([*batch.rows, waiting.row])

    def _settle(self, over: Sequence[Row], began: dict[int, float]) -> None:
        done = {id(row) for row in over}
        for ticket in [ticket for ticket in self._running if id(ticket.row) in done]:
            ticket.finish()
            self._running.remove(ticket)
            took = time.monotonic() - began.pop(id(ticket))
            self._seconds += 0.2 * (took - self._seconds)
            self._counts["cancelled" if ticket.answer is None else "answered"] += 1
            self._counts["prompt_tokens"] += len(ticket.row.prompt)
            self._counts["new_tokens"] += len(ticket.row.new)

    def _drop_those_that_are_over(self) -> None:
        for ticket in [ticket for ticket in self._waiting if ticket.is_over]:
            self._waiting.remove(ticket)
            ticket.finish()
            self._counts["cancelled"] += 1
