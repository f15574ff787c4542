"""A chat: lines in, answers out, and the commands that steer it.

Knows: what a line asks for, and how an answer is begun, shown, interrupted and kept. Does not know terminals or pipes:
what is to be seen goes to a `Screen`. A line that begins with a blank is never a command.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch

from utils import cli, lookup, readers
from utils.assistant import BASE
from utils.conversation import Conversation, Exchange, Prompt, Room
from utils.generation import Answer
from utils.templates import Record


class Answerer(Protocol):
    """What a chat needs of `utils.assistant.Assistant`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters; the first one answers unless another is chosen."""
        ...

    def prompt_ids(self, record: Record, adapter: str | None = None) -> list[int]:
        """The ids that are sent for a record."""
        ...

    def stream(
        self, record: Record, settings: Mapping[str, Any], *, adapter: str | None, seed: int, stop: Sequence[str]
    ) -> Generator[str, None, Answer]:
        """The answer, piece by piece; closing it ends the decoding."""
        ...


class Screen(Protocol):
    """Where a chat shows what is to be seen."""

    def say(self, text: str) -> None:
        """A piece of what the model says."""
        ...

    def note(self, text: str) -> None:
        """What the program says, in whole lines."""
        ...

    def measure(self, text: str) -> None:
        """How an answer went, for whoever watches."""
        ...


_PLAIN = MappingProxyType({"clear": "/clear", "stop": "/stop", "exit": "/stop", "quit": "/stop"})
"""The commands of the original's chat."""
_COMMAND = re.compile(r"(/[A-Za-z]+)(?:\s+(.*))?", flags=re.DOTALL)
_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = MappingProxyType(
    {
        **{name: (kind, explanation) for name, (_, kind, explanation) in cli.GENERATION.items()},
        "greedy": (cli.switch, "the likeliest token at every step, with no sampling, beams or penalties"),
        "seed": (cli.natural_int, "of the sampling; /retry takes the next one"),
    }
)


