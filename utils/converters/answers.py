"""A question with several answers, of which one is taken.

HC3 (Hello-SimpleAI/HC3 and HC3-Chinese, as several public loaders read it; unverified): `question`, and the lists
`human_answers` and `chatgpt_answers`. The first answer of the wanted source that is not empty is taken, or else the
first of the other source. WebGPT comparisons (openai/webgpt_comparisons, dataset card; unverified): `question` with
`full_text`, `answer_0`, `answer_1` and a score each; an answer was preferred if and only if its score is positive, so
the higher one is taken and a tie is dropped. Citation marks such as `[1]` are left: the card does not say that they may
go. StackExchange pairs (lvwerra/stack-exchange-paired, dataset card; unverified): `response_j` was rated better than
`response_k`; a question may come up to ten times, which is for the mixture's duplicate check to find.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from utils import formats
from utils.converters.contract import (
    Converter,
    Dropped,
    Options,
    Outcome,
    as_text,
    describe,
    instruction,
    mapping,
    sequence,
    text,
)

SOURCES = ("chatgpt", "human")


def convert(raw: Any, options: Options) -> Iterator[Outcome]:
    """HC3's or WebGPT's row, told by its keys."""
    row = mapping(raw, ["question"])
    yield _better_scored(row) if "answer_0" in row else _first_of_source(row, options)


def _first_of_source(row: Mapping[str, Any], options: Options) -> Outcome:
    question = text(row, "question")
    answers = {
        source: [as_text(said, f"{source}_answers") for said in sequence(row, f"{source}_answers")]
        for source in SOURCES
    }
    wanted = sorted(SOURCES, key=lambda source: source != options.answer_source)
    found = next((said for source in wanted for said in answers[source] if said.strip()), "")
    return instruction(question, "", found)


def _better_scored(row: Mapping[str, Any]) -> Outcome:
    asked = row["question"]
    question = text(asked, "full_text") if isinstance(asked, Mapping) else as_text(asked, "'question'")
    scored = [(_score(row, f"score_{which}"), text(row, f"answer_{which}")) for which in (0, 1)]
    if scored[0][0] == scored[1][0]:
        return Dropped("both answers have the same score")
    return instruction(question, "", max(scored)[1])


def _score(row: Mapping[str, Any], key: str) -> float:
    value = mapping(row, [key])[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number in {key!r}, found {describe(value)}")
    return value


def convert_stack_exchange(raw: Any, options: Options) -> Iterator[Outcome]:
    """The better response of the pair."""
    row = mapping(raw, ["question", "response_j"])
    yield instruction(text(row, "question"), "", text(row, "response_j"))


CONVERTER = Converter(what="a question with several answers: HC3, WebGPT", read=formats.read, convert=convert)
STACK_EXCHANGE = Converter(
    what="StackExchange pairs: question, response_j", read=formats.read, convert=convert_stack_exchange
)
