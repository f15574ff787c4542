"""A real browser before the page, with the real model and scheduler, or answers that a test says.

Knows: how both are started, and what must never go wrong on a page. Does not know what a test does there.
"""

from __future__ import annotations

import asyncio
import queue
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from utils import page, scheduling, service
from utils.clients import Clients
from utils.generation import Answer
from utils.page.texts import say

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
expect = sync_api.expect
expect.set_options(timeout=15_000)  # of a machine that has other things to do

DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


class Scripted:
    """A ticket that says what the test tells it to, when the test does."""

    def __init__(self, *pieces: str, more: bool = False) -> None:
        self.answer: Answer | None = None
        self.cancelled = threading.Event()
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for piece in pieces:
            self._pieces.put(piece)
        if not more:
            self.end()

    def say(self, piece: str) -> None:
        self._pieces.put(piece)

    def end(self) -> None:
        self._pieces.put(None)

    def cancel(self) -> None:
        self.cancelled.set()

    async def __aiter__(self) -> AsyncIterator[scheduling.Piece]:
        said = ""
        while not self.cancelled.is_set():
            if self._pieces.empty():
                await asyncio.sleep(0.005)
                continue
            piece = self._pieces.get()
            if piece is None:
                self.answer = Answer(text=said, finish_reason="stop", prompt_tokens=9, new_tokens=len(said))
                return
            said += piece
            yield scheduling.Piece(piece, [])


@dataclass
class Switch:
    """The real scheduler, before which stands what a test wants said or raised."""

    real: scheduling.Scheduler
    script: list[Any] = field(default_factory=list)

    def submit(self, *given: Any, **options: Any) -> Any:
        if not self.script:
            return self.real.submit(*given, **options)
        next_one = self.script.pop(0)
        if isinstance(next_one, BaseException):
            raise next_one
        return next_one

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@dataclass
class Server:
    address: str
    scheduler: Switch
    clients: Clients


@contextmanager
def served(application: Any) -> Iterator[tuple[str, Callable[[], bool]]]:
    """(the address of a real server, a function that ends it and says whether it has within two seconds)."""
    import uvicorn

    config = uvicorn.Config(application, port=0, log_level="warning", timeout_graceful_shutdown=8)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()

    def end() -> bool:
        running.should_exit = True
        thread.join(2)
        return not thread.is_alive()

    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/", end
    end()


@pytest.fixture(scope="module")
def server(opened: Any) -> Iterator[Server]:
    scheduler, counted = Switch(scheduling.Scheduler(opened)), Clients()
    application = service.application(opened, scheduler, access=service.Access(api_key=None))  # pyright: ignore[reportArgumentType]
    page.mount(application, page.blocks(opened, scheduler, clients=counted))
    with served(application) as (address, _):
        yield Server(address=address, scheduler=scheduler, clients=counted)
    scheduler.real.close(wait=1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()


Opening = Callable[..., Any]


@pytest.fixture
def opening(server: Server, browser: Any) -> Iterator[Opening]:
    """Opens the page in a browser of its own; what went wrong on it fails the test."""
    wrong: list[str] = []
    contexts: list[Any] = []
    server.scheduler.script.clear()

    def watch(tab: Any) -> None:
        tab.on("console", lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None)
        tab.on("pageerror", lambda error: wrong.append(f"script: {error}"))
        tab.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("response", lambda got: wrong.append(f"{got.status} {got.url}") if got.status >= 400 else None)
        tab.on("requestfailed", failed)
        tab.on("request", asked)

    def failed(request: Any) -> None:
        # The page itself ends the stream of events once there is nothing more to wait for.
        if "/gradio_api/queue/data" not in request.url or request.failure != "net::ERR_ABORTED":
            wrong.append(f"failed: {request.url} {request.failure}")

    def asked(request: Any) -> None:
        if urlsplit(request.url).scheme not in ("data", "blob") and not request.url.startswith(server.address):
            wrong.append(f"another machine: {request.url}")

    def open_page(*, locale: str = "en-US", viewport: Any = DESKTOP, query: str = "", phone: bool = False) -> Any:
        context = browser.new_context(locale=locale, viewport=viewport, has_touch=phone, is_mobile=phone)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.address)
        context.set_default_timeout(15_000)
        contexts.append(context)
        tab = context.new_page()
        watch(tab)
        with tab.expect_response(lambda got: "/run/predict" in got.url):  # what the address and browser ask for
            tab.goto(server.address + query)
        language = "zh" if locale.startswith("zh") or "lang=zh" in query else "en"
        expect(tab.locator("#chat-send")).to_have_text(say("do.send", language))
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def ask(tab: Any, question: str) -> None:
    tab.locator("#chat-question textarea").fill(question)
    tab.locator("#chat-question textarea").press("Enter")


def go_to(tab: Any, name: str, language: str = "en") -> None:
    tab.get_by_role("tab", name=say(f"tab.{name}", language), exact=True).click()


def bubbles(tab: Any, role: str) -> Any:
    return tab.locator(f"#chat .message.{role}")


def picture(tab: Any, name: str, directory: Path) -> None:
    """Screenshots go to the test's directory: for people who change how the page looks."""
    tab.screenshot(path=directory / f"{name}.png")
