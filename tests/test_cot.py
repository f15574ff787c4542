import json
import re
from pathlib import Path
from typing import Any

import pytest

from utils import cot
from utils.converters import Dropped, Options, convert
from utils.cot import STYLES, Unusable, read_phrasings, render
from utils.scoring import canonical, extract_answer, language

NINE = {"aqua", "creak", "ecqa", "esnli", "gsm8k", "qasc", "qed", "sensemaking", "strategyqa"}


def row(**changed: Any) -> dict[str, str]:
    given = {"question": "How many?", "answer": "7", "rationale": "3+4=7.", "set_name": "gsm8k"}
    return render(**{**given, **changed})


@pytest.mark.parametrize("name", sorted(NINE | {"cot_cn", "gaokao"}))
def test_every_set_has_ten_phrasings_in_its_language_each_with_and_without_its_cue(name: str) -> None:
    phrasings = read_phrasings()[name]
    assert len(set(phrasings.instructions)) >= 10
    expected = "en" if name in NINE else "cn"
    for template in phrasings.instructions:
        assert template.count("{question}") == template.count("<cue>") == template.count("</cue>") == 1
        without = cot.CUE.sub("", template)
        assert {language(template), language(without.replace("{question}", "问" if expected == "cn" else ""))} == {
            expected
        }
        after = template.partition("{question}")[2]
        assert not after or after.startswith("\n\n")
        assert not re.search(r"[?？][.。?？]|  |\n ", template + without)
        if name in NINE:
            assert not re.search(r"step|reason|expl|think|why", without, flags=re.IGNORECASE)
    for style in STYLES:
        assert len(set(phrasings.endings[style])) >= 4
        assert {language(ending) for ending in phrasings.endings[style]} == {expected}
        assert all(extract_answer(ending.replace("{answer}", "42")) == "42" for ending in phrasings.endings[style])


def test_the_rationale_comes_first_and_the_answer_last() -> None:
    lines = row(rationale="Three and four.\nThat makes seven.")["output"].split("\n")
    assert lines[:2] == ["Three and four.", "That makes seven."]
    assert extract_answer(lines[2]) == "7"
    assert len(lines) == 3


def test_the_styles_differ_in_cue_and_rationale_alone() -> None:
    for number in range(60):
        full = row(question=f"How many, {number}?")
        bare = row(question=f"How many, {number}?", style="answer_only")
        assert extract_answer(full["output"]) == extract_answer(bare["output"]) == "7"
        assert "3+4" not in bare["output"]
        kept = iter(full["instruction"].split())
        assert all(word in kept or word.rstrip(".") in full["instruction"] for word in bare["instruction"].split())
        assert len(bare["instruction"]) < len(full["instruction"])
        assert f"How many, {number}?" in bare["instruction"]


