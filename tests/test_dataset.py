import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS

from utils import dataset, hygiene
from utils.catalog import parse_mixture
from utils.overlap import EvaluationSets, QuestionSet
from utils.templates import TEMPLATES


def build(*expressions: object, tokenizer: Any, **options: Any) -> dataset.TrainingData:
    settings = {"cutoff_len": 512, "truncation": "drop", "val_set_size": 0.25, "seed": 0, **options}
    return dataset.build(parse_mixture(map(str, expressions)), TEMPLATES["alpaca"], tokenizer, **settings)


def file_of(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    path.write_text(json.dumps(list(rows), ensure_ascii=False), encoding="utf-8")
    return path


def numbered(count: int, prefix: str = "q") -> list[dict[str, str]]:
    return [{"instruction": f"{prefix}{i}", "input": "", "output": f"a{i}"} for i in range(count)]


def what(check: str) -> str:
    return hygiene.CHECKS[check].what


def texts(rows: Any, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row.input_ids) for row in rows]


def test_every_row_is_somewhere(tokenizer: Any, tmp_path: Path) -> None:
    long = {"instruction": "x", "input": "", "output": "wheel " * 600}
    path = file_of(tmp_path / "a.json", [*RECORDS, {"instruction": "a", "output": ""}, long])
    data = build(f"{path}*2", tokenizer=tokenizer, val_set_size=0)
    total = data.ledger.total
    assert (total.read, total.repeated, total.trained) == (10, len(RECORDS), 2 * len(RECORDS))
    assert dict(total.dropped) == {what("empty_answer"): 1, "longer than --cutoff_len 512": 1}
    assert len(data.train) == total.trained
    assert total.tokens == sum(len(row.input_ids) for row in data.train) == data.train.lengths.sum()
    assert total.trained_tokens == sum(row.num_targets for row in data.train) == data.train.targets.sum()
    assert data.sources[0] | {"sha256": "", "path": ""} == {
        "name": str(path), "path": "", "rows": 10, "shape": "instruction/input/output", "sha256": "", "license": None,
    }  # fmt: skip


def test_a_mixture_is_cut_repeated_and_accounted_for_by_source(tokenizer: Any, tmp_path: Path) -> None:
    one = file_of(tmp_path / "one.json", numbered(40, "one"))
    two = file_of(tmp_path / "two.json", [*numbered(20, "two"), {"instruction": "z", "output": " \n"}])
    data = build(f"{one}:10", f"{two}*3", tokenizer=tokenizer, val_set_size=0.2)
    first, second = data.ledger.sources[str(one)], data.ledger.sources[str(two)]
    assert (first.read, first.left_out, first.trained + first.validation, first.repeated) == (40, 30, 10, 0)
    assert (second.read, second.dropped[what("empty_answer")]) == (21, 1)
    assert second.trained == 3 * (20 - second.validation)
    assert data.ledger.total.validation == len(data.validation) == 6
    trained = texts(data.train, tokenizer)
    assert all(trained.count(text) == 3 for text in trained if "two" in text)
    assert not set(trained) & set(texts(data.validation, tokenizer)), "validation is held out before repeating"


