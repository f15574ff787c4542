import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from utils import catalog, tasks
from utils.tasks import Item, TaskSpec, items, questions, read_tasks

SPEC = TaskSpec(
    title="T", path="t.jsonl", form="rows", question=("question",), answer="answer", kind="number", lang=("EN",),
    source="https://x.org", license="MIT",
)  # fmt: skip
DOCUMENT = {"form": "document", "question": ("input",)}
ROW = 'title = "T"\npath = "t.json"\nform = "records"\nkind = "number"\nlang = ["EN"]\nsource = "s"\nlicense = "MIT"\n'


def ask(tmp_path: Path, text: str, **fields: Any) -> list[str]:
    spec = replace(SPEC, **fields)
    (tmp_path / spec.path).write_text(text, encoding="utf-8")
    return list(questions(spec, tmp_path))


def test_rows_name_what_is_needed_to_find_and_cite_them() -> None:
    rows = read_tasks()
    assert {"cot_sample_test", "gsm8k", "aqua", "strategyqa", "belle_eval"} <= rows.keys()
    for key, spec in rows.items():
        assert spec.title, key
        assert spec.source, key
        assert spec.license, key
        assert catalog.KEY.fullmatch(key)
        assert not Path(spec.path).is_absolute(), key
        assert spec.ngram == tasks.SHORTEST_NGRAM or spec.note, f"{key} says why its runs are not of 13 words"


def test_the_vocabulary_and_the_folder_are_the_catalogues() -> None:
    assert set(tasks.LANGUAGES) == set(catalog.LANGUAGES)
    assert tasks.DATA_DIR is catalog.DATA_DIR


def test_our_own_task_asks_what_its_file_asks() -> None:
    spec = read_tasks()["cot_sample_test"]
    rows = json.loads((tasks.DATA_DIR / spec.path).read_text(encoding="utf-8"))
    assert list(questions(spec)) == [row["instruction"] for row in rows]


def test_each_form(tmp_path: Path) -> None:
    records = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "你好 👋", "output": "x"}]
    assert ask(tmp_path, json.dumps(records), form="records", path="t.json") == ["Add.\n1 2", "你好 👋"]
    lines = '{"question": "Why?", "answer": "so"}\n\n{"question": "为什么？"}\n'
    assert ask(tmp_path, lines) == ["Why?", "为什么？"]
    assert ask(tmp_path, lines, path="t.json") == ["Why?", "为什么？"], "some JSON Lines end in .json"
    bigbench = json.dumps({"name": "x", "examples": [{"input": "Is it?", "target": "No."}]})
    assert ask(tmp_path, bigbench, **DOCUMENT) == ["Is it?"]
    assert ask(tmp_path, '{"example": [{"input": "是？"}]}', under="example", **DOCUMENT) == ["是？"]
    parts = ("a.b", "c")
    assert ask(tmp_path, '{"a": {"b": "Four sit."}, "c": "How many?"}', question=parts) == ["Four sit. How many?"]
    assert ask(tmp_path, "") == []


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ('{"question": "a"}\n{"q": "b"}', {}, "t.jsonl line 2: 'question' must be text that is not empty, found None"),
        ('{"question": 3}', {}, "line 1: 'question' must be text that is not empty, found 3"),
        ('"a"', {}, "line 1: 'question' must be text"),
        ('{"instruction": "  "}', {"form": "records"}, "line 1: 'instruction' must be text that is not empty, found '  '"),
        ('{"instruction": "a", "input": 1}', {"form": "records"}, "line 1: 'input' must be text"),
        ('["a"]', DOCUMENT, "t.jsonl: task 'T' holds a list under 'examples'; it is missing"),
        ('{"examples": [{"input": "a"}, 1]}', DOCUMENT, "t.jsonl example 2: 'input' must be text"),
        ('{"question"', {}, "t.jsonl line 1: broken JSON"),
    ],
)  # fmt: skip
def test_a_row_without_a_question_is_named(tmp_path: Path, text: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(tmp_path, text, **fields)


def test_a_row_of_records_that_is_no_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 1: 'instruction' must be text"):
        ask(tmp_path, '["a"]', form="records", path="t.json")


def test_a_missing_file_says_where_it_is_from(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"task 'T' is not on this machine: .*t.jsonl is missing; it is at https://x.org; place it there",
    ):
        list(questions(SPEC, tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROW.replace("title", "tilte"), r"tasks.toml: row \[a\]: .*unexpected keyword argument 'tilte'"),
        (ROW.replace('title = "T"\n', ""), r"row \[a\]: .*missing 1 required keyword-only argument: 'title'"),
        (ROW.replace('"records"', '"record"'), r"row \[a\]: unknown form 'record'. Did you mean records\?"),
        (ROW.replace('"EN"', '"ENG"'), r"row \[a\]: unknown language 'ENG'. Did you mean EN\?"),
        (ROW.replace('"number"', '"nummer"'), r"row \[a\]: unknown kind 'nummer'. Did you mean number\?"),
        (
            ROW.replace('"records"', '"rows"'),
            r"row \[a\]: a file of 'rows' needs the fields of its question and its answer",
        ),
        (ROW + "ngram = 5\n", r"row \[a\]: ngram is 5; it must be 0 \(whole questions only\) or 13 and more"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "tasks.toml"
    file.write_text("[a]\n" + text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_tasks(file)


def rows_of(tmp_path: Path, *rows: Any, **fields: Any) -> list[Item]:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return list(items(replace(SPEC, **fields), file))


def test_items_have_a_reference_in_their_types_form(tmp_path: Path) -> None:
    asked = {"question": "Why? 🤔"}
    (item,) = rows_of(tmp_path, {**asked, "answer": "so 9*2 = 18\n#### 1,800", "class": "算术"}, group="class")
    assert (item.question, item.choices, item.reference, item.group) == ("Why? 🤔", (), "1800", "算术")
    assert item.origin.endswith("mine.jsonl line 1")
    answers = [
        ("number", [8.0], "8"),
        ("number", 3, "3"),
        ("yes_no", {"Yes": 0, "No": 1}, "no"),
        ("date", {"01/11/1961": 1, "01/11/1960": 0}, "1961-01-11"),
        ("letters", "nk", "nk"),
        ("text", "(B)", "b"),
        ("choice", ["D"], "d"),
        ("open", " 你好。 ", "你好。"),
        ("open", None, ""),
    ]
    for kind, given, expected in answers:
        assert rows_of(tmp_path, {**asked, "answer": given}, kind=kind)[0].reference == expected, (kind, given)


def test_options_in_every_shape(tmp_path: Path) -> None:
    shapes: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"o": ["A)11", "B)12 )"]}, ("o",)),
        ({"o": ["11", "12 )"]}, ("o",)),
        ({"o": [{"label": "A", "text": "11"}, {"label": "B", "text": "12 )"}]}, ("o",)),
        ({"o": {"label": ["A", "B"], "text": ["11", "12 )"]}}, ("o",)),
        ({"A": "11", "B": "12 )"}, ("A", "B")),
    ]
    for row, names in shapes:
        for answer in ("B", "(b)", "12 )", 1):
            found = rows_of(tmp_path, {"question": "q", "answer": answer, **row}, kind="choice", choices=names)[0]
            assert (found.choices, found.reference) == (("11", "12 )"), "b"), (row, answer)


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"answer": "many"}, {}, r"mine.jsonl line 1: 'answer' is not an answer of the type 'number' of the task 'T': 'many'; mend the row"),
        ({"answer": [1, 2]}, {}, r"'answer' is not an answer .*\[1, 2\]"),
        ({}, {}, "'answer' is not an answer .*None"),
        ({"answer": "E", "o": ["x", "y"]}, {"kind": "choice", "choices": ("o",)}, "not an answer of the type 'choice'"),
        ({"answer": 2, "o": ["x", "y"]}, {"kind": "choice", "choices": ("o",)}, "not an answer of the type 'choice'"),
        ({"answer": "A", "o": ["x"]}, {"kind": "choice", "choices": ("o",)}, r"'o' must hold 2 to 8 options, found \['x'\]"),
        ({"answer": "A", "o": ["x", ""]}, {"kind": "choice", "choices": ("o",)}, "'o' must hold 2 to 8 options"),
        ({"answer": "A"}, {"kind": "choice", "choices": ("o",)}, "'o' must hold 2 to 8 options, found None"),
        ({"answer": "A", "A": "x"}, {"kind": "choice", "choices": ("A", "B")}, "'B' must be text that is not empty, found None"),
    ],
)  # fmt: skip
def test_a_row_without_a_usable_answer_is_named(tmp_path: Path, row: Any, fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path, {"question": "q", **row}, **fields)


