"""Held-out records: whether what is answered to each announces the same as its own answer.

Knows: records with answers that announce something, accuracy in all and by language. Does not know tasks
(`utils.evaluation`), models or flags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from utils.readers import Row
from utils.scoring import exact_match, extract_answer, language
from utils.templates import last_answer, to_messages, without_answer


def check_references(rows: Sequence[Row]) -> None:
    """`ValueError` for a row whose own answer cannot be read; said before anything is decoded."""
    for row in rows:
        if extract_answer(last_answer(row.record)) is None:
            raise ValueError(
                f"{row.origin}: its answer announces nothing to compare with ('the answer is …' or '答案是…'): "
                f"{last_answer(row.record)[-80:]!r}"
            )


def question_of(row: Row) -> str:
    """What was asked last."""
    return to_messages(without_answer(row.record))[-1]["content"]


def shown(rows: Sequence[Row], answers: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Lines with questions, the reference and every answer."""
    for number, row in enumerate(rows):
        expected = extract_answer(last_answer(row.record))
        yield f"question: {question_of(row)}"
        for who, texts in answers.items():
            mark = "right" if extract_answer(texts[number]) == expected else f"wrong, it is {expected}"
            yield f"  {who:>8}: {texts[number]}  [{mark}]"
        yield ""


def report(rows: Sequence[Row], answers: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Lines with the accuracy of each model, in all and by language."""
    languages = [language(question_of(row)) for row in rows]
    for chosen in [None, *sorted(set(languages))]:
        members = [i for i, found in enumerate(languages) if chosen in (None, found)]
        for who, texts in answers.items():
            accuracy = exact_match([texts[i] for i in members], [last_answer(rows[i].record) for i in members])
            yield f"{chosen or 'all':>4} {who:>8}: {accuracy}"


def transcripts(rows: Sequence[Row], answers: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """One entry a row: where it came from, the record, and every answer as text and as read."""
    return [
        {
            "origin": row.origin,
            **row.record,
            **{who: {"text": texts[i], "answer": extract_answer(texts[i])} for who, texts in answers.items()},
        }
        for i, row in enumerate(rows)
    ]
