import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from utils import quantised
from utils.adapters import attach, reopen
from utils.loading import choose, quiet_libraries
from utils.methods import METHODS, schedule
from utils.methods import choose as choose_method
from utils.models import get_model
from utils.verification import TOLERANCE, probe_logits

IDS = torch.arange(5, 25).view(2, 10)
PROBE = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
FAMILY = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_modules": ["all-linear"]}
CASES = [
    (name, bits, precision)
    for name, row in METHODS.items()
    for bits, precision in ((16, "bf16"), (8, "fp32"), (8, "bf16"), (4, "bf16"))
    if bits in row.quantization_bits and not row.trains_base
]


def step(made: Any, precision: str) -> None:
    """One optimizer step, as the trainer takes it: under autocast where the precision is bf16."""
    made.model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = made.model(**PROBE).logits[:, -IDS.shape[1] :]
    torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), IDS[:, 1:].flatten()).backward()
    trained = [p for p in made.model.parameters() if p.requires_grad]
    torch.optim.AdamW(trained, lr=0.05).step()


@pytest.mark.parametrize(("name", "bits", "precision"), CASES)
def test_gradients_reach_the_first_layer_after_an_evaluation_and_what_is_saved_comes_back(
    name: str, bits: int, precision: Any, llama_base: Path, tmp_path: Path
) -> None:
    quiet_libraries()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    base = choose(str(llama_base), get_model("llama"), precision=precision, quantization_bit=bits)
    choice = schedule(choose_method(name, {}, FAMILY), 10)
    made = attach(base.load(), choice, total_steps=10)
    if choice.method.gradient_checkpointing:
        made.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    first = probe_logits(made.model, PROBE)
    for _ in range(2):
        step(made, precision)
    trained = {n: p for n, p in made.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    moving = {n: p.grad for n, p in trained.items() if choice.method.trained in n}
    assert all(gradient is not None and gradient.any() for gradient in moving.values()), "in every layer"
    after = probe_logits(made.model, PROBE)
    assert not torch.equal(first, after)
    made.save(tmp_path)
    again = probe_logits(reopen(base, choice.method, tmp_path), PROBE)
    assert (again - after).abs().max() <= TOLERANCE[precision] * max(1.0, after.abs().max().item())


def test_an_8_bit_layer_keeps_no_input_and_has_the_same_gradients(
    llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[dict[str, torch.Tensor], int]:
        torch.manual_seed(0)
        base = choose(str(llama_base), get_model("llama"), precision="fp32", quantization_bit=8).load()
        model = attach(base, schedule(choose_method("lora", {}, FAMILY), 1), total_steps=1).model
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        outputs: list[torch.Tensor] = []
        for module in model.modules():
            if hasattr(module, "init_8bit_state"):
                module.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
        loss = model.train()(**PROBE).logits.square().sum()
        kept = sum(getattr(output.grad_fn, "A", None) is not None for output in outputs)
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, kept

    lean, none = run()
    monkeypatch.setattr(quantised, "forget_inputs", lambda model: None)
    full, some = run()
    assert none == 0
    assert some > 0, "bitsandbytes keeps them: the hook is still needed"
    assert lean.keys() == full.keys()
    for name in full:
        assert torch.equal(lean[name], full[name]), name
