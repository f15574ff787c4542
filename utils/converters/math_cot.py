"""Two sets of maths problems with worked solutions, as their authors publish them: GSM8K and AQuA-RAT.

GSM8K (openai/grade-school-math, `train.jsonl`; checked on all 7,473 rows): `question`, and an `answer` whose lines hold
calculator annotations such as `<<48/2=24>>` and whose last line is `#### 72`. AQuA-RAT (google-deepmind/AQuA, JSON
Lines in a `.json` file; checked on the 254 rows of its test set, which are never to be trained on): `question`,
`options` such as `A)21`, `rationale`, `correct`. Both give the records that FLAN's files of the same sets give, with
their own rationale.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from utils import formats
from utils.converters.contract import (
    Converter,
    Dropped,
    Options,
    Outcome,
    as_text,
    chain_of_thought,
    mapping,
    sequence,
    text,
)

ANNOTATION = re.compile(r"<<[^<>\n]*>>")
FINAL = re.compile(r"^[ \t]*####[ \t]*(?P<answer>.*)$", flags=re.MULTILINE)
OPTION = re.compile(r"\s*\(?([A-Z])\s*[).:]\s*(.*)", flags=re.DOTALL)


def convert_gsm8k(raw: Any, options: Options) -> Iterator[Outcome]:
    """The solution without annotations is the rationale, what follows #### the answer."""
    row = mapping(raw, ["question", "answer"])
    question, solution = text(row, "question"), text(row, "answer")
    final = list(FINAL.finditer(solution))
    if not final:
        yield Dropped("no answer")
        return
    rationale = ANNOTATION.sub("", solution[: final[-1].start()])
    yield chain_of_thought(question, final[-1]["answer"], rationale, options.set_name or "gsm8k", options)


def convert_aqua(raw: Any, options: Options) -> Iterator[Outcome]:
    """The options each on a line, as `(A) 21`; the answer is the letter."""
    row = mapping(raw, ["question", "options", "rationale", "correct"])
    question, rationale, correct = text(row, "question"), text(row, "rationale"), text(row, "correct").strip()
    choices = [OPTION.match(as_text(option, "'options'")) for option in sequence(row, "options")]
    if not all(choices):
        raise ValueError("expected options such as 'A)21', found one without a letter")
    lines = [f"({choice[1]}) {' '.join(choice[2].split())}" for choice in choices if choice]
    if correct not in {choice[1] for choice in choices if choice}:
        yield Dropped("the answer is none of the options" if correct else "no answer")
        return
    body = "\n".join([question.strip(), "Options:", *lines]) if question.strip() else ""
    yield chain_of_thought(body, f"({correct})", rationale, options.set_name or "aqua", options)


GSM8K = Converter(
    what="GSM8K: question, answer that ends in #### and the result",
    read=formats.read,
    convert=convert_gsm8k,
    sorted_by_hash=True,
)
AQUA = Converter(
    what="AQuA-RAT: question, options, rationale, correct",
    read=formats.read,
    convert=convert_aqua,
    sorted_by_hash=True,
)