def test_the_choice_depends_on_seed_set_and_text_and_on_nothing_else() -> None:
    assert row() == row()
    assert len({row(seed=seed)["instruction"] for seed in range(40)}) > 5
    assert len({row(rationale=f"{n}")["instruction"] for n in range(40)}) > 5
    assert len({row(seed=seed)["output"] for seed in range(40)}) > 3


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("bloody mess", "bloody mess"), ("Sentence A", "sentence a"), ("it is not possible to tell", "it is not possible to tell"),
        ("(C)", "c"), ("C. 1120", "c"), ("$72", "72"), ("7 apples", "7"), ("1,000", "1000"), ("no", "no"), ("no one", "no one"),
        ("washington d.c", "washington d.c"), ("Dr. No", "dr. no"), ('say "hi". Twice', 'say "hi". twice'), ("不能确定", "不能确定"),
        ("没有。", "没有"), ("🙂", "🙂"), ("a dog", "a dog"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("set_name", ["ecqa", "cot_cn"])
def test_any_answer_is_read_back(answer: str, read: str, set_name: str) -> None:
    for style in STYLES:
        for seed in range(10):
            assert extract_answer(row(answer=answer, set_name=set_name, style=style, seed=seed)["output"]) == read


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"question": " \n"}, "no question"), ({"answer": ""}, "no answer"), ({"rationale": "\n"}, "no rationale"),
        ({"rationale": "", "style": "answer_only"}, "no rationale"),
        ({"answer": "one\ntwo"}, "answer cannot be read back"), ({"answer": "..."}, "answer cannot be read back"),
        ({"answer": "the answer is 3"}, "answer cannot be read back"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_say_why(changed: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        row(**changed)


def test_an_unknown_set_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown CoT set 'gms8k'\. Did you mean gsm8k\?"):
        row(set_name="gms8k")


def test_earlier_announcements_and_templates_in_the_text_do_no_harm() -> None:
    made = row(question="What is {answer} in {question} <cue>x</cue>?", rationale="The answer is 8? No, {answer}.")
    assert "What is {answer} in {question} <cue>x</cue>?" in made["instruction"]
    assert extract_answer(made["output"]) == "7"


@pytest.mark.parametrize(
    ("text", "mended"),
    [("Where?. Here", "Where? Here"), ("Why??", "Why?"), ("Why? ? .\nx", "Why?\nx"), ("为什么？。", "为什么？"), ("a?.5", "a? .5"),
     ("  a \n b\n\n", "a\n b"), ("$\\neq$", "$\\neq$"), ("", "")],
)  # fmt: skip
def test_slips_are_mended(text: str, mended: str) -> None:
    assert cot.mend(text) == mended


def test_bodies_leave_out_the_wording_of_others() -> None:
    assert (
        cot.body("creak", 'Is it true?\n"Cats bark."\nOptions:\n- yes\n- no') == '"Cats bark."\nOptions:\n- yes\n- no'
    )
    assert cot.body("creak", 'Claim: "Cats bark."\nIs the claim correct?') == '"Cats bark."'
    assert cot.body("creak", "Do cats bark?") == "Do cats bark?"
    both = 'Sentence A: "x"\nSentence B: "y"'
    assert cot.body("sensemaking", 'Pick one.\nOptions:\n- Sentence A: "x"\n- Sentence B: "y"') == both
    assert cot.body("qasc", "What?\nOptions:\n- (A) x\n- (B) y") == "What?\nOptions:\n(A) x\n(B) y"


def flan(tmp_path: Path, text: str, name: str = "flan_cot_ecqa_train.tsv", **options: Any) -> list[Any]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return [outcome for _, outcome in convert("flan_cot_tsv", path, Options(**options))]


def test_flan_lines_become_records(tmp_path: Path) -> None:
    made, empty = flan(
        tmp_path, 'Who "said" it?.\\nOptions:\\n- 猫\\n- no one\tno one\tNo one\\\\nsaid it 🙂.\nQ\tA\t\n'
    )
    assert 'Who "said" it?\nOptions:\n- 猫\n- no one' in made["instruction"]
    assert made["output"].startswith("No one\nsaid it 🙂.\n")
    assert extract_answer(made["output"]) == "no one"
    assert empty == Dropped("no rationale")
    with pytest.raises(ValueError, match="line 1: expected question, answer, rationale between tabs, found 2 columns"):
        flan(tmp_path, "Q\tA\n")


def test_the_set_comes_from_the_name_of_the_file_or_an_option(tmp_path: Path) -> None:
    line = "Q?\tyes\tBecause.\n"
    assert flan(tmp_path, line, "stream_qed_train.tsv") == flan(tmp_path, line, "x.tsv", set_name="qed")
    with pytest.raises(
        ValueError, match=r"expected one of aqua, .* in the file's name, found none; name the set as an option"
    ):
        flan(tmp_path, line, "x.tsv")


def test_worked_solutions_become_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    solution = "Two and two is <<2+2=4>>4.\nThat costs $<<4*250=1000>>1,000.\n#### 1,000"
    rows = [{"question": "几个？", "answer": solution}, {"question": "Q", "answer": "no mark"}, {"question": "Q", "answer": "r\n#### "}]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    made, unmarked, empty = [outcome for _, outcome in convert("gsm8k", path)]
    assert made["output"].startswith("Two and two is 4.\nThat costs $1,000.\n")  # pyright: ignore[reportIndexIssue]
    assert extract_answer(made["output"]) == "1000"  # pyright: ignore[reportIndexIssue]
    assert (unmarked, empty) == (Dropped("no answer"), Dropped("no answer"))
    rows = [{"question": "Which?\n", "options": ["A)21", "B) 22 🙂"], "rationale": "r", "correct": correct} for correct in ("B", "F", "")]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    made, wrong, empty = [outcome for _, outcome in convert("aqua", path)]
    assert "Which?\nOptions:\n(A) 21\n(B) 22 🙂" in made["instruction"]  # pyright: ignore[reportIndexIssue]
    assert extract_answer(made["output"]) == canonical("(B)")  # pyright: ignore[reportIndexIssue]
    assert (wrong, empty) == (Dropped("the answer is none of the options"), Dropped("no answer"))
