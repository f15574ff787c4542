"""What a task asks can be read by a person, and its worked examples are right and say so in words that are read."""

import ast
import operator
import re
from dataclasses import replace
from pathlib import Path

import pytest

from utils import asking, overlap, readings
from utils.asking import Shot, chosen_shots, read_shots, record, solved
from utils.tasks import OPEN, Item, items, questions, read_tasks

SPECS = read_tasks()
ITEM = Item(origin="here", question="Which floats? 🎈", choices=("iron", "cork"), reference="b", group="")
CN = replace(ITEM, question="哪个会浮？", choices=("铁", "软木"))
SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def test_a_question_with_options_in_each_style_and_language() -> None:
    asked = record(SPECS["aqua"], ITEM, "direct")
    assert asked == {
        "instruction": "Which floats? 🎈\n(A) iron\n(B) cork\n"
        'Give only the letter of the right option, in the form "The answer is …".',
        "input": "",
    }
    assert record(SPECS["aqua"], ITEM, "plain")["instruction"] == "Which floats? 🎈\n(A) iron\n(B) cork"
    assert "Let's think step by step." in record(SPECS["aqua"], ITEM, "zero_shot_cot")["instruction"]
    assert "Reason first" in record(SPECS["aqua"], ITEM, "cot")["instruction"]
    asked = record(SPECS["ceval"], CN, "cot")
    assert asked["instruction"] == "哪个会浮？\n(A) 铁\n(B) 软木\n先推理，再给出正确选项的字母，格式为“答案是…”。"
    assert asking.cued("木头会浮吗？", "direct", "yes_no") == "木头会浮吗？\n只给出“是”或“否”，格式为“答案是…”。"


def test_the_chinese_examinations_have_the_five_examples_that_they_are_customarily_asked_with() -> None:
    for key in ("ceval", "cmmlu"):
        shots = chosen_shots(SPECS[key], 5)
        assert len({shot.question for shot in shots}) == 5
        assert {shot.answer for shot in shots} == set("ABCD")  # no letter that a model could always give


def test_an_open_question_is_asked_in_its_own_words() -> None:
    for style in asking.STYLES:
        assert record(SPECS["belle_eval"], replace(ITEM, choices=()), style)["instruction"] == ITEM.question


def test_worked_examples_come_first_with_their_reasoning_where_the_style_has_it() -> None:
    shots = chosen_shots(SPECS["commonsenseqa"], 2)
    reasoned = record(SPECS["commonsenseqa"], ITEM, "cot", shots)["instruction"]
    direct = record(SPECS["commonsenseqa"], ITEM, "direct", shots)["instruction"]
    for shot in shots:
        assert shot.reasoning in reasoned
        assert shot.reasoning not in direct
        assert shot.question in direct
        assert solved(shot, "plain") == solved(shot, "cot")
    assert reasoned.endswith(record(SPECS["commonsenseqa"], ITEM, "cot")["instruction"])
    assert reasoned.index(shots[0].question) < reasoned.index(shots[1].question) < reasoned.index(ITEM.question)


def test_of_examples_in_two_languages_those_of_the_question_come_first() -> None:
    for item in list(items(SPECS["cot_sample_test"]))[::20]:
        tongue = asking.spoken(item)
        shots = chosen_shots(SPECS["cot_sample_test"], 6, tongue)
        assert [asking.language(shot.question) == tongue for shot in shots] == [True] * 4 + [False] * 2
    en = chosen_shots(SPECS["commonsenseqa"], 2)
    assert chosen_shots(SPECS["commonsenseqa"], 2, "cn") == en, "what is in one language stays in its order"


def test_too_many_examples_and_unknown_styles() -> None:
    with pytest.raises(ValueError, match="task 'Coin flip' has 2 worked examples, not 9: add some to few_shots.toml"):
        chosen_shots(SPECS["coin_flip"], 9)
    with pytest.raises(ValueError, match="'BIG-Bench Hard, one of its tasks' has 0 worked examples, not 1"):
        chosen_shots(SPECS["bbh"], 1)
    assert chosen_shots(SPECS["bbh"], 0) == ()
    with pytest.raises(ValueError, match="unknown style 'cott'. Did you mean cot"):
        record(SPECS["aqua"], ITEM, "cott")


def test_a_broken_list_is_named(tmp_path: Path) -> None:
    file = tmp_path / "few_shots.toml"
    file.write_text('[[a]]\nquestion = "q"\nreasoning = "r"\n', encoding="utf-8")
    with pytest.raises(
        ValueError, match="few_shots.toml: list 'a': .*missing 1 required keyword-only argument: 'answer'"
    ):
        read_shots(file)


@pytest.mark.parametrize("key", [key for key, spec in SPECS.items() if spec.shots])
def test_a_tasks_examples_are_read_as_their_own_answer(key: str) -> None:
    spec = SPECS[key]
    for shot in read_shots()[spec.shots]:
        expected = readings.read(shot.answer, spec.kind, shot.choices).answer
        assert expected is not None, shot
        for style in asking.STYLES:
            assert readings.read(solved(shot, style), spec.kind, shot.choices) == readings.Reading(
                expected, "announced"
            )


def test_every_list_is_used_and_every_task_that_is_read_has_words() -> None:
    assert set(read_shots()) == {spec.shots for spec in SPECS.values() if spec.shots}
    for spoken in ("en", "cn"):
        assert {*asking.ASKED[spoken], OPEN} == {*readings.KINDS, OPEN}
        assert {*asking.CUES[spoken], asking.PLAIN} == set(asking.STYLES)


def value(text: str) -> float:
    def of(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return SIGNS[type(node.op)](of(node.left), of(node.right))  # type: ignore[index]
        assert isinstance(node, ast.Constant)
        return float(node.value)  # type: ignore[arg-type]

    return of(ast.parse(text.strip(), mode="eval").body)


def test_the_sums_in_the_examples_are_right() -> None:
    sums = [shot.reasoning for name in ("sums", "sums_with_options") for shot in read_shots()[name]]
    found = [each for text in sums for each in re.findall(r"(\d+(?: [-+*/] \d+)+) = (\d+)", text)]
    assert len(found) >= 10
    for left, right in found:
        assert value(left) == float(right), (left, right)
    for shot in read_shots()["rings"]:
        for first, sign, second, result in re.findall(r"(\d)([-+×])(\d)→(\d)", shot.reasoning):
            assert value(f"{first}{sign.replace('×', '*')}{second}") % 10 == int(result)


def test_no_example_is_a_question_of_a_task_that_is_here(real_data: Path) -> None:
    sets = [
        overlap.QuestionSet(name=key, questions=tuple(questions(spec, real_data)), ngram=spec.ngram)
        for key, spec in SPECS.items()
        if (real_data / spec.path).is_file()
    ]
    assert len(sets) == 3
    found = overlap.EvaluationSets(sets)
    assert not [shot for shots in read_shots().values() for shot in shots if found.match(shot.question)]


def test_the_bundled_task_can_be_asked_in_every_style() -> None:
    spec = SPECS["cot_sample_test"]
    for item in items(spec):
        for style in asking.STYLES:
            assert item.question in record(spec, item, style, chosen_shots(spec, 2))["instruction"]
    assert isinstance(chosen_shots(spec, 1)[0], Shot)
