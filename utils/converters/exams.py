"""Chinese exam questions: GAOKAO-Bench and COIG.

GAOKAO (OpenLMLab/GAOKAO-Bench; checked on its biology, history, maths II and open geography files, 683 questions): one
object with `keywords` and `example`, a list of `question`, `answer` and `analysis`. Where `answer` is a list of letters
the analysis and the letters become a chain of thought; where it is text (open questions, blanks to fill in) it is the
output. The number and the points before a question say nothing about it and go; so do the examiner's last words in the
analysis ("故选：D。"), for the ending announces the answer.

COIG (BAAI/COIG, dataset card; the keys from the loader in Data-Provenance-Collection; unverified) has four forms: exams
and half of the human-value questions (`textbox_question` and others), translated rows (`trans_instruction`, …),
dialogues (`round_0`, …, each with a `response` that is JSON text of `Q` and `A`), and instruction, input, output for
the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils import formats
from utils.converters.contract import (
    Converter,
    Options,
    Outcome,
    Turn,
    as_text,
    chain_of_thought,
    conversation,
    instruction,
    mapping,
    optional_text,
    rows_or_document,
    sequence,
    shorten,
    text,
)
from utils.formats import RawRow

NUMBERING = re.compile(r"\A\s*\d{1,3}\s*[.．、]\s*(?:[（(]\s*\d{1,2}\s*分\s*[)）]\s*)?")
LAST_WORDS = re.compile(r"\s*故(?:答案)?选\s*[:：]?\s*[A-H、, ]+[.．。]?\s*\Z")
MAX_ROUNDS = 1000


def read_gaokao(path: Path) -> Iterator[RawRow]:
    """The questions of a file."""
    try:
        examples = sequence(mapping(formats.document(path)), "example")
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    for number, example in enumerate(examples, start=1):
        yield f"example {number}", example


def convert_gaokao(raw: Any, options: Options) -> Iterator[Outcome]:
    """One question."""
    row = mapping(raw, ["question", "answer"])
    question = NUMBERING.sub("", text(row, "question")).strip()
    if isinstance(row["answer"], list):
        letters = "、".join(as_text(letter, "'answer'").strip() for letter in row["answer"])
        analysis = optional_text(row, "analysis")
        yield chain_of_thought(
            question, letters, LAST_WORDS.sub("", analysis) or analysis, options.set_name or "gaokao", options
        )
        return
    yield instruction(question, "", text(row, "answer").strip())


def convert_coig(raw: Any, options: Options) -> Iterator[Outcome]:
    """One row of any of the four forms."""
    row = mapping(raw)
    if "textbox_question" in row:
        yield _exam(row)
    elif "trans_instruction" in row:
        yield instruction(text(row, "trans_instruction"), optional_text(row, "trans_input"), text(row, "trans_output"))
    elif "round_0" in row:
        yield conversation(_rounds(row))
    else:
        mapping(row, ["instruction", "output"])
        yield instruction(text(row, "instruction"), optional_text(row, "input"), text(row, "output"))


def _exam(row: Mapping[str, Any]) -> Outcome:
    asked = [optional_text(row, "textbox_q_context").strip(), text(row, "textbox_question").strip()]
    analysis, answer = optional_text(row, "textbox_answer_analysis").strip(), text(row, "textbox_answer").strip()
    question = "\n".join(part for part in asked if part)
    output = f"{analysis}\n答案：{answer}" if analysis and answer else analysis or answer
    return instruction(optional_text(row, "textbox_q_instruction"), question, output)


def _rounds(row: Mapping[str, Any]) -> list[Turn]:
    turns: list[Turn] = []
    for number in range(MAX_ROUNDS):
        if (key := f"round_{number}") not in row:
            break
        response = text(mapping(row[key], ["response"]), "response")
        try:
            said = mapping(json.loads(response), ["Q", "A"])
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"expected JSON text in the response of {key!r}, found {shorten(response)!r}") from error
        turns += [("user", text(said, "Q")), ("assistant", text(said, "A"))]
    return turns


GAOKAO = Converter(what="GAOKAO-Bench: example of question, answer, analysis", read=read_gaokao, convert=convert_gaokao)
COIG = Converter(what="COIG: its exam, translated, chat and other forms", read=rows_or_document, convert=convert_coig)
