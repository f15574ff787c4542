"""Records with answers of their own: which type of answer each announces, and what is right."""

from __future__ import annotations

import pytest

from utils import evaluation, held_out
from utils.readers import Row


def row(question: str, answer: str, number: int = 1) -> Row:
    record = {"instruction": question, "input": "", "output": answer}
    return Row(record=record, origin=f"t.json row {number}")


@pytest.mark.parametrize(
    ("answer", "kind", "form"),
    [
        ("1+2→3. So the answer is 3.", "number", "3"),
        ("答案是７。", "number", "7"),
        ("答案就是8。", "number", "8"),
        ("3+7=10。答：小明现在有10颗糖🍬。", "number", "10"),
        ("#### 1,234.50", "number", "1234.5"),
        ("The answer is (C) 18.", "choice", "c"),
        ("【答案】C", "choice", "c"),
        ("the answer is No, nobody came", "yes_no", "no"),
        ("The answer is 1961-01-11.", "date", "1961-01-11"),
        ("The answer is 12:30.", "text", "12:30"),
        ("The answer is a bloody mess.", "text", "a bloody mess"),
        ("The answer is nothing.", "text", "nothing"),
    ],
)
def test_the_type_of_an_answer_is_what_it_announces(answer: str, kind: str, form: str) -> None:
    assert held_out.reference(row("?", answer)) == (kind, form)


@pytest.mark.parametrize("answer", ["just text", "7", "", "🤷 答案是"])
def test_an_answer_that_announces_nothing_is_refused_with_what_to_do(answer: str) -> None:
    with pytest.raises(
        ValueError, match=r"t\.json row 1: its answer announces nothing .* end it with 'The answer is …'"
    ):
        held_out.reference(row("?", answer))


def test_answers_are_read_as_a_tasks_are() -> None:
    rows = [
        row("3+4?", "The answer is 7.", 1),
        row("三加四？", "答案是７。", 2),
        row("Which?", "The answer is (C).", 3),
    ]
    right = held_out.score(rows, ["So it is 7.", "答案是7。", "Ｃ"])
    assert [each.is_right(1) for each in right] == [True, True, True]
    assert [each.readings[0].how for each in right] == ["fallback", "announced", "bare"]
    assert [each.group for each in right] == ["en", "cn", "en"]
    assert [each.is_right(1) for each in held_out.score(rows, ["8", "", "🤷"])] == [False, False, False]


def test_the_report_has_every_model_in_all_and_by_language_and_how_it_was_read() -> None:
    rows = [row("3+4?", "The answer is 7.", 1), row("三加四？", "答案是7。", 2)]
    scored = {"base": held_out.score(rows, ["7", ""]), "adapter": held_out.score(rows, ["7", "答案是7。"])}
    lines = list(held_out.report(scored))
    assert [line.split()[:2] for line in lines[:4]] == [
        ["all", "base:"],
        ["cn", "base:"],
        ["en", "base:"],
        ["read", "base:"],
    ]
    assert "100.0%  (2/2" in lines[4]
    assert lines[3].endswith("0 announced, 1 bare, 0 by fallback, 1 could not be read")
    echo = {"base": held_out.score(rows[:1], ["3+7?"])}
    assert list(held_out.shown(rows, echo, 1))[1] == "      base: 3+7?  [right, read by a fallback]"
    assert list(held_out.shown(rows, scored, 1)) == [
        "question: 3+4?", "      base: 7  [right]", "   adapter: 7  [right]", ""
    ]  # fmt: skip
    told = held_out.transcripts(rows, scored)
    assert told[1]["base"] == {"text": "", "answer": None, "how": "unread", "right": False}
    assert told[1]["origin"] == "t.json row 2"
    alone = held_out.score(rows[:1], ["7"])
    assert not evaluation.groups(alone), "one language is no group"
