"""Answers are read as a careful person would read them, and how they were read is counted.

`assets/answers.jsonl` holds answer strings in the manner of small and large models, each with what a careful person
reads in it and how: announced (it is said to be the answer), bare (it is the text, or opens it), fallback (a reader
would take it for the answer, though it is not said), unread. `why` names what is hard about it. They were labelled
before the extractors were held against them.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from utils import formats
from utils.converters import Options, outcomes
from utils.readings import HOWS, KINDS, Audit, Reading, read, same
from utils.scoring import language

OPTIONS = ("dimly lit room", "synagogue", "bedroom", "birthday cake", "roses")
LABELLED = [
    json.loads(line)
    for line in (REPOSITORY / "tests/assets/answers.jsonl").read_text(encoding="utf-8").splitlines()
]  # fmt: skip
MUST_AGREE = 0.99


DISAGREEMENTS = {
    "A) 12\nB) 15\nC) 18",
    "I got 17 the first time and 19 the second time. The answer is the second one.",
    "The answer is 99% certain to be 5.",
    "The answer is undefined because you cannot divide by 0.",
    "Plan B works: light it in the bedroom.",
    "There's no way a stone could float.",
    "一共是二十四个。",
}
"""What a careful person reads and the extractor does not."""


def agrees(row: dict[str, Any]) -> bool:
    """Whether the extractor reads what the label says, in the way that it says."""
    found = read(row["text"], row["kind"], row.get("choices", ()))
    if row["answer"] is None or found.answer is None:
        return found.answer is row["answer"]
    return same(row["kind"], found.answer, row["answer"]) and found.how == row["how"]


def test_the_labelled_answers_are_read_as_a_person_reads_them() -> None:
    wrong = {row["text"]: read(row["text"], row["kind"], row.get("choices", ())) for row in LABELLED if not agrees(row)}
    assert 1 - len(wrong) / len(LABELLED) >= MUST_AGREE, wrong
    assert wrong.keys() == DISAGREEMENTS, {text: wrong.get(text) for text in wrong.keys() ^ DISAGREEMENTS}


def test_the_labelled_answers_cover_every_type_way_and_language() -> None:
    assert len(LABELLED) >= 350
    assert len({(row["kind"], row["text"], tuple(row.get("choices", ()))) for row in LABELLED}) == len(LABELLED)
    assert {row["kind"] for row in LABELLED} == set(KINDS)
    assert all(row["why"] and (row["answer"] is None) == (row["how"] == "unread") for row in LABELLED)
    assert {(row["kind"], row["how"]) for row in LABELLED} == {(kind, how) for kind in KINDS for how in HOWS}
    languages = Counter((row["kind"], language(row["text"])) for row in LABELLED)
    assert all(languages[kind, each] >= 5 for kind in KINDS for each in ("en", "cn")), languages


def test_letters_beyond_the_options_are_none_and_the_longest_option_counts() -> None:
    assert read("The answer is H", "choice").answer == "h"
    assert read("The answer is H", "choice", ("a", "b")).answer is None
    assert read("The answer is red wine", "choice", ("red", "red wine")).answer == "b"
    assert read("The answer is redder", "choice", ("red", "red wine")).answer is None
    assert read("the answer is １２", "choice", ("11", "12")).answer == "b"


def test_an_unknown_type_of_answer() -> None:
    with pytest.raises(ValueError, match="unknown answer type 'nummer'. Did you mean number"):
        read("1", "nummer")


def test_numbers_are_the_same_by_value() -> None:
    assert same("number", "3/4", "0.75")
    assert not same("number", "3/4", "0.7")
    assert not same("number", None, "1")
    assert same("choice", "c", "c")
    assert not same("choice", "c", "d")


def test_the_audit_counts_each_way() -> None:
    audit = Audit.of(read(text, "number") for text in ["#### 1", "2", "maybe it is 3 or so, people do say", "", "👋"])
    assert audit == Audit(announced=1, bare=1, fallback=1, unread=2)
    assert str(audit) == "1 announced, 1 bare, 1 by fallback, 2 could not be read"


PIECES = (
    "The answer is ", "答案是", "故选", "Answer: ", "#### ", "\\boxed{", "}", "$", "12", "1,234", "3/4", "10^", " = ", "-", "twelve ",
    "十二", "千万", "(B)", "A", " or ", "和", "not ", "不是", "but ", "yes", "No", "是", "否", "nk", "05/01/2021", "2021年5月1日", ". ",
    "。", "\n", "\nQ: ", "Wait, ", "等等，", "is correct", "正确", "</think>", "<answer>", '{"answer": ', "“", "🙂", " ", "e", "½",
)  # fmt: skip


@given(
    st.text() | st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.sampled_from(sorted(KINDS)),
    st.lists(st.text(), max_size=10),
)
def test_any_text_is_read_or_unread(text: str, kind: str, choices: list[str]) -> None:
    found = read(text, kind, choices)
    assert found.how in HOWS
    assert (found.answer is None) == (found.how == "unread")
    assert found.answer is None or same(kind, found.answer, found.answer)


@pytest.mark.parametrize("piece", [*PIECES, "a", "！", "7 ", "1 + ", "A, ", "(A) cat (B) dog ", "x is the answer "])
def test_a_text_in_a_loop_is_read(piece: str) -> None:
    text = piece * (2000 // len(piece))
    for kind in KINDS:
        assert read(text, kind, ("cat", "dog")).how in HOWS
        assert read(f"The answer is 7. {text}", kind, ("cat", "dog")).how in HOWS


@given(st.integers(-(10**12), 10**12), st.sampled_from(["#### {}", "The answer is {}.", "答案是{}。", "Answer: {} 🎉"]))
def test_every_whole_number_is_read_with_and_without_commas(number: int, announced: str) -> None:
    for written in (str(number), f"{number:,}"):
        assert read("1 and 2 make 3.\n" + announced.format(written), "number") == Reading(str(number), "announced")


@given(st.decimals(-(10**6), 10**6, places=3))
def test_every_decimal_is_read_by_value(number: object) -> None:
    found = read(f"So the answer is ${number}.", "number")
    assert same("number", found.answer, read(f"#### {number}", "number").answer or "")


@given(st.sampled_from("ABCDE"), st.sampled_from(["The answer is ({}).", "故选{}。", "答案：{}", "{}", "({})"]))
def test_every_letter_is_read(letter: str, said: str) -> None:
    assert read(said.format(letter), "choice", OPTIONS).answer == letter.lower()


# What the answers of FLAN's sets are.
FLAN = {
    "aqua": "choice",
    "creak": "yes_no",
    "ecqa": "choice",
    "gsm8k": "number",
    "qasc": "choice",
    "sensemaking": "text",
    "strategyqa": "yes_no",
}
FLAN_ROWS = 33_443


def options_of(question: str) -> list[str]:
    """The options that a question of FLAN lists, without their letters."""
    listed = question.partition("Options:\n")[2].splitlines()
    return [re.sub(r"^(?:- )?(?:\([A-H]\) )?", "", line) for line in listed]


def test_real_answers_in_converted_rationales(real_data: Path) -> None:
    rows, wrong = Counter[str](), Counter[str]()
    for name, kind in FLAN.items():
        for _, line, record in outcomes("flan_cot_tsv", real_data / f"raw/flan_cot_{name}_train.tsv", Options()):
            assert isinstance(record, dict), record
            question, answer, _ = (field.replace("\\n", "\n") for field in line.split("\t"))
            choices = options_of(question)
            expected = read(answer, kind, choices).answer
            rows[name] += 1
            wrong[name] += expected is None or read(record["output"], kind, choices) != Reading(expected, "announced")
    assert sum(rows.values()) == FLAN_ROWS
    for name, total in rows.items():
        assert wrong[name] <= (1 - MUST_AGREE) * total, (name, wrong[name], total)


def test_gold_answers_of_gsm8k(real_data: Path) -> None:
    rows = [row for _, row in formats.read(real_data / "eval/gsm8k_test.jsonl")]
    readings = [read(row["answer"], "number") for row in rows]
    assert Audit.of(readings) == Audit(announced=1319)
    golds = [row["answer"].rpartition("#### ")[2].replace(",", "") for row in rows]
    assert all(same("number", found.answer, gold) for found, gold in zip(readings, golds, strict=True))
    assert json.dumps(golds[:1]) == '["18"]'
