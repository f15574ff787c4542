"""Checkpoints under foreign names give their published logits; nothing is missing, left over or silently random."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from published_checkpoints import FACTS, HEADS, IDS, LAYERS, native_model, publish, reference, write

from utils.architectures import ARCHITECTURES, Architecture, find, load
from utils.architectures.reading import check, parts
from utils.loading import keep_4bit_unpacked

KINDS = sorted(FACTS)
PACKED = [kind for kind in KINDS if kind not in ("internlm", "moss")]
CLASSES = {
    "chatglm": "ChatGLMForConditionalGeneration",
    "chatglm2": "GlmForCausalLM",
    "chatglm3": "GlmForCausalLM",
    "moss": "CodeGenForCausalLM",
    "qwen": "Qwen2ForCausalLM",
}
FLOAT32: dict[str, Any] = {"dtype": torch.float32}


def row_of(facts: dict[str, Any]) -> Architecture:
    row = find(facts)
    assert row, "no row takes this config.json"
    return row


def read(directory: Path, **options: Any) -> Any:
    facts = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return load(row_of(facts), str(directory), facts, {}, **{**FLOAT32, **options})


@torch.no_grad()
def logits(model: Any, ids: list[int] = IDS) -> torch.Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("storage", ["safetensors", "shards"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_the_native_models(kind: str, storage: str, tmp_path: Path) -> None:
    native = native_model(kind)
    expected = logits(native)
    if kind == "baichuan2":  # what its code does at each use
        native.lm_head.weight.data = torch.nn.functional.normalize(native.lm_head.weight.data)
    made = read(write(tmp_path / "a", FACTS[kind], publish(kind, native_model(kind)), storage))
    assert type(made).__name__ == CLASSES.get(kind, "LlamaForCausalLM")
    assert type(made).__module__.startswith("transformers.models.")
    assert difference(logits(made), logits(native)) <= (1e-6 if kind == "baichuan2" else 0.0)
    assert (difference(logits(made), expected) > 0.1) == (kind == "baichuan2")


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_follow_the_published_equations(kind: str, tmp_path: Path) -> None:
    tensors = publish(kind, native_model(kind))
    made = logits(read(write(tmp_path, FACTS[kind], tensors, "bin"))).double()
    assert difference(made, reference(kind)(tensors, IDS)) < 2e-5 * float(made.abs().max())


@pytest.mark.parametrize("kind", PACKED)
def test_another_packing_is_noticed(kind: str, tmp_path: Path) -> None:
    native = native_model(kind)
    made = read(write(tmp_path, FACTS[kind], publish(kind, native, permuted=True), "bin"))
    right = reference(kind)(publish(kind, native), IDS).float()
    assert difference(logits(made), right) > 0.1


def test_the_first_chatglm_keeps_its_names(tmp_path: Path) -> None:
    from utils.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration

    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 200, "hidden_size": 32, "inner_hidden_size": 64, "num_layers": 2}
    shape |= {"num_attention_heads": 2, "bos_token_id": 104, "eos_token_id": 105, "pad_token_id": 3}
    native = ChatGLMForConditionalGeneration(ChatGLMConfig(**shape)).eval()
    facts = {**shape, "model_type": "chatglm", "position_encoding_2d": True, "layernorm_epsilon": 1e-5}
    ids = [7, 8, 101, 104, 20, 21]
    for number, kept in enumerate([True, False]):  # the frequencies are in the public files, and computed if not
        tensors = {k: v for k, v in native.state_dict().items() if kept or not k.endswith("inv_freq")}
        made = read(write(tmp_path / str(number), facts, tensors, "shards"))
        assert type(made) is ChatGLMForConditionalGeneration
        assert difference(logits(made, ids), logits(native, ids)) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_native_and_plain_transformers_reads_it(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    made = read(write(tmp_path / "a", FACTS[kind], publish(kind, native_model(kind)), "bin"))
    made.save_pretrained(tmp_path / "b")
    auto: Any = AutoModelForCausalLM
    again, report = auto.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert type(again) is type(made)
    assert not report["missing_keys"] | report["unexpected_keys"]
    assert difference(logits(again), logits(made)) == 0.0
    saved = json.loads((tmp_path / "b" / "config.json").read_text(encoding="utf-8"))
    assert saved["architectures"] == [type(made).__name__]
    assert find(saved) is None


@pytest.mark.parametrize(("kind", "bits"), [("chatglm2", 4), ("internlm2", 8)])
def test_fewer_bits_are_those_of_the_native_checkpoint(kind: str, bits: int, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    native = native_model(kind)
    native.save_pretrained(tmp_path / "native")
    write(tmp_path / "foreign", FACTS[kind], publish(kind, native), "shards")
    options = {"quantization_config": BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4), **FLOAT32}
    options["device_map"] = {"": "cpu"}
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "native", **options)
    made = read(tmp_path / "foreign", **options)
    for model in (expected, made):
        keep_4bit_unpacked(model)
    own = dict(made.named_parameters())
    assert {parameter.dtype for parameter in own.values()} & {torch.int8, torch.uint8}
    for name, parameter in expected.named_parameters():
        assert torch.equal(own[name].data, parameter.data), name
    assert difference(logits(made), logits(expected)) == 0.0


def test_weights_come_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    tensors = {key: value.half() for key, value in publish("internlm2", native_model("internlm2")).items()}
    made = read(write(tmp_path, FACTS["internlm2"], tensors, "bin"), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
    assert made.config.dtype == torch.bfloat16


@pytest.mark.parametrize("storage", ["safetensors", "shards"])
def test_no_two_tensors_share_memory(storage: str, tmp_path: Path) -> None:
    made = read(write(tmp_path, FACTS["baichuan"], publish("baichuan", native_model("baichuan")), storage))
    storages = [parameter.untyped_storage().data_ptr() for parameter in made.parameters()]
    assert len(set(storages)) == len(storages)


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers gets none that is read already, and one at a time where bits are reduced."""
    from transformers import BitsAndBytesConfig

    from utils.architectures import reading

    events: list[str] = []
    plain = reading._Stored.__getitem__
    monkeypatch.setattr(reading._Stored, "__getitem__", lambda self, key: (events.append(self.part.source), plain(self, key))[1])  # fmt: skip
    monkeypatch.setattr(reading, "check", lambda *given: (events.append("checked"), check(*given))[1])
    from bitsandbytes.nn.modules import Params4bit

    quantise = Params4bit.__new__
    monkeypatch.setattr(Params4bit, "__new__", lambda *given, **named: (events.append("bits"), quantise(*given, **named))[1])  # fmt: skip
    options: dict[str, Any] = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True), "device_map": {"": "cpu"}}
    read(write(tmp_path, FACTS["baichuan"], publish("baichuan", native_model("baichuan")), "bin"), **options)
    events = events[events.index("checked") :]
    assert [event for event in events if event.endswith("W_pack.weight")] == [f"model.layers.{n}.self_attn.W_pack.weight" for n in range(LAYERS) for _ in "qkv"]  # fmt: skip
    for place, event in enumerate(events):
        if event.endswith("W_pack.weight"):
            assert events[place + 1] == "bits"


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_missing_left_over_or_of_another_shape_is_named(kind: str, tmp_path: Path) -> None:
    tensors = publish(kind, native_model(kind))
    first = next(key for key in tensors if ".0." in key and key.endswith("weight") and tensors[key].dim() == 2)
    cause = rf"^cannot read '{re.escape(str(tmp_path))}/\w' as \w+: "
    write(tmp_path / "a", FACTS[kind], {k: v for k, v in tensors.items() if k != first}, "bin")
    with pytest.raises(ValueError, match=rf"{cause}its weights have no {re.escape(first)}: download it again"):
        read(tmp_path / "a")
    spare = first.replace("weight", "lora_分")
    write(tmp_path / "b", FACTS[kind], {**tensors, spare: torch.ones(2)}, "safetensors")
    with pytest.raises(ValueError, match=rf"{cause}nothing there takes {re.escape(spare)}: the checkpoint is of"):
        read(tmp_path / "b")
    longer = torch.cat([tensors[first], tensors[first][:1]])
    write(tmp_path / "c", FACTS[kind], {**tensors, first: longer}, "shards")
    shapes = (
        rf"{re.escape(str(list(longer.shape)))} where config.json asks for {re.escape(str(list(tensors[first].shape)))}"
    )
    with pytest.raises(ValueError, match=rf"{cause}{re.escape(first)} has the shape {shapes}"):
        read(tmp_path / "c")


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no lm_head.weight, model.embed_tokens.weight, .* and \d+ more: "):
        read(write(tmp_path, FACTS["baichuan"], {}, "safetensors"))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    facts, tensors = FACTS["qwen"], publish("qwen", native_model("qwen"))
    none = write(tmp_path / "none", facts, tensors, "bin")
    (none / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="none' has no weights: none of model.safetensors, "):
        read(none)
    for storage, file in (("bin", "pytorch_model.bin"), ("safetensors", "model.safetensors")):
        cut = write(tmp_path / storage, facts, tensors, storage) / file
        for content in (
            cut.read_bytes()[:2000],
            b"abc",
            b"version https://git-lfs.github.com/spec",
            "网页 👋".encode(),
            b"",
        ):
            cut.write_bytes(content)
            begins = re.escape(repr(content[:16]))
            whole = rf"^\S*/{file} is not a whole file of tensors \(it begins with {begins}\): download it again$"
            with pytest.raises(ValueError, match=whole):
                read(tmp_path / storage)
    for value in ([torch.ones(2)], {"model": {"a": torch.ones(2)}}):
        torch.save(value, tmp_path / "bin" / "pytorch_model.bin")
        with pytest.raises(ValueError, match="pytorch_model.bin is not a whole file of tensors"):
            read(tmp_path / "bin")
    index = write(tmp_path / "shards", facts, tensors, "shards") / "pytorch_model.bin.index.json"
    (tmp_path / "shards" / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(OSError, match="pytorch_model-00002-of-00002.bin"):
        read(tmp_path / "shards")
    for text in ("", "[]", '{"metadata": {}}'):
        index.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="index.json lists no shards of weights: download it again"):
            read(tmp_path / "shards")


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    write(tmp_path, FACTS["qwen"], {}, "bin")
    for made in (
        lambda file: torch.save({"a": Evil()}, file),
        lambda file: file.write_bytes(pickle.dumps(Evil(), protocol=2)),
    ):
        made(tmp_path / "pytorch_model.bin")
        with pytest.raises(
            ValueError, match="model.bin asks to run code as it is read, and is refused: take a"
        ) as caught:
            read(tmp_path)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_finds_its_row(kind: str) -> None:
    assert find(FACTS[kind]) is ARCHITECTURES[kind]
    assert find({**FACTS[kind], "torch_dtype": "float16", "quantization_bit": 0}) is ARCHITECTURES[kind]


def test_tokenizers_exist() -> None:
    from utils.slow_tokenizers import SLOW_TOKENIZERS

    assert {row.tokenizer for row in ARCHITECTURES.values()} <= {*SLOW_TOKENIZERS, "chatglm"}


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"model_type": "llama"},
        {"model_type": "qwen2"},
        {"model_type": "internlm3"},
        # Baichuan-13B and Baichuan2-13B: ALiBi.
        {"model_type": "baichuan", "hidden_size": 5120, "num_hidden_layers": 40, "model_max_length": 4096},
        {"model_type": "baichuan", "hidden_size": 5120, "vocab_size": 125696, "z_loss_weight": 0},
        {"model_type": "qwen", "visual": {"layers": 48}},
        {"model_type": "moss", "audio_config": {}},
    ],
)
def test_other_configurations_are_left_to_transformers(facts: dict[str, Any]) -> None:
    assert find(facts) is None


def configured(kind: str, **changes: Any) -> Any:
    facts = {key: value for key, value in {**FACTS[kind], **changes}.items() if value != "absent"}
    return row_of(facts).configuration(facts)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("chatglm2", {"quantization_bit": 4}, "stored quantised .4., in a form that only their own code reads"),
        ("moss", {"wbits": 8}, "stored quantised .8."),
        ("qwen", {"quantization_config": {"bits": 4}}, "stored quantised .*take the 16-bit repository"),
        ("chatglm2", {"original_rope": False}, "original_rope = False; only True can be run without"),
        ("chatglm2", {"add_bias_linear": True}, "add_bias_linear = True; only False"),
        ("chatglm2", {"padded_vocab_size": 151552}, "this is GLM-4 in its first form; take .*-hf"),
        ("chatglm2", {"num_layers": "absent"}, "config.json has no 'num_layers'"),
        ("chatglm2", {"_name_or_path": "/模型", "rope_ratio": 16}, "rope_ratio = 16, .*'/模型' names neither: write"),
        ("internlm", {"rotary": {"type": "yarn"}}, "rotary type 'yarn'; the published types are dynamic, origin"),
        ("internlm2", {"rope_scaling": {"type": "yarn"}}, "the published types are linear and dynamic"),
        ("qwen", {"no_bias": False}, "no_bias = False; only True"),
        ("qwen", {"kv_channels": 8}, "kv_channels = 8; only 16"),
        ("qwen", {"seq_length": "absent"}, "config.json has no 'seq_length'"),
        ("baichuan", {"vocab_size": "absent"}, "config.json has no 'vocab_size'"),
        ("internlm2", {"rope_scaling": {"type": "linear"}}, "config.json has no 'factor'.*: take the file of the"),
        ("internlm2", {"rope_scaling": "线"}, "rope_scaling = '线', where it must have a mapping: take"),
        ("internlm2", {"rope_theta": None}, "rope_theta = None, where it must have a number above 0"),
        ("internlm", {"rotary": "dynamic"}, "rotary = 'dynamic', where it must have a mapping"),
        ("chatglm2", {"num_layers": "2"}, "num_layers = '2', where it must have a number above 0: take the"),
        ("chatglm2", {"seq_length": None}, "seq_length = None, where it must"),
        ("chatglm2", {"rope_ratio": [8]}, "rope_ratio = .8., where it must"),
        ("moss", {"n_head": 0}, "n_head = 0, where it must"),
        ("qwen", {"num_hidden_layers": True}, "num_hidden_layers = True, where it must"),
        ("chatglm2", {"add_qkv_bias": None}, "^config.json: .*'attention_bias'.*: take the file of the published"),
        ("baichuan", {"num_attention_heads": 2.5}, "^config.json: .*num_attention_heads.*: take the file of the"),
        ("baichuan", {"hidden_size": 63}, "^config.json: .*63.*: take the file of the published checkpoint$"),
    ],
)
def test_what_a_class_cannot_express_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        configured(kind, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"num_layers": "2"}, {"vocab_size": None}, {"hidden_size": 30}, {"num_layers": 1.5}])
def test_the_first_chatglms_values_are_looked_at(wrong: dict[str, Any]) -> None:
    facts = {"model_type": "chatglm", "position_encoding_2d": True, **wrong}
    row = row_of(facts)
    with pytest.raises(ValueError, match=r"^config.json.*: take the file of the published checkpoint$"):
        row.empty(row.configuration(facts))


