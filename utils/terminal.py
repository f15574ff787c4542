"""A person at a terminal, or a pipe in the person's place: lines in, answers and notes out.

Knows: line editing, pasting, colours, interrupts, and what may be shown on a screen. Does not know what a line means.
Answers go to standard output and all else to standard error, so what leaves a pipe is answers alone. What is typed is
kept in memory, for the arrow keys, and nowhere else.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from utils import cli
from utils.formats import not_utf8

PROMPT = "> "
CONTINUED = "\\"
"""At the end of a line: the next line belongs to it."""
_DIM, _BOLD, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"
_PASTES = ("\x1b[?2004h", "\x1b[?2004l")
"""Tells a terminal to mark what is pasted, and no longer to."""
# A model can say anything, and some of it a terminal would obey: rename the window, or type in the person's place.
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Terminal:
    """Standard input, output and error of this process.

    Args:
        completions: what Tab completes a line to.
    """

    def __init__(self, completions: Sequence[str] = ()) -> None:
        self.has_person = sys.stdin.isatty()
        """Whether somebody types; otherwise lines come from a pipe or a file."""
        self.has_screen = self.has_person and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._lines = _Lines(PROMPT if self.has_person else "")
        self._read = _editor(completions) if self.has_screen else self._lines.read

    def read(self) -> str:
        """The next line, or lines that belong together.

        Raises:
            EOFError: there is none.
            KeyboardInterrupt: Ctrl-C.
            ValueError: it is not UTF-8; the next one can be read.
        """
        return self._read()

    def say(self, text: str) -> None:
        """A piece of an answer, at once; characters that steer a terminal are spelt out on one."""
        _write(sys.stdout, text.translate(_SHOWN) if sys.stdout.isatty() else text)

    def note(self, text: str) -> None:
        """What is no answer."""
        _write(sys.stderr, f"{text.translate(_SHOWN)}\n")

    def measure(self, text: str) -> None:
        """A remark for a person who watches."""
        if sys.stderr.isatty():
            dim, plain = (_DIM, _PLAIN) if cli.use_color(sys.stderr) else ("", "")
            _write(sys.stderr, f"{dim}{text.translate(_SHOWN)}{plain}\n")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """What is typed or pasted while the program is busy does not appear amidst an answer, and the next `read` gets
        it, whole: a terminal that edits lines by itself would cut a long one."""
        if not self.has_screen:
            yield
            return
        import termios

        file = sys.stdin.fileno()
        before = termios.tcgetattr(file)
        quiet = [*before]
        quiet[3] = quiet[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH  # Ctrl-C would take it away, too
        handler = signal.signal(signal.SIGTERM, _leave)
        try:
            termios.tcsetattr(file, termios.TCSADRAIN, quiet)
            yield
        finally:
            termios.tcsetattr(file, termios.TCSADRAIN, before)
            signal.signal(signal.SIGTERM, handler)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While the program answers: the first Ctrl-C is a `KeyboardInterrupt`, and others do not disturb what it ends.
        Without a person it ends more than an answer: there is another `KeyboardInterrupt` at the end."""
        interrupted = False

        def once(*_: Any) -> None:
            nonlocal interrupted
            interrupted = True
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, once)
        self._steer(_PASTES[0])
        try:
            yield
        finally:
            self._steer(_PASTES[1])
            signal.signal(signal.SIGINT, before)
        if interrupted and not self.has_person:
            raise KeyboardInterrupt

    def _steer(self, code: str) -> None:
        if self.has_screen:
            _write(sys.stdout, code)


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _leave(*_: Any) -> None:
    sys.exit(128 + signal.SIGTERM)


class _Lines:
    """Lines of standard input as they come, whatever the locale says of their encoding."""

    def __init__(self, prompt: str) -> None:
        self._prompt, self._number = prompt, 0

    def read(self) -> str:
        """A line, and those that continue it."""
        lines: list[str] = []
        while True:
            _write(sys.stderr, self._prompt)
            raw = sys.stdin.buffer.readline()
            if not raw:
                if lines:
                    return "\n".join(lines)
                raise EOFError
            self._number += 1
            line = raw.decode("utf-8", errors="surrogateescape").rstrip("\r\n")
            line = line.removeprefix("\ufeff") if self._number == 1 else line
            if bad := not_utf8(line, "the line", f"line {self._number} of the input"):
                raise bad
            lines.append(line.removesuffix(CONTINUED))
            if not line.endswith(CONTINUED):
                return "\n".join(lines)


def _editor(completions: Sequence[str]) -> Callable[[], str]:
    """Reads with line editing and a history of its own. Enter ends the input, Alt-Enter begins a new line, and so does
    Enter behind a backslash; what is pasted is one input, whatever it holds."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.formatted_text import ANSI
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.layout.processors import TabsProcessor
    from prompt_toolkit.shortcuts import CompleteStyle

    session: PromptSession[str] = PromptSession(
        ANSI(f"{_BOLD}{PROMPT}{_PLAIN}") if cli.use_color(sys.stdout) else PROMPT,
        multiline=True,
        prompt_continuation=" " * len(PROMPT),
        key_bindings=_keys(),
        completer=WordCompleter(list(completions), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        history=InMemoryHistory(),
        input_processors=[TabsProcessor(char1=" ", char2=" ")],
        enable_suspend=True,
    )
    return session.prompt


def _keys() -> Any:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith(CONTINUED):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys
