from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hub_server
import pytest
import torch
from conftest import make_base
from hub_server import REPOSITORY, Hub
from safetensors.torch import load_file
from test_adapter_files import OLD_CONFIG, Evil
from tiny_families import make_family
from tiny_runs import METHODS as LAYER_METHODS
from tiny_runs import PROMPT_METHODS, make_origin

from utils import adapters, identity, loading
from utils.encode import encode_prompt
from utils.identity import Identified, identify, require_same_base
from utils.methods import METHODS, get_method
from utils.models import MODELS
from utils.templates import TEMPLATES
from utils.verification import probe_logits

online, server = hub_server.online, hub_server.server
IDS = torch.arange(10, 30).view(2, 10)
PROBE = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
RECORD = {"instruction": "两个加一个？👋", "input": ""}
LLAMA: dict[str, Any] = {"model_type": "llama", "precision": "fp32"}
Plain = Callable[[str], Path]


def logits_of(found: Identified, probe: dict[str, torch.Tensor] = PROBE) -> torch.Tensor:
    return probe_logits(adapters.reopen(found.base, get_method(found.method), found.directory), probe)


def edit(directory: Path, **facts: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | facts), encoding="utf-8")


@pytest.fixture
def plain(finished: Path, tmp_path: Path) -> Plain:
    """Makes a directory that peft, and not our script, could have written: the finished run's adapter and tokenizer."""

    def make(name: str = "适配器 🌏") -> Path:
        names = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json")
        (tmp_path / name).mkdir()
        for each in names:
            shutil.copy(finished / each, tmp_path / name)
        return tmp_path / name

    return make


def without_tokenizer(directory: Path) -> Path:
    for path in (*directory.glob("tokenizer*"), *directory.glob("ice_text.model")):
        path.unlink()
    return directory


def pickled(directory: Path) -> Path:
    path = directory / "adapter_model.safetensors"
    torch.save(load_file(path), directory / "adapter_model.bin")
    path.unlink()
    return directory


def of_old_peft(directory: Path, r: int = 8) -> Path:
    """Without a tokenizer, too, as such weights were published."""
    facts = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    kept = {name: facts[name] for name in ("r", "lora_alpha", "target_modules", "base_model_name_or_path")}
    (directory / "adapter_config.json").write_text(json.dumps(OLD_CONFIG | kept), encoding="utf-8")
    return without_tokenizer(pickled(directory))


def on_hub(directory: Path, server: Hub) -> str:
    server.files = {f"llama 7b/中文/{path.name}": path.read_bytes() for path in directory.iterdir()}
    return f"{REPOSITORY}/llama 7b/中文"


def test_one_adapter_in_every_form_gives_the_same_logits(
    finished: Path, plain: Plain, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    run = identify(finished, precision="fp32")
    expected = logits_of(run)
    assert not torch.equal(expected, probe_logits(run.base.load(), PROBE)), "it does something"
    assert (run.run is not None, run.assumed, run.method) == (True, (), "lora")
    assert run.description.startswith("llama on ")
    forms: dict[str, Path | str] = {
        "plain": plain("plain"),
        "bin": pickled(plain("bin")),
        "old": of_old_peft(plain("old")),
        "checkpoint": max(finished.glob("checkpoint-*")),
        "hub": on_hub(of_old_peft(plain("published")), server),
    }
    for name, place in forms.items():
        found = identify(place, **LLAMA)
        assert torch.equal(logits_of(found), expected), name
        assert (found.run, found.method, found.model_type) == (None, "lora", "llama")
        assert encode_prompt(RECORD, found.template, found.tokenizer) == encode_prompt(
            RECORD, run.template, run.tokenizer
        )
        assert found.stop_token_ids == run.stop_token_ids
        assert found.place == str(place)
        assert found.description == "llama, LoRA, without a run.json"
        base = f"base {run.base.name} (adapter_config.json names it)"
        tokenizer = () if name in ("plain", "bin", "checkpoint") else ("the base's tokenizer (the adapter has none)",)
        assert found.assumed == (base, "template alpaca (the family's)", *tokenizer)
    found = identify(forms["hub"], **LLAMA)
    require_same_base(run, found)
    elsewhere = replace(found, base=replace(found.base, name="/elsewhere"))
    with pytest.raises(
        ValueError, match=f"^{REPOSITORY}/llama 7b/中文 is an adapter of /elsewhere, and {finished} of "
    ):
        require_same_base(run, elsewhere)


def test_an_adapter_of_a_published_run_on_the_hub(
    finished: Path, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    files = [path for path in finished.iterdir() if path.is_file()]
    server.files = {path.name: path.read_bytes() for path in files}
    found = identify(REPOSITORY, precision="fp32")
    assert found.run == identity.runinfo.read(finished)
    assert torch.equal(logits_of(found), logits_of(identify(finished, precision="fp32")))
    with pytest.raises(
        ValueError, match=f"^{REPOSITORY} was trained with --model_type llama, not bloom: leave it out$"
    ):
        identify(REPOSITORY, model_type="bloom")


def test_consent_to_the_bases_code_is_none_to_an_adapters(
    plain: Plain, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    asked: list[Path | None] = []
    tokenizer = loading.Base.tokenizer
    monkeypatch.setattr(loading.Base, "tokenizer", lambda self, of=None: (asked.append(of), tokenizer(self))[1])
    local = plain("local")
    place = on_hub(local, server)
    for trusted in (False, True):
        identify(place, **LLAMA, trust_remote_code=trusted)
        identify(local, **LLAMA, trust_remote_code=trusted)
    assert [of and of.name for of in asked] == ["中文", "local", None, "local"]


@pytest.mark.parametrize("method", [*LAYER_METHODS, *PROMPT_METHODS])
def test_every_method_is_known_by_its_configuration(method: str, llama_base: Path, tmp_path: Path) -> None:
    origin = make_origin(llama_base, tmp_path / "adapter", method=method)
    found = identify(origin.directory, **LLAMA)
    assert found.method == method
    assert found.description == f"llama, {METHODS[method].label}, without a run.json"
    model = adapters.load_adapter(origin.base.load(), origin.directory)
    assert torch.equal(logits_of(found), probe_logits(model, PROBE))


def test_the_family_is_the_only_one_of_the_bases_class(bloom_base: Path, tmp_path: Path) -> None:
    origin = make_origin(bloom_base, tmp_path / "adapter", family="bloom")
    found = identify(origin.directory)
    assert (found.model_type, found.base.spec) == ("bloom", MODELS["bloom"])
    assert found.assumed[0] == "model type bloom (the base is a BloomForCausalLM)"
    assert identify(origin.directory, model_type="auto").assumed[0].startswith("base ")


def test_chatglm_gets_its_own_prompt_and_ends(tmp_path: Path) -> None:
    base = make_family("chatglm", tmp_path / "glm")
    origin = make_origin(base, tmp_path / "adapter", family="chatglm", targets=["query_key_value"])
    names = load_file(origin.directory / "adapter_model.safetensors")
    assert "base_model.model.transformer.layers.0.attention.query_key_value.lora_A.weight" in names, "as in 2023"
    ids = torch.tensor([encode_prompt(RECORD, TEMPLATES["chatglm"], origin.tokenizer)])
    probe = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = probe_logits(adapters.load_adapter(origin.base.load(), origin.directory), probe)
    found = identify(without_tokenizer(pickled(origin.directory)), precision="fp32")
    assert (found.model_type, found.template) == ("chatglm", TEMPLATES["chatglm"])
    assert found.assumed[0] == "model type chatglm (the base is a ChatGLMForConditionalGeneration)"
    assert found.stop_token_ids == [found.tokenizer.eos_token_id]
    assert encode_prompt(RECORD, found.template, found.tokenizer) == ids[0].tolist()
    assert torch.equal(logits_of(found, probe), expected)


def test_what_the_user_says_is_not_assumed(plain: Plain, llama_base: Path, tmp_path: Path) -> None:
    directory = plain("adapter")
    edit(directory, base_model_name_or_path="decapoda-research/llama-7b-hf")
    wishes: dict[str, Any] = {"base": str(llama_base), "template": "chatglm", "quantization_bit": 16}
    found = identify(directory, **LLAMA, **wishes)
    assert found.assumed == ()
    assert (found.template, found.base.name, found.base.revision) == (TEMPLATES["chatglm"], str(llama_base), None)
    moved = shutil.copytree(llama_base, tmp_path / "moved")
    edit(directory, base_model_name_or_path=str(moved), revision="abc")
    assert identify(directory, **LLAMA).base.revision == "abc"
    assert identify(directory, **LLAMA, revision="main").base.revision == "main"


def test_what_is_left_out_and_what_was_not_finished_is_said(plain: Plain) -> None:
    directory = plain("adapter")
    edit(directory, quantum=2, nothing=None)
    (directory / "training_log.jsonl").write_text("")
    *_, fields, done = identify(directory, **LLAMA).assumed
    assert fields == "nothing lost without quantum of adapter_config.json, which this peft does not know"
    assert done == "its training done (a run left it without a run.json, so it was not checked)"


@pytest.mark.parametrize("form", [lambda directory: directory, pickled])
def test_an_adapter_for_another_base_is_found_before_weights_are_read(
    form: Any, plain: Plain, llama_base: Path, bloom_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = form(plain("adapter"))
    wide = make_base(tmp_path / "wide")
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=672)).save_pretrained(wide)
    monkeypatch.setattr(loading.Base, "load", lambda self: pytest.fail("weights were read"))
    for family, base, message in (
        ("llama", wide, r"adapter_model\.\w+ does not fit its base: size mismatch for .*lora_A"),
        ("bloom", bloom_base, "adapter does not fit its base: Target modules .* not found in the base model"),
    ):
        with pytest.raises(
            ValueError, match=f"{message}.*: name the base .* --model_name_or_path, or copy the"
        ) as error:
            identify(directory, model_type=family, base=str(base))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "wishes", "message"),
    [
        ({}, {}, r"^(\S+) is a LlamaForCausalLM, as are the models of several families: say which with --model_type tiny, llama, "),
        ({}, {"model_type": "bloom"}, "is a LlamaForCausalLM, and this --model_type is BloomForCausalLM: give --model_type tiny or llama"),
        ({}, {"model_type": "lama"}, "unknown model type 'lama' in --model_type. Did you mean llama"),
        ({}, {"model_type": "llama", "template": "alpca"}, "unknown template 'alpca' in --template. Did you mean alpaca"),
        ({}, {"model_type": "llama", "size": "9b"}, "unknown size '9b' in --size of --model_type llama"),
        ({"base_model_name_or_path": "/gone/llama 模型"}, {"model_type": "llama"}, "the base of .*, /gone/llama 模型, is not on this machine: name its place here with --model_name_or_path$"),
        ({"base_model_name_or_path": None}, {}, "adapter_config.json of .* names no base: name one with --model_name_or_path, or with --model_type and"),
        ({"base_model_name_or_path": ""}, {"model_type": "auto"}, "--model_type auto has no default model: name one with --model_name_or_path"),
        ({"peft_type": "MAGIC"}, {"model_type": "llama"}, "adapter_config.json names no method of peft: copy the adapter again"),
        ({"peft_type": "XLORA"}, {"model_type": "llama"}, "is an adapter of the kind XLORA, which cannot be served here: AdaLora, IA3, Lora,"),
        ({"peft_type": "ADAPTION_PROMPT"}, {"model_type": "llama"}, "of the kind ADAPTION_PROMPT, which cannot be served here"),
        ({"peft_type": "CPT"}, {"model_type": "llama"}, "of the kind CPT, which cannot be served here"),
        ({"enable_lora": [True, False, True]}, {"model_type": "llama"}, "which peft gave up in 0.3: merge it with the peft that made it"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_asked(change: Any, wishes: Any, message: str, plain: Plain) -> None:
    directory = plain("adapter")
    edit(directory, **change)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        identify(directory, **wishes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "wishes", "base", "said"),
    [
        ("decapoda-research/llama-7b-hf", {}, "huggyllama/llama-7b", "base huggyllama/llama-7b (adapter_config.json names it, and decapoda-research/llama-7b-hf has moved there)"),
        ("x/y", {"model_type": "llama", "size": "13b"}, "huggyllama/llama-13b", None),
        ("x/y", {"size": "13"}, "huggyllama/llama-13b", "base huggyllama/llama-13b (what --size 13 means without --model_type)"),
        (None, {"model_type": "llama"}, "huggyllama/llama-7b", "base huggyllama/llama-7b (the family's; adapter_config.json names none)"),
    ],
)  # fmt: skip
def test_which_base_is_taken(
    change: str | None,
    wishes: Any,
    base: str,
    said: str | None,
    plain: Plain,
    monkeypatch: pytest.MonkeyPatch,
    llama_base: Path,
) -> None:
    """The hub's models are not here: the tiny one stands for each."""
    directory, asked = plain("adapter"), []
    edit(directory, base_model_name_or_path=change)
    choose = loading.choose
    monkeypatch.setattr(
        loading, "choose", lambda name, *a, **k: (asked.append(name), choose(str(llama_base), *a, **k))[1]
    )
    found = identify(directory, **wishes)
    assert set(asked) == {base}
    assert found.model_type == "llama"
    assert [sentence for sentence in found.assumed if sentence.startswith("base ")] == ([said] if said else [])


def test_a_base_that_is_gone_is_the_familys_own_where_that_is_here(plain: Plain) -> None:
    from conftest import TINY_BASE

    directory = plain("adapter")
    edit(directory, base_model_name_or_path="/gone/tiny_base")
    with pytest.raises(ValueError, match="size mismatch"):
        identify(directory, model_type="tiny")
    facts = {"base_model_name_or_path": "/gone/tiny_base"}
    name, revision, said = identity.assumptions.base_of(facts, directory, base=None, size=None, model_type="tiny")
    assert (name, revision) == (str(TINY_BASE), None)
    assert said.endswith("(the family's; /gone/tiny_base, which adapter_config.json names, is not here)")


@pytest.mark.parametrize("gone", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(gone: str, plain: Plain) -> None:
    directory = plain("adapter")
    (directory / gone).unlink()
    message = {
        "adapter_config.json": "adapter holds no run.json and no adapter_config.json: it is not a run of uniform_finetune",
        "adapter_model.safetensors": "adapter_model.safetensors cannot be read: No such file .*: copy the adapter again$",
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message[gone]):
        identify(directory, **LLAMA)


def test_a_pickle_that_would_run_code_is_refused_before_anything_else(plain: Plain, tmp_path: Path) -> None:
    directory = pickled(plain("adapter"))
    torch.save({"a": Evil(str(tmp_path / "evil"))}, directory / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.bin is refused: it is a pickle of more than tensors"):
        identify(directory)
    assert not (tmp_path / "evil").exists()


def test_a_kind_that_only_peft_knows(llama_base: Path, tmp_path: Path) -> None:
    import peft

    base = loading.choose(str(llama_base), MODELS["llama"], precision="fp32", quantization_bit=16)
    torch.manual_seed(0)
    config = peft.LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_weights=False)
    model: Any = peft.get_peft_model(base.load(), config)
    model.save_pretrained(tmp_path / "loha")
    found = identify(tmp_path / "loha", **LLAMA)
    assert found.description == "llama, LOHA, without a run.json"
    assert not get_method(found.method).trains_base
    assert torch.equal(logits_of(found), probe_logits(model, PROBE))


def test_a_size_stands_for_a_runs_base_that_is_gone(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert identify(finished, size="13b").base.name == identify(finished).base.name
    with pytest.raises(ValueError, match="unknown size 'x' in --size of --model_type llama"):
        identify(finished, size="x")
    run = shutil.copytree(finished, tmp_path / "run")
    values = json.loads((run / "run.json").read_text(encoding="utf-8"))
    values["settings"]["model_name_or_path"] = "/gone"
    (run / "run.json").write_text(json.dumps(values), encoding="utf-8")
    asked = []

    def choose(name: str, *_: Any, **__: Any) -> None:
        asked.append(name)
        raise OSError("far enough")

    monkeypatch.setattr(loading, "choose", choose)
    for wishes in ({"size": "13b"}, {"size": "13b", "base": "mine"}):
        with pytest.raises(OSError, match="far enough"):
            identify(run, **wishes)
    assert asked == ["huggyllama/llama-13b", "mine"]
    with pytest.raises(FileNotFoundError, match="the base of this run, /gone, is not on this machine"):
        identify(run)


def test_what_is_made_of_a_plain_adapter_can_be_served_as_a_run(plain: Plain) -> None:
    found = identify(plain("adapter"), **LLAMA)
    run = identity.as_run(found)
    assert (run.model_type, run.method, run.data, run.base) == ("llama", "lora", [], found.base.name)
    assert run.base_fingerprint == found.base.fingerprint()
    assert run.kept.startswith("The adapter came without a run.json; assumed were base ")
    directory = found.directory
    identity.runinfo.write(run, directory)
    again = identify(directory, precision="fp32")
    assert again.run == run
    assert again.description == "llama on data that its adapter does not name"
    assert torch.equal(logits_of(again), logits_of(found))
    assert identity.as_run(again) is again.run
