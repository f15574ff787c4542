"""Seeded word puzzles whose answer needs several steps, in English and Chinese.

Knows: question families, their one-step arithmetic and how a solution reads, as a chain of steps or as a bare answer.
Does not know: files, prompts, tokenizers or models.

Every puzzle ends in one digit, so guessing scores 10 %. The chain is serial: each step needs the result of the one
before, which is where written-out reasoning helps a shallow transformer most (Li et al., ICLR 2024, arXiv 2402.12875).
`9+4→3` reads "nine and four more lands on three": all families live on a ring of ten digits.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Language = Literal["en", "cn"]
LANGUAGES: tuple[Language, ...] = ("en", "cn")


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How one family is told in one language; `{name}`, `{start}` and `{amount}` are filled in."""

    names: tuple[str, ...]
    openings: tuple[str, ...]
    moves: Mapping[str, tuple[str, ...]]
    questions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One move on the ring: `before` and `amount` give `after` (all single digits)."""

    before: int
    operator: str
    amount: int
    after: int

    def __str__(self) -> str:
        return f"{self.before}{self.operator}{self.amount}→{self.after}"


@dataclass(frozen=True, kw_only=True)
class Puzzle:
    """A question in one language with its solution."""

    family: str
    language: Language
    question: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """The digit the last step lands on."""
        return self.steps[-1].after

    def plain_answer(self) -> str:
        """The answer alone, as a sentence."""
        return f"The answer is {self.answer}." if self.language == "en" else f"答案是{self.answer}。"

    def reasoned_answer(self) -> str:
        """Every step, then the answer."""
        if self.language == "en":
            return ", ".join(map(str, self.steps)) + f". So the answer is {self.answer}."
        return "，".join(map(str, self.steps)) + f"。所以答案是{self.answer}。"


def move(operator: str, digit: int, amount: int) -> int:
    """Where `amount` moves from `digit` on a ring of ten; `operator` is `+`, `-` or `×`."""
    match operator:
        case "+":
            return (digit + amount) % 10
        case "-":
            return (digit - amount) % 10
        case "×":
            return digit * amount % 10
    raise ValueError(f"unknown operator {operator!r}; a family uses +, - or ×")


# Multiplying by an even number or by five would forget part of the digit and make later steps guessable.
AMOUNTS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"+": tuple(range(1, 10)), "-": tuple(range(1, 10)), "×": (3, 7, 9)}
)

FAMILIES: Mapping[str, Mapping[Language, Wording]] = MappingProxyType(
    {
        "dial": {
            "en": Wording(
                names=("dial", "lock", "counter", "wheel"),
                openings=("The {name} shows {start}.", "A {name} with the digits 0 to 9 stands at {start}."),
                moves={
                    "+": ("Turn it up {amount}.", "Move it forward {amount}."),
                    "-": ("Turn it down {amount}.", "Move it back {amount}."),
                },
                questions=("Which digit does the {name} show now?", "Where does the {name} stand now?"),
            ),
            "cn": Wording(
                names=("转盘", "密码锁", "计数器", "轮子"),
                openings=("{name}指着{start}。", "有一个从0到9的{name}，一开始是{start}。"),
                moves={
                    "+": ("向上转{amount}格。", "前进{amount}格。"),
                    "-": ("向下转{amount}格。", "后退{amount}格。"),
                },
                questions=("现在{name}指着几？", "{name}最后停在哪个数字？"),
            ),
        },
        "seat": {
            "en": Wording(
                names=("Ann", "Ben", "Lily", "Tom"),
                openings=(
                    "{name} sits on seat {start} of a round table with seats 0 to 9.",
                    "Seats 0 to 9 stand in a ring and {name} is on seat {start}.",
                ),
                moves={
                    "+": ("{name} goes {amount} seats to the right.", "Then {amount} seats clockwise."),
                    "-": ("{name} goes {amount} seats to the left.", "Then {amount} seats anticlockwise."),
                },
                questions=("On which seat is {name} now?", "Which seat does {name} have in the end?"),
            ),
            "cn": Wording(
                names=("小明", "小红", "小李", "小美"),
                openings=("圆桌有0到9号座位，{name}坐在{start}号。", "{name}坐在{start}号座位，座位从0到9围成一圈。"),
                moves={
                    "+": ("{name}向右走{amount}个座位。", "再顺时针走{amount}个座位。"),
                    "-": ("{name}向左走{amount}个座位。", "再逆时针走{amount}个座位。"),
                },
                questions=("{name}现在坐在几号？", "最后{name}在几号座位？"),
            ),
        },
        "last_digit": {
            "en": Wording(
                names=("number",),
                openings=("Start with the {name} {start}.", "Take the {name} {start}."),
                moves={
                    "+": ("Add {amount}.", "Then add {amount} more."),
                    "×": ("Multiply by {amount}.", "Then take it {amount} times."),
                },
                questions=("What is the last digit?", "In which digit does the result end?"),
            ),
            "cn": Wording(
                names=("数",),
                openings=("从{name}字{start}开始。", "先取一个{name}{start}。"),
                moves={
                    "+": ("加上{amount}。", "再加{amount}。"),
                    "×": ("乘以{amount}。", "再乘{amount}。"),
                },
                questions=("个位数字是几？", "结果的最后一位是几？"),
            ),
        },
    }
)


def make_puzzle(rng: random.Random, language: Language, num_steps: int, family: str | None = None) -> Puzzle:
    """A puzzle of `num_steps` ≥ 1 steps drawn from `rng`; the family is drawn too unless given."""
    family = family or rng.choice(sorted(FAMILIES))
    wording = FAMILIES[family][language]
    name, digit = rng.choice(wording.names), rng.randint(0, 9)
    sentences = [rng.choice(wording.openings).format(name=name, start=digit)]
    steps = []
    for _ in range(num_steps):
        operator = rng.choice(sorted(wording.moves))
        amount = rng.choice(AMOUNTS[operator])
        sentences.append(rng.choice(wording.moves[operator]).format(name=name, amount=amount))
        steps.append(Step(before=digit, operator=operator, amount=amount, after=move(operator, digit, amount)))
        digit = steps[-1].after
    sentences.append(rng.choice(wording.questions).format(name=name))
    question = (" " if language == "en" else "").join(sentences)
    return Puzzle(family=family, language=language, question=question, steps=tuple(steps))
