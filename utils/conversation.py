"""A conversation: what was asked and said so far, and how much of it a model still sees.

Knows: exchanges, the system message, whole turns that fit into a number of tokens, and how a conversation becomes a
record and comes out of one. Does not know models, commands or terminals.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from utils import outputs, readers
from utils.templates import Record, to_messages

DIALOGUES = ("conversation", "messages", "ShareGPT")
"""Those of `readers.SHAPES` that have turns."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A question and what the model said to it."""

    question: str
    answer: str
    ended: Literal["stop", "length", "interrupted"] = "stop"
    seed: int = 0
    """Of the sampling."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """How many tokens a prompt may have."""

    context: int
    """Tokens that a prompt and its answer may take together."""
    longest_answer: int

    @property
    def kept(self) -> int:
        """Tokens that stay free for the answer: half of the context is enough, where the longest answer would leave
        nothing to questions."""
        return min(self.longest_answer, self.context // 2)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is sent for a question."""

    record: Record
    forgotten: int
    """How many of the oldest exchanges are not in it."""
    tokens: int


@dataclass(kw_only=True)
class Conversation:
    """Exchanges in order."""

    system: str = ""
    """What the model is told before; empty: nothing."""
    exchanges: list[Exchange]
    forgotten: int = 0
    """How many of the oldest exchanges are no longer sent: what was forgotten does not come back."""
    asks_instructions: bool = True
    """Whether a question that nothing precedes is asked as an instruction, and not as the first one of a dialogue. A
    template may write the two differently, and a model knows what it was trained on (`asks_instructions`)."""

    def before_last(self) -> Conversation:
        """The same without its last exchange."""
        left = self.exchanges[:-1]
        return Conversation(
            system=self.system,
            exchanges=left,
            forgotten=min(self.forgotten, len(left)),
            asks_instructions=self.asks_instructions,
        )

    def record(self, question: str, start: int) -> Record:
        """The question after the exchanges from number `start` on."""
        if start == len(self.exchanges) and not self.system and self.asks_instructions:
            return {"instruction": question, "input": ""}
        return {"conversation": [*self._turns(start), {"role": "user", "content": question}]}

    def prompt(self, question: str, count: Callable[[Record], int], room: Room | None) -> Prompt:
        """The question after as many exchanges as there is room for, the newest ones.

        Args:
            count: tokens of what is sent for a record.

        Raises:
            ValueError: the question alone does not fit, or is no text that can be sent (`readers.check_record`).
        """
        readers.check_record({"instruction": question}, "this question", answered=False)
        start, last = self.forgotten, len(self.exchanges)
        if room is not None:
            free = room.context - room.kept
            numbers = range(last)
            start = bisect.bisect_left(numbers, True, lo=start, key=lambda i: count(self.record(question, i)) <= free)
        record = self.record(question, start)
        tokens = count(record)
        if room is not None and tokens + room.kept > room.context:
            left = room.context - tokens
            advice = f", or /set max_new_tokens {left}" if left > 0 else ""
            raise ValueError(
                f"the question takes {tokens} tokens with the prompt around it, and {room.kept} are kept for the "
                f"answer: together more than the model's context of {room.context}. Shorten it{advice}"
            )
        return Prompt(record=record, forgotten=start, tokens=tokens)

    def save(self, path: Path) -> None:
        """Writes the conversation, with what is no longer sent, as a record that `utils.readers` reads.

        Raises:
            ValueError: an ending that is not known; nothing to write.
            OSError: the file exists, or cannot be written.
        """
        outputs.require_ending(path)
        if not self.exchanges:
            raise ValueError("there is nothing to save: the conversation is empty")
        if path.exists():
            raise FileExistsError(f"{path} exists already, and is left as it is: name another file")
        with outputs.atomic(path) as file:
            outputs.write_records([{"conversation": self._turns(0)}], file, array=path.suffix == ".json")

    @classmethod
    def load(cls, path: Path, *, asks_instructions: bool = True) -> Conversation:
        """The one record of a file, of any shape that `utils.readers` knows.

        Raises:
            ValueError: no record, or several; a faulty one.
            OSError: the file cannot be read.
        """
        rows = list(islice(readers.read_rows(path), 2))
        if len(rows) > 1:
            raise ValueError(f"{path} holds more than one record; a conversation is one, in a file of its own")
        turns = to_messages(rows[0].record)
        spoken = [turn["content"] for turn in turns if turn["role"] != "system"]
        return cls(
            system=turns[0]["content"] if turns[0]["role"] == "system" else "",
            exchanges=[Exchange(question=q, answer=a) for q, a in zip(spoken[::2], spoken[1::2], strict=True)],
            asks_instructions=asks_instructions,
        )

    def _turns(self, start: int) -> Sequence[dict[str, str]]:
        turns = [("system", self.system)] if self.system else []
        for each in self.exchanges[start:]:
            turns += [("user", each.question), ("assistant", each.answer)]
        return [{"role": role, "content": content} for role, content in turns]


def asks_instructions(sources: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a model of this data (`RunInfo.sources`) knows instructions, and not dialogues alone."""
    return not sources or any(source.get("shape") not in DIALOGUES for source in sources)