class Chat:
    """One conversation with a model.

    Args:
        values: the decoding parameters, as the flags of `utils.cli.add_generation_flags` hold them, and the texts that
            end an answer (`stop`).
        context: tokens that a prompt and its answer may take together; None: any number.
        asks_instructions: see `Conversation`.
    """

    def __init__(
        self,
        answerer: Answerer,
        values: argparse.Namespace,
        screen: Screen,
        *,
        context: int | None = None,
        asks_instructions: bool = True,
    ) -> None:
        self._answerer, self._screen, self._context = answerer, screen, context
        self._values = argparse.Namespace(**{name: getattr(values, name) for name in (*_SETTINGS, "stop")})
        self._adapter = answerer.names[0]
        self.conversation = Conversation(exchanges=[], asks_instructions=asks_instructions)

    def respond(self, line: str) -> bool:
        """Does what a line asks for: a command, or a question that is answered. False: the chat is to end.

        An interrupt (Ctrl-C) ends the answer; what was said so far stays.

        Raises:
            ValueError, OSError: what a person can mend, in one line; the conversation is as it was.
        """
        command = _COMMAND.fullmatch(_PLAIN.get(line.rstrip(), line.rstrip()))
        if command is None:
            if question := line.strip():
                self._ask(question)
            return True
        name, argument = command[1].lower(), (command[2] or "").strip()
        found = lookup.find("command", name, COMMANDS)
        if argument and not found.argument:
            raise ValueError(f"{name} takes nothing after it, found {argument!r}")
        if not argument and found.argument and not found.argument.startswith("["):
            raise ValueError(f"{name} needs {found.argument}: {name} {found.argument} {found.explanation}")
        return found.run(self, argument) is not False

    def _ask(self, question: str) -> None:
        prompt = self._prompt(self.conversation, question, self._adapter)
        self._forget(prompt)
        exchange = self._answer(question, prompt, self._adapter, self._values.seed)
        if self._is_kept(exchange):
            self.conversation.exchanges.append(exchange)

    def _prompt(self, conversation: Conversation, question: str, adapter: str) -> Prompt:
        room = Room(context=self._context, longest_answer=self._values.max_new_tokens) if self._context else None
        return conversation.prompt(question, lambda record: len(self._answerer.prompt_ids(record, adapter)), room)

    def _forget(self, prompt: Prompt) -> None:
        more = prompt.forgotten - self.conversation.forgotten
        self.conversation.forgotten = prompt.forgotten
        if more > 0:
            left = _count(len(self.conversation.exchanges) - prompt.forgotten)
            self._screen.note(
                f"the context of {self._context} tokens is full: forgotten {_count(more)}, the oldest; {left} left"
            )

    def _answer(self, question: str, prompt: Prompt, adapter: str, seed: int) -> Exchange:
        """Shows the answer as it comes."""
        settings = cli.generation_settings(self._values)
        if self._context:
            settings["max_new_tokens"] = min(settings["max_new_tokens"], self._context - prompt.tokens)
        said: list[str] = []
        began = time.perf_counter()
        try:
            with closing(
                self._answerer.stream(
                    prompt.record, settings, adapter=adapter, seed=seed, stop=tuple(self._values.stop)
                )
            ) as pieces:
                answer = self._shown(pieces, said)
        except KeyboardInterrupt:
            self._screen.say("\n")
            return Exchange(question=question, answer="".join(said), ended="interrupted", seed=seed)
        except torch.OutOfMemoryError as error:
            raise ValueError("memory ran out over this answer: /clear, or /set max_new_tokens lower") from error
        self._screen.say("\n")
        speed = answer.new_tokens / max(time.perf_counter() - began, 1e-9)
        words = f"{answer.new_tokens} token{'s' * (answer.new_tokens != 1)}, {speed:.1f} tokens/s"
        if self._context:
            words += f"; {answer.prompt_tokens + answer.new_tokens} of {self._context} in the context"
        self._screen.measure(words + ("; cut off" if answer.finish_reason == "length" else ""))
        return Exchange(question=question, answer=answer.text, ended=answer.finish_reason, seed=seed)

    def _shown(self, pieces: Generator[str, None, Answer], said: list[str]) -> Answer:
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                return end.value
            said.append(piece)
            self._screen.say(piece)

    def _is_kept(self, exchange: Exchange) -> bool:
        if exchange.ended != "interrupted":
            return True
        if not exchange.answer.strip():
            self._screen.note("stopped before the answer began: nothing of it is kept")
            return False
        self._screen.note("stopped: what was said so far is kept; /undo takes it back")
        return True

    def _last(self, what: str) -> Exchange:
        if not self.conversation.exchanges:
            raise ValueError(f"there is nothing to {what}: the conversation is empty")
        return self.conversation.exchanges[-1]

    def _samples(self) -> bool:
        return bool(cli.generation_settings(self._values)["do_sample"])

    def _help(self, _: str) -> None:
        usages = {name: f"{name} {each.argument}".rstrip() for name, each in COMMANDS.items()}
        width = max(map(len, usages.values()))
        lines = [f"{usages[name]:{width}}  {each.explanation}" for name, each in COMMANDS.items()]
        keys = (
            "Alt-Enter, or \\ before Enter, begins a new line. Ctrl-C stops an answer, Ctrl-D ends the chat.",
            "A line that begins with a blank is a question, whatever it says.",
        )
        self._screen.note("\n".join([*lines, *keys]))

    def _clear(self, _: str) -> None:
        self.conversation = replace(self.conversation, exchanges=[], forgotten=0)
        stays = "; the system message stays (/system off takes it away)" if self.conversation.system else ""
        self._screen.note(f"the conversation is forgotten{stays}")

    def _undo(self, _: str) -> None:
        last = self._last("undo")
        self.conversation = self.conversation.before_last()
        self._screen.note(f"taken back: {_short(last.question)}")

    def _retry(self, _: str) -> None:
        last = self._last("ask again")
        prompt = self._prompt(self.conversation.before_last(), last.question, self._adapter)
        self._forget(prompt)
        if not self._samples():
            self._screen.note("without sampling (/set) the same question has the same answer")
        exchange = self._answer(last.question, prompt, self._adapter, last.seed + 1)
        if self._is_kept(exchange):
            self.conversation.exchanges[-1] = exchange

    def _system(self, text: str) -> None:
        if text:
            readers.check_record({"instruction": text}, "this system message", answered=False)
            self.conversation.system = "" if text == "off" else text
        system = self.conversation.system
        self._screen.note(f"the system message: {system}" if system else "there is no system message")

    def _set(self, text: str) -> None:
        name, _, value = text.replace("=", " ", 1).partition(" ")
        if name:
            kind, _ = lookup.find("setting", name, _SETTINGS)
            if value := value.strip():
                try:
                    setattr(self._values, name, kind(value))
                except argparse.ArgumentTypeError as error:
                    raise ValueError(f"/set {name}: {error}") from error
        used = {"greedy", "max_new_tokens"}
        if not self._values.greedy:
            used |= {*cli.generation_settings(self._values), *(["seed"] if self._samples() else [])}
        idle = " (not used: greedy)" if self._values.greedy else " (not used: do_sample is False)"
        shown = [name] if name else list(_SETTINGS)
        width = max(map(len, shown))
        for each in shown:
            words = f"{each:{width}}  {getattr(self._values, each)!s:5}  {_SETTINGS[each][1]}"
            self._screen.note(words + ("" if each in used else idle))

    def _save(self, text: str) -> None:
        path = Path(text).expanduser()
        self.conversation.save(path)
        self._screen.note(f"{path}: {_count(len(self.conversation.exchanges))}")
        if cut := sum(each.ended != "stop" for each in self.conversation.exchanges):
            self._screen.note(f"answers that were cut off: {cut}; trained on, they teach to break off")

    def _load(self, text: str) -> None:
        path = Path(text).expanduser()
        loaded = Conversation.load(path, asks_instructions=self.conversation.asks_instructions)
        self.conversation = loaded
        self._screen.note(f"{path}: {_count(len(loaded.exchanges))}{' and a system message' * bool(loaded.system)}")

    def _compare(self, text: str) -> None:
        question = text or self._last("compare").question
        earlier = self.conversation if text else self.conversation.before_last()
        for name in (BASE, *self._answerer.names):
            prompt = self._prompt(earlier, question, name)
            self._screen.say(f"{name}:\n")
            if self._answer(question, prompt, name, self._values.seed).ended == "interrupted":
                break
        self._screen.note("none of this is in the conversation")

    def _choose(self, text: str) -> None:
        names = (*self._answerer.names, BASE)
        if text:
            self._adapter = lookup.find("adapter", text, dict(zip(names, names, strict=True)))
        self._screen.note("  ".join(f"[{name}]" if name == self._adapter else name for name in names))

    def _end(self, _: str) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Command:
    """A row of the table of commands."""

    run: Callable[[Chat, str], bool | None]
    """False: the chat is to end."""
    argument: str = ""
    """What stands after the name; in brackets where it may be left out."""
    explanation: str


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "/help": Command(run=Chat._help, explanation="this list"),
        "/clear": Command(run=Chat._clear, explanation="forgets the conversation; so does `clear`"),
        "/undo": Command(run=Chat._undo, explanation="takes the last question and its answer back"),
        "/retry": Command(run=Chat._retry, explanation="asks the last question again, with the next seed"),
        "/system": Command(
            run=Chat._system,
            argument="[TEXT]",
            explanation="what the model is told before the conversation; `off` takes it away",
        ),
        "/set": Command(
            run=Chat._set,
            argument="[NAME [VALUE]]",
            explanation="shows the settings, or changes one: /set temperature 0.7",
        ),
        "/save": Command(
            run=Chat._save,
            argument="FILE",
            explanation="writes the conversation (.json or .jsonl) as a record that --data takes",
        ),
        "/load": Command(
            run=Chat._load, argument="FILE", explanation="goes on with a saved conversation in place of this one"
        ),
        "/compare": Command(
            run=Chat._compare,
            argument="[QUESTION]",
            explanation="what the base alone and each adapter answer; the conversation stays as it is",
        ),
        "/adapter": Command(
            run=Chat._choose, argument="[NAME]", explanation="shows the adapters, or chooses which one answers"
        ),
        "/stop": Command(run=Chat._end, explanation="ends the chat; so do `stop`, `exit` and `quit`"),
    }
)


def completions(names: Sequence[str]) -> list[str]:
    """Lines that are commands, as far as they can be foretold; `names` are the adapters'."""
    return [*COMMANDS, *(f"/set {name} " for name in _SETTINGS), *(f"/adapter {name}" for name in (*names, BASE))]


def _count(exchanges: int) -> str:
    return "1 exchange" if exchanges == 1 else f"{exchanges} exchanges"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"
