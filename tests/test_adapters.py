import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECORDS
from safetensors.torch import load_file, save_file
from tiny_chatglm import EOP, padded, row, tiny_model
from tiny_runs import make_origin

from utils.adapters import attach, count_parameters, load_adapter, load_more, reopen, virtual_tokens
from utils.attached import STATE, Attached
from utils.batching import MicroBatchSize, pad
from utils.encode import encode_rows
from utils.loading import choose
from utils.methods import METHODS, schedule
from utils.methods import choose as choose_method
from utils.models import get_model
from utils.readers import Row
from utils.schedule import Steps
from utils.target_loss import HeadAtTargets, token_loss
from utils.targets import ia3_layers
from utils.templates import TEMPLATES
from utils.trainer_arguments import training_arguments
from utils.training import SupervisedTrainer
from utils.verification import check_files, marks, probe_logits, require_moved, verify_adapter

FAMILY = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_modules": ["all-linear"]}
IDS = torch.arange(10, 30).view(2, 10)
PROBE = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
RATES = {"full": 1e-3, "adalora": 0.1, "prompt": 0.3, "p_tuning": 3e-2, "prefix": 0.3, "ia3": 0.1}
VIRTUAL = [name for name, row in METHODS.items() if "num_virtual_tokens" in row.options]


@pytest.fixture(scope="module")
def encoded(tokenizer: Any) -> Any:
    rows = [Row(record=record, origin=f"row {i}") for i, record in enumerate(RECORDS, start=1)]
    return encode_rows(rows, TEMPLATES["alpaca"], tokenizer, cutoff_len=512, truncation="drop")[0]


def base_of(path: Path, family: str = "llama", **options: Any) -> Any:
    return choose(str(path), get_model(family), precision="fp32", **options)


def attached(base: Any, name: str, *, total: int = 8, empty: bool = False, **given: Any) -> Attached:
    torch.manual_seed(0)
    choice = schedule(choose_method(name, given, FAMILY), total)
    return attach(base.empty() if empty else base.load(), choice, total_steps=total)


def trainer_of(made: Attached, rows: Any, output: Path, *, total: int = 8, saving: int = 8, **options: Any) -> Any:
    steps = Steps(total=total, warmup=0, logging=1, saving=saving, evaluating=total)
    per_device = options.pop("per_device", 8)
    arguments = training_arguments(
        output, steps, learning_rate=options.pop("rate", RATES.get(made.choice.name, 1e-2)), precision="fp32", seed=0, validates=False,
        gradient_checkpointing=False, save_total_limit=3, report_to=["none"],
    )  # fmt: skip
    return SupervisedTrainer(
        made.model, arguments, train_rows=rows, validation_rows=[], pad_id=3, steps=steps, attached=made,
        batch_size=per_device * options.pop("accumulation", 1), micro_batch=MicroBatchSize(rows=per_device),
    )  # fmt: skip


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def values(model: Any, *, trained: bool) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad == trained}


@pytest.mark.parametrize("family", ["llama", "bloom"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_its_own_saves_it_and_comes_back(
    name: str, family: str, encoded: Any, tmp_path: Path, request: Any
) -> None:
    base = base_of(request.getfixturevalue(f"{family}_base"), family)
    made = attached(base, name)
    assert {p.dtype for p in made.model.parameters() if p.requires_grad} == {torch.float32}
    before, frozen = marks(made.model), values(made.model, trained=False)
    trainer = trainer_of(made, encoded, tmp_path / "run")
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert all(torch.equal(tensor, frozen[n]) for n, tensor in values(made.model, trained=False).items())
    assert 0 < require_moved(made.model, before, made.choice.method) <= len(before)
    expected = probe_logits(made.model, PROBE)
    made.save(tmp_path / "saved")
    again = reopen(base, made.choice.method, tmp_path / "saved")
    verified = verify_adapter(tmp_path / "saved", again, PROBE, expected, precision="fp32", method=made.choice.method)
    assert verified.max_logit_difference < 1e-5
    assert check_files(tmp_path / "saved", made.choice.method) == verified.tensors
    assert (expected - probe_logits(base.load(), PROBE)).abs().max() > 1e-3, "it does something"


@pytest.mark.parametrize("name", METHODS)
def test_an_empty_base_counts_what_a_loaded_one_does(name: str, llama_base: Path) -> None:
    base = base_of(llama_base)
    empty, loaded = attached(base, name, empty=True), attached(base, name)
    assert count_parameters(empty.model) == count_parameters(loaded.model)
    assert sorted(marks(loaded.model)) == sorted(n for n, p in empty.model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, encoded: Any, llama_base: Path, tmp_path: Path) -> None:
    base = base_of(llama_base)
    whole = attached(base, name)
    first = trainer_of(whole, encoded[:7], tmp_path / "run", saving=3, per_device=4)
    first.train()
    torch.manual_seed(77)
    again = attach(base.load(), whole.choice, total_steps=8)
    second = trainer_of(again, encoded[:7], tmp_path / "run", saving=3, per_device=4)
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert losses(second) == losses(first)
    trained = values(again.model, trained=True)
    for parameter, tensor in values(whole.model, trained=True).items():
        assert torch.equal(tensor, trained[parameter]), parameter
    assert torch.equal(probe_logits(whole.model, PROBE), probe_logits(again.model, PROBE))
    assert (tmp_path / "run" / "checkpoint-3" / STATE).is_file() == (name in ("adalora", "p_tuning"))


@pytest.mark.parametrize("name", VIRTUAL)
def test_the_head_at_the_targets_finds_them_behind_virtual_tokens(name: str, encoded: Any, llama_base: Path) -> None:
    made = attached(base_of(llama_base), name, num_virtual_tokens=5)
    batch, head = pad(encoded, 3), HeadAtTargets(made.model)
    logits = made.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    own = logits[:, -batch["input_ids"].shape[1] :]
    assert logits.shape[1] - own.shape[1] == (0 if name == "prefix" else 5)
    assert virtual_tokens(made.model) == 5
    assert head.loss(made.model, batch).item() == pytest.approx(token_loss(own, batch["labels"]).item(), rel=1e-6)


@pytest.mark.parametrize("name", VIRTUAL)
def test_virtual_tokens_before_a_prompt_that_is_read_in_both_directions(name: str) -> None:
    model = tiny_model(seed=3)
    model.config.use_cache = False
    model.requires_grad_(False)
    made = attach(model, choose_method(name, {"num_virtual_tokens": 3}, FAMILY), total_steps=8)
    prompt, answer = [5, 6, 7, 8, 9], [10, 11, EOP]
    ids, mask = padded([row(prompt, answer), row([12, 13], [14])], "right")
    logits = made.model.eval()(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :]
    made.model(input_ids=ids, attention_mask=mask).logits.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.model.parameters() if p.requires_grad)

    def alone(*tokens: int) -> torch.Tensor:
        one = torch.tensor([tokens])
        return made.model(input_ids=one, attention_mask=torch.ones_like(one)).logits[0, -len(tokens) :]

    whole = row(prompt, answer)
    assert torch.allclose(alone(*whole), logits[0, : len(whole)], atol=1e-4), "padding changes nothing"
    assert torch.allclose(alone(*whole[:-2], 20, 21)[:-2], alone(*whole)[:-2], atol=1e-4), "no answer is seen before it"
    start = torch.tensor([row(prompt)])
    options = {"do_sample": False, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    made.model.config.use_cache = True
    found = made.model.generate(
        input_ids=start, attention_mask=torch.ones_like(start), max_new_tokens=5, use_cache=True, **options
    )
    tokens = found.sequences[0].tolist()
    recomputed = alone(*tokens)[start.shape[1] - 1 : -1]
    assert torch.allclose(torch.cat(found.logits), recomputed, atol=1e-4), "a cache changes nothing"


def test_pissa_begins_as_the_base_and_does_not_depend_on_the_seed(llama_base: Path) -> None:
    base = base_of(llama_base)
    made = attached(base, "pissa")
    assert torch.allclose(probe_logits(made.model, PROBE), probe_logits(base.load(), PROBE), atol=1e-5)
    torch.manual_seed(5)
    other = attach(base.load(), made.choice, total_steps=8)
    assert all(
        torch.equal(t, values(other.model, trained=True)[n]) for n, t in values(made.model, trained=True).items()
    )
    exact = attached(base, "pissa", pissa_niter=0)
    assert torch.allclose(probe_logits(exact.model, PROBE), probe_logits(made.model, PROBE), atol=1e-5)


def test_pissa_is_saved_as_a_lora_of_twice_the_rank(llama_base: Path, tmp_path: Path) -> None:
    attached(base_of(llama_base), "pissa").save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16, True)
    untrained = reopen(base_of(llama_base), METHODS["pissa"], tmp_path)
    assert torch.allclose(probe_logits(untrained, PROBE), probe_logits(base_of(llama_base).load(), PROBE), atol=1e-6)


def test_pissa_cannot_take_more_components_than_there_are(llama_base: Path) -> None:
    with pytest.raises(ValueError, match=r"--lora_r 17: model.layers.0.self_attn.q_proj has 16 principal components"):
        attached(base_of(llama_base), "pissa", lora_r=17)


def test_adaloras_penalty_is_what_peft_adds_to_a_labelled_loss(llama_base: Path) -> None:
    made = attached(base_of(llama_base), "adalora")
    output = made.model(input_ids=IDS, labels=IDS)
    plain = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    penalty = made.penalty()
    assert penalty is not None
    assert penalty.item() == pytest.approx((output.loss - plain).item(), rel=1e-4)
    penalty.backward()
    assert all(p.grad.any() for n, p in made.model.named_parameters() if "lora_A" in n or "lora_B" in n)


def test_adalora_ends_with_the_rank_that_was_asked_for(encoded: Any, llama_base: Path, tmp_path: Path) -> None:
    made = attached(base_of(llama_base), "adalora", total=12, adalora_init_r=6)
    trainer_of(made, encoded, tmp_path, total=12).train()
    singular = [p for n, p in made.model.named_parameters() if "lora_E" in n]
    assert sum(int(p.count_nonzero()) for p in singular) == 4 * len(singular)
    assert {len(p) for p in singular} == {6}


def test_the_penalty_is_counted_once_a_step_and_not_logged(encoded: Any, llama_base: Path, tmp_path: Path) -> None:
    runs = []
    for per_device, accumulation in ((8, 1), (2, 4)):
        made = attached(base_of(llama_base), "adalora")
        trainer = trainer_of(
            made, encoded, tmp_path / f"{per_device}", per_device=per_device, accumulation=accumulation
        )
        trainer.train()
        runs.append((losses(trainer), values(made.model, trained=True)))
    assert runs[0][0] == pytest.approx(runs[1][0], abs=1e-4)
    assert all(torch.allclose(t, runs[1][1][n], atol=1e-4) for n, t in runs[0][1].items())
    batch = pad(encoded, 3)
    model = base_of(llama_base).load()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert runs[0][0][0] == pytest.approx(
        token_loss(logits, batch["labels"]).item() / sum(r.num_targets for r in encoded)
    )


def test_loraplus_gives_b_its_own_rate_all_along(encoded: Any, llama_base: Path, tmp_path: Path) -> None:
    made = attached(base_of(llama_base), "loraplus", loraplus_lr_ratio=4.0)
    groups = made.parameter_groups(1e-3) or []
    assert [group["lr"] for group in groups] == [1e-3, 4e-3]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for n, p in made.model.named_parameters() if "lora_B" in n}
    trainer = trainer_of(made, encoded, tmp_path, rate=1e-3)
    trainer.create_optimizer_and_scheduler(num_training_steps=8)
    for _ in range(5):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    slow, fast = (group["lr"] for group in trainer.optimizer.param_groups)
    assert 0 < slow < 1e-3
    assert fast == pytest.approx(4 * slow)


