"""Held-out records: whether what is answered to each says the same as its own answer.

Knows: records with answers of their own, and which type of answer each announces; answers are read as those to a task
are (`utils.readings`), and scored so (`utils.evaluation`). Does not know tasks, models or flags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from utils import evaluation, readings
from utils.evaluation import Scored
from utils.readers import Row
from utils.scoring import language
from utils.templates import last_answer, to_messages, without_answer

KINDS = ("choice", "yes_no", "date", "number", "text")
"""Types of answer, the most particular first: what announces `(C) 18` is an option before it is a number."""


def reference(row: Row) -> tuple[str, str]:
    """(type, answer in that type's one form) of what a record's own answer announces.

    Raises:
        ValueError: it announces nothing.
    """
    text = last_answer(row.record)
    for kind in KINDS:
        found = readings.read(text, kind)
        if found.how == "announced" and found.answer is not None:
            return kind, found.answer
    raise ValueError(
        f"{row.origin}: its answer announces nothing to compare with; end it with 'The answer is …' or '答案是…': "
        f"{text[-80:]!r}"
    )


def question_of(row: Row) -> str:
    """What was asked last."""
    return to_messages(without_answer(row.record))[-1]["content"]


def score(rows: Sequence[Row], texts: Sequence[str]) -> list[Scored]:
    """What `texts`, one a row, say against the rows' own answers; where there are two languages, each is a group.

    Raises:
        ValueError: as `reference`.
    """
    languages = [language(question_of(row)) for row in rows]
    has_groups = len(set(languages)) > 1
    scored = []
    for row, text, spoken in zip(rows, texts, languages, strict=True):
        kind, answer = reference(row)
        scored.append(
            Scored(
                row=row.origin,
                group=spoken if has_groups else "",
                language=spoken,
                reference=answer,
                texts=(text,),
                readings=(readings.read(text, kind),),
                kind=kind,
            )
        )
    return scored


def shown(rows: Sequence[Row], scored: Mapping[str, Sequence[Scored]], count: int) -> Iterator[str]:
    """Lines with the first `count` questions, and every answer to them; `scored` is by who answered."""
    for number, row in enumerate(rows[:count]):
        yield f"question: {question_of(row)}"
        for who, found in scored.items():
            (text,), (reading,) = found[number].texts, found[number].readings
            verdict = "right" if found[number].is_right(1) else f"wrong, it is {found[number].reference}"
            yield f"  {who:>8}: {text}  [{verdict}{', read by a fallback' if reading.how == 'fallback' else ''}]"
        yield ""


def report(scored: Mapping[str, Sequence[Scored]]) -> Iterator[str]:
    """Lines with the accuracy of each model, in all and by language, and how its answers were read."""
    for who, found in scored.items():
        yield from evaluation.report(who, found, 1)


def transcripts(rows: Sequence[Row], scored: Mapping[str, Sequence[Scored]]) -> list[dict[str, Any]]:
    """One entry a row: where it came from, the record, and every answer as text, as read, and whether it is right."""
    return [
        {"origin": row.origin, **row.record, **{who: _answer(found[number]) for who, found in scored.items()}}
        for number, row in enumerate(rows)
    ]


def _answer(row: Scored) -> dict[str, Any]:
    return {"text": row.texts[0], **asdict(row.readings[0]), "right": row.is_right(1)}
