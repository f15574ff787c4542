"""merge.py as a user runs it, and the proof: what is wrong with a checkpoint is found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import generate
import merge as script
from utils import chat_templates, merging, outputs, runinfo
from utils.encode import encode_prompt
from utils.templates import TEMPLATES


def run_merge(*arguments: object) -> int:
    return script.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def merged(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, merged into shards of at most 1 MB by the original project's command."""
    destination = tmp_path_factory.mktemp("merged") / "out"
    flags = ["--model_type", "llama", "--size", "7b", "--max_shard_size", "1MB"]
    assert run_merge(*flags, "--lora_dir", finished, "--merged_dir", destination) == 0
    return destination


def test_plain_transformers_loads_what_was_trained(merged: Path, finished: Path, llama_base: Path) -> None:
    from peft import PeftModel

    ids = AutoTokenizer.from_pretrained(merged)("7+4→ 你好 🌏", return_tensors="pt")
    assert torch.equal(
        ids["input_ids"], AutoTokenizer.from_pretrained(finished)("7+4→ 你好 🌏", return_tensors="pt")["input_ids"]
    )
    model = AutoModelForCausalLM.from_pretrained(merged)
    adapted: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_base), str(finished))
    with torch.no_grad():
        assert torch.allclose(model(**ids).logits, adapted.eval()(**ids).logits, atol=1e-6)
    assert model.config.use_cache, "it is off while a base is loaded for training"


