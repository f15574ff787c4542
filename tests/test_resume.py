"""Going on with a run under other flags: what may change, what may not, and that nothing is lost by asking."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECORDS, finetune
from safetensors.torch import load_file

import uniform_finetune
from utils import checkpoints
from utils.best import Best
from utils.step_guard import StepGuard

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


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    run: Path, data: Path, llama_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoints.path_of(run, 6)
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-1])
    more = ["--epochs", 3, "--resume_from_checkpoint", "--save_total_limit", 9]
    assert finetune(llama_base, data, run, *SHAPE, *more) == 0
    assert f"{newest} is passed over: optimizer.pt has " in capsys.readouterr().out
    assert checkpoints.fault(newest) is None, "it was written anew"
    assert steps_of(run) == list(range(1, 10))


def test_a_finished_run_says_so_and_more_epochs_go_on(
    run: Path, data: Path, llama_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "run.json").read_text()
    assert finetune(llama_base, data, run, *SHAPE, "--epochs", 2, "--resume_from_checkpoint") == 0
    assert (
        "is finished (6 steps): nothing to do. More --epochs, or a larger --max_steps, go on with it"
        in capsys.readouterr().out
    )
    assert (run / "run.json").read_text() == before
    assert finetune(llama_base, data, run, *SHAPE, "--epochs", 3, "--resume_from_checkpoint") == 0
    assert steps_of(run) == list(range(1, 10))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", 7], "it was trained with --seed 42, now it is 7"),
        (["--batch_size", 4, "--per_gpu_train_batch_size", 4], "it was trained with --batch_size 2, now it is 4"),
        (["--val_set_size", 3], "it was trained on other rows: --val_set_size 2.0, now 3.0"),
        (["--cutoff_len", 60], "it was trained on other rows: --cutoff_len 512, now 60"),
    ],
)
def test_another_run_is_refused(
    flags: list[Any], message: str, run: Path, data: Path, llama_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--per_gpu_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--val_set_size", 2]
    if "--batch_size" in flags:
        given = ["--val_set_size", 2]
    code = finetune(llama_base, data, run, *given, *flags, "--epochs", 3, "--resume_from_checkpoint", "--resume_anyway")
    assert code == 1
    assert message in capsys.readouterr().err


def test_other_data_is_refused(run: Path, data: Path, llama_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_text(json.dumps([*RECORDS, {"instruction": "新", "input": "", "output": "新的"}], ensure_ascii=False))
    assert finetune(llama_base, data, run, *SHAPE, "--epochs", 3, "--resume_from_checkpoint") == 1
    assert "it was trained on other rows: --data records.json (8 rows, sha256 " in capsys.readouterr().err


def test_other_micro_batches_are_taken_only_when_asked(
    run: Path, data: Path, llama_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--batch_size", 2, "--max_tokens_per_batch", 512, "--val_set_size", 2, "--epochs", 3]
    assert finetune(llama_base, data, run, *given, "--resume_from_checkpoint") == 1
    said = capsys.readouterr().err
    assert "--max_tokens_per_batch None, now it is 512 (every step trains the same rows, and its sums" in said
    assert said.strip().endswith("give the same, or --resume_anyway to go on all the same")
    assert finetune(llama_base, data, run, *given, "--resume_from_checkpoint", "--resume_anyway") == 0
    assert "--resume_anyway: it was trained with --max_tokens_per_batch None, now it is 512" in capsys.readouterr().out


class Crash(Exception):
    """A process that ends without a word."""


def crashed(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """From here on a run breaks off during optimizer step `step`."""
    judge = StepGuard.judge

    def judged(self: StepGuard, at: int, *rest: Any) -> bool:
        if at == step:
            raise Crash
        return judge(self, at, *rest)

    monkeypatch.setattr(StepGuard, "judge", judged)


def steps_of(run: Path) -> list[int]:
    return [entry["step"] for entry in log_of(run) if "learning_rate" in entry]


def log_of(run: Path) -> list[dict[str, Any]]:
    """Without what the clock says."""
    lines = (run / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "trained_tokens_per_second"} for line in lines]


WAYS = {
    "token budget": ["--batch_size", 3, "--max_tokens_per_batch", 256],
    "accumulated": ["--per_gpu_train_batch_size", 1, "--gradient_accumulation_steps", 3],
    "packed": ["--batch_size", 3, "--max_tokens_per_batch", 256, "--packing"],
    "AdaLoRA": ["--batch_size", 3, "--peft_type", "adalora", "--learning_rate", "1e-2"],
    "P-tuning": ["--batch_size", 3, "--peft_type", "p_tuning", "--num_virtual_tokens", 4],
}


class Mixture:
    """Runs of one way on two files, with dropout, log lines that span a checkpoint, and three epochs."""

    def __init__(self, way: str, base: Path, folder: Path) -> None:
        for name, rows in (("one", RECORDS[:5]), ("two", RECORDS[5:])):
            (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        method = [] if "--peft_type" in WAYS[way] else ["--lora_target_modules", "all-linear", "--lora_dropout", 0.2]
        self.flags = [
            "--model_type", "llama", "--model_name_or_path", base, "--val_set_size", 2, "--epochs", 3, "--data",
            folder / "one.json", f"{folder / 'two.json'}*2", "--logging_steps", 2, "--save_steps", 1, "--eval_steps", 3,
            "--log_row_ids", "--save_total_limit", 2, *WAYS[way], *method,
        ]  # fmt: skip
        self.whole = folder / "whole"
        assert self.run(self.whole) == 0

    def run(self, output: Path, *more: object) -> int:
        return uniform_finetune.main([str(each) for each in (*self.flags, "--output_dir", output, *more)])


@pytest.fixture(scope="module", params=WAYS)
def mixture(request: pytest.FixtureRequest, llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    return Mixture(request.param, llama_base, tmp_path_factory.mktemp("mixture"))


@pytest.mark.parametrize("step", [2, 4, 6], ids=lambda step: f"broken off in step {step}")
def test_a_run_that_broke_off_goes_on_to_the_byte(
    step: int, mixture: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = mixture.whole, tmp_path / "broken"
    with monkeypatch.context() as patch:
        crashed(patch, step)
        with pytest.raises(Crash):
            mixture.run(broken)
    assert not (broken / "run.json").exists()
    assert mixture.run(broken, "--resume_from_checkpoint") == 0
    assert (broken / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
    assert log_of(broken) == log_of(whole)
    assert (broken / "row_ids.jsonl").read_bytes() == (whole / "row_ids.jsonl").read_bytes()
    ledgers = [json.loads((run / "run.json").read_text())["ledger"] for run in (whole, broken)]
    assert ledgers[0] == ledgers[1]


def test_a_run_goes_on_in_a_renamed_folder_and_in_another(
    llama_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*SHAPE, "--epochs", 2, "--save_steps", 1, "--log_row_ids", "--lora_dropout", 0.2]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finetune(llama_base, data, whole, *flags) == 0
    with monkeypatch.context() as patch:
        crashed(patch, 4)
        with pytest.raises(Crash):
            finetune(llama_base, data, broken, *flags)
    renamed = broken.rename(tmp_path / "renamed")
    elsewhere = tmp_path / "elsewhere"
    assert finetune(llama_base, data, elsewhere, *flags, "--resume_from_checkpoint", renamed / "checkpoint-3") == 0
    assert finetune(llama_base, data, renamed, *flags, "--resume_from_checkpoint") == 0
    for run in (renamed, elsewhere):
        assert (run / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
        assert log_of(run) == log_of(whole)
        assert (run / "row_ids.jsonl").read_bytes() == (whole / "row_ids.jsonl").read_bytes()


def test_a_run_that_broke_off_after_its_last_step_is_finished(
    llama_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*SHAPE, "--max_steps", 4, "--save_steps", 1]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finetune(llama_base, data, whole, *flags) == 0
    with monkeypatch.context() as patch:
        patch.setattr("utils.verification.require_moved", lambda *_: (_ for _ in ()).throw(Crash))
        with pytest.raises(Crash):
            finetune(llama_base, data, broken, *flags)
    assert finetune(llama_base, data, broken, *flags, "--resume_from_checkpoint") == 0
    assert (broken / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
    assert steps_of(broken) == [1, 2, 3, 4]


def worse_after(monkeypatch: pytest.MonkeyPatch, best: int) -> None:
    """Validation loss is lowest after step `best`."""
    see = Best.see
    monkeypatch.setattr(Best, "see", lambda self, step, loss: see(self, step, abs(step - best) + 1.0))


def test_early_stopping_keeps_the_best(
    llama_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SHAPE, "--max_steps", 9, "--save_steps", 1, "--eval_steps", 1]
    assert (
        finetune(
            llama_base, data, tmp_path / "short", *SHAPE, "--max_steps", 9, "--save_steps", 1, "--save_total_limit", 9
        )
        == 0
    )
    worse_after(monkeypatch, 3)
    run = tmp_path / "run"
    assert finetune(llama_base, data, run, *flags, "--early_stopping_patience", 2, "--save_total_limit", 1) == 0
    assert "kept: step 3, whose validation loss of 1.0000 is the lowest; that of the last validation was 3.0000" in (
        capsys.readouterr().out
    )
    assert steps_of(run) == [1, 2, 3, 4, 5]
    kept, third = (load_file(path / "adapter_model.safetensors") for path in (run, tmp_path / "short" / "checkpoint-3"))
    assert all(torch.equal(kept[name], third[name]) for name in third)
    assert json.loads((run / "run.json").read_text())["metrics"]["kept_step"] == 3
    assert {path.name for path in run.glob("checkpoint-*")} >= {"checkpoint-3"}


def test_the_last_is_kept_and_the_best_is_named(
    llama_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worse_after(monkeypatch, 2)
    assert finetune(llama_base, data, tmp_path / "run", *SHAPE, "--max_steps", 4, "--eval_steps", 1) == 0
    assert "kept: the last step, 4; the best was step 2" in capsys.readouterr().out


def test_the_best_needs_rows_held_out(
    llama_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data.write_text(json.dumps(RECORDS[:1]))
    assert finetune(llama_base, data, tmp_path / "run", "--load_best_model_at_end") == 1
    assert (
        "the best state is found on rows held out, and there are none: give --val_set_size" in capsys.readouterr().err
    )


def test_another_learning_rate_is_taken(run: Path, data: Path, llama_base: Path) -> None:
    flags = ["--epochs", 4, "--resume_from_checkpoint", "--learning_rate", 1e-5, "--warmup_steps", 0]
    assert finetune(llama_base, data, run, *SHAPE, *flags) == 0
    log = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert rates[0] > 1e-3
    assert 0 < rates[-1] < 1e-5
    assert json.loads((run / "run.json").read_text())["settings"]["learning_rate"] == 1e-5