def test_a_full_run_is_a_plain_transformers_directory(llama_base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    made = attached(base_of(llama_base), "full")
    with torch.no_grad():
        next(made.model.parameters()).add_(0.1)
    expected = probe_logits(made.model, PROBE)
    made.save(tmp_path)
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(probe_logits(plain, PROBE), expected)
    assert plain.config.use_cache
    assert not (tmp_path / "adapter_config.json").exists()


def test_ia3_scales_keys_values_and_the_second_layer(llama_base: Path, bloom_base: Path) -> None:
    assert ia3_layers(base_of(llama_base).empty()) == (["k_proj", "v_proj"], ["down_proj"])
    assert ia3_layers(base_of(bloom_base, "bloom").empty()) == (["query_key_value"], ["mlp.dense_4h_to_h"])
    unheard = base_of(llama_base).empty()
    unheard.config.model_type = "unheard_of"
    assert ia3_layers(unheard) == (["k_proj", "v_proj"], ["down_proj"])
    made = attached(
        base_of(llama_base), "ia3", ia3_target_modules=["v_proj", "up_proj"], ia3_feedforward_modules=["up_proj"]
    )
    assert sorted(n.split(".")[-3] for n in marks(made.model)) == ["up_proj"] * 2 + ["v_proj"] * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ia3_target_modules": ["k_proj"]}, "belong together: give both or none"),
        ({"ia3_target_modules": ["wk"], "ia3_feedforward_modules": []}, "--ia3_target_modules wk: no linear layer .* It has: down_proj.*v_proj$"),
        ({"ia3_target_modules": ["k_proj"], "ia3_feedforward_modules": ["up_proj"]}, "up_proj must be among --ia3_target_modules"),
        ({"ia3_target_modules": ["k_proj", "all-linear"], "ia3_feedforward_modules": []}, "--ia3_target_modules all-linear: no linear layer .* v_proj$"),
    ],
)  # fmt: skip
def test_wrong_layers_for_ia3(given: dict[str, Any], message: str, llama_base: Path) -> None:
    with pytest.raises(ValueError, match=message):
        attached(base_of(llama_base), "ia3", **given)


