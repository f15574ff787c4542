"""Every method: attached, trained, saved, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trained_methods
from tiny_chatglm import EOP, padded, row, tiny_model
from trained_methods import FAMILY, IDS, PROBE, VIRTUAL, attached, base_of, losses, trainer_of, values

from utils.adapters import attach, count_parameters, reopen, virtual_tokens
from utils.attached import STATE
from utils.batching import pad
from utils.methods import METHODS
from utils.methods import choose as choose_method
from utils.target_loss import HeadAtTargets, token_loss
from utils.verification import check_files, marks, probe_logits, require_moved, verify_adapter

encoded = trained_methods.encoded


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