def test_every_row_of_the_bundled_task_can_be_scored() -> None:
    rows = list(items(read_tasks()["cot_sample_test"]))
    assert len(rows) == 200
    assert {row.reference for row in rows} <= set("0123456789")


def test_the_gold_answers_of_the_real_files(real_data: Path) -> None:
    specs = read_tasks()
    gsm8k = list(items(specs["gsm8k"], real_data / "eval/gsm8k_test.jsonl"))
    assert len(gsm8k) == 1319
    raw = [json.loads(line) for line in (real_data / "eval/aqua_test.json").read_text(encoding="utf-8").splitlines()]
    aqua = list(items(specs["aqua"], real_data / "eval/aqua_test.json"))
    assert [row.reference.upper() for row in aqua] == [row["correct"] for row in raw]
    assert len(aqua) == 254
    assert all(len(row.choices) == 5 for row in aqua)
    strategyqa = list(items(specs["strategyqa"], real_data / "eval/strategyqa_task.json"))
    document = json.loads((real_data / "eval/strategyqa_task.json").read_text(encoding="utf-8"))
    assert [row.reference == "yes" for row in strategyqa] == [
        bool(e["target_scores"]["Yes"]) for e in document["examples"]
    ]
    assert len(strategyqa) == 2290
    belle = list(items(specs["belle_eval"], real_data / "raw/belle_eval_set.json"))
    assert (len(belle), sum(1 for row in belle if not row.reference)) == (1000, 369)
    assert len({row.group for row in belle}) == 10
    for subject, count in (("Biology", 150), ("History", 287), ("Math_II", 218)):
        gaokao = list(items(specs["gaokao"], real_data / f"raw/gaokao_2010-2022_{subject}_MCQs.json"))
        assert len(gaokao) == count
        assert {row.reference for row in gaokao} == set("abcd")


def test_the_real_files_hold_as_many_questions_as_published(real_data: Path) -> None:
    rows = read_tasks()
    assert {key: sum(1 for _ in questions(rows[key], real_data)) for key in ("gsm8k", "aqua", "strategyqa")} == {
        "gsm8k": 1319,
        "aqua": 254,
        "strategyqa": 2290,
    }
