import json
from dataclasses import replace
from pathlib import Path

import pytest

from utils import catalog, tasks
from utils.tasks import TaskSpec, questions, read_tasks

SPEC = TaskSpec(title="T", path="t.jsonl", form="question", lang=("EN",), source="https://x.org", license="MIT")
ROW = 'title = "T"\npath = "t.json"\nform = "records"\nlang = ["EN"]\nsource = "s"\nlicense = "MIT"\n'


def ask(tmp_path: Path, text: str, **fields: str) -> list[str]:
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
    assert ask(tmp_path, bigbench, form="bigbench") == ["Is it?"]
    assert ask(tmp_path, "") == []


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ('{"question": "a"}\n{"q": "b"}', "question", "t.jsonl line 2: 'question' must be text that is not empty, found None"),
        ('{"question": 3}', "question", "line 1: 'question' must be text that is not empty, found 3"),
        ('"a"', "question", "line 1: 'question' must be text"),
        ('{"instruction": "  "}', "records", "line 1: 'instruction' must be text that is not empty, found '  '"),
        ('{"instruction": "a", "input": 1}', "records", "line 1: 'input' must be text"),
        ('["a"]', "bigbench", "t.jsonl: a BIG-bench task holds a list under 'examples'; it is missing"),
        ('{"examples": [{"input": "a"}, 1]}', "bigbench", "t.jsonl example 2: 'input' must be text"),
        ('{"question"', "question", "t.jsonl line 1: broken JSON"),
    ],
)  # fmt: skip
def test_a_row_without_a_question_is_named(tmp_path: Path, text: str, form: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(tmp_path, text, form=form)


def test_a_row_of_records_that_is_no_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 1: 'instruction' must be text"):
        ask(tmp_path, '["a"]', form="records", path="t.json")


def test_a_missing_file_says_where_it_is_from(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"task 'T' is not on this machine: .*t.jsonl is missing; .*https://x.org"
    ):
        list(questions(SPEC, tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROW.replace("title", "tilte"), r"tasks.toml: row \[a\]: .*unexpected keyword argument 'tilte'"),
        (ROW.replace('title = "T"\n', ""), r"row \[a\]: .*missing 1 required keyword-only argument: 'title'"),
        (ROW.replace('"records"', '"record"'), r"row \[a\]: unknown form 'record'. Did you mean records\?"),
        (ROW.replace('"EN"', '"ENG"'), r"row \[a\]: unknown language 'ENG'. Did you mean EN\?"),
        (ROW + "ngram = 5\n", r"row \[a\]: ngram is 5; it must be 0 \(whole questions only\) or 13 and more"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "tasks.toml"
    file.write_text("[a]\n" + text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_tasks(file)


def test_the_real_files_hold_as_many_questions_as_published(real_data: Path) -> None:
    rows = read_tasks()
    assert {key: sum(1 for _ in questions(rows[key], real_data)) for key in ("gsm8k", "aqua", "strategyqa")} == {
        "gsm8k": 1319,
        "aqua": 254,
        "strategyqa": 2290,
    }
