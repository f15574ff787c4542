import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from utils import conversion
from utils.cache import content_hash
from utils.conversion import convert_files, provenance_path
from utils.converters import CONVERTERS, Options
from utils.readers import read_rows
from utils.scoring import canonical, extract_answer

FLAN = {"aqua": 2728, "creak": 6915, "ecqa": 7112, "gsm8k": 7473, "qasc": 1084, "sensemaking": 6070, "strategyqa": 2061}
ROWS = [{"prompt": "你好 👋", "response": "好"}, {"prompt": "b"}, {"prompt": "c\u2028", "response": "<d>"}]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write(tmp_path / "raw.jsonl", ROWS)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_rows_are_written_in_order_and_accounted_for(raw: Path, tmp_path: Path, ending: str) -> None:
    seen = []
    out = tmp_path / "new" / f"out{ending}"
    done = convert_files("fields", [raw, raw], out, on_row=lambda: seen.append(1))
    assert (done.read, done.written, done.dropped, len(seen)) == (6, 4, Counter({"no output": 2}), 6)
    assert [row.record["output"] for row in read_rows(out)] == ["好", "<d>"] * 2
    assert "你好 👋" in out.read_text(encoding="utf-8")
    found = json.loads(provenance_path(out).read_text(encoding="utf-8"))
    assert (found["converter"], found["read"], found["written"], found["dropped"]) == ("fields", 6, 4, {"no output": 2})
    assert [(given["name"], given["rows"]) for given in found["inputs"]] == [("raw.jsonl", 3)] * 2
    assert found["sha256"] == done.sha256 == content_hash(out)
    assert found["options"]["style"] == "cot"
    assert left(out.parent) == {out.name, provenance_path(out).name}


def test_a_rerun_does_nothing_until_something_changes(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"

    def skipped(**options: Any) -> bool:
        return convert_files("fields", [raw], out, options=Options(**options)).skipped

    first = convert_files("fields", [raw], out)
    again = convert_files("fields", [raw], out)
    assert (first.skipped, again.skipped) == (False, True)
    assert (again.read, again.written, again.dropped, again.sha256) == (
        first.read,
        first.written,
        first.dropped,
        first.sha256,
    )
    assert (skipped(seed=1), skipped(seed=1), skipped()) == (False, True, False)
    out.write_text("[]", encoding="utf-8")
    assert (skipped(), skipped()) == (False, True)
    write(raw, ROWS[:1])
    assert (skipped(), skipped()) == (False, True)
    provenance_path(out).write_text("{", encoding="utf-8")
    assert (skipped(), skipped()) == (False, True)
    out.unlink()
    assert (skipped(), skipped()) == (False, True)


def test_changed_code_converts_again(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.json"
    convert_files("fields", [raw], out)
    monkeypatch.setattr(conversion, "code_hash", lambda: "other")
    assert not convert_files("fields", [raw], out).skipped


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, {"prompt": "b"}], r"raw\.jsonl: all 2 rows were dropped \(no output: 2\); nothing was written\. Convert"),
        ([], r"raw\.jsonl: there are no rows; nothing was written"),
        ([*ROWS, {"prompt": None}], r"raw\.jsonl line 4: expected text in 'prompt', found null"),
    ],
)  # fmt: skip
def test_an_error_leaves_what_was_there(raw: Path, tmp_path: Path, rows: list[Any], message: str) -> None:
    out = tmp_path / "out.json"
    convert_files("fields", [raw], out)
    before, names = out.read_bytes(), left(tmp_path)
    write(raw, rows)
    with pytest.raises(ValueError, match=message):
        convert_files("fields", [raw], out)
    assert (out.read_bytes(), left(tmp_path)) == (before, names)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_conversion_leaves_nothing_behind(raw: Path, tmp_path: Path, error: Any) -> None:
    def interrupt() -> None:
        raise error

    with pytest.raises(error if isinstance(error, type) else OSError):
        convert_files("fields", [raw], tmp_path / "out.json", on_row=interrupt)
    assert left(tmp_path) == {"raw.jsonl"}


def test_what_cannot_be_converted_is_said_first(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out\.csv: the ending '\.csv' is not one of \.json, \.jsonl"):
        convert_files("fields", [raw], tmp_path / "out.csv")
    with pytest.raises(ValueError, match=r"raw\.jsonl: the output would replace the raw file"):
        convert_files("fields", [raw], raw)
    with pytest.raises(ValueError, match="no raw file was given"):
        convert_files("fields", [], tmp_path / "out.json")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.json"):
        convert_files("fields", [tmp_path / "none.json"], tmp_path / "out.json")
    with pytest.raises(ValueError, match=r"unknown converter 'field'\. Did you mean fields"):
        convert_files("field", [raw], tmp_path / "out.json")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        raw = write(tmp_path / f"{rows}.jsonl", [{"prompt": "问" * 200, "response": "答" * 200}] * rows)
        tracemalloc.start()
        convert_files("fields", [raw], tmp_path / f"{rows}.json")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)  # what is imported and compiled once
    assert peak(12_000) < 1.3 * peak(3_000)


def test_the_committed_table_is_that_of_the_committed_results() -> None:
    results = json.loads((REPOSITORY / "benchmarks" / "results" / "conversions.json").read_text(encoding="utf-8"))
    page = (REPOSITORY / "docs" / "conversions.md").read_text(encoding="utf-8")
    for row in results["results"]["files"]:
        assert f"| {row['file']} | `{row['converter']}` | {row['rows_in']:,} | {row['rows_out']:,} |" in page
        assert row["command"] in page
        assert "refused" in row or row["rows_in"] == row["rows_out"] + sum(row["dropped"].values())
    assert all(f"| `{name}` | {converter.what} |" in page for name, converter in CONVERTERS.items())