@pytest.mark.parametrize("targets", [["all-linear", "q_proj"], ["q_proj", "all-linear"], ["all-linear", "all-linear"]])
def test_all_linear_beside_another_name_is_refused(targets: list[str], llama_base: Path) -> None:
    with pytest.raises(
        ValueError, match="--lora_target_modules all-linear stands for every linear layer: give it alone"
    ):
        attached(base_of(llama_base), "lora", lora_target_modules=targets)


def test_ia3_asks_where_it_cannot_tell() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model: Any = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11))
    assert ia3_layers(model)[0] == ["c_attn"]
    model.config.model_type = "unheard_of"
    with pytest.raises(ValueError, match="name them with --ia3_target_modules, .* of: c_attn, c_fc, c_proj"):
        ia3_layers(model)


def logits_of(directory: Path, base: Path) -> torch.Tensor:
    return probe_logits(load_adapter(base_of(base).load(), directory), PROBE)


def contents(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("methods", [("lora", "dora"), ("dora", "rslora"), ("ia3", "ia3"), ("adalora", "adalora"),
                                     ("prompt", "prompt"), ("p_tuning", "p_tuning"), ("prefix", "prefix")])  # fmt: skip
def test_several_adapters_answer_each_as_if_alone(methods: tuple[str, str], llama_base: Path, tmp_path: Path) -> None:
    virtual = methods[0] in VIRTUAL
    first = make_origin(llama_base, tmp_path / "first", method=methods[0])
    targets: Any = {"targets": ["q_proj", "v_proj", "up_proj"]}
    second = make_origin(llama_base, tmp_path / "第二 🌏", method=methods[1], seed=2, virtual=5, **targets)
    alone = [logits_of(origin.directory, llama_base) for origin in (first, second)]
    plain = probe_logits(base_of(llama_base).load(), PROBE)
    assert not torch.equal(*alone)
    model = load_adapter(base_of(llama_base).load(), first.directory)
    load_more(model, "adapter_1", second.directory)
    assert torch.equal(probe_logits(model, PROBE), alone[0]), "the first one stays on"
    assert not any(p.requires_grad for p in model.parameters())
    for name, expected, tokens in (("adapter_1", alone[1], 5), ("default", alone[0], 3), ("adapter_1", alone[1], 5)):
        model.set_adapter(name, inference_mode=True)
        assert torch.equal(probe_logits(model, PROBE), expected)
        assert virtual_tokens(model) == (tokens if virtual else 0)
        with model.disable_adapter():
            assert torch.equal(probe_logits(model, PROBE), plain)


@pytest.mark.parametrize("bits", [16, 8])
def test_layers_that_only_the_second_adapter_has_return_what_their_base_does(
    bits: int, llama_base: Path, tmp_path: Path
) -> None:
    base = choose(str(llama_base), get_model("llama"), precision="bf16", quantization_bit=bits)
    first = make_origin(llama_base, tmp_path / "first", method="ia3", targets=["k_proj"])
    second = make_origin(llama_base, tmp_path / "second", method="ia3", targets=["k_proj", "up_proj"], seed=2)
    alone = probe_logits(load_adapter(base.load(), second.directory), PROBE)
    model = load_adapter(base.load(), first.directory)
    load_more(model, "adapter_1", second.directory)
    model.set_adapter("adapter_1", inference_mode=True)
    assert torch.equal(probe_logits(model, PROBE), alone)


def with_config(directory: Path, **facts: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def cut(directory: Path) -> None:
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if "1.mlp.down_proj.lora_B" not in name}, path)


