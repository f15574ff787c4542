import argparse
from pathlib import Path
from typing import Any

import pytest

import uniform_finetune
from utils import cli, run_lock
from utils.models import MODELS, TrainingDefaults
from utils.settings import Settings, check_output, resolve


def settings(*arguments: str) -> Settings:
    return resolve(uniform_finetune.make_parser().parse_args(list(arguments)))


def test_no_flags_is_the_bundled_run() -> None:
    chosen = settings()
    assert (chosen.model_type, chosen.data) == ("tiny", ["cot_sample"])
    assert chosen.output_dir == Path("saved_models/tiny_base_cot_sample")
    assert Path(chosen.model_name_or_path, "model.safetensors").is_file()


def test_what_is_left_out_comes_from_the_row_and_what_is_given_holds() -> None:
    row = MODELS["llama"]
    chosen = settings("--model_type", "llama", "--lora_r", "3", "--data", "alpaca-cot", "x.json")
    assert chosen.peft_type == "lora"
    assert chosen.peft_options == {
        "lora_r": 3,
        "lora_alpha": row.training.lora_alpha,
        "lora_dropout": 0.05,
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    assert row.training.lora_alpha == TrainingDefaults().lora_alpha == 16
    assert (chosen.template, chosen.data) == ("alpaca", ["alpaca-cot", "x.json"])
    assert chosen.output_dir == Path(f"saved_models/{Path(str(row.default_checkpoint)).name}_alpaca-cot-x")


def test_the_seeds_llama_command() -> None:
    chosen = settings(
        *[
            "--model_type",
            "llama",
            "--model_name_or_path",
            "decapoda-research/llama-7b-hf",
            "--data",
            "alpaca-belle-cot",
            "--lora_target_modules",
            "q_proj",
            "v_proj",
            "--per_gpu_train_batch_size",
            "4",
            "--learning_rate",
            "3e-4",
            "--epochs",
            "1",
        ]
    )
    assert (chosen.per_gpu_train_batch_size, chosen.learning_rate, chosen.epochs) == (4, 3e-4, 1)
    assert (chosen.batch_size, chosen.rows_a_step(1), chosen.rows_a_step(4), chosen.cutoff_len) == (128, 128, 128, 512)


def test_a_zero_is_not_taken_for_nothing() -> None:
    assert settings("--model_type", "llama", "--lora_dropout", "0").peft_options["lora_dropout"] == 0


def test_settings_can_be_written_down() -> None:
    import json

    written = json.loads(json.dumps(settings("--peft_type", "prefix", "--num_virtual_tokens", "7").as_dict()))
    assert written["output_dir"] == "saved_models/tiny_base_cot_sample_prefix"
    assert (written["peft_type"], written["num_virtual_tokens"]) == ("prefix", 7)
    assert not {"peft_options", "lora_r", "adalora_tinit"} & written.keys(), "another method's flags are not kept"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["prompt", "--lora_r", "4"], "--lora_r belongs to --peft_type lora, adalora, dora, .*, not to prompt: leave it out"),
        (["full", "--lora_target_modules", "q_proj"], "--lora_target_modules belongs to .*, not to full"),
        (["lora", "--adalora_tinit", "0"], "--adalora_tinit belongs to --peft_type adalora, not to lora"),
        (["prefix", "--prompt_encoder_hidden_size", "8"], "belongs to --peft_type p_tuning, not to prefix"),
        (["ia3", "--num_virtual_tokens", "8"], "belongs to --peft_type prompt, p_tuning, prefix, not to ia3"),
        (["lora", "--loraplus_lr_ratio", "8"], "belongs to --peft_type loraplus, not to lora"),
        (["full", "--quantization_bit", "8"], "--quantization_bit 8: full fine-tuning needs the weights in 16 bits, for every"),
        (["pissa", "--quantization_bit", "4"], "--quantization_bit 4: PiSSA needs the weights in 16 bits, for it takes"),
        (["prefix", "--gradient_checkpointing", "on"], "prefix tuning hands each layer trained keys and values"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_have_is_an_error(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings("--peft_type", *flags)


def test_a_method_brings_its_own_defaults() -> None:
    def llama(method: str, *more: str) -> Settings:
        return settings("--model_type", "llama", "--peft_type", method, *more)

    rates = {method: llama(method).learning_rate for method in ("lora", "loraplus", "ia3", "prompt", "full")}
    assert rates == {"lora": 3e-4, "loraplus": 7.5e-5, "ia3": 3e-3, "prompt": 3e-2, "full": 2e-5}
    assert llama("full", "--learning_rate", "1e-5").learning_rate == 1e-5
    assert llama("pissa").peft_options["lora_dropout"] == 0.0
    assert llama("full").quantization_bit == 16, "on CUDA the family's default would be 8 bits"
    assert llama("lora").quantization_bit is None
    assert llama("LoRA+").peft_type == "loraplus"


def test_an_unknown_method_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings("--peft_type", "prefx")
    assert "invalid choice: 'prefx'" in (error := capsys.readouterr().err)
    assert "did you mean prefix" in error


def test_a_step_has_as_many_rows_for_any_number_of_processes_unless_they_are_counted_by_device() -> None:
    def rows(*flags: str) -> list[int]:
        return [settings("--model_type", "llama", *flags).rows_a_step(processes) for processes in (1, 2, 4)]

    assert rows() == [128, 128, 128]
    assert rows("--batch_size", "64", "--max_tokens_per_batch", "2048") == [64, 64, 64]
    assert rows("--per_gpu_train_batch_size", "4") == [128, 128, 128]
    assert rows("--per_gpu_train_batch_size", "100") == [128, 200, 400], "at least once on each device"
    assert rows("--per_gpu_train_batch_size", "4", "--gradient_accumulation_steps", "8") == [32, 64, 128]
    assert settings().rows_a_step(3) == 24


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--gradient_accumulation_steps", "8"],
            "says how often --per_gpu_train_batch_size N rows make a step: give that",
        ),
        (
            ["--gradient_accumulation_steps", "8", "--per_gpu_train_batch_size", "4", "--batch_size", "32"],
            "--batch_size and --gradient_accumulation_steps both say how many rows a step has: give one",
        ),
        (
            ["--per_gpu_train_batch_size", "4", "--max_tokens_per_batch", "999"],
            "--per_gpu_train_batch_size and --max_tokens_per_batch both say how large a micro-batch is: give one",
        ),
        (["--per_gpu_train_batch_size", "4", "--packing"], "--packing fills --max_tokens_per_batch"),
        (["--device_memory", "80GB"], "--device_memory asks about a device that need not be here: give --dry_run, too"),
        (["--world_size", "4"], "--world_size belongs to --dry_run --device_memory SIZE; a run has as many processes"),
    ],
)
def test_flags_that_contradict_each_other(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(*flags)


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * 2**30), ("24 GiB", 24 * 2**30), ("7.5g", 15 * 2**29), ("512mb", 2**29)]
)
def test_a_size_of_memory(text: str, size: int) -> None:
    assert cli.memory_size(text) == size


