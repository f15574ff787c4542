"""Answers are read as a person would read them, and how they were read is counted."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import formats
from utils.readings import HOWS, KINDS, Audit, Reading, read, same

OPTIONS = ("dimly lit room", "synagogue", "bedroom", "birthday cake", "roses")


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        ("9 * 2 = $<<9*2=18>>18 a day.\n#### 18", "18", "announced"),
        ("#### 1,234", "1234", "announced"),
        ("#### -5", "-5", "announced"),
        ("The answer is $1,234.50.", "1234.5", "announced"),
        ("So the answer is 18 dollars.", "18", "announced"),
        ("The answer is 5 * 3 = 15.", "15", "announced"),
        ("The answer is $5 + $3 = $8", "8", "announced"),
        ("the answer is 12 because 3*5=15 and three go away", "12", "announced"),
        ("Answer: 42 🎉", "42", "announced"),
        ("**Answer:** 42", "42", "announced"),
        ("**Answer**: 42", "42", "announced"),
        ("The answer to the question is 7.", "7", "announced"),
        ("The final answer is \\boxed{72}", "72", "announced"),
        ("so we get \\boxed{\\$3.50}.", "3.5", "announced"),
        ("The answer is 7. No: the answer is 8.", "8", "announced"),
        ("The answer is not 7 but larger. The answer is 8", "8", "announced"),
        ("The answer is 3/4 of it.", "3/4", "announced"),
        ("The answer is 007.", "7", "announced"),
        ("The answer is 50%.", "50", "announced"),
        ("The answer is\n\n18", "18", "announced"),
        ("The answer is −3 degrees", "-3", "announced"),
        ("The answer is unknown, but it may be 4.", "4", "announced"),
        ("答案是１，２３４。", "1234", "announced"),
        ("所以答案是18美元。", "18", "announced"),
        ("答案：￥20", "20", "announced"),
        ("答案应该是-3。", "-3", "announced"),
        ("因此结果是 6+6=12。", "12", "announced"),
        ("18", "18", "bare"),
        (" $18. ", "18", "bare"),
        ("18 dollars a day", "18", "bare"),
        ("18美元", "18", "bare"),
        ("-0", "0", "bare"),
        ("0.50", "0.5", "bare"),
        ("She had 5 apples and ate 3, so 2 are left over for later on.", "2", "fallback"),
        ("5 - 3 = 2", "2", "fallback"),
        ("It takes 20-5 minutes, they all say in the town", "5", "fallback"),
        ("答案是十二", None, "unread"),
        ("The answer is", None, "unread"),
        ("H2O is wet and x_2 too", None, "unread"),
        ("1/0", None, "unread"),
        ("🤷", None, "unread"),
        ("", None, "unread"),
    ],
)  # fmt: skip
def test_numbers(text: str, answer: str | None, how: str) -> None:
    assert read(text, "number") == Reading(answer, how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        ("So the answer is (C).", "c", "announced"),
        ("The answer is C) 1120", "c", "announced"),
        ("The answer is **B**", "b", "announced"),
        ("The answer is option D.", "d", "announced"),
        ("The correct option is E", "e", "announced"),
        ("The answer is (b).", "b", "announced"),
        ("\\boxed{A}", "a", "announced"),
        ("Answer: A", "a", "announced"),
        ("(A) is wrong, the answer is (B), not (C).", "b", "announced"),
        ("the answer is bedroom", "c", "announced"),
        ("The answer is “Birthday Cake”.", "d", "announced"),
        ("答案是B选项", "b", "announced"),
        ("答案为：（Ｃ）", "c", "announced"),
        ("故选：D。", "d", "announced"),
        ("应选A。", "a", "announced"),
        ("所以选 C", "c", "announced"),
        ("正确答案选B", "b", "announced"),
        ("【答案】D\n解析：", "d", "announced"),
        ("正确选项是 A", "a", "announced"),
        ("B", "b", "bare"),
        ("(B)", "b", "bare"),
        ("B. synagogue, for people pray there", "b", "bare"),
        ("D、生日蛋糕", "d", "bare"),
        ("roses", "e", "bare"),
        ("It must be (D) in the end", "d", "fallback"),
        ("I think that C fits best", "c", "fallback"),
        ("The answer is not (A), but who knows? The answer is B", "b", "announced"),
        ("The answer is a dog.", None, "unread"),
        ("The answer is A and B.", None, "unread"),
        ("A dog barks", None, "unread"),
        ("The answer is (H).", None, "unread"),
        ("不知道 🤷", None, "unread"),
        ("", None, "unread"),
    ],
)  # fmt: skip
def test_choices(text: str, answer: str | None, how: str) -> None:
    assert read(text, "choice", OPTIONS) == Reading(answer, how)  # type: ignore[arg-type]


def test_letters_beyond_the_options_are_none_and_the_longest_option_counts() -> None:
    assert read("The answer is H", "choice").answer == "h"
    assert read("The answer is H", "choice", ("a", "b")).answer is None
    assert read("The answer is red wine", "choice", ("red", "red wine")).answer == "b"
    assert read("The answer is redder", "choice", ("red", "red wine")).answer is None
    assert read("the answer is １２", "choice", ("11", "12")).answer == "b"


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        ("The answer is yes.", "yes", "announced"),
        ("Therefore, the final answer is No", "no", "announced"),
        ("the answer is **no**, for it sinks", "no", "announced"),
        ("Yes, it may seem so. But the answer is no.", "no", "announced"),
        ("Answer: True", "yes", "announced"),
        ("答案是：是", "yes", "announced"),
        ("答案是否。", "no", "announced"),
        ("答案是是。", "yes", "announced"),
        ("答案是：不是", "no", "announced"),
        ("所以答案是不对。", "no", "announced"),
        ("答案：正确。", "yes", "announced"),
        ("答案是对的", "yes", "announced"),
        ("Yes. A pear floats.", "yes", "bare"),
        ("no", "no", "bare"),
        ("不是，因为它太重。", "no", "bare"),
        ("是的。🙂", "yes", "bare"),
        ("It has two heads, so, no.", "no", "fallback"),
        ("它很重，所以，不会。", "no", "fallback"),
        ("The answer is no one.", None, "unread"),
        ("答案是对冲基金", None, "unread"),
        ("No one knows", None, "unread"),
        ("Nothing, yesterday", None, "unread"),
        ("", None, "unread"),
    ],
)  # fmt: skip
def test_yes_and_no(text: str, answer: str | None, how: str) -> None:
    assert read(text, "yes_no") == Reading(answer, how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "text", "answer", "how"),
    [
        ("letters", 'The answer is "nk".', "nk", "announced"),
        ("letters", "The answer is N K E.", "nke", "announced"),
        ("letters", "So the answer is n-k-e", "nke", "announced"),
        ("letters", "nke", "nke", "bare"),
        ("letters", 'Joined they give "nk" in all 👋', "nk", "fallback"),
        ("letters", "The answer is not easy to say", None, "unread"),
        ("letters", "", None, "unread"),
        ("date", "The answer is 01/11/1961.", "1961-01-11", "announced"),
        ("date", "So the answer is Jan. 11, 1961.", "1961-01-11", "announced"),
        ("date", "The answer is January 1st, 2021, not 01/02/2021", "2021-01-01", "announced"),
        ("date", "答案是1961年1月11日。", "1961-01-11", "announced"),
        ("date", "1961-01-11", "1961-01-11", "bare"),
        ("date", "11 January 1961", "1961-01-11", "bare"),
        ("date", "Today is 5/3/2020, so tomorrow is 5/4/2020, I think", "2020-05-04", "fallback"),
        ("date", "The answer is 02/30/2020", None, "unread"),
        ("date", "🗓", None, "unread"),
        ("text", "So the answer is Sentence A.", "sentence a", "announced"),
        ("text", "所以答案是不能确定。因为没有说。", "不能确定", "announced"),
        ("text", "Sentence A", "sentence a", "bare"),
        ("text", "first this\nthen that.", "then that", "fallback"),
        ("text", " \n ", None, "unread"),
    ],
)  # fmt: skip
def test_letters_dates_and_text(kind: str, text: str, answer: str | None, how: str) -> None:
    assert read(text, kind) == Reading(answer, how)  # type: ignore[arg-type]


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


@given(st.text(), st.sampled_from(sorted(KINDS)), st.lists(st.text(), max_size=10))
def test_any_text_is_read_or_unread(text: str, kind: str, choices: list[str]) -> None:
    found = read(text, kind, choices)
    assert found.how in HOWS
    assert (found.answer is None) == (found.how == "unread")
    assert found.answer is None or same(kind, found.answer, found.answer)


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


# What of a FLAN answer file is of which type; the others' answers are free text.
FLAN = {
    "aqua": "choice",
    "gsm8k": "number",
    "strategyqa": "yes_no",
    "creak": "yes_no",
    "qasc": "choice",
    "ecqa": "choice",
}


@pytest.mark.parametrize("name", sorted(FLAN))
def test_real_answers_behind_real_rationales(name: str, real_data: Path) -> None:
    wrong, total = [], 0
    for line in (real_data / f"raw/flan_cot_{name}_train.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n"):
        question, answer, rationale = line.split("\t")[:3]
        choices = [re.sub(r"^\([A-H]\) ", "", part) for part in question.split("\\n- ")[1:]]
        gold = read(answer, FLAN[name], choices).answer
        total += 1
        said = f"{rationale}\nSo the answer is {answer}."
        if gold is None or read(said, FLAN[name], choices) != Reading(gold, "announced"):
            wrong.append(said)
    assert len(wrong) <= total / 1000, f"{len(wrong)} of {total}: {wrong[:5]}"


def test_gold_answers_of_gsm8k(real_data: Path) -> None:
    rows = [row for _, row in formats.read(real_data / "eval/gsm8k_test.jsonl")]
    readings = [read(row["answer"], "number") for row in rows]
    assert Audit.of(readings) == Audit(announced=1319)
    golds = [row["answer"].rpartition("#### ")[2].replace(",", "") for row in rows]
    assert all(same("number", found.answer, gold) for found, gold in zip(readings, golds, strict=True))
    assert json.dumps(golds[:1]) == '["18"]'
