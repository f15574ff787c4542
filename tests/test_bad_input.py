"""What goes wrong, as a user meets it: each ends in one line that says what to do, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, finetune

import evaluate
import generate
import uniform_finetune
from utils import runinfo


def fails(arguments: list[Any], message: str, capsys: pytest.CaptureFixture[str], main: Any = None) -> None:
    """Ends with exit code 1 or 2 and says `message`."""
    code: Any = None
    try:
        code = (main or uniform_finetune.main)([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    assert code in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "alpaca-bele"], "unknown dataset 'bele' in --data 'alpaca-bele'. Did you mean belle"),
        (["--data", "none.json"], "--data: there is no file none.json (looked in "),
        (["--data", "cot"], "Run python3 prepare_data.py fetch cot, or give --data your own file"),
        (["--data", "empty.json"], "empty.json holds no records: the file is empty"),
        (["--data", "broken.json"], "broken.json row 2: broken JSON"),
        (["--data", "missing.json"], "missing.json row 1: 'output' is missing"),
        (["--data", "number.json"], "number.json row 1: 'output' must be text, found a number"),
        (["--cutoff_len", "5"], "rows were dropped"),
        (["--lora_target_modules", "wq"], "--lora_target_modules wq: no linear layer of this model has that name. It has: down_proj"),
        (["--learnin_rate", "1"], "did you mean --learning_rate"),
        (["--model_type", "lama"], "did you mean llama"),
        (["--output_dir", "."], "is not empty and holds no run: choose another"),
        (["--resume_from_checkpoint"], "holds no run to go on with"),
        (["--model_name_or_path", "/no/model"], "there is no model directory /no/model"),
        (["--size", "900b"], "unknown size '900b' in --size of --model_type tiny"),
        (["--template", "chat"], "needs a tokenizer with a chat template; this one has none: leave --template out"),
    ],
)  # fmt: skip
def test_bad_input_says_what_to_do(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "broken.json").write_text('[{"instruction": "a", "output": "b"}, {"instr')
    (tmp_path / "missing.json").write_text('[{"instruction": "a"}]')
    (tmp_path / "number.json").write_text('[{"instruction": "a", "output": 5}]')
    fails(flags, message, capsys)
    assert not (tmp_path / "saved_models").exists()


def test_a_tokenizer_without_eos(llama_base: Path, records_file: Path, tmp_path: Path, capsys: Any) -> None:
    import shutil

    base = shutil.copytree(llama_base, tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    arguments = ["--model_type", "auto", "--model_name_or_path", base, "--data", records_file]
    fails([*arguments, "--output_dir", tmp_path / "run"], "no EOS token, so the model could not learn to stop", capsys)


def test_a_disk_that_is_too_small(
    llama_base: Path, records_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from utils import disk

    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: disk.shutil._ntuple_diskusage(9, 9, 9))
    assert finetune(llama_base, records_file, tmp_path / "run") == 1
    assert "where 0 MB are free: make room" in capsys.readouterr().err


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    llama_base: Path, records_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from utils.training import SupervisedTrainer

    save = SupervisedTrainer._save_optimizer_and_scheduler

    def full(self: Any, directory: str) -> None:
        if "checkpoint-2" in directory:
            raise OSError(28, "No space left on device")
        save(self, directory)

    monkeypatch.setattr(SupervisedTrainer, "_save_optimizer_and_scheduler", full)
    output = tmp_path / "run"
    assert finetune(llama_base, records_file, output, "--max_steps", 3, "--save_steps", 1, "--val_set_size", 0) == 1
    message = capsys.readouterr().err
    assert "is full (" in message
    assert "checkpoint-1 is whole: make room, then add --resume_from_checkpoint" in message
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-1"]
    monkeypatch.undo()
    resumed = ["--max_steps", 3, "--save_steps", 1, "--val_set_size", 0, "--resume_from_checkpoint"]
    assert finetune(llama_base, records_file, output, *resumed) == 0


def test_a_broken_adapter_is_not_a_finished_run(
    llama_base: Path, records_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import peft

    save = peft.PeftModel.save_pretrained

    def empty(self: Any, directory: Any, **options: Any) -> None:
        save(self, directory, **options)
        from safetensors.torch import save_file

        save_file({}, Path(directory) / "adapter_model.safetensors")

    monkeypatch.setattr(peft.PeftModel, "save_pretrained", empty)
    assert finetune(llama_base, records_file, tmp_path / "run", "--max_steps", 1, "--val_set_size", 0) == 1
    assert "lacks 28 of" in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()


def test_serving_another_base_or_family_is_refused(finished: Path, bloom_base: Path, capsys: Any) -> None:
    asked = ["--lora_dir", str(finished), "--instruction", "Hi"]
    assert generate.main([*asked, "--model_name_or_path", str(REPOSITORY / "assets" / "tiny_base")]) == 1
    assert "is not the base that" in capsys.readouterr().err
    assert generate.main([*asked, "--model_type", "bloom"]) == 1
    assert "was trained with --model_type llama, not bloom: leave it out" in capsys.readouterr().err


def test_a_template_that_changed_since_training_is_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import dataclasses

    from utils import templates

    changed = dataclasses.replace(templates.TEMPLATES["alpaca"], without_input="{instruction}\n")
    monkeypatch.setattr(templates, "TEMPLATES", {**templates.TEMPLATES, "alpaca": changed})
    asked = ["--lora_dir", str(finished), "--instruction", "Hi", "--greedy", "--max_new_tokens", "2"]
    assert generate.main(asked) == 1
    assert "is no longer the one that" in capsys.readouterr().err
    assert generate.main([*asked, "--template", "alpaca"]) == 0


def test_a_run_of_the_bundled_base_from_another_place_is_opened(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from conftest import TINY_BASE

    moved = shutil.copytree(finished, tmp_path / "moved")
    run = json.loads((moved / "run.json").read_text())
    run["settings"]["model_name_or_path"] = "/another/machine/base"
    (moved / "run.json").write_text(json.dumps(run))
    asked = ["--lora_dir", str(moved), "--instruction", "Hi", "--greedy", "--max_new_tokens", "2"]
    assert generate.main(asked) == 1
    assert "/another/machine/base, is not on this machine: name its place here" in capsys.readouterr().err
    assert generate.main([*asked, "--model_name_or_path", runinfo.read(finished).base]) == 0
    run["settings"]["model_type"] = "tiny"  # the bundled base is where the repository is; here it is another one
    (moved / "run.json").write_text(json.dumps(run))
    capsys.readouterr()
    assert generate.main(asked) == 1
    assert f"{TINY_BASE} is not the base that" in capsys.readouterr().err


def test_a_run_is_served_in_the_bits_it_was_trained_in(finished: Path, tmp_path: Path) -> None:
    import shutil

    from utils.assistant import open_run

    moved = shutil.copytree(finished, tmp_path / "moved")
    run = json.loads((moved / "run.json").read_text())
    run["settings"]["quantization_bit"] = 8
    (moved / "run.json").write_text(json.dumps(run))
    names = {type(module).__name__ for module in open_run(moved).model.modules()}
    assert "Linear8bitLt" in names
    asked = {type(module).__name__ for module in open_run(moved, quantization_bit=16).model.modules()}
    assert "Linear8bitLt" not in asked


def test_evaluate_refuses_before_it_decodes(finished: Path, tmp_path: Path, capsys: Any) -> None:
    test = tmp_path / "test.json"
    test.write_text(
        json.dumps([{"instruction": "1+1?", "output": "The answer is 2."}, {"instruction": "a", "output": "b"}])
    )
    asked = ["--lora_dir", finished, "--data", test]
    fails(asked, "test.json row 2: its answer announces nothing to compare with", capsys, main=evaluate.main)
    test.write_text(json.dumps([{"instruction": "1+1?", "output": "The answer is 2."}]))
    fails([*asked, "--output", test], "it exists already, or its folder does not", capsys, main=evaluate.main)
    fails([*asked, "--output", tmp_path / "no" / "x"], "its folder does not", capsys, main=evaluate.main)


def test_evaluate_takes_dialogues(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "The answer is 2."}]
    (tmp_path / "test.json").write_text(json.dumps([{"conversation": turns}]))
    asked = ["--lora_dir", finished, "--data", tmp_path / "test.json", "--show", 1, "--max_new_tokens", 2]
    assert evaluate.main([str(argument) for argument in asked]) == 0
    assert "question: 1+1?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora_dir", "none"], "there is no directory none"),
        (["--input", "x"], "--input belongs to an --instruction"),
        (["--instruction", "a", "--prompts_file", "b"], "two sources of questions: give one"),
        (["--data", "bele"], "unknown dataset 'bele'"),
        (
            ["--instruction", "a"],
            "no run of tiny on cot_sample lies below saved_models/: name one with --lora_dir, or train",
        ),
    ],
)
def test_generate_says_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(arguments, message, capsys, main=generate.main)


def test_ctrl_c_is_quiet(
    monkeypatch: pytest.MonkeyPatch, llama_base: Path, records_file: Path, tmp_path: Path, capsys: Any
) -> None:
    from utils.training import SupervisedTrainer

    def interrupted(self: Any, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SupervisedTrainer, "training_step", interrupted)
    assert finetune(llama_base, records_file, tmp_path / "run") == 130
    assert capsys.readouterr().err.endswith("stopped\n")
