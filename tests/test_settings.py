from pathlib import Path
from typing import Any

import pytest

import uniform_finetune
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
    assert chosen.lora_r == 3
    assert chosen.lora_alpha == row.training.lora_alpha == TrainingDefaults().lora_alpha == 16
    assert chosen.lora_target_modules == ["q_proj", "v_proj"]
    assert (chosen.template, chosen.data) == ("alpaca", ["alpaca-cot", "x.json"])
    assert chosen.output_dir == Path("saved_models/llama-7b-hf_alpaca-cot-x")


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
    assert (chosen.gradient_accumulation_steps, chosen.cutoff_len, chosen.lora_dropout) == (32, 512, 0.05)


def test_a_zero_is_not_taken_for_nothing() -> None:
    assert settings("--model_type", "llama", "--lora_dropout", "0").lora_dropout == 0


def test_settings_can_be_written_down() -> None:
    import json

    assert json.loads(json.dumps(settings().as_dict()))["output_dir"] == "saved_models/tiny_base_cot_sample"


def test_auto_needs_a_model() -> None:
    with pytest.raises(ValueError, match="--model_type auto has no default model"):
        settings("--model_type", "auto")


def test_an_output_directory_that_must_not_be_lost(tmp_path: Path) -> None:
    def check(**options: Any) -> None:
        check_output(tmp_path / "run", **{"overwrite": False, "resume": None, **options})

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
