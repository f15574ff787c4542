"""How a row of a task is asked: options in a list, worked examples before it, and the words that ask for an answer.

Knows: four styles, their words in English and Chinese, `data/few_shots.toml`, and what an option is said with where
likelihoods are compared. Does not know templates or models: what comes out is a record like any other, which the run's
own template renders.

`plain` adds nothing to the question, for a model that was trained on questions alone; `direct` asks for the answer
alone; `cot` for the reasoning first; `zero_shot_cot` says "Let's think step by step." (Kojima et al. 2022,
arXiv:2205.11916). Worked examples show their reasoning, but for `direct`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from utils import lookup
from utils.catalog import DATA_DIR
from utils.readings import LETTERS
from utils.scoring import language
from utils.tasks import OPEN, Item, TaskSpec

PLAIN = "plain"
TEXT = "text"
CHOICE_BY = (TEXT, "loglikelihood", "cloze")
"""How the option that a model chooses is found: read in what it writes, or weighed (`weighed`)."""
STYLES = (PLAIN, "direct", "cot", "zero_shot_cot")

# What is asked for, by type of answer; the words are those that utils.readings reads.
ASKED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "en": {
            "number": "the number",
            "choice": "the letter of the right option",
            "yes_no": "yes or no",
            "letters": "the letters",
            "date": "the date as MM/DD/YYYY",
            "text": "the answer",
        },
        "cn": {
            "number": "数字",
            "choice": "正确选项的字母",
            "yes_no": "“是”或“否”",
            "letters": "字母",
            "date": "日期",
            "text": "答案",
        },
    }
)
CUES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "en": {
            "direct": 'Give only {asked}, in the form "The answer is …".',
            "cot": 'Reason first, then give {asked} in the form "The answer is …".',
            "zero_shot_cot": 'Let\'s think step by step. In the end give {asked} in the form "The answer is …".',
        },
        "cn": {
            "direct": "只给出{asked}，格式为“答案是…”。",
            "cot": "先推理，再给出{asked}，格式为“答案是…”。",
            "zero_shot_cot": "让我们一步一步地思考，最后给出{asked}，格式为“答案是…”。",
        },
    }
)
ANNOUNCED = {"en": "The answer is {}.", "cn": "答案是{}。"}


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A worked example."""

    question: str
    reasoning: str
    answer: str
    choices: tuple[str, ...] = ()


@cache
def read_shots(file: Path = DATA_DIR / "few_shots.toml") -> Mapping[str, tuple[Shot, ...]]:
    """The worked examples by list; `ValueError` names a list with an unknown or missing field."""
    lists = {}
    for name, rows in tomllib.loads(file.read_text(encoding="utf-8")).items():
        try:
            lists[name] = tuple(Shot(**{**row, "choices": tuple(row.get("choices", ()))}) for row in rows)
        except TypeError as error:
            raise ValueError(f"{file}: list {name!r}: {error}") from error
    return MappingProxyType(lists)


def chosen_shots(spec: TaskSpec, count: int, tongue: str = "") -> tuple[Shot, ...]:
    """The first `count` worked examples of a task; of a list in two languages those in `tongue` (`en`, `cn`) first.

    Raises:
        ValueError: the task has fewer.
    """
    if count == 0:
        return ()
    shots = lookup.find("list of examples", spec.shots, read_shots(), "shots") if spec.shots else ()
    if count > len(shots):
        raise ValueError(
            f"task {spec.title!r} has {len(shots)} worked examples, not {count}: add some to few_shots.toml"
        )
    return tuple(sorted(shots, key=lambda shot: bool(tongue) and language(shot.question) != tongue)[:count])


def record(spec: TaskSpec, item: Item, style: str, shots: Sequence[Shot] = ()) -> dict[str, str]:
    """The record that asks `item`; an open question is asked in its own words in every style.

    Raises:
        ValueError: an unknown style.
    """
    if style not in STYLES:
        raise ValueError(lookup.unknown_name("style", style, STYLES))
    asked = _with_options(item.question, item.choices)
    if spec.kind != OPEN:
        asked = cued(asked, style, spec.kind)
    examples = "".join(f"{_with_options(shot.question, shot.choices)}\n{solved(shot, style)}\n\n" for shot in shots)
    return {"instruction": examples + asked, "input": ""}


def cued(question: str, style: str, kind: str) -> str:
    """A question with the words that a style adds to it; they ask for an answer of this type. `plain` adds none."""
    if style == PLAIN:
        return question
    tongue = language(question)
    return f"{question}\n{CUES[tongue][style].format(asked=ASKED[tongue][kind])}"


def weighed(spec: TaskSpec, item: Item, style: str, shots: Sequence[Shot], by: str) -> tuple[dict[str, str], list[str]]:
    """The record that asks `item`, and a continuation for each of its options, whose likelihoods are compared.

    `loglikelihood`: the options are listed, as always, and each continuation announces a letter. `cloze`: they are not,
    and each continuation is an option's own words; so are the answers of the worked examples.
    """
    if by == "loglikelihood":
        tongue = spoken(item)
        letters = LETTERS[: len(item.choices)]
        return record(spec, item, style, shots), [ANNOUNCED[tongue].format(f"({letter})") for letter in letters]
    examples = [f"{shot.question}\n{shot.choices[LETTERS.index(shot.answer)]}\n\n" for shot in shots]
    return {"instruction": "".join([*examples, item.question.strip()]), "input": ""}, list(item.choices)


def require_weighable(spec: TaskSpec, style: str, by: str) -> None:
    """`ValueError` where the options of a task cannot be weighed."""
    if spec.kind != "choice" or not spec.choices:
        what = f"the type {spec.kind!r}" if spec.kind != "choice" else "options that stand in its questions' words"
        raise ValueError(f"--choice_by {by}: task {spec.title!r} has answers of {what}: leave --choice_by out")
    if by == "cloze" and style != PLAIN:
        raise ValueError(f"--choice_by cloze lists no options that --style {style} could ask for: leave --style out")


def spoken(item: Item) -> str:
    """The language that a row is asked in: `en` or `cn`."""
    return language(_with_options(item.question, item.choices))


def solved(shot: Shot, style: str) -> str:
    """A worked example's answer, with its reasoning unless the style asks for the answer alone."""
    tongue = language(shot.question)
    announced = ANNOUNCED[tongue].format(f"({shot.answer})" if shot.choices else shot.answer)
    between = " " if tongue == "en" else ""
    return announced if style == "direct" else f"{shot.reasoning}{between}{announced}"


def _with_options(question: str, choices: Sequence[str]) -> str:
    options = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question.strip(), *options])
