import argparse
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from utils import chat, cli, readers
from utils.generation import Answer
from utils.templates import to_messages


class Echo:
    """Answers with the last question, a word at a time, and its seed; a token a character."""

    names = ("one", "二")

    def __init__(self) -> None:
        self.calls: list[SimpleNamespace] = []
        self.closed = 0
        self.fails: BaseException | None = None
        self.fails_after = 1

    def prompt_ids(self, record: Any, adapter: str | None = None) -> list[int]:
        return [0] * sum(len(turn["content"]) for turn in to_messages(record))

    def stream(
        self, record: Any, settings: Mapping[str, Any], *, adapter: str | None, seed: int, stop: Sequence[str]
    ) -> Generator[str, None, Answer]:
        self.calls.append(SimpleNamespace(record=record, settings=settings, adapter=adapter, seed=seed, stop=stop))
        pieces = [f"{word} " for word in to_messages(record)[-1]["content"].split()] + [f"#{seed}"]
        try:
            for number, piece in enumerate(pieces):
                if self.fails and number == self.fails_after:
                    raise self.fails
                yield piece
        finally:
            self.closed += 1
        text = "".join(pieces)
        fits = len(text) <= settings["max_new_tokens"]
        return Answer(
            text=text,
            finish_reason="stop" if fits else "length",
            prompt_tokens=len(self.prompt_ids(record)),
            new_tokens=len(text),
        )


class Seen:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.said = ""
        self.noted: list[str] = []
        self.measured: list[str] = []

    def say(self, text: str) -> None:
        self.said += text

    def note(self, text: str) -> None:
        self.noted.append(text)

    def measure(self, text: str) -> None:
        self.measured.append(text)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def seen() -> Seen:
    return Seen()


def make(echo: Echo, seen: Seen, *flags: str, **more: Any) -> chat.Chat:
    parser = cli.Parser()
    cli.add_generation_flags(parser)
    return chat.Chat(echo, parser.parse_args(flags), seen, **more)


@pytest.fixture
def talk(echo: Echo, seen: Seen) -> chat.Chat:
    return make(echo, seen)


def asked(call: Any) -> list[str]:
    return [turn["content"] for turn in to_messages(call.record)]


def test_answers_are_shown_and_stay_in_what_is_sent(talk: chat.Chat, echo: Echo, seen: Seen) -> None:
    for question in ("你好 👋", "two\nlines", "third"):
        assert talk.respond(question)
    assert seen.said == "你好 👋 #42\ntwo lines #42\nthird #42\n"
    assert seen.noted == []
    assert all("tokens/s" in line for line in seen.measured)
    assert seen.measured[0].startswith("8 tokens, ")
    assert asked(echo.calls[2]) == ["你好 👋", "你好 👋 #42", "two\nlines", "two lines #42", "third"]
    assert echo.calls[0].record == {"instruction": "你好 👋", "input": ""}
    assert {call.adapter for call in echo.calls} == {"one"}
    assert echo.closed == 3


def test_nothing_is_asked_by_a_blank_line(talk: chat.Chat, echo: Echo, seen: Seen) -> None:
    for line in ("", "  ", "\n", "\t\n "):
        assert talk.respond(line)
    assert (echo.calls, seen.said, seen.noted) == ([], "", [])


