"""predict.py as a user runs it: on tiny random bases, on CPU, without network."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS, RunScript, finetune
from tiny_families import make_family

import generate
import predict
import server
from utils import decoding_memory, prediction, result_rows

FEW = ["--greedy", "--max_new_tokens", "6"]


def lines(directory: Path) -> list[dict[str, Any]]:
    text = (directory / result_rows.NAME).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def run(*arguments: object) -> int:
    return predict.main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def families(llama_base: Path, bloom_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each family of the original's commands, trained by our own script."""
    folder = tmp_path_factory.mktemp("families")
    data = folder / "数据.json"
    data.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    bases = {"llama": llama_base, "bloom": bloom_base, "chatglm": make_family("chatglm", folder / "chatglm")}
    shape = ["--per_gpu_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--max_steps", 2, "--val_set_size", 0]
    for name, base in bases.items():
        assert finetune(base, data, folder / f"run-{name}", "--model_type", name, *shape) == 0
    return {name: folder / f"run-{name}" for name in bases}


@pytest.mark.parametrize("name", ["llama", "bloom", "chatglm"])
def test_the_originals_commands(
    name: str,
    families: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = ["--model_type", name, "--data", "for_dict_data", "--lora_dir", families[name], "--result_dir", tmp_path]
    assert run(*asked, *FEW) == 0
    assert "60 rows" in capsys.readouterr().out
    found = lines(tmp_path)
    assert len(found) == 60
    assert {line["finish_reason"] for line in found} <= {"stop", "length"}
    first = {key: found[0][key] for key in ("instruction", "input")}
    command = ["--model_type", name, "--lora_dir", str(families[name]), *FEW, "--instruction", first["instruction"]]
    assert generate.main(command) == 0
    assert capsys.readouterr().out == f"{found[0]['generate']}\n", "what generate.py says alone"
    typed = io.BytesIO(f"{first['instruction']}\n".encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(typed, encoding="utf-8"))
    assert server.main(["--model_type", name, "--lora_dir", str(families[name]), *FEW]) == 0
    assert capsys.readouterr().out.rstrip("\n") == found[0]["generate"].rstrip("\n"), "and in a chat"


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_kind_of_file(ending: str, finished: Path, tmp_path: Path) -> None:
    rows = [{"instruction": r["instruction"], "input": r["input"], "tag": f"№{i}"} for i, r in enumerate(RECORDS)]
    path = tmp_path / f"问题{ending}"
    if ending == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        import pyarrow
        from pyarrow import csv, parquet

        table = pyarrow.Table.from_pylist(rows)
        csv.write_csv(table, path) if ending == ".csv" else parquet.write_table(table, path)
    assert run("--lora_dir", finished, "--data", path, "--result_dir", tmp_path / "out", *FEW) == 0
    found = lines(tmp_path / "out")
    assert [{key: line[key] for key in rows[0]} for line in found] == rows
    assert all(isinstance(line["generate"], str) for line in found)


def test_under_torchrun_it_is_the_same_file(
    finished: Path, records_file: Path, tmp_path: Path, run_script: RunScript
) -> None:
    rows = [{"instruction": f"{number} 加 {number}? 🌏", "input": ""} for number in range(2 * prediction.GROUP + 5)]
    records_file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    asked = ["--lora_dir", finished, "--data", records_file, "--greedy", "--max_new_tokens", 2, "--result_dir"]
    assert run(*asked, tmp_path / "one") == 0
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = run_script("predict.py", *asked, tmp_path / "two", launcher=launcher)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = ((tmp_path / name / result_rows.NAME).read_bytes() for name in ("one", "two"))
    assert first == second
    assert not list((tmp_path / "two").glob(result_rows.PARTS))
    assert "on each of 2 processes" in done.stdout


def test_a_sample_is_the_rows_own(finished: Path, records_file: Path, tmp_path: Path) -> None:
    asked = ["--lora_dir", finished, "--data", records_file, "--max_new_tokens", 6, "--num_samples", 2, "--result_dir"]
    assert run(*asked, tmp_path / "a") == 0
    assert run(*asked, tmp_path / "b", "--batch_size", 1) == 0
    assert run(*asked, tmp_path / "c", "--seed", 43) == 0
    a, b, c = ([line["generate"] for line in lines(tmp_path / name)] for name in "abc")
    assert a == b != c
    assert any(one != two for one, two in a)


def test_rows_that_cannot_be_read_are_said_before_the_others_are_asked(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "q.csv"
    path.write_bytes(b"instruction\nHi\n" + "你好\n".encode("gb18030"))
    assert run("--lora_dir", finished, "--data", path, *FEW, "--result_dir", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f"1 of 2 rows cannot be asked, and fail: {path} row 2: not UTF-8" in said
    assert "stop here: a file that has changed is another job" in said


def test_prompts_that_do_not_fit_fail_alone_or_are_cut(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "q.jsonl"
    rows = [{"instruction": "Hi"}, {"instruction": "太长 🌏 " * 300}, {"instruction": "你好"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = ["--lora_dir", finished, "--data", path, *FEW, "--result_dir"]
    assert run(*asked, tmp_path / "fail") == 0
    out = capsys.readouterr().out
    assert "1 rows failed; --retry_failed asks them again. The first: 000001-" in out
    assert "more than the model's context of 512: shorten the prompt or lower --max_new_tokens" in out
    found = lines(tmp_path / "fail")
    assert [line["finish_reason"] == "error" for line in found] == [False, True, False]
    assert run(*asked, tmp_path / "cut", "--long_prompts", "cut") == 0
    assert "1 prompts were cut at their beginning to fit" in capsys.readouterr().out
    line = lines(tmp_path / "cut")[1]
    assert line["prompt_tokens"] == 512 - 6
    assert line["cut_tokens"] > 1000
    assert line["instruction"] == rows[1]["instruction"]


def test_what_is_wrong_is_said_before_anything_is_written(
    finished: Path,
    records_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("mine")
    asked = ["--lora_dir", finished, "--data", records_file, *FEW, "--result_dir"]
    assert run(*asked, tmp_path / "file") == 1
    assert (
        f"--result_dir {tmp_path / 'file'} cannot be written to (File exists): choose another"
        in capsys.readouterr().err
    )
    assert run(*asked, tmp_path / "out", "--model_type", "bloom") == 1
    assert "was trained with --model_type llama, not bloom" in capsys.readouterr().err
    monkeypatch.setattr(decoding_memory, "free", lambda: 1000)
    assert run(*asked, tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "of them its weights), and 0 MB are free: choose --quantization_bit 4, another --size or" in err
    assert not (tmp_path / "out" / result_rows.NAME).exists()
    with pytest.raises(SystemExit):
        run(*asked, tmp_path / "out", "--data", "for_dict_dat")
    assert "did you mean for_dict_data" in capsys.readouterr().err.lower()


def test_two_writers_are_one_too_many(
    finished: Path, records_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from utils import run_lock

    with run_lock.held(tmp_path / "out", print):
        assert run("--lora_dir", finished, "--data", records_file, "--result_dir", tmp_path / "out", *FEW) == 1
    assert "is being written to by process" in capsys.readouterr().err
