import pytest

from utils.scoring import Accuracy, canonical, extract_answer, language, wilson


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1+2→3. So the answer is 3.", "3"),
        ("所以答案是3。", "3"),
        ("答案为：(B)", "b"),
        ("The answer is 7. No: the answer is 8.", "8"),
        ("So, the answer is (C).", "c"),
        ("Therefore, the final answer is no.", "no"),
        ("the answer is 1,234.5 dollars", "1234.5"),
        ("Answer: -4", "-4"),
        ("The answer is nothing.", "nothing"),
        ("The answer is a dog, so the answer is (C).", "c"),
        ("The answer is a dog.", "a dog"),
        ("The answer is A dog.", "a dog"),
        ("答案是B选项", "b"),
        ("the answer is **B**", "b"),
        ("the answer is 7.0", "7"),
        ("the answer is 7.50 and more", "7.5"),
        ("the answer is 100", "100"),
        ("3", None),
        ("", None),
        ("🤷 答案是", None),
    ],
)
def test_answers_are_read(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the answer is a bloody mess. That is all.", "a bloody mess"),
        ("Therefore, the answer is Sentence A.", "sentence a"),
        ("The answer is it is not possible to tell.", "it is not possible to tell"),
        ("所以答案是不能确定。因为题目没有说。", "不能确定"),
        ("答案：第二句 🙂\n解析在上面", "第二句 🙂"),
        ("The answer is 7 apples.", "7"),
        ("the answer is $72", "72"),
        ("the answer is -$4.50.", "-4.5"),
        ("the answer is Rs. 5,000 a month", "5000"),
        ("the answer is 3/4.", "3/4"),
        ("the answer is 0.250 of it", "0.25"),
        ("the answer is A because of that", "a"),
        ("the answer is C. 1120", "c"),
        ("the answer is (C) 1120", "c"),
        ("the answer is B because of that", "b"),
        ("the answer is A, B and C.", "a, b and c"),
        ("the answer is C++.", "c++"),
        ("the answer is no one.", "no one"),
        ("the answer is No, nobody came.", "no"),
        ("the answer is yes because it rained", "yes"),
        ("the answer is washington d.c.", "washington d.c"),
        ("the answer is bloody\nmess", "bloody"),
        ('The answer is "Dr. No". He has one.', "dr. no"),
        ("答案是“7个苹果。还有3个梨”。", "7个苹果。还有3个梨"),
        ('the answer is "(C)".', "c"),
        ('the answer is "not closed', "not closed"),
        ("The answer is 7. And the answer is", "7"),
        ("the answer isn't 7", None),
        ("the answer is ...", None),
    ],
)  # fmt: skip
def test_free_answers_are_read_to_the_end_of_their_sentence(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "form"),
    [("(C)", "c"), ("C", "c"), ("$72", "72"), ("7 apples", "7"), ("1,000", "1000"), ("Yes", "yes"), ("no one", "no one"),
     ("Dr. No", "dr. no"), ("洗手间", "洗手间"), (" \n", "")],
)  # fmt: skip
def test_canonical_form_of_a_whole_answer(answer: str, form: str) -> None:
    assert canonical(answer) == form


def test_accuracy_says_its_interval_and_what_could_not_be_read() -> None:
    accuracy = Accuracy(correct=1, total=3, unread=1)
    assert accuracy.value == pytest.approx(1 / 3)
    assert str(accuracy) == " 33.3%  (1/3, 95 % interval 6.1% to 79.2%, 1 without a readable answer)"


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    # Wilson intervals of Newcombe 1998, Statistics in Medicine 17:857, table I (81/263, 15/148, 0/20, 1/29).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(successes: int, total: int, low: float, high: float) -> None:
    assert wilson(successes, total) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_no_trials() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert Accuracy(correct=0, total=0, unread=0).value == 0.0


def test_language() -> None:
    assert [language(text) for text in ("dial 👋", "转盘 dial", "")] == ["en", "cn", "en"]
