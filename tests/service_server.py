"""The service on the loopback, with the real application and server, and a scheduler whose answers are written down.

Knows: how to start and stop it, and what a scheduler is asked. Does not know models: a tiny run gives the prompts. A
module that takes the fixtures says with one of its own, `options`, how its service is.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from utils.generation import Answer
from utils.scheduling import Closed, Full, Piece
from utils.service import application

PIECES = ("你好, ", "world ", "🌏")
TEXT = "".join(PIECES)
KEY = "sk-0123456789abcdef"


def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Waits for it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.005)


@dataclass
class Asking:
    """What was submitted; a ticket, too."""

    prompt: list[int]
    settings: dict[str, Any]
    adapter: str | None
    stop: tuple[str, ...]
    seed: int
    owner: Scripted
    answer: Answer | None = None
    cancelled: bool = False

    @property
    def ids(self) -> Sequence[int]:
        return range(self.answer.new_tokens) if self.answer else ()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        text, owner = "", self.owner
        try:
            for number, piece in enumerate((*owner.pieces, f" #{self.seed}") if owner.says_seed else owner.pieces):
                while not owner.goes_on.is_set() and number >= owner.halts_at and not self.cancelled:
                    await asyncio.sleep(0.005)
                if self.cancelled:
                    return
                if owner.fails and number == owner.fails_at:
                    raise owner.fails
                text += piece
                yield Piece(piece, [number])
            count = min(self.settings["max_new_tokens"], 7)
            self.answer = Answer(
                text=text, finish_reason=owner.finish, prompt_tokens=len(self.prompt), new_tokens=count
            )
        finally:
            self.cancel()

    def cancel(self) -> None:
        if not self.cancelled:
            self.owner.running -= 1
        self.cancelled = True


@dataclass
class Scripted:
    """In place of `utils.scheduling.Scheduler`."""

    pieces: Sequence[str] = PIECES
    says_seed: bool = False
    finish: Any = "stop"
    goes_on: threading.Event = field(default_factory=threading.Event)
    """Cleared, answers stop before piece number `halts_at`."""
    halts_at: int = 0
    fails: BaseException | None = None
    fails_at: int = 0
    refuses: BaseException | None = None
    """From the submission number `refuses_at` on."""
    refuses_at: int = 0
    room: int = 1000
    running: int = 0
    asked: list[Asking] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self.goes_on.set()

    def submit(
        self,
        prompt: Sequence[int],
        settings: Mapping[str, Any],
        *,
        adapter: str | None = None,
        stop: Sequence[str] = (),
        seed: int = 42,
    ) -> Asking:
        if self.closed:
            raise Closed
        if self.refuses and len(self.asked) >= self.refuses_at:
            raise self.refuses
        if self.running >= self.room:
            raise Full(7)
        self.running += 1
        asking = Asking(list(prompt), dict(settings), adapter, tuple(stop), seed, self)
        self.asked.append(asking)
        return asking

    def figures(self) -> dict[str, float]:
        names = ("waiting", "answered", "cancelled", "failed", "refused", "prompt_tokens", "new_tokens")
        return {**dict.fromkeys(names, 0), "running": self.running}

    def close(self, *, wait: float = 30.0) -> None:
        self.closed = True


@contextmanager
def serving(opened: Any, scheduler: Any, **options: Any) -> Iterator[str]:
    """The address of the service, until the block ends."""
    edit = options.pop("edit", lambda app: None)
    app = application(opened, scheduler, **options)
    edit(app)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive(), "the start")
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(opened: Any, options: Mapping[str, Any]) -> Iterator[tuple[Scripted, str]]:
    """(what the service asks, its address)."""
    scheduler = Scripted()
    with serving(opened, scheduler, **options) as address:
        yield scheduler, address


@pytest.fixture
def scheduler(served: tuple[Scripted, str]) -> Scripted:
    """What the service asks, as new."""
    until(lambda: served[0].running == 0, "the end of the test before")
    served[0].__init__()
    return served[0]


@pytest.fixture
def url(served: tuple[Scripted, str], scheduler: Scripted) -> str:
    """The service's address."""
    return served[1]