def lines_of(real_data: Path, name: str) -> list[str]:
    """With their ends; splitlines would also cut at U+2028, which GSM8K has."""
    text = (real_data / "raw" / f"flan_cot_{name}_train.tsv").read_text(encoding="utf-8")
    return [line + "\n" for line in text.split("\n") if line]


@pytest.mark.parametrize("name", FLAN)
def test_every_real_chain_of_thought_is_kept_and_reads_back(real_data: Path, tmp_path: Path, name: str) -> None:
    lines = lines_of(real_data, name)
    done = {
        style: convert_files("flan_cot_tsv", [real_data / "raw" / f"flan_cot_{name}_train.tsv"], tmp_path / f"{style}.json", options=Options(style=style))
        for style in ("cot", "answer_only")
    }  # fmt: skip
    assert (done["cot"].read, done["cot"].written, done["cot"].dropped) == (FLAN[name], FLAN[name], Counter())
    full, bare = (
        json.loads((tmp_path / f"{style}.json").read_text(encoding="utf-8")) for style in ("cot", "answer_only")
    )
    answers = Counter(canonical(line.split("\t")[1]) for line in lines)
    assert Counter(extract_answer(record["output"]) for record in full) == answers
    assert [extract_answer(record["output"]) for record in bare] == [
        extract_answer(record["output"]) for record in full
    ]
    for record in (*full, *bare):
        text = record["instruction"] + record["output"]
        assert "\\n" not in text
        assert "?." not in text
        assert "??" not in text
        assert record["output"] == record["output"].strip()
        assert "<cue>" not in text


def test_real_chains_are_the_same_bytes_again_and_after_shuffling(real_data: Path, tmp_path: Path) -> None:
    raws = [real_data / "raw" / f"flan_cot_{name}_train.tsv" for name in FLAN]
    first = convert_files("flan_cot_tsv", raws, tmp_path / "a.json")
    assert (first.read, first.written) == (33443, 33443)
    assert convert_files("flan_cot_tsv", raws, tmp_path / "b.json").sha256 == first.sha256
    rng, shuffled = random.Random(0), []
    for name in FLAN:
        lines = lines_of(real_data, name)
        rng.shuffle(lines)
        (tmp_path / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
        shuffled.insert(rng.randrange(len(shuffled) + 1), tmp_path / f"{name}.tsv")
    again = convert_files("flan_cot_tsv", shuffled, tmp_path / "c.json")
    assert again.sha256 == first.sha256
    assert (tmp_path / "c.json").read_bytes() == (tmp_path / "a.json").read_bytes()


REAL = {
    "raw/gsm8k_train.jsonl": ("gsm8k", 7473, {}),
    "raw/code_alpaca_2k.json": ("fields", 2017, {"no output": 2}),
    "raw/gpteacher_roleplay.json": ("fields", 1923, {}),
    "raw/gpteacher_toolformer.json": ("fields", 2396, {}),
    "raw/sharegpt_fastchat_dummy.json": ("sharegpt", 500, {}),
    "raw/hh_rlhf_harmless_test_200.jsonl": ("dialogue_text", 200, {"a role mark inside a turn": 4, "an empty turn": 1}),
    "raw/belle_eval_set.json": ("fields", 1000, {"no output": 369}),
    "raw/belle_zh_seed_tasks.json": ("self_instruct", 175, {}),
    "raw/self_instruct_seed_tasks.jsonl": ("self_instruct", 175, {}),
    "raw/gaokao_2010-2022_Biology_MCQs.json": ("gaokao", 150, {}),
    "raw/gaokao_2010-2022_History_MCQs.json": ("gaokao", 287, {}),
    "raw/gaokao_2010-2022_Math_II_MCQs.json": ("gaokao", 218, {}),
    "raw/gaokao_2010-2022_Geography_Open-ended.json": ("gaokao", 28, {}),
    "raw/moss_calculator_1.json": ("moss", 1, {}),
    "raw/moss_calculator_10.json": ("moss", 1, {}),
    "raw/moss_calculator_100.json": ("moss", 1, {}),
    "unified/cot_aqua_train.json": ("fields", 2728, {}),
    "unified/cot_qasc_train.json": ("fields", 1084, {}),
    "unified/cot_strategyqa_train.json": ("fields", 2061, {}),
}


@pytest.mark.parametrize("file", REAL)
def test_every_row_of_the_real_files_is_accounted_for(real_data: Path, tmp_path: Path, file: str) -> None:
    name, rows, dropped = REAL[file]
    done = convert_files(name, [real_data / file], tmp_path / "out.jsonl")
    assert (done.read, dict(done.dropped), done.written) == (rows, dropped, rows - sum(dropped.values()))
    records = [row.record for row in read_rows(tmp_path / "out.jsonl")]
    assert len(records) == done.written
    for turn in (turn for record in records for turn in record.get("conversation", [])):
        assert not turn["content"].startswith(("Human:", "Assistant:", "<|"))
        assert "<eo" not in turn["content"]


def test_real_files_without_answers_are_refused(real_data: Path, tmp_path: Path) -> None:
    message = r"instructionwild_user_1\.jsonl: all 429 rows were dropped \(no output: 429\); nothing was written"
    with pytest.raises(ValueError, match=message):
        convert_files("fields", [real_data / "raw" / "instructionwild_user_1.jsonl"], tmp_path / "out.json")
    with pytest.raises(ValueError, match=r"instructionwild_user_2\.jsonl line 134: broken JSON"):
        convert_files("fields", [real_data / "raw" / "instructionwild_user_2.jsonl"], tmp_path / "out.json")
    assert left(tmp_path) == set()
