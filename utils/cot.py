"""Chains of thought as records: question, answer and rationale → instruction and output.

Knows: the phrasings of `data/cot_phrasings.toml`, which of them a row gets, and what an output must prove: that
`scoring.extract_answer` reads the row's answer out of it. Does not know files or upstream formats.

A row is rendered by itself: which phrasing and which ending it gets depends on a hash of the seed, the set's name and
the row's text, so neither order nor random state can change the result. One thing in the text is mended: a slip of the
keyboard after a question mark (`?.`, `??`) becomes the mark.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from utils import lookup, scoring

Style = Literal["cot", "answer_only"]
STYLES: tuple[Style, ...] = get_args(Style)
PHRASINGS = Path(__file__).resolve().parent.parent / "data" / "cot_phrasings.toml"

QUESTION_SLIP = re.compile(r"([?？])(?:[ \t]*[?？。]|[ \t]*\.(?!\d))+")
CUE = re.compile(r"\s*<cue>.*?</cue>")
OPTION_DASH = re.compile(r"^- (?=\([A-Z]\))", flags=re.MULTILINE)
CLAIM = re.compile(r'^(?:Claim: )?(".*")$', flags=re.MULTILINE)
SENTENCE = re.compile(r"^- (Sentence [A-Z]: .*)$", flags=re.MULTILINE)
OPTIONS = re.compile(r"^Options:\n(?:- .*\n?)+", flags=re.MULTILINE)


class Unusable(Exception):
    """A row that cannot be trained on; the message is the reason it is counted under."""


@dataclass(frozen=True, kw_only=True)
class Phrasings:
    """What `data/cot_phrasings.toml` holds for one set."""

    instructions: tuple[str, ...]
    endings: Mapping[Style, tuple[str, ...]]


@functools.cache
def read_phrasings(file: Path = PHRASINGS) -> Mapping[str, Phrasings]:
    """The phrasings by the name of the set."""
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    endings: dict[str, Mapping[Style, tuple[str, ...]]] = {
        language: {"cot": tuple(ending["after_steps"]), "answer_only": tuple(ending["alone"])}
        for language, ending in tables["ending"].items()
    }
    return MappingProxyType(
        {
            name: Phrasings(instructions=tuple(row["instructions"]), endings=endings[row["language"]])
            for name, row in tables["set"].items()
        }
    )


def render(
    *, question: str, answer: str, rationale: str, set_name: str, style: Style = "cot", seed: int = 0
) -> dict[str, str]:
    """One record. `style` "answer_only" leaves out the rationale and the cue for it, and changes nothing else.

    The same rows come out in both styles: a row whose answer cannot be read back in one of them is in neither.

    Raises:
        Unusable: no question, answer or rationale, or an answer that cannot be read back.
        ValueError: an unknown set.
    """
    phrasings = lookup.find("CoT set", set_name, read_phrasings())
    key = hashlib.sha256(json.dumps([seed, set_name, question, answer, rationale]).encode()).digest()
    question, answer, rationale = mend(question), mend(answer), mend(rationale)
    for what, text in (("question", question), ("answer", answer), ("rationale", rationale)):
        if not text:
            raise Unusable(f"no {what}")
    outputs = _outputs(answer, rationale, phrasings, int.from_bytes(key[8:16]))
    template = phrasings.instructions[int.from_bytes(key[:8]) % len(phrasings.instructions)]
    if style == "cot":
        template = template.replace("<cue>", "").replace("</cue>", "")
    else:
        template = CUE.sub("", template).strip()
    return {
        "instruction": template.replace("{question}", body(set_name, question)),
        "input": "",
        "output": outputs[style],
    }


def mend(text: str) -> str:
    """One mark after a question, and no space at the ends of lines or around the whole.

    >>> mend("Where?.  \\nHere. ")
    'Where?\\nHere.'
    """
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return QUESTION_SLIP.sub(r"\1", text).replace("?.", "? .").strip()  # what is left of ?. begins a number


def body(set_name: str, question: str) -> str:
    """What of a mended question the phrasings of its set ask about.

    FLAN's rows of creak and sensemaking bring a wording of FLAN's own around the claim and the sentences; ours replaces
    it. A row in another form keeps its whole question. Lettered options lose the dash before them.
    """
    if set_name == "creak" and len(claims := CLAIM.findall(question)) == 1:
        options = OPTIONS.search(question)
        return "\n".join([claims[0], *([options[0].strip()] if options else [])])
    if set_name == "sensemaking" and len(sentences := SENTENCE.findall(question)) == 2:
        return "\n".join(sentences)
    return OPTION_DASH.sub("", question)


def _outputs(answer: str, rationale: str, phrasings: Phrasings, choice: int) -> dict[Style, str]:
    """The output in both styles, with the answer written in the first way that reads back in both."""
    expected = scoring.canonical(answer)
    for written in _spellings(answer):
        outputs: dict[Style, str] = {}
        for style in STYLES:
            endings = phrasings.endings[style]
            ending = endings[choice % len(endings)].replace("{answer}", written)
            outputs[style] = f"{rationale}\n{ending}" if style == "cot" else ending
        if expected and all(scoring.extract_answer(output) == expected for output in outputs.values()):
            return outputs
    raise Unusable("answer cannot be read back")


def _spellings(answer: str) -> Iterator[str]:
    """Plain, and in each pair of quotes that the answer itself does not use."""
    if "\n" not in answer:
        yield answer.rstrip(".。") or answer
        yield from (f"{q[0]}{answer}{q[1]}" for q in scoring.QUOTES if not set(q) & set(answer))