def test_the_same_build_is_the_same_and_the_seed_decides_the_split(tokenizer: Any, tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.json", numbered(60))
    splits = [texts(build(path, tokenizer=tokenizer, seed=seed).validation, tokenizer) for seed in (1, 1, 2)]
    assert splits[0] == splits[1] != splits[2]


def test_exact_repeats_of_any_source_go_but_not_when_kept(tokenizer: Any, tmp_path: Path) -> None:
    one = file_of(tmp_path / "one.json", [*numbered(5), numbered(1)[0]])
    two = file_of(tmp_path / "two.json", [*numbered(2), {"instruction": "q0", "input": "", "output": "another"}])
    data = build(one, two, tokenizer=tokenizer, val_set_size=0)
    assert len(data.train) == 6
    assert [account.dropped[what("duplicate")] for account in data.ledger.sources.values()] == [1, 2]
    kept = build(one, two, tokenizer=tokenizer, val_set_size=0, drop=hygiene.resolve(keep=["duplicate"]))
    assert len(kept.train) == 9


def test_near_repeats_go_when_asked(tokenizer: Any, tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(60)]
    rows = [{"instruction": " ".join([*words[:30], end, *words[31:]]), "output": "ok"} for end in ("a", "b")]
    path = file_of(tmp_path / "a.json", [*rows, {"instruction": "", "output": "x"}, *numbered(4)])
    assert len(build(path, tokenizer=tokenizer, val_set_size=0).train) == 6
    data = build(path, tokenizer=tokenizer, val_set_size=0, drop=hygiene.resolve(["near_duplicate"]))
    assert (len(data.train), data.ledger.total.dropped[what("near_duplicate")]) == (5, 1)


def test_questions_of_evaluation_sets_are_not_trained_on(tokenizer: Any, tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.json", RECORDS)
    question = RECORDS[1]["instruction"] + "\n" + RECORDS[1]["input"]
    sets = EvaluationSets([QuestionSet(name="t", questions=(question,), ngram=13)], absent=["u"])
    data = build(path, tokenizer=tokenizer, val_set_size=0, overlap=sets)
    assert data.ledger.total.dropped == {what("evaluation_overlap"): 1}
    assert "held against the questions of t; the files of 1 other tasks are not on this machine" in data.ledger.notes
    kept = build(
        path, tokenizer=tokenizer, val_set_size=0, overlap=sets, drop=hygiene.resolve(keep=["evaluation_overlap"])
    )
    assert kept.ledger.total.reported[what("evaluation_overlap")] == 1


def test_findings_are_reported_and_dropped_only_when_asked(tokenizer: Any, tmp_path: Path) -> None:
    refusal = {"instruction": "Tell me.", "output": "As an AI language model, I cannot."}
    path = file_of(tmp_path / "a.json", [*numbered(3), refusal])
    data = build(path, tokenizer=tokenizer, val_set_size=0)
    assert (len(data.train), data.ledger.total.reported) == (4, {what("refusal"): 1})
    dropped = build(path, tokenizer=tokenizer, val_set_size=0, drop=hygiene.resolve(["refusal"]))
    assert (len(dropped.train), dropped.ledger.total.dropped, dropped.ledger.total.reported) == (
        3,
        {what("refusal"): 1},
        {},
    )


def test_the_catalogues_licence_comes_along_and_another_file_is_noted(tokenizer: Any) -> None:
    (part,) = parse_mixture(["cot_sample:40"])
    data = build("cot_sample:40", tokenizer=tokenizer)
    assert (data.sources[0]["name"], data.sources[0]["license"]) == ("cot_sample", "Apache-2.0")
    assert (len(data.train), len(data.validation)) == (30, 10)
    assert not data.ledger.notes
    assert part.spec
    other = replace(part, spec=replace(part.spec, sha256="0" * 64))
    noted = dataset.build(
        [other], TEMPLATES["alpaca"], tokenizer, cutoff_len=512, truncation="drop", val_set_size=0, seed=0
    )
    assert "is not the file that data/datasets.toml knows as cot_sample" in noted.ledger.notes[0]


def test_a_lowered_validation_set_is_said(tokenizer: Any, tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.json", numbered(100))
    data = build(path, tokenizer=tokenizer, val_set_size=2000)
    assert data.ledger.lines()[-1] == "--val_set_size 2000 would take more than half of the rows: 10 are held out"
    assert build(path, tokenizer=tokenizer, val_set_size=20).ledger.notes == []


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (RECORDS, {"cutoff_len": 8}, r"all 8 rows were dropped \(8: longer than --cutoff_len 8\): raise --cutoff_len"),
        ([{"instruction": "a", "output": ""}] * 3, {}, r"all 3 rows were dropped \(3: an answer is empty\): give --data other rows; --keep empty_answer keeps these"),
    ],
)  # fmt: skip
def test_nothing_left_is_an_error(tokenizer: Any, tmp_path: Path, rows: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(file_of(tmp_path / "a.json", rows), tokenizer=tokenizer, val_set_size=0, **options)
