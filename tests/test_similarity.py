import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.similarity import chrf, rouge_l


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    # By hand, from the longest common sequence: F = 2LCS/(m+n).
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat", "the dog sat", 2 / 3),
        ("The cat, sat!", "the cat sat", 1.0),
        ("今天天气很好。", "今天天气好", 10 / 11),
        ("好气天今", "今天气好", 2 / 8),
        ("使用 random 模块", "用 random", 4 / 7),
        ("", "今天", 0.0),
        ("👋", "今天", 0.0),
    ],
)
def test_rouge_l(answer: str, reference: str, expected: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(expected)


def test_chrf_of_chinese_is_over_characters() -> None:
    assert chrf("今天天气好", "今天天气好") == pytest.approx(1.0)
    assert chrf("今天 天气 好", "今天天气好") == pytest.approx(1.0), "spaces do not count"
    assert 0 < chrf("今天天气坏", "今天天气好") < 1
    assert chrf("", "今天") == chrf("x", "今天") == 0.0
    assert chrf("👋🙂", "👋🙂") == pytest.approx(1.0)


@given(st.text(max_size=60), st.text(max_size=60))
def test_both_lie_between_0_and_1(answer: str, reference: str) -> None:
    assert 0 <= rouge_l(answer, reference) <= 1
    assert 0 <= chrf(answer, reference) <= 1 + 1e-9