@pytest.mark.parametrize("text", ["", "80", "GB", "0GB", "-3GB", "80TBs", "八十GB", "1e3GB"])
def test_what_is_no_size_of_memory(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size such as 80GB or 24GB"):
        cli.memory_size(text)


def test_auto_needs_a_model() -> None:
    with pytest.raises(ValueError, match="--model_type auto has no default model"):
        settings("--model_type", "auto")


def test_an_output_directory_that_must_not_be_lost(tmp_path: Path) -> None:
    def check(**options: Any) -> None:
        check_output(tmp_path / "run", "a/b", **{"overwrite": False, "resume": None, **options})

    check()
    with pytest.raises(ValueError, match="holds no run to go on with"):
        check(resume="")
    check(resume="elsewhere/checkpoint-5")
    (tmp_path / "run").mkdir()
    check()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    for options in ({}, {"overwrite": True}, {"resume": ""}):
        with pytest.raises(ValueError, match="is not empty and holds no run: choose another"):
            check(**options)
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(
        ValueError, match="already holds a run: --overwrite deletes it, --resume_from_checkpoint goes on"
    ):
        check()
    check(overwrite=True)
    check(resume="")
    with pytest.raises(ValueError, match="choose one of them"):
        check(overwrite=True, resume="")


def test_a_directory_that_is_only_locked_is_empty(tmp_path: Path) -> None:
    for name in run_lock.NAMES:
        (tmp_path / name).write_text("")
    check_output(tmp_path, "a/b", overwrite=False, resume=None)
    check_output(tmp_path, "a/b", overwrite=False, resume="elsewhere/checkpoint-5")
    with pytest.raises(ValueError, match=f"--resume_from_checkpoint: {tmp_path} holds no run to go on with"):
        check_output(tmp_path, "a/b", overwrite=False, resume="")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run: choose another"):
        check_output(tmp_path, "a/b", overwrite=False, resume=None)


def test_a_run_that_has_only_begun_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "training_log.jsonl").write_text("")
    with pytest.raises(ValueError, match="already holds a run: --overwrite deletes it, --resume_from_checkpoint goes"):
        check_output(tmp_path, "a/b", overwrite=False, resume=None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--resume_anyway"],
            "--resume_anyway belongs to --resume_from_checkpoint: give that, too, or leave it out",
        ),
        (
            ["--val_set_size", "0", "--early_stopping_patience", "2"],
            "--early_stopping_patience goes by the loss on rows held out, and --val_set_size 0 holds out none",
        ),
        (
            ["--val_set_size", "0", "--load_best_model_at_end"],
            "--load_best_model_at_end goes by the loss on rows held out, and --val_set_size 0 holds out none",
        ),
    ],
)
def test_what_a_run_goes_on_and_ends_by_must_be_there(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(*flags)


def test_a_run_goes_on_and_ends_as_it_is_told() -> None:
    chosen = settings()
    assert (chosen.resume_from_checkpoint, chosen.resume_anyway, chosen.max_hours) == (None, False, None)
    assert (chosen.max_skipped_steps, chosen.save_total_limit, chosen.log_row_ids) == (3, 3, False)
    assert settings("--resume_from_checkpoint").resume_from_checkpoint == "", "the newest"
    named = settings("--resume_from_checkpoint", "x/checkpoint-5", "--resume_anyway", "--max_hours", "0.5")
    assert (named.resume_from_checkpoint, named.resume_anyway, named.max_hours) == ("x/checkpoint-5", True, 0.5)
    assert not settings("--val_set_size", "0").keeps_best


def test_the_last_state_is_kept_unless_the_best_is_asked_for() -> None:
    assert not settings().keeps_best
    assert settings("--load_best_model_at_end").keeps_best
    assert settings("--early_stopping_patience", "2", "--val_set_size", "0.1").keeps_best


@pytest.mark.parametrize("flag", ["max_hours", "max_skipped_steps", "early_stopping_patience", "save_total_limit"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "two"])
def test_limits_are_above_zero(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings(f"--{flag}", value)
    assert f"argument --{flag}: {value!r} is not a" in capsys.readouterr().err


@pytest.mark.parametrize("inside", [".", "checkpoint-5"])
def test_the_base_is_never_overwritten(inside: str, tmp_path: Path) -> None:
    base = tmp_path / "merged" / inside
    base.mkdir(parents=True, exist_ok=True)
    (tmp_path / "merged" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="--overwrite would delete the base .*choose another directory"):
        check_output(tmp_path / "merged", str(base), overwrite=True, resume=None)