def test_a_merged_directory_has_all_that_serves_it(merged: Path, finished: Path) -> None:
    names = {path.name for path in merged.iterdir()}
    assert names >= {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "README.md", "merge.json", "run.json",
    }  # fmt: skip
    assert not any(name.startswith("adapter") for name in names)
    assert GenerationConfig.from_pretrained(merged).eos_token_id == runinfo.read(finished).stop_token_ids
    assert len({(merged / name).stat().st_mode for name in ("model.safetensors", "config.json")}) == 1
    facts = json.loads((merged / "merge.json").read_text(encoding="utf-8"))
    assert facts["run"]["settings"]["data"] == runinfo.read(finished).data
    assert facts["proof"]["layers"] == 14
    assert facts["proof"]["logits"]["argmax_agreement"] == 1
    assert facts["effect"]["mean_kl"] > 100 * facts["proof"]["logits"]["mean_kl"]
    card = (merged / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    assert "likeliest token the same at 100.0%" in card
    assert facts["run"]["sources"][0]["sha256"] in card


def test_plain_transformers_asks_a_merged_directory_in_the_trained_prompt(merged: Path, finished: Path) -> None:
    plain, run = AutoTokenizer.from_pretrained(merged), AutoTokenizer.from_pretrained(finished)
    assert not run.chat_template
    said = [{"role": "user", "content": "说一个颜色。 🌏"}]
    found = plain.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    asked = {"instruction": "说一个颜色。 🌏", "input": ""}
    assert found == encode_prompt(asked, TEMPLATES["alpaca"], run)
    said += [{"role": "assistant", "content": "蓝色"}, {"role": "user", "content": "Why?"}]
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        found = plain.apply_chat_template([*system, *said], add_generation_prompt=True, return_dict=False)
        assert found == encode_prompt({"conversation": [*system, *said]}, TEMPLATES["alpaca"], run)
    facts = json.loads((merged / "merge.json").read_text(encoding="utf-8"))["chat_template"]
    assert facts["asks"] == "conversations"
    line = (
        f"chat template: the trained prompt; the same ids as in training for {facts['proved']} conversations, read by"
    )
    assert line in (merged / "README.md").read_text(encoding="utf-8")


def test_a_merged_directory_without_a_chat_template_says_why(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreadable(*_: Any, **__: Any) -> Any:
        raise KeyError("a class of ours")

    monkeypatch.setattr(chat_templates, "_plain", unreadable)
    assert run_merge("--lora_dir", finished, "--merged_dir", tmp_path / "out") == 0
    reason = "plain transformers, and with it vLLM, does not read this tokenizer, a TokenizersBackend (KeyError)"
    assert f"chat template: none, for {reason}\n" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "merge.json").read_text(encoding="utf-8"))["chat_template"]
    assert facts == {"asks": "nothing", "proved": 0, "differs": reason}
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_generate_serves_a_merged_directory_as_it_serves_the_run(
    merged: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for directory in (finished, merged):
        asked = ["--instruction", "说一个颜色。", "--greedy", "--max_new_tokens", "8"]
        assert generate.main(["--lora_dir", str(directory), *asked]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert run_merge("--lora_dir", merged) == 1
    assert "holds no adapter, so there is nothing to merge" in capsys.readouterr().err


def test_shards(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "shard_size", str)  # a tiny base fits into the smallest shard that the flag takes
    assert run_merge("--lora_dir", finished, "--merged_dir", tmp_path / "out", "--max_shard_size", "60KB") == 0
    assert len(list((tmp_path / "out").glob("model-0*.safetensors"))) > 1
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize("text", ["4", "GB", "0GB", "4 GB", "4TB"])
def test_a_shard_size_is_a_number_with_its_unit(text: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_merge("--lora_dir", finished, "--max_shard_size", text)
    assert f"{text!r} is not a size such as 4GB or 500MB" in capsys.readouterr().err


def test_wrong_flags_are_one_line(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_merge("--lora_dir", tmp_path / "none") == 1
    assert f"there is no directory {tmp_path / 'none'}" in capsys.readouterr().err
    assert run_merge("--lora_dir", finished, "--size", "9b") == 1
    assert "--size of --model_type llama" in capsys.readouterr().err
    assert run_merge("--lora_dir", finished, "--model_type", "bloom", "--merged_dir", tmp_path / "out") == 1
    assert "was trained with --model_type llama, not bloom" in capsys.readouterr().err
    for flags, message in (
        (["--merged_dir", tmp_path], "the following arguments are required: --lora_dir"),
        (["--lora_dir", finished, "--template", "chat"], "has a run.json, which says its prompt: leave it out"),
        (["--lora_dir", "a/b/c"], "a/b/c is on the hub: say with --merged_dir where its checkpoint goes"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run_merge(*flags)
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err


def test_another_place_of_the_base_does_where_it_is_the_same(
    finished: Path, llama_base: Path, bloom_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    values = json.loads((run / "run.json").read_text(encoding="utf-8"))
    values["settings"]["model_name_or_path"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(values), encoding="utf-8")
    destination = tmp_path / "out"
    assert run_merge("--lora_dir", run, "--merged_dir", destination) == 1
    assert "is not on this machine: name its place here with --model_name_or_path" in capsys.readouterr().err
    assert run_merge("--lora_dir", run, "--model_name_or_path", bloom_base, "--merged_dir", destination) == 1
    assert not destination.exists()
    assert run_merge("--lora_dir", run, "--model_name_or_path", llama_base, "--merged_dir", destination) == 0


def test_an_adapter_without_a_run_is_merged_and_then_served_as_one(
    finished: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "适配器 🌏"
    plain.mkdir()
    shutil.copy(finished / "adapter_config.json", plain)
    torch.save(load_file(finished / "adapter_model.safetensors"), plain / "adapter_model.bin")
    assert run_merge("--lora_dir", plain) == 1
    assert "several families: say which with --model_type tiny, llama" in capsys.readouterr().err
    assert run_merge("--lora_dir", plain, "--model_type", "llama", "--template", "alpaca", "--precision", "fp32") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("assumed: ")]
    assert said[0].startswith("assumed: base ")
    assert said[1:] == ["assumed: the base's tokenizer (the adapter has none)"]
    made = tmp_path / "适配器 🌏_merged"
    expected = load_file(made / "model.safetensors")
    shards = [load_file(path) for path in merged.glob("*.safetensors")]
    assert all(torch.equal(tensor, expected[name]) for shard in shards for name, tensor in shard.items())
    card = (made / "README.md").read_text(encoding="utf-8")
    assert ", with an adapter\n" in card
    assert "The adapter came without a run.json; assumed were base " in card
    assert "fine-tuned on" not in card
    assert generate.main(["--lora_dir", str(made), "--greedy", "--max_new_tokens", "3", "--instruction", "几？👋"]) == 0
    assert "llama on data that its adapter does not name" in capsys.readouterr().err


def test_nothing_is_replaced_unasked(finished: Path, merged: Path, tmp_path: Path, capsys: Any) -> None:
    copy = shutil.copytree(merged, tmp_path / "copy")
    assert run_merge("--lora_dir", finished, "--merged_dir", copy) == 1
    assert "already holds a merged checkpoint: --overwrite replaces it" in capsys.readouterr().err
    for taken in (finished, Path(__file__), Path("/")):
        assert run_merge("--lora_dir", finished, "--merged_dir", taken, "--overwrite") == 1
        assert "exists and is not a merged checkpoint: choose another" in capsys.readouterr().err
    (copy / "old.txt").write_text("old")
    assert run_merge("--lora_dir", finished, "--merged_dir", copy, "--overwrite") == 0
    assert not (copy / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, merging.MergeError("the proof failed")])
def test_ctrl_c_or_a_failed_proof_leaves_what_was_there(
    stop: Any, finished: Path, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, *_: Any) -> None:
        assert (folder / "model.safetensors").is_file()
        raise stop

    copy = shutil.copytree(merged, tmp_path / "copy")
    monkeypatch.setattr(merging, "prove", fail)
    assert run_merge("--lora_dir", finished, "--merged_dir", copy, "--overwrite") == (
        130 if stop is KeyboardInterrupt else 1
    )
    assert run_merge("--lora_dir", finished, "--merged_dir", tmp_path / "new") in (1, 130)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    assert AutoModelForCausalLM.from_pretrained(copy).config.model_type == "llama"


def test_a_link_stays_a_link_and_here_has_a_name(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert run_merge("--lora_dir", finished, "--merged_dir", tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "merge.json").is_file()
    run, here = shutil.copytree(finished, tmp_path / "run"), tmp_path / "here"
    here.mkdir()
    for folder, flags in ((run, ["--lora_dir", "."]), (here, ["--lora_dir", run, "--merged_dir", "."])):
        monkeypatch.chdir(folder)
        assert run_merge(*flags) == 0, capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "link", "run", "run_merged", "here"}
    assert (tmp_path / "here" / "model.safetensors").is_file()


def test_what_a_killed_merge_moved_aside_is_back_before_anything_is_replaced(
    finished: Path, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aside = outputs._beside(tmp_path / "out", os.getpid(), ".old")
    shutil.copytree(merged, aside)
    assert run_merge("--lora_dir", finished, "--merged_dir", tmp_path / "out") == 1
    assert "already holds a merged checkpoint: --overwrite replaces it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("trace", ["adapter_config.json", "training_log.jsonl", "checkpoint-7"])
def test_a_run_that_was_trained_into_a_merged_directory_is_not_replaced(
    trace: str, merged: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(merged, tmp_path / "copy")
    merging.require_room(copy, overwrite=True)
    (copy / trace).write_text("{}")
    with pytest.raises(ValueError, match="exists and is not a merged checkpoint: choose another"):
        merging.require_room(copy, overwrite=True)


def test_too_little_room_is_said_before_anything_is_loaded(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1000))
    monkeypatch.setattr(merging, "merge_in_memory", lambda *_: pytest.fail("it was begun"))
    assert run_merge("--lora_dir", finished, "--merged_dir", tmp_path / "out") == 1
    assert "are free: make room, or choose another --merged_dir" in capsys.readouterr().err
