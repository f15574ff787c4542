import json
import random
import re
from typing import Any

import pytest
from conftest import REPOSITORY

from utils.puzzles import FAMILIES, LANGUAGES, make_puzzle, move
from utils.scoring import extract_answer

SAMPLE = REPOSITORY / "data" / "sample"


def read(name: str) -> list[dict[str, str]]:
    return json.loads((SAMPLE / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_chain_is_right_and_the_question_tells_all_of_it(family: str, language: Any) -> None:
    rng = random.Random(0)
    for _ in range(50):
        puzzle = make_puzzle(rng, language, 4, family)
        digits = [
            int(d) for d in re.findall(r"(?<!\d)\d(?!\d)", puzzle.question.replace("0 to 9", "").replace("0到9", ""))
        ]
        assert digits == [puzzle.steps[0].before, *(step.amount for step in puzzle.steps)]
        for before, after in zip(puzzle.steps, puzzle.steps[1:], strict=False):
            assert before.after == after.before
        assert puzzle.answer == puzzle.steps[-1].after
        assert extract_answer(puzzle.reasoned_answer()) == extract_answer(puzzle.plain_answer()) == str(puzzle.answer)


def test_moves_on_the_ring() -> None:
    assert [move("+", 9, 4), move("-", 3, 6), move("×", 7, 9)] == [3, 7, 3]
    with pytest.raises(ValueError, match="unknown operator '/'"):
        move("/", 1, 1)


def test_the_same_seed_tells_the_same_puzzle() -> None:
    assert make_puzzle(random.Random(5), "en", 3) == make_puzzle(random.Random(5), "en", 3)


def test_guessing_scores_a_tenth() -> None:
    rng = random.Random(1)
    answers = [make_puzzle(rng, "en", 3).answer for _ in range(5000)]
    assert all(0.08 < answers.count(digit) / 5000 < 0.12 for digit in range(10))


def test_the_bundled_sample_is_what_its_script_makes(tmp_path: Any) -> None:
    import runpy

    module = runpy.run_path(str(SAMPLE / "make_sample.py"))
    assert module["main"](["--out", str(tmp_path)]) == 0
    for name in ("cot_sample", "answer_sample", "cot_sample_test", "for_dict_data"):
        assert (tmp_path / f"{name}.json").read_bytes() == (SAMPLE / f"{name}.json").read_bytes()


def test_no_question_is_shared_and_both_versions_ask_the_same() -> None:
    cot, answers, test = read("cot_sample"), read("answer_sample"), read("cot_sample_test")
    assert [r["instruction"] for r in cot] == [r["instruction"] for r in answers]
    assert all("→" in r["output"] for r in cot)
    assert not any("→" in r["output"] for r in answers)
    to_predict = read("for_dict_data")
    assert to_predict == [{"instruction": r["instruction"], "input": ""} for r in test[: len(to_predict)]]
    questions = [r["instruction"] for r in cot + test]
    assert len(set(questions)) == len(questions) == 4200
