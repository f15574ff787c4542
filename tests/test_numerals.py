"""Numbers in words, held against a speller that is written the other way round."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.readings import numerals, read, same

WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
LARGEST = 10**12


def english(number: int, joint: str = " and ") -> str:
    """British with `joint` " and ", American with a space."""
    if number < 20:
        return WORDS[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return TENS[tens - 2] + (f"-{WORDS[rest]}" if rest else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{WORDS[hundreds]} hundred" + (joint + english(rest) if rest else "")
    scale, name = next(
        each for each in ((10**9, "billion"), (10**6, "million"), (1000, "thousand")) if number >= each[0]
    )
    upper, rest = divmod(number, scale)
    between = joint if rest < 100 else " "
    return f"{english(upper, joint)} {name}" + (between + english(rest, joint) if rest else "")


def chinese(number: int) -> str:
    """In groups of four, with one 零 for every gap."""
    if number < 10:
        return "零一二三四五六七八九"[number]
    for scale, name in ((10**8, "亿"), (10**4, "万"), (1000, "千"), (100, "百"), (10, "十")):
        if number >= scale:
            upper, rest = divmod(number, scale)
            gap = "零" if 0 < rest < scale // 10 else ""
            head = "" if scale == 10 and number < 20 else chinese(upper)
            return head + name + (gap + inner(rest) if rest else "")
    raise AssertionError(number)


def inner(number: int) -> str:
    """As a part of a larger number, where ten is 一十."""
    said = chinese(number)
    return f"一{said}" if said.startswith("十") else said


def value(text: str) -> Fraction | None:
    """Of a text that is one number in words from end to end."""
    found = numerals.find(text)
    return found[0].value if len(found) == 1 and (found[0].start, found[0].end) == (0, len(text)) else None


def test_every_number_to_ten_thousand_in_both_languages() -> None:
    for number in range(10_001):
        assert value(english(number)) == value(chinese(number)) == number
        if number % 9 == 0:
            assert value(english(number, " ")) == value(english(number).replace("-", " ")) == number


@given(st.integers(0, LARGEST - 1))
def test_larger_numbers(number: int) -> None:
    assert value(english(number)) == value(chinese(number)) == number
    assert value(f"minus {english(number)}") == value(f"负{chinese(number)}") == -number


@given(st.integers(1, 9), st.integers(2, 10))
def test_fractions(above: int, below: int) -> None:
    part = ["half", "third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"][below - 2]
    parts = "halves" if part == "half" else f"{part}s"
    expected = Fraction(above, below)
    assert value(f"{WORDS[above]} {part if above == 1 else parts}") == expected
    assert value(f"{chinese(below)}分之{chinese(above)}") == expected
    assert value(f"{WORDS[above]}-{parts}") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a hundred", 100), ("a dozen", 12), ("two dozen", 24), ("fifteen hundred", 1500), ("half", Fraction(1, 2)),
        ("two and a half", Fraction(5, 2)), ("three and two thirds", Fraction(11, 3)), ("three point one four", Fraction("3.14")),
        ("one million, two hundred and six", 1_000_206), ("Twenty-One", 21),
        ("两千", 2000), ("两千三", 2300), ("一万二", 12_000), ("一百零五", 105), ("二〇二四", 2024), ("三点一四", Fraction("3.14")),
        ("一半", Fraction(1, 2)), ("两个半", Fraction(5, 2)), ("一又二分之一", Fraction(3, 2)), ("百分之五十", 50),
        ("壹佰贰拾叁", 123), ("一千万", 10_000_000), ("三亿五千万", 350_000_000), ("十", 10), ("十万零五", 100_005),
    ],
)  # fmt: skip
def test_forms(text: str, expected: Fraction | int) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    "text",
    ["someone", "tent", "often", "third", "well-known", "one-way", "ones", "", "🙂", "一样", "一定", "千万", "万一", "十分好", "三角形",
     "星期三", "第三个", "三四个", "百", "一共", "不三不四的人"],
)  # fmt: skip
def test_what_only_looks_like_a_number(text: str) -> None:
    assert not numerals.find(text)


@given(st.integers(0, 10_000), st.sampled_from(["The answer is {}.", "Answer: {}", "{}", "So the answer is {} 🎉"]))
def test_words_are_read_where_they_are_announced_or_alone(number: int, said: str) -> None:
    found = read(said.format(english(number)), "number")
    assert same("number", found.answer, str(number))
    assert found.how == ("bare" if said == "{}" else "announced")
    found = read(f"答案是{chinese(number)}。", "number")
    assert same("number", found.answer, str(number))


def test_words_in_a_longer_text_are_not_read() -> None:
    assert read("Seven boys met one girl, and they all went home in the end.", "number").answer is None
    assert read("七个男孩遇见了一个女孩，后来他们都回家了。", "number").answer is None