def test_the_commands_of_the_original_and_how_to_ask_them(talk: chat.Chat, echo: Echo, seen: Seen) -> None:
    talk.respond("a question")
    assert talk.respond("clear")
    assert talk.conversation.exchanges == []
    assert seen.noted == ["the conversation is forgotten"]
    assert not talk.respond("stop")
    assert not talk.respond("/stop ")
    assert not talk.respond("exit")
    assert not talk.respond("quit")
    for line in (
        " clear",
        " stop",
        "stop it",
        "clear, please",
        " /help",
        "/etc/passwd holds what?",
        "// what is this?",
    ):
        assert talk.respond(line)
        assert asked(echo.calls[-1])[-1] == line.strip()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/hlep", r"unknown command '/hlep'. Did you mean /help\?"),
        ("/tmp", "unknown command '/tmp'.* Known: /adapter, /clear, "),
        ("/CLEAR now", "/clear takes nothing after it, found 'now'"),
        ("/save", "/save needs FILE"),
        ("/load", "/load needs FILE"),
        ("/undo", "nothing to undo: the conversation is empty"),
        ("/retry", "nothing to ask again"),
        ("/compare", "nothing to compare"),
        ("/adapter two", "unknown adapter 'two'"),
        ("/set temprature 1", r"unknown setting 'temprature'. Did you mean temperature\?"),
        ("/set temperature 0", "/set temperature: '0' is not a number above 0"),
        ("/set greedy perhaps", "/set greedy: 'perhaps' is not true or false"),
        ("/set seed x", "/set seed: 'x' is not a whole number of 0 or more"),
        ("/system a\0b", "this system message: .*NUL"),
    ],
)
def test_what_a_command_cannot_do_is_said_and_nothing_changes(
    line: str, message: str, talk: chat.Chat, echo: Echo
) -> None:
    values = vars(talk._values).copy()
    with pytest.raises(ValueError, match=message):
        talk.respond(line)
    assert vars(talk._values) == values
    assert (talk.conversation.system, talk.conversation.exchanges, echo.calls) == ("", [], [])


def test_help_names_every_command(talk: chat.Chat, seen: Seen) -> None:
    talk.respond("/help")
    lines = seen.noted[0].splitlines()
    assert [line.split()[0] for line in lines[: len(chat.COMMANDS)]] == list(chat.COMMANDS)
    assert {line.split()[0] for line in chat.completions(["one"])} == set(chat.COMMANDS)
    assert "/adapter base" in chat.completions(["one"])


def test_undo_takes_an_exchange_back_and_retry_takes_the_next_seed(talk: chat.Chat, echo: Echo, seen: Seen) -> None:
    talk.respond("first")
    talk.respond("second")
    talk.respond("/retry")
    talk.respond("/retry")
    assert [call.seed for call in echo.calls] == [42, 42, 43, 44]
    assert asked(echo.calls[-1]) == ["first", "first #42", "second"]
    assert [each.answer for each in talk.conversation.exchanges] == ["first #42", "second #44"]
    talk.respond("/undo")
    assert seen.noted == ["taken back: second"]
    talk.respond("third")
    assert asked(echo.calls[-1]) == ["first", "first #42", "third"]
    talk.respond("/set greedy true")
    talk.respond("/retry")
    assert seen.noted[-1] == "without sampling (/set) the same question has the same answer"


def test_settings_are_the_flags_and_hold_from_then_on(echo: Echo, seen: Seen) -> None:
    talk = make(echo, seen, "--temperature", "0.5", "--seed", "7", "--stop", "END", "###")
    talk.respond("a")
    assert (echo.calls[0].settings["temperature"], echo.calls[0].seed) == (0.5, 7)
    assert echo.calls[0].stop == ("END", "###")
    for line in ("/set temperature 0.7", "/set max_new_tokens=9", "/set seed 8"):
        talk.respond(line)
    talk.respond("b")
    call = echo.calls[-1]
    assert (call.settings["temperature"], call.settings["max_new_tokens"], call.seed) == (0.7, 9, 8)
    seen.noted.clear()
    talk.respond("/set greedy true")
    talk.respond("/set temperature 0.9")
    talk.respond("c")
    assert echo.calls[-1].settings == cli.greedy_settings(9)
    assert "(not used: greedy)" in seen.noted[-1]
    seen.noted.clear()
    talk.respond("/set")
    assert [line.split()[:2] for line in seen.noted[:2]] == [["top_p", "0.9"], ["temperature", "0.9"]]
    assert len(seen.noted) == len(cli.GENERATION) + 2
    used = [line.split()[0] for line in seen.noted if "not used" not in line]
    assert used == ["max_new_tokens", "greedy"]
    talk.respond("/set greedy false")
    talk.respond("/set do_sample false")
    seen.noted.clear()
    talk.respond("/set")
    idle = [line.split()[0] for line in seen.noted if "not used: do_sample is False" in line]
    assert idle == ["top_p", "temperature", "top_k", "seed"]


