"""The scripts, as a user runs them: on tiny random bases, on CPU, without network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FLAGS, RunScript, finetune
from safetensors.torch import load_file

import evaluate
import generate
from utils import checkpoints, runinfo


def test_a_run_leaves_what_the_design_says(finished: Path, llama_base: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "run.json", "README.md", "loss.png",
        "training_log.jsonl", "checkpoint-6",
    }  # fmt: skip
    run = runinfo.read(finished)
    assert (run.base, run.model_type, run.settings["lora_r"], run.world_size) == (str(llama_base), "llama", 8, 1)
    ledger = run.ledger
    assert (ledger["read"], ledger["trained"], ledger["validation"], ledger["dropped"]) == (8, 6, 2, {})
    assert {"train_loss", "validation_loss"} == run.metrics.keys()
    assert run.verified["max_logit_difference"] <= 1e-4 * run.verified["max_logit"]
    assert len(run.sources[0]["sha256"]) == 64
    assert run.trained_tokens > 0
    assert "PeftModel" in (finished / "README.md").read_text()


def test_plain_peft_gives_the_same_logits(finished: Path, llama_base: Path, tmp_path: Path) -> None:
    from utils.assistant import open_run

    program = (
        "import sys, torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(llama_base)!r}), {str(finished)!r})\n"
        f"ids = AutoTokenizer.from_pretrained({str(finished)!r})('7+4→ 你好', return_tensors='pt')\n"
        "torch.save((ids['input_ids'], model.eval()(**ids).logits.detach()), 'out.pt')\n"
        "assert not [name for name in sys.modules if name == 'utils' or name.startswith('utils.')]\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    ids, expected = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.no_grad():
        found = open_run(finished).model(input_ids=ids).logits
    assert torch.equal(found, expected)


def test_generate_needs_only_the_directory(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--lora_dir", str(finished), "--greedy", "--max_new_tokens", "5", "--instruction", "Say ok. 👋"]
    assert generate.main(arguments) == 0
    first = capsys.readouterr().out
    assert generate.main(arguments) == 0
    assert capsys.readouterr().out == first
    assert "###" not in first


def test_generate_finds_the_run_by_data_and_family(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "saved_models" / "x")
    data = runinfo.read(finished).data[0]
    assert generate.main(["--data", data, "--model_type", "llama", "--max_new_tokens", "3", "--instruction", "Hi"]) == 0
    assert "x: llama on " in capsys.readouterr().err


def test_generate_answers_a_file_of_questions(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.txt").write_text("你好\n\nWhy?\n", encoding="utf-8")
    (tmp_path / "q.jsonl").write_text('{"instruction": "Name a colour."}\n', encoding="utf-8")
    common = ["--lora_dir", str(finished), "--greedy", "--max_new_tokens", "3", "--prompts_file"]
    assert generate.main([*common, str(tmp_path / "q.txt")]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("###")] == ["### 你好", "### Why?"]
    assert generate.main([*common, str(tmp_path / "q.jsonl")]) == 0
    assert "### Name a colour." in capsys.readouterr().out


def test_generate_loops_until_an_empty_line(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\nWhy?\n\nnot read\n"))
    assert generate.main(["--lora_dir", str(finished), "--greedy", "--max_new_tokens", "2"]) == 0
    assert len(capsys.readouterr().out.split("\n")) >= 3


def test_evaluate_reads_answers_and_compares_with_the_base(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = tmp_path / "test.json"
    test.write_text(
        json.dumps(
            [{"instruction": "1+1?", "output": "The answer is 2."}, {"instruction": "几？", "output": "答案是3。"}]
        )
    )
    output = tmp_path / "answers.jsonl"
    arguments = [
        "--lora_dir",
        finished,
        "--data",
        test,
        "--compare_base",
        "--show",
        "1",
        "--max_new_tokens",
        "4",
        "--output",
        output,
    ]
    assert evaluate.main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    assert "question: 1+1?" in printed
    assert "[wrong, it is 2]" in printed
    assert sum(line.split()[:1] == ["all"] for line in printed.splitlines()) == 2
    entries = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [entry["origin"] for entry in entries] == [f"{test} row 1", f"{test} row 2"]
    assert entries[0]["base"].keys() == {"text", "answer", "how", "right"}


def test_evaluate_looks_a_size_up_as_generate_does(
    finished: Path, records_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from utils import loading

    records_file.write_text('[{"instruction": "几？👋", "output": "答案是3。"}]', encoding="utf-8")
    common = ["--lora_dir", str(finished), "--data", str(records_file)]
    assert evaluate.main([*common, "--size", "banana"]) == 1
    assert "unknown size 'banana' in --size of --model_type llama" in capsys.readouterr().err
    bases = []

    def stop(base: str, *_: Any, **__: Any) -> None:
        bases.append(base)
        raise ValueError("far enough")

    monkeypatch.setattr(loading, "choose", stop)
    for more in ([], ["--size", "13b"], ["--size", "13b", "--model_name_or_path", "mine"]):
        assert evaluate.main([*common, *more]) == 1
    here = runinfo.read(finished).base
    assert bases == [here, here, "mine"], "a size is for a base that has no place here"


def losses(run: Path) -> list[float]:
    entries = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def assert_same_run(one: Path, two: Path) -> None:
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    first, second = (load_file(run / "adapter_model.safetensors") for run in (one, two))
    assert first.keys() == second.keys()
    top = max(tensor.abs().max().item() for tensor in first.values())
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-4 * top


def test_two_processes_train_what_one_trains(
    llama_base: Path, records_file: Path, tmp_path: Path, run_script: RunScript
) -> None:
    shape = ["--epochs", "3", "--val_set_size", "2", "--gradient_accumulation_steps", "1"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert finetune(llama_base, records_file, one, *shape, "--per_gpu_train_batch_size", 4) == 0
    done = run_script(
        "uniform_finetune.py",
        *[*FLAGS, "--model_name_or_path", llama_base, "--data", records_file, "--output_dir", two],
        *[*shape, "--per_gpu_train_batch_size", 2],
        launcher=["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29555"],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("adapter verified") == 1
    assert runinfo.read(two).world_size == 2
    assert_same_run(one, two)


def test_a_batch_of_4_is_four_accumulated_batches_of_1(llama_base: Path, records_file: Path, tmp_path: Path) -> None:
    shape = ["--epochs", "2", "--val_set_size", "1"]
    for name, rows, accumulation in (("one", 4, 1), ("four", 1, 4)):
        batches = ["--per_gpu_train_batch_size", rows, "--gradient_accumulation_steps", accumulation]
        assert finetune(llama_base, records_file, tmp_path / name, *shape, *batches) == 0
    assert_same_run(tmp_path / "one", tmp_path / "four")


def test_a_second_run_over_the_first(
    llama_base: Path, records_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, short = tmp_path / "run", ["--max_steps", "2", "--save_steps", "1", "--val_set_size", "0"]
    assert finetune(llama_base, records_file, output, *short) == 0
    assert finetune(llama_base, records_file, output, *short) == 1
    assert "already holds a run: --overwrite deletes it" in capsys.readouterr().err
    before = (output / "adapter_model.safetensors").read_bytes()
    assert finetune(llama_base, records_file, output, *short, "--overwrite") == 0
    assert (output / "adapter_model.safetensors").read_bytes() == before, "the same seed trains the same adapter"
    assert finetune(llama_base, records_file, output, *short[2:], "--max_steps", 4, "--resume_from_checkpoint") == 0
    assert checkpoints.newest(output) == output / "checkpoint-4"
    assert [round(x) for x in (len(losses(output)),)] == [4]


def test_overwriting_deletes_nothing_before_the_new_run_can_begin(
    llama_base: Path, records_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from utils.loading import Base

    output, short = tmp_path / "run", ["--max_steps", "1", "--val_set_size", "0"]
    assert finetune(llama_base, records_file, output, *short) == 0
    (output / "notes.txt").write_text("mine")
    before = {path.name for path in output.iterdir()}

    def fails_to_load(self: Any) -> Any:
        raise OSError("no weights here")

    monkeypatch.setattr(Base, "load", fails_to_load)
    assert finetune(llama_base, records_file, output, *short, "--overwrite") == 1
    assert "no weights here" in capsys.readouterr().err
    assert {path.name for path in output.iterdir()} == before
    monkeypatch.undo()
    assert finetune(llama_base, records_file, output, *short, "--overwrite") == 0
    assert (output / "notes.txt").read_text() == "mine"


def test_a_run_that_stopped_at_once_can_be_overwritten(
    llama_base: Path, records_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from utils.training import SupervisedTrainer

    def interrupted(self: Any, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SupervisedTrainer, "training_step", interrupted)
    output, short = tmp_path / "run", ["--max_steps", "1", "--val_set_size", "0"]
    assert finetune(llama_base, records_file, output, *short) == 130
    monkeypatch.undo()
    assert finetune(llama_base, records_file, output, *short, "--overwrite") == 0


def test_a_resumed_run_is_unfinished_until_it_is_verified_again(
    llama_base: Path, records_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from utils.training import SupervisedTrainer

    output, common = tmp_path / "run", ["--save_steps", "1", "--val_set_size", "0"]
    assert finetune(llama_base, records_file, output, *common, "--max_steps", 1) == 0

    def interrupted(self: Any, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SupervisedTrainer, "training_step", interrupted)
    assert finetune(llama_base, records_file, output, *common, "--max_steps", 2, "--resume_from_checkpoint") == 130
    assert not (output / "run.json").exists()


def test_a_preview_and_a_dry_run_write_nothing(
    llama_base: Path, records_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert finetune(llama_base, records_file, output, "--preview", 3) == 0
    shown = capsys.readouterr().out
    assert shown.count("── ") == 3
    assert shown.count("</s>⟧") == 3
    assert finetune(llama_base, records_file, output, "--dry_run") == 0
    shown = capsys.readouterr().out
    for part in (
        "learning_rate: 0.01",
        "source ",
        "trained tokens",
        "tokens a row:",
        "trainable parameters: ",
        "steps: 3 of 128 rows",
    ):
        assert part in shown
    assert not output.exists()


METHOD_FLAGS = ["--learning_rate", "1e-2", "--val_set_size", "2", "--max_steps", "6", "--save_steps", "3"]


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("adalora", ["--adalora_tinit", 1, "--adalora_tfinal", 2]),
        ("prompt", ["--num_virtual_tokens", 4]),
        ("prefix", []),
        ("pissa", ["--lora_r", 4]),
        ("full", []),
    ],
)
def test_a_run_of_another_method_is_verified_and_answers(
    method: str, flags: list[Any], llama_base: Path, records_file: Path, tmp_path: Path, capsys: Any
) -> None:
    import shutil

    import uniform_finetune

    base, run = shutil.copytree(llama_base, tmp_path / "base"), tmp_path / "run"
    model = ["--model_type", "llama", "--model_name_or_path", base, "--peft_type", method]
    batches = ["--per_gpu_train_batch_size", 2, "--gradient_accumulation_steps", 1]
    arguments = [*model, *flags, *METHOD_FLAGS, *batches, "--data", records_file, "--output_dir", run]
    assert uniform_finetune.main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    assert f"  peft_type: {method}" in printed
    assert "verified: " in printed
    settings = runinfo.read(run).settings
    own = dict(zip([flag[2:] for flag in flags[::2]], flags[1::2], strict=True))
    assert own.items() <= settings.items()
    assert method == "pissa" or "pissa_niter" not in settings, "another method's options are not kept"
    common = ["--lora_dir", str(run), "--max_new_tokens", "4"]
    compared = [*common, "--data", str(records_file), "--compare_base"]
    records_file.write_text(
        json.dumps(
            [{"instruction": "1+1? 👋", "output": "答案是2。"}, {"instruction": "2+", "output": "the answer is 4."}]
        )
    )
    assert evaluate.main(compared) == 0
    assert sum(line.split()[:1] == ["all"] for line in capsys.readouterr().out.splitlines()) == 2
    if method == "full":
        shutil.rmtree(base)  # the run holds all that answering needs
        assert generate.main([*common, "--instruction", "1+1?", "--model_name_or_path", str(llama_base)]) == 1
        assert "holds all weights of its model: leave --model_name_or_path" in capsys.readouterr().err
    assert generate.main([*common, "--greedy", "--instruction", "Say ok. 你好"]) == 0
    assert (run / "adapter_config.json").exists() == (method != "full")
    runinfo.clear(run)
    assert not list(run.iterdir()), "--overwrite knows all that a run writes"


def test_prompts_of_other_lengths_do_not_share_a_batch_behind_virtual_tokens(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from utils import adapters, generation
    from utils.assistant import open_run
    from utils.generation import Answer

    opened = open_run(finished)
    seen: list[set[int]] = []

    def echo(model: Any, tokenizer: Any, prompts: Any, *, on_batch: Any, **_: Any) -> list[Answer]:
        seen.append({len(prompt) for prompt in prompts})
        on_batch(len(prompts))
        return [Answer(text="", finish_reason="stop", prompt_tokens=len(ids), new_tokens=1) for ids in prompts]

    monkeypatch.setattr(generation, "generate", echo)
    records = [{"instruction": text, "input": ""} for text in ("你好 👋", "a", "b", "", "a much longer question")]
    lengths = [len(opened.prompt_ids(record)) for record in records]
    for virtual in (0, 20):
        monkeypatch.setattr(adapters, "virtual_tokens", lambda model, virtual=virtual: virtual)
        done: list[int] = []
        assert [each.prompt_tokens for each in opened.answers(records, {}, on_batch=done.append)] == lengths
        assert done[-1] == len(records)
    assert len(seen[0]) > 1
    assert [len(group) for group in seen[1:]] == [1] * len(set(lengths))
    assert opened.answers([], {}) == []