def with_embeddings(directory: Path) -> None:
    path = directory / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.model.embed_tokens.weight": torch.zeros(672, 16)}, path)


@pytest.mark.parametrize(
    ("method", "damage", "message"),
    [
        ("ia3", None, "second is IA3, and beside LORA peft takes no other kind of adapter: open it by itself"),
        ("prefix", None, "second is PREFIX_TUNING, and beside LORA peft takes no other kind"),
        ("lora", cut, "second.adapter_model.safetensors lacks 1 of the adapter's 28 tensors"),
        ("lora", lambda d: with_config(d, r=3), "second.adapter_model.safetensors does not fit its base: size mismatch"),
        ("lora", lambda d: with_config(d, bias="all"), r"the two trained the base's biases \(bias all\), so the base"),
        ("lora", lambda d: with_config(d, init_lora_weights="olora"), "changed its base as it began .init_lora_weights olora"),
        ("lora", with_embeddings, "one of the two brings base_model.model.model.embed_tokens.weight, so the base that"),
        ("lora", lambda d: (d / "adapter_model.safetensors").unlink(), "adapter_model.safetensors cannot be read"),
    ],
)  # fmt: skip
def test_an_adapter_that_cannot_be_beside_another_leaves_the_model_as_it_was(
    method: str, damage: Any, message: str, llama_base: Path, tmp_path: Path
) -> None:
    first = make_origin(llama_base, tmp_path / "first")
    second = make_origin(llama_base, tmp_path / "second", method=method, seed=2)
    model = load_adapter(base_of(llama_base).load(), first.directory)
    if damage:
        damage(second.directory)
    before = contents(model)
    with pytest.raises(ValueError, match=message) as error:
        load_more(model, "adapter_1", second.directory)
    assert "\n" not in str(error.value)
    after = contents(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert list(model.peft_config) == ["default"]


def test_nothing_goes_beside_an_adapter_that_brought_embeddings(llama_base: Path, tmp_path: Path) -> None:
    first, second = (make_origin(llama_base, tmp_path / name) for name in ("first", "second"))
    with_embeddings(first.directory)
    model = load_adapter(base_of(llama_base).load(), first.directory)
    with pytest.raises(ValueError, match=r"one of the two brings base_model.model.model.embed_tokens.weight"):
        load_more(model, "adapter_1", second.directory)


def test_factors_on_the_other_side_of_a_layer_cannot_be_beside_another(llama_base: Path, tmp_path: Path) -> None:
    first = make_origin(llama_base, tmp_path / "first", method="ia3", targets=["k_proj", "down_proj"])
    second = make_origin(llama_base, tmp_path / "second", method="ia3")
    for one, two, message in (
        (
            first,
            second,
            "second scales no layer at the input, and the adapter beside it down_proj: open each by itself",
        ),
        (second, first, "first scales down_proj at the input, and the adapter beside it none: open each by itself"),
    ):
        with pytest.raises(ValueError, match=message):
            load_more(load_adapter(base_of(llama_base).load(), one.directory), "adapter_1", two.directory)
