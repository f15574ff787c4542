"""What a file holds, and a mixture as one file: every row somewhere, and nothing half written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS

from utils import hygiene
from utils.catalog import parse_mixture
from utils.overlap import EvaluationSets, QuestionSet
from utils.readers import read_rows
from utils.survey import near_repeats, survey, write_mixture

DIALOGUE = {
    "conversation": [
        {"role": "user", "content": "你好吗？"},
        {"role": "assistant", "content": "我很好，谢谢你的关心，也祝你一切顺利。"},
    ]
}
REFUSAL = {"instruction": "Tell me.", "input": "", "output": "As an AI language model, I cannot."}


def file_of(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def written(path: Path) -> list[Any]:
    return [row.record for row in read_rows(path)]


def test_a_survey_counts_rows_shapes_findings_and_names_some(tmp_path: Path) -> None:
    empty = {"instruction": "a", "input": "", "output": " "}
    path = file_of(tmp_path / "a.jsonl", [*RECORDS, DIALOGUE, REFUSAL, RECORDS[0], *[empty] * 5])
    told: list[int] = []
    (part,) = parse_mixture([str(path)])
    found = survey(part, on_rows=told.append)
    assert (found.rows, len(found), found.left_out, sum(told)) == (16, 16, 0, 16)
    assert (found.shapes, found.dialogues) == ({"instruction/input/output": 15, "conversation": 1}, 1)
    counts = found.counts()
    assert (counts["empty_answer"], counts["refusal"], counts["duplicate"]) == (5, 1, 5)
    assert found.examples["empty_answer"] == ["line 12", "line 13", "line 14"]
    assert found.languages["CN"] == 2
    assert found.column("characters")[-1] == len(hygiene.text_of(empty))


def test_a_cut_part_is_surveyed_as_it_is_cut(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.jsonl", RECORDS)
    (part,) = parse_mixture([f"{path}:3"])
    found = survey(part)
    assert (found.rows, len(found), found.left_out) == (8, 3, 5)


def test_near_repeats_are_counted_over_all_parts(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(70)]
    rows = [{"instruction": " ".join([*words[:9], end, *words[10:]]), "output": "ok"} for end in ("a", "b")]
    paths = [str(file_of(tmp_path / f"{i}.jsonl", [row])) for i, row in enumerate(rows)]
    assert near_repeats(parse_mixture(paths), 0, lambda count: None) == 1


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_a_mixture_is_written_in_order_repeated_and_accounted_for(tmp_path: Path, ending: str) -> None:
    one = file_of(tmp_path / "one.jsonl", [*RECORDS[:3], RECORDS[0], REFUSAL])
    two = file_of(tmp_path / "two.jsonl", [DIALOGUE, RECORDS[1]])
    out = tmp_path / f"out{ending}"
    parts = parse_mixture([str(one), f"{two}*2"])
    ledger = write_mixture(parts, out, seed=0, drop=hygiene.resolve(["refusal"]))
    # What both hold stays in the part that is repeated.
    assert written(out) == [RECORDS[0], RECORDS[2], *[DIALOGUE, RECORDS[1]] * 2]
    first, second = ledger.sources.values()
    assert (first.read, first.trained, first.dropped.total()) == (5, 2, 3)
    assert (second.read, second.trained, second.repeated, second.dropped.total()) == (2, 4, 2, 0)
    about = json.loads((tmp_path / f"out{ending}.source.json").read_text(encoding="utf-8"))
    assert [part["repeat"] for part in about["mixture"]] == [1, 2]
    assert about["ledger"]["sources"][str(one)]["dropped"] == dict(first.dropped)


def test_evaluation_questions_do_not_get_into_a_mixture(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.jsonl", RECORDS)
    sets = EvaluationSets([QuestionSet(name="t", questions=("Name a colour.",), ngram=13)])
    write_mixture(parse_mixture([str(path)]), tmp_path / "o.json", seed=0, drop=hygiene.resolve(), overlap=sets)
    assert written(tmp_path / "o.json") == [row for row in RECORDS if row["instruction"] != "Name a colour."]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"instruction": "a", "output": ""}], "all 1 rows were dropped"),
        ([RECORDS[0], {"instruction": "a"}], "line 2: 'output' is missing"),
    ],
)
def test_what_goes_wrong_writes_nothing(tmp_path: Path, rows: list[Any], message: str) -> None:
    path, out = file_of(tmp_path / "a.jsonl", rows), tmp_path / "o.json"
    out.write_text("before")
    with pytest.raises(ValueError, match=message):
        write_mixture(parse_mixture([str(path)]), out, seed=0, drop=hygiene.resolve())
    assert out.read_text() == "before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "o.json"]


def test_a_mixture_does_not_replace_its_part(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.jsonl", RECORDS)
    with pytest.raises(ValueError, match="the output would replace one of its parts"):
        write_mixture(parse_mixture([str(path)]), path, seed=0, drop=hygiene.resolve())
    with pytest.raises(ValueError, match="'.csv' is not one of"):
        write_mixture(parse_mixture([str(path)]), tmp_path / "a.csv", seed=0, drop=hygiene.resolve())