def test_a_class_that_cannot_be_built_is_said_in_one_line() -> None:
    facts = {**FACTS["baichuan"], "hidden_act": "激活"}
    row = row_of(facts)
    with pytest.raises(ValueError, match="^config.json: KeyError '激活': take the file of the published checkpoint$"):
        row.empty(row.configuration(facts))


def test_positions_are_scaled_as_each_family_scales_them() -> None:
    def positions(kind: str, **changes: Any) -> dict[str, Any]:
        return configured(kind, **changes).rope_parameters

    half = {"partial_rotary_factor": 0.5}
    assert positions("chatglm2") == {"rope_type": "default", "rope_theta": 1e4, **half}
    assert positions("chatglm2", rope_ratio=1, _name_or_path="mine") == positions("chatglm2")
    assert positions("chatglm2", rope_ratio=8) == {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4, **half}
    assert positions("chatglm3", rope_ratio=50) == {"rope_type": "default", "rope_theta": 5e5, **half}
    assert positions("internlm") == {"rope_type": "dynamic", "factor": 1.0, "rope_theta": 1e4}
    assert positions("internlm", rotary={"type": "dynamic", "scaling_factor": 2.0})["factor"] == 2.0
    assert positions("internlm", rotary="absent") == {"rope_type": "default", "rope_theta": 1e4}
    assert positions("internlm2") == {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
    assert positions("internlm2", rope_scaling=None) == {"rope_type": "default", "rope_theta": 1e6}
    assert positions("qwen", rotary_emb_base=1000000) == {"rope_type": "default", "rope_theta": 1e6}
    assert configured("qwen").max_position_embeddings == 64


def test_ids_are_the_checkpoints(tmp_path: Path) -> None:
    assert configured("chatglm2", eos_token_id="absent", pad_token_id="absent").eos_token_id == 2
    assert configured("qwen", eos_token_id="absent").eos_token_id == 151643
    assert configured("moss").eos_token_id == 2
    directory = write(tmp_path, FACTS["qwen"], publish("qwen", native_model("qwen")), "bin")
    assert read(directory).generation_config.eos_token_id == 2
    (directory / "generation_config.json").write_text('{"eos_token_id": [7, 9], "chat_format": "chatml"}')
    made = read(directory)
    assert made.generation_config.eos_token_id == [7, 9]
    assert made.name_or_path == made.config.name_or_path == str(directory)


@pytest.mark.parametrize(("name", "row"), [("chatglm-6b", "chatglm"), ("chatglm2-6b", "chatglm2")])
def test_every_name_of_the_real_index_is_taken(name: str, row: str, real_data: Path) -> None:
    folder = real_data / "checkpoints"
    facts = json.loads((folder / f"{name}.config.json").read_text(encoding="utf-8"))
    index = json.loads((folder / f"{name}.pytorch_model.bin.index.json").read_text(encoding="utf-8"))
    names = set(index["weight_map"])
    architecture = row_of(facts)
    assert architecture is ARCHITECTURES[row]
    with torch.device("meta"):
        model = architecture.native_class()(architecture.configuration(facts))
    wanted = parts(architecture, model)
    sources = {part.source for part in wanted.values()}
    assert sources <= names
    assert {key for key in names - sources if not key.endswith(tuple(architecture.derived or ("none",)))} == set()
    if row == "chatglm2":  # the other index counts the larger vocabulary
        frequencies = 128 // 4
        stored = sum(parameter.numel() for parameter in model.parameters()) + frequencies
        assert stored * 2 == index["metadata"]["total_size"]


def test_packed_rows_are_told_from_the_configuration() -> None:
    facts = {**FACTS["internlm2"], "num_key_value_heads": HEADS // 2}
    row = ARCHITECTURES["internlm2"]
    with torch.device("meta"):
        model = row.native_class()(row.configuration(facts))
    wanted = parts(row, model)
    rows = [wanted[f"model.layers.1.self_attn.{name}_proj.weight"].rows for name in "qkv"]
    assert {wanted[f"model.layers.1.self_attn.{name}_proj.bias"].source for name in "qkv"} == {"model.layers.1.attention.wqkv.bias"}  # fmt: skip
    taken = sorted(number for part in rows for chosen in part for number in range(chosen.start, chosen.stop))
    assert taken == list(range(128))