def test_the_system_message(talk: chat.Chat, echo: Echo, seen: Seen) -> None:
    talk.respond("/system")
    talk.respond("/system 请用中文\n回答。")
    talk.respond("hello")
    assert to_messages(echo.calls[0].record)[0] == {"role": "system", "content": "请用中文\n回答。"}
    talk.respond("/clear")
    talk.respond("/system off")
    assert seen.noted == [
        "there is no system message",
        "the system message: 请用中文\n回答。",
        "the conversation is forgotten; the system message stays (/system off takes it away)",
        "there is no system message",
    ]


def test_forgetting_is_said_and_a_question_too_long_costs_nothing(echo: Echo, seen: Seen) -> None:
    talk = make(echo, seen, "--max_new_tokens", "10", context=40)
    for question in ("aaaaa", "bbbbb", "ccccc"):
        talk.respond(question)
    assert seen.noted == ["the context of 40 tokens is full: forgotten 1 exchange, the oldest; 1 exchange left"]
    assert asked(echo.calls[-1]) == ["bbbbb", "bbbbb #42", "ccccc"]
    assert seen.measured[-1].endswith("; 28 of 40 in the context")
    before = talk.conversation
    with pytest.raises(ValueError, match="takes 10000 tokens .* 10 are kept .* context of 40. Shorten it$"):
        talk.respond("字" * 10_000)
    assert talk.conversation is before
    assert len(before.exchanges) == 3
    talk.respond("d" * 30)
    assert seen.noted[-1].endswith("forgotten 2 exchanges, the oldest; 0 exchanges left")
    assert len(talk.conversation.exchanges) == 4
    talk.respond("/undo")
    talk.respond("e")
    assert asked(echo.calls[-1]) == ["e"]


def test_an_answer_gets_what_is_left_of_the_context(echo: Echo, seen: Seen) -> None:
    talk = make(echo, seen, context=100)
    talk.respond("x" * 45)
    assert echo.calls[0].settings["max_new_tokens"] == 55
    talk.respond("/clear")
    talk.respond("/set max_new_tokens 3")
    talk.respond("long")
    assert seen.measured[-1].endswith("; cut off")
    assert talk.conversation.exchanges[0].ended == "length"


def test_an_interrupt_ends_the_answer_and_keeps_what_was_said(talk: chat.Chat, echo: Echo, seen: Seen) -> None:
    echo.fails = KeyboardInterrupt()
    assert talk.respond("你好 world")
    assert seen.said == "你好 \n"
    assert seen.noted == ["stopped: what was said so far is kept; /undo takes it back"]
    assert seen.measured == []
    assert echo.closed == 1
    echo.fails = None
    talk.respond("more")
    assert asked(echo.calls[-1]) == ["你好 world", "你好 ", "more"]


def test_an_interrupt_before_the_answer_keeps_nothing(talk: chat.Chat, echo: Echo, seen: Seen) -> None:
    talk.respond("first")
    echo.fails, echo.fails_after = KeyboardInterrupt(), 0
    assert talk.respond("second")
    assert talk.respond("/retry")
    assert [each.answer for each in talk.conversation.exchanges] == ["first #42"]
    assert seen.noted == ["stopped before the answer began: nothing of it is kept"] * 2


