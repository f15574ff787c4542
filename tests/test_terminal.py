import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from conftest import REPOSITORY

from utils import terminal
from utils.terminal import Terminal


class Piped(io.TextIOWrapper):
    """Standard input from bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="ascii")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Iterator[str]]:
    def read(data: bytes) -> Iterator[str]:
        monkeypatch.setattr(sys, "stdin", Piped(data))
        opened = Terminal()
        assert not opened.has_person
        while True:
            try:
                yield opened.read()
            except EOFError:
                return

    return read


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n\n", ["", ""]),
        ("你好 👋\r\nlast".encode(), ["你好 👋", "last"]),
        ("\ufeffBOM\n\ufeff\n".encode(), ["BOM", "\ufeff"]),
        (b"one\\\ntwo\\\n\nthree\\", ["one\ntwo\n", "three"]),
        (b"a\x0bb\x85c\n".replace(b"\x85", "\u2028".encode()), ["a\x0bb\u2028c"]),
        (b"x" * 10_000 + b"\n", ["x" * 10_000]),
    ],
)
def test_a_pipe_gives_lines_and_a_backslash_joins_them(data: bytes, expected: list[str], lines: Any) -> None:
    assert list(lines(data)) == expected


def test_a_line_that_is_not_utf8_is_named_and_the_next_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(b"fine\ncaf\xe9\n\xe5\xa5\xbd\n"))
    opened = Terminal()
    assert opened.read() == "fine"
    with pytest.raises(ValueError, match="line 2 of the input: not UTF-8 .character 3 of the line is the byte 0xe9"):
        opened.read()
    assert opened.read() == "好"


def test_answers_go_out_and_the_rest_goes_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(b""))
    opened = Terminal()
    opened.say("你\x1b[2J")
    opened.note("a note\x1b[2J")
    opened.measure("5 tokens")
    with opened.listening():
        pass
    assert capsys.readouterr() == ("你\x1b[2J", "a note\\x1b[2J\n"), "in a pipe the answer is as it was"


@pytest.mark.parametrize(("no_color", "expected"), [("", "\x1b[2m5 tokens\x1b[0m\n"), ("1", "5 tokens\n")])
def test_on_a_screen_nothing_is_obeyed_and_measures_are_dim(
    no_color: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stdin", Piped(b""))
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    opened = Terminal()
    opened.say("a\tb\n\x1b]0;title\x07\x9b2J\r你👋\u200d")
    opened.measure("5 tokens")
    assert capsys.readouterr() == ("a\tb\n\\x1b]0;title\\x07\\x9b2J\\x0d你👋\u200d", expected)


def answer_interrupted(opened: Terminal) -> None:
    """Ctrl-C over an answer, which ends it; whoever answers goes on."""
    with opened.busy(), suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_first_interrupt_counts_and_the_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(b""))
    opened = Terminal()
    opened.has_person = True
    before = signal.getsignal(signal.SIGINT)
    ended = False
    with opened.busy():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
            ended = True
    assert ended
    assert signal.getsignal(signal.SIGINT) is before
    opened.has_person = False
    with pytest.raises(KeyboardInterrupt):
        answer_interrupted(opened)


def edited(keys: str, completions: Sequence[str] = ()) -> str:
    """What line editing makes of these keys."""
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(keys)
        return terminal._editor(completions)()


LEFT, HOME, ALT_ENTER, BACKSPACE = "\x1b[D", "\x1b[H", "\x1b\r", "\x7f"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("\r", ""),
        ("你好吗" + BACKSPACE + "👋\r", "你好👋"),
        ("你好" + LEFT + "们\r", "你们好"),
        (f"one{ALT_ENTER}two\r", "one\ntwo"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("a\\b\r", "a\\b"),
        ("two" + HOME + "one\\\r\r", "one\ntwo"),
        ("\x1b[200~def f():\r\n\tpass\n\n# 你好\\\x1b[201~ !\r", "def f():\n\tpass\n\n# 你好\\ !"),
        (f"\x1b[200~{'长' * 10_000}\x1b[201~\r", "长" * 10_000),
        ("/se\t te\t0.7\r", "/set temperature 0.7"),
    ],
)
def test_keys_become_a_line(keys: str, expected: str) -> None:
    assert edited(keys, ["/set", "/set temperature ", "/set top_k "]) == expected


@pytest.mark.parametrize(("key", "raised"), [("\x03", KeyboardInterrupt), ("\x04", EOFError)])
def test_keys_that_end(key: str, raised: type[BaseException]) -> None:
    with pytest.raises(raised):
        edited(key)


def test_the_arrow_keys_find_what_was_typed_and_no_file_does() -> None:
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        read = terminal._editor([])
        keyboard.send_text("first 你好\rsecond\r")
        assert (read(), read()) == ("first 你好", "second")
        keyboard.send_text("\x1b[A\x1b[A\r")
        assert read() == "first 你好"
        assert type(read.__self__.history) is InMemoryHistory  # type: ignore[attr-defined]


def test_without_a_terminal_line_editing_is_not_even_imported() -> None:
    program = (
        "import sys\n"
        "from utils.terminal import Terminal\n"
        "opened = Terminal(['/help'])\n"
        "assert opened.read() == '你好'\n"
        "assert not [name for name in sys.modules if name.startswith('prompt_toolkit')]\n"
    )
    subprocess.run([sys.executable, "-c", program], input="你好\n".encode(), cwd=REPOSITORY, check=True, timeout=60)
