"""Votes, accuracies, likeness and intervals of answers that were made by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import evaluation, readings
from utils.evaluation import Likeness, Scored, accuracy, vote
from utils.readings import Reading, read
from utils.tasks import OPEN


def scored(reference: str, *texts: str, kind: str = "number", group: str = "") -> Scored:
    found = () if kind == OPEN else tuple(read(text, kind) for text in texts) or (evaluation.UNREAD,)
    return Scored(
        row="000000-x", group=group, language="en", reference=reference, texts=texts, readings=found, kind=kind
    )


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        (["1", "2", "2"], "2"),
        (["1", "2"], "1"),
        (["🤷", "2", "no idea"], "2"),
        (["0.5", "1/2", "3", "3", "0.50"], "0.5"),
        (["🤷", ""], None),
        ([], None),
    ],
)
def test_most_answers_win_and_of_equally_many_the_first(said: list[str], chosen: str | None) -> None:
    assert vote([read(text, "number") for text in said], "number") == chosen


@given(st.lists(st.sampled_from(["1", "2", "3", "🤷"]), max_size=9))
def test_a_vote_is_for_an_answer_that_no_other_exceeds(said: list[str]) -> None:
    found = [read(text, "number") for text in said]
    answers = [reading.answer for reading in found if reading.answer]
    chosen = vote(found, "number")
    assert (chosen is None) == (not answers)
    assert chosen is None or answers.count(chosen) == max(map(answers.count, answers))


def test_accuracy_of_majorities_counts_what_could_not_be_read_as_wrong() -> None:
    rows = [scored("2", "1", "2", "2"), scored("5", "5", "4", "4"), scored("7", "?", "", "🤷"), scored("1")]
    assert [str(accuracy(rows, k)).split(",")[0] for k in (1, 3)] == [" 25.0%  (1/4", " 25.0%  (1/4"]
    assert accuracy(rows, 1).unread == 2
    assert not rows[0].is_right(1)
    assert rows[0].is_right(3)
    report = list(evaluation.report("adapter", rows, 3))
    assert report[1] == " read  adapter: 0 announced, 6 bare, 0 by fallback, 4 could not be read"
    assert [line.split()[0] for line in report] == ["all", "read", "maj@1", "maj@2", "maj@3"]


def test_all_unreadable_and_groups() -> None:
    rows = [scored("1", "?", group="b"), scored("1", "!", group="a"), scored("1", "1", group="b")]
    report = list(evaluation.report("base", rows, 1))
    assert [line.split()[0] for line in report] == ["all", "b", "a", "read"]
    assert "(0/1, 95 % interval 0.0% to 79.3%, 1 without a readable answer)" in report[2]
    figures = evaluation.figures(rows, 1)
    assert figures["groups"]["b"]["accuracy"] == 0.5
    assert (figures["correct"], figures["total"], figures["unread"]) == (1, 3, 2)


def test_an_open_task_is_scored_by_likeness() -> None:
    rows = [scored("今天天气好", "今天天气好", kind="open"), scored("abc", kind="open")]
    found = evaluation.likeness(rows, evaluation.LIKENESSES["ROUGE-L"])
    assert found.values == (1.0, 0.0)
    assert str(found) == " 50.0%  (2 rows, 95 % interval 0.0% to 100.0%)"
    assert Likeness(values=()).interval == (0.0, 1.0)
    assert Likeness(values=(0.2, 0.4, 0.6)).interval == (
        pytest.approx(0.1737, abs=1e-4),
        pytest.approx(0.6263, abs=1e-4),
    )
    assert len(list(evaluation.report("base", rows, 1))) == 2


def test_options_are_compared_as_the_harness_does() -> None:
    found = [("五十", -6.0), ("no", -3.5), ("no", -3.5)]
    assert evaluation.best([text for text, _ in found], [total for _, total in found]) == {
        "acc": "b",
        "acc_norm": "b",
        "acc_bytes": "a",
    }


def test_readings_of_a_scored_row_are_what_its_texts_say() -> None:
    row = scored("2", "#### 2", "")
    assert row.readings == (Reading("2", "announced"), Reading(None, "unread"))
    assert readings.Audit.of(row.readings).unread == 1