def test_an_interrupt_while_a_piece_is_shown_closes_the_stream(echo: Echo) -> None:
    class Impatient(Seen):
        def say(self, text: str) -> None:
            super().say(text)
            if text == "a ":
                raise KeyboardInterrupt

    seen = Impatient()
    talk = make(echo, seen)
    talk.respond("a b c")
    assert (seen.said, echo.closed) == ("a \n", 1)
    assert talk.conversation.exchanges[0].ended == "interrupted"


def test_a_screen_that_is_gone_ends_the_decoding(echo: Echo) -> None:
    class Gone(Seen):
        def say(self, text: str) -> None:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        make(echo, Gone()).respond("a b c")
    assert echo.closed == 1


def test_memory_that_runs_out_is_one_line(talk: chat.Chat, echo: Echo) -> None:
    echo.fails = torch.OutOfMemoryError("4 GiB")
    with pytest.raises(ValueError, match="memory ran out over this answer: /clear, or /set max_new_tokens lower"):
        talk.respond("a b")
    assert talk.conversation.exchanges == []


def test_compare_asks_the_base_and_each_adapter_and_changes_nothing(talk: chat.Chat, echo: Echo, seen: Seen) -> None:
    talk.respond("first")
    talk.respond("second")
    before = [*talk.conversation.exchanges]
    seen.said = ""
    talk.respond("/compare 你好")
    assert seen.said == "base:\n你好 #42\none:\n你好 #42\n二:\n你好 #42\n"
    assert [call.adapter for call in echo.calls[-3:]] == ["base", "one", "二"]
    assert asked(echo.calls[-1]) == ["first", "first #42", "second", "second #42", "你好"]
    talk.respond("/compare")
    assert asked(echo.calls[-1]) == ["first", "first #42", "second"]
    assert talk.conversation.exchanges == before
    assert seen.noted == ["none of this is in the conversation"] * 2
    echo.fails = KeyboardInterrupt()
    count = len(echo.calls)
    talk.respond("/compare x y")
    assert len(echo.calls) == count + 1, "an interrupt ends the whole comparison"


def test_an_adapter_is_chosen_by_name(talk: chat.Chat, echo: Echo, seen: Seen) -> None:
    talk.respond("/adapter")
    for name in ("二", "base"):
        talk.respond(f"/adapter {name}")
        talk.respond("who?")
        assert echo.calls[-1].adapter == name
    assert seen.noted == ["[one]  二  base", "one  [二]  base", "one  二  [base]"]


def test_a_conversation_is_saved_and_goes_on(
    talk: chat.Chat, echo: Echo, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    talk.respond("/system sys")
    talk.respond("一 👋")
    echo.fails = KeyboardInterrupt()
    talk.respond("two words")
    echo.fails = None
    seen.noted.clear()
    talk.respond("/save ~/my chat.json")
    assert seen.noted == [
        f"{tmp_path}/my chat.json: 2 exchanges",
        "answers that were cut off: 1; trained on, they teach to break off",
    ]
    (row,) = readers.read_rows(tmp_path / "my chat.json")
    assert [turn["content"] for turn in row.record["conversation"]] == [
        "sys",
        "一 👋",
        "一 👋 #42",
        "two words",
        "two ",
    ]
    with pytest.raises(FileExistsError, match="exists already"):
        talk.respond("/save ~/my chat.json")
    talk.respond("/clear")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        talk.respond("/load gone.json")
    talk.respond("/load ~/my chat.json")
    assert seen.noted[-1] == f"{tmp_path}/my chat.json: 2 exchanges and a system message"
    talk.respond("on")
    assert asked(echo.calls[-1]) == ["sys", "一 👋", "一 👋 #42", "two words", "two ", "on"]


def test_values_of_the_flags_are_not_changed(echo: Echo, seen: Seen) -> None:
    parser = cli.Parser()
    cli.add_generation_flags(parser)
    flags: argparse.Namespace = parser.parse_args([])
    talk = chat.Chat(echo, flags, seen)
    talk.respond("/set temperature 0.1")
    assert flags.temperature == 1.0
