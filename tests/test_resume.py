"""Going on with a run under other flags: what may change, what may not, and that nothing is lost by asking."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS, finetune

SHAPE = ["--per_gpu_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--val_set_size", 2]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "records.json").write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    return tmp_path / "records.json"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_r", 4], "it was trained with --lora_r 8, now it is 4"),
        (["--lora_alpha", 2], "it was trained with --lora_alpha 16, now it is 2"),
        (["--peft_type", "rslora"], "it was trained with --peft_type lora, now it is rslora"),
        (["--peft_type", "dora"], "it was trained with --peft_type lora, now it is dora"),
    ],
)
def test_another_method_is_refused_and_costs_nothing(
    flags: list[Any], message: str, run: Path, data: Path, llama_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "run.json").read_text()
    assert finetune(llama_base, data, run, *SHAPE, "--epochs", 3, "--resume_from_checkpoint", *flags) == 1
    assert message in capsys.readouterr().err
    assert (run / "run.json").read_text() == before


def test_a_checkpoint_that_cannot_be_read_costs_nothing(run: Path, data: Path, llama_base: Path) -> None:
    newest = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    (newest / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(Exception, match="header"):
        finetune(llama_base, data, run, *SHAPE, "--epochs", 3, "--resume_from_checkpoint")
    assert (run / "run.json").is_file()


def test_another_learning_rate_is_taken(run: Path, data: Path, llama_base: Path) -> None:
    flags = ["--epochs", 4, "--resume_from_checkpoint", "--learning_rate", 1e-5, "--warmup_steps", 0]
    assert finetune(llama_base, data, run, *SHAPE, *flags) == 0
    log = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert rates[0] > 1e-3
    assert 0 < rates[-1] < 1e-5
    assert json.loads((run / "run.json").read_text())["settings"]["learning_rate"] == 1e-5
