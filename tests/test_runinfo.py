import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from utils import VERSION, runinfo
from utils.ledger import Account, Ledger
from utils.runinfo import RunInfo


def make_run(**changes: Any) -> RunInfo:
    settings = {
        "model_type": "llama",
        "model_name_or_path": "some/base",
        "data": ["alpaca-cot"],
        "template": "alpaca",
        "seed": 1,
        "revision": None,
    }
    values: dict[str, Any] = {
        "settings": settings | changes.pop("settings", {}),
        "base_fingerprint": "f",
        "template_hash": "0123456789abcdef0",
        "stop_token_ids": [2],
        "sources": [{"name": "alpaca", "rows": 3, "license": None, "sha256": "0" * 64}],
        "ledger": Ledger(
            sources={
                "alpaca": Account(
                    read=3, trained=2, tokens=20, trained_tokens=5, dropped=Counter({"an answer is empty": 1})
                )
            },
            notes=["a note"],
        ).as_dict(),
        "world_size": 1,
        "metrics": {"train_loss": 0.5},
        "trained_tokens": 9,
        "verified": {"tensors": 4, "max_logit_difference": 0.0, "max_logit": 7.0, "probe_tokens": 5},
        "versions": {"torch": "2"},
        "commit": None,
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 65.0,
    }
    return RunInfo(**values | changes)


def test_round_trip(tmp_path: Path) -> None:
    run = make_run(metrics={"validation_loss": 0.1})
    assert runinfo.write(run, tmp_path) == tmp_path / "run.json"
    assert runinfo.read(tmp_path) == run
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_no_run_broken_run_and_foreign_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run.json: it is not a run of uniform_finetune.py, or"):
        runinfo.read(tmp_path)
    (tmp_path / "run.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"run.json is broken .*; train the run again"):
        runinfo.read(tmp_path)
    for text in ('{"format": 99}', "[]", json.dumps({"format": runinfo.FORMAT})):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match="was not written by this version"):
            runinfo.read(tmp_path)


def test_runs_are_found_by_family_and_data_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = {
        "old": make_run(),
        "new": make_run(started="2026-02-01T00:00:00+00:00"),
        "other_data": make_run(settings={"data": ["alpaca", "cot"]}),
        "other_family": make_run(settings={"model_type": "bloom"}),
    }
    for name, run in runs.items():
        (tmp_path / "saved_models" / name).mkdir(parents=True)
        runinfo.write(run, tmp_path / "saved_models" / name)
    (tmp_path / "saved_models" / "broken").mkdir()
    (tmp_path / "saved_models" / "broken" / "run.json").write_text("{}")
    assert runinfo.find("llama", ["alpaca-cot"]) == [Path("saved_models/new"), Path("saved_models/old")]
    assert runinfo.find("llama", ["belle"]) == []


def test_a_run_is_found_before_its_merged_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    newer = make_run(started="2026-02-01T00:00:00+00:00")
    for name, run in (("a", make_run()), ("a_merged", make_run()), ("z_merged", newer)):
        (tmp_path / "saved_models" / name).mkdir(parents=True)
        runinfo.write(run, tmp_path / "saved_models" / name)
        if name != "a":
            (tmp_path / "saved_models" / name / "merge.json").write_text("{}")
    found = runinfo.find("llama", ["alpaca-cot"])
    assert [path.name for path in found] == ["z_merged", "a", "a_merged"]


def test_the_default_directory() -> None:
    assert runinfo.default_directory("a/llama-7b-hf/", "alpaca-cot") == Path("saved_models/llama-7b-hf_alpaca-cot")


def test_only_what_a_run_wrote_is_deleted(tmp_path: Path) -> None:
    runinfo.clear(tmp_path / "none")
    for name in ("thesis.txt", "run.json", "training_log.jsonl", "loss.png", "merge.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "optimizer.pt").write_text("x")
    runinfo.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("trace", ["run.json", "training_log.jsonl", "checkpoint-7", "adapter_config.json"])
def test_a_run_that_was_stopped_early_is_a_run_too(trace: str, tmp_path: Path) -> None:
    assert not runinfo.has_run(tmp_path)
    (tmp_path / trace).write_text("")
    assert runinfo.has_run(tmp_path)


def test_versions_and_commit(tmp_path: Path) -> None:
    versions = runinfo.versions()
    assert {"torch", "transformers", "peft"} <= versions.keys()
    assert versions["alpaca-cot"] == VERSION
    assert runinfo.commit(tmp_path) is None


def test_every_field_is_written() -> None:
    assert {field.name for field in dataclasses.fields(RunInfo)} >= {"settings", "ledger", "verified", "versions"}
