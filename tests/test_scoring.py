import pytest

from utils.scoring import Accuracy, exact_match, extract_answer, language, wilson


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
        ("The answer is nothing.", None),
        ("The answer is a dog, so the answer is (C).", "c"),
        ("The answer is a dog.", None),
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


def test_exact_match_counts_right_wrong_and_unread() -> None:
    accuracy = exact_match(["answer is 1", "answer is 2", "?"], ["answer is 1", "answer is 3", "answer is 4"])
    assert (accuracy.correct, accuracy.total, accuracy.unread) == (1, 3, 1)
    assert accuracy.value == pytest.approx(1 / 3)
    assert str(accuracy) == " 33.3%  (1/3, 95 % interval 6.1% to 79.2%, 1 without a readable answer)"


def test_a_reference_without_an_answer_is_an_error() -> None:
    with pytest.raises(ValueError, match="reference 2 announces no answer .*'just text'"):
        exact_match(["answer is 1", "answer is 1"], ["answer is 1", "just text"])
    with pytest.raises(ValueError, match="zip"):
        exact_match(["a"], [])


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
