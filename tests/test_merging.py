"""merge.py as a user runs it, and the proof: what is wrong with a checkpoint is found."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import make_origin
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

import generate
import merge as script
from utils import chat_templates, equivalence, folding, merged_card, merging, outputs, runinfo
from utils.distributed import DTYPES
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


# What the proof finds. Each case does one thing to the adapter's effect in memory, or to the file on disk.


@pytest.fixture
def origin(llama_base: Path, tmp_path: Path) -> merging.Origin:
    return make_origin(llama_base, tmp_path / "run", targets=["o_proj", "up_proj"])


def prove_after(origin: merging.Origin, folder: Path, harm: Any, *, on_disk: bool, precision: Any = "fp32") -> Any:
    """Merges, harms, and proves."""
    plain = merging.storage(origin.base, precision)
    merged = merging.merge_in_memory(origin, plain, "base")
    if not on_disk:
        harm(merged.model)
    sums = merging.save(merged, origin, plain, folder, "4GB")
    if on_disk:
        harm(folder / "model.safetensors")
    return merging.prove(folder, replace(merged, model=None), plain, type(merged.model), sums)


def test_an_unharmed_checkpoint_passes(origin: merging.Origin, tmp_path: Path) -> None:
    proof = prove_after(origin, tmp_path / "out", lambda model: None, on_disk=False)
    assert (proof.layers, proof.tensors, proof.logits.argmax_agreement) == (4, 21, 1.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("share", [-1.0, 1.0], ids=["dropped", "doubled"])
def test_a_layer_whose_change_is_dropped_or_doubled_is_found(
    share: float, precision: str, origin: merging.Origin, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.up_proj"
    exact: Any = folding.adapted_layers(merging.adapters.load_adapter(origin.base.load(), origin.directory))[name]

    def harm(model: Any) -> None:
        model.get_submodule(name).weight.data.add_(share * exact.get_delta_weight("default"))

    with pytest.raises(merging.MergeError, match=rf"the merged layer {name} is not layer \+ adapter: it differs by \d"):
        prove_after(origin, tmp_path / "out", harm, on_disk=False, precision=precision)


def test_one_changed_bit_of_a_layer_without_adapter_is_found(origin: merging.Origin, tmp_path: Path) -> None:
    def harm(path: Path) -> None:
        tensors = load_file(path)
        tensors["model.layers.0.self_attn.q_proj.weight"][3, 3] *= 1 + 2**-23
        save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(merging.MergeError, match=r"q_proj.weight on disk is not the one that was written"):
        prove_after(origin, tmp_path / "out", harm, on_disk=True)


def test_a_nan_and_a_lost_tensor_and_half_a_file_are_found(origin: merging.Origin, tmp_path: Path) -> None:
    def nan(path: Path) -> None:
        tensors = load_file(path)
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
        save_file(tensors, path, metadata={"format": "pt"})

    def lost(path: Path) -> None:
        tensors = load_file(path)
        del tensors["model.norm.weight"]
        save_file(tensors, path, metadata={"format": "pt"})

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:20_000])

    for number, (harm, message) in enumerate(
        ((nan, "up_proj is not layer"), (lost, "missing keys: model.norm.weight"), (cut, "cannot be read back"))
    ):
        with pytest.raises(merging.MergeError, match=message):
            prove_after(origin, tmp_path / f"{number}", harm, on_disk=True)


def test_other_logits_are_found_where_every_layer_and_byte_is_right(
    origin: merging.Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(model: Any) -> None:
        model.model.norm.weight.data.mul_(1.01)

    with pytest.raises(merging.MergeError, match=r"does not answer as base \+ adapter: largest logit difference"):
        prove_after(origin, tmp_path / "out", harm, on_disk=False)


def test_a_tokenizer_that_encodes_otherwise_is_found(origin: merging.Origin, tmp_path: Path) -> None:
    prompts = equivalence.probe_prompts(origin.template, origin.tokenizer)
    origin.tokenizer.save_pretrained(tmp_path / "same")
    origin.base.config().save_pretrained(tmp_path / "same")
    merging.require_same_prompts(tmp_path / "same", origin, prompts)
    with pytest.raises(merging.MergeError, match="the saved tokenizer encodes 'Name three fruits"):
        merging.require_same_prompts(tmp_path / "same", origin, [[*prompts[0], 1], *prompts[1:]])


def test_divergence_by_hand() -> None:
    reference, found = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    measured = equivalence.divergence(reference, found)
    p = torch.tensor([2.0, 0.0]).softmax(0)
    assert measured.max_kl == pytest.approx(float(p[0] * 2 - p[1] * 2), rel=1e-5)
    assert measured.mean_kl == pytest.approx(measured.max_kl / 2)
    assert (measured.max_logit_difference, measured.max_logit, measured.argmax_agreement) == (2, 2, 0.5)


def test_an_adapter_that_changes_nothing_is_refused_before_anything_is_written(
    origin: merging.Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = origin.directory / "adapter_model.safetensors"
    zeroed = {name: 0 * tensor if "lora_B" in name else tensor for name, tensor in load_file(path).items()}
    save_file(zeroed, path, metadata={"format": "pt"})
    monkeypatch.setattr(merging, "save", lambda *_: pytest.fail("it was written"))
    with pytest.raises(ValueError, match=rf"the adapter in {origin.directory} changes nothing: train it longer"):
        merging.merge(origin, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 2])
def test_where_config_json_names_no_precision_the_weights_do(
    dtype: torch.dtype, shards: int, llama_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(llama_base, dtype=dtype)
    model.save_pretrained(base, max_shard_size="4GB" if shards == 1 else "40KB")
    assert (base / "model.safetensors").is_file() == (shards == 1)
    AutoTokenizer.from_pretrained(llama_base).save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    assert config.pop("dtype")
    (base / "config.json").write_text(json.dumps(config))
    origin = make_origin(base, tmp_path / "run")
    assert DTYPES[merging.storage(origin.base, None).precision] == dtype
    for path in base.glob("*.safetensors"):
        path.write_bytes(b"")
    assert merging.own_precision(origin.base) is None
    assert merging.storage(origin.base, None).precision == "bf16"


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_precision_of_a_checkpoint_that_is_read_as_another_class(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base: Any = SimpleNamespace(facts=lambda: {key: "float16"}, config=lambda: LlamaConfig())
    assert merging.own_precision(base) == "fp16"


def test_weights_that_lose_precision_are_said_to(origin: merging.Origin, tmp_path: Path) -> None:
    said = {}
    for precision in ("fp32", "fp16", "bf16"):
        facts = merging.merge(origin, tmp_path / precision, precision=precision)
        said[precision] = [line for line in merged_card.result_lines(facts, tmp_path) if "stored in" in line]
    assert said["fp32"] == []
    assert said["bf16"] == ["stored in bf16, the base's own is fp32: rounding it is in none of the figures"]
    assert said["fp16"]
    unknown = merged_card.result_lines(facts | {"own_precision": None}, tmp_path)
    assert "stored in bf16, the base's own is unknown: rounding it is in none of the figures" in unknown
    assert not any(
        "stored in" in line for line in merged_card.result_lines(facts | {"own_precision": "bf16"}, tmp_path)
    )


def test_a_sampling_temperature_without_sampling_can_be_saved(origin: merging.Origin, tmp_path: Path) -> None:
    def harm(model: Any) -> None:
        model.generation_config.temperature, model.generation_config.do_sample = 0.6, False

    prove_after(origin, tmp_path / "out", harm, on_disk=False)
    read = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (read.do_sample, read.temperature, read.eos_token_id) == (True, 0.6, [2, 5])
