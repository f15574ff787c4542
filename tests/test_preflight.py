"""What is chosen, given what a model takes; `test_memory` is about that."""

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
from conftest import TINY_BASE

from utils import preflight
from utils.memory import Footprint
from utils.models import MODELS
from utils.preflight import Device, Preflight, choose, foresee, remedies, will_it_fit
from utils.proof import Encoded
from utils.settings import Settings

GIB = 2**30


@dataclass
class Linear:
    """A model that takes 10 GiB, and 1 MiB a position, a fifth of it where activations are computed twice."""

    def footprint(self, *, rows: int, length: int, targets: int, checkpointing: bool) -> Footprint:
        kept = rows * length * 2**20 // (5 if checkpointing else 1)
        return Footprint(
            weights=10 * GIB, adapter=0, gradients=0, optimizer=0, activations=kept, logits=0, workspace=0, overhead=0
        )

    def flops(self, *, tokens: int, targets: int, length: int, checkpointing: bool) -> float:
        return 1e9 * tokens * (4 / 3 if checkpointing else 1)


def settings(**given: Any) -> Settings:
    from uniform_finetune import make_parser
    from utils.settings import resolve

    flags = [f"--{name}={value}" if value is not True else f"--{name}" for name, value in given.items()]
    return resolve(make_parser().parse_args(["--model_type", "llama", "--size", "7b", *flags]))


LENGTHS = [100 + i for i in range(400)]


def chosen_on(
    gib: float, lengths: Any = LENGTHS, *, kind: str = "cuda", world_size: int = 1, **given: Any
) -> Preflight:
    return choose(
        Linear(),  # pyright: ignore[reportArgumentType]
        lengths,
        Device(kind=kind, memory=int(gib * GIB), flops=1e12),
        settings(**given),
        world_size=world_size,
        steps=10,
        targets_share=0.4,
        trainable=1,
        total=100,
    )


def test_the_largest_micro_batch_that_fits_is_taken() -> None:
    budgets = [chosen_on(gib).micro_batch.tokens for gib in (80, 18, 15, 13)]
    assert budgets == [8192, 4096, 2048, 1024]
    assert not any(chosen_on(gib).checkpointing for gib in (80, 18, 15, 13))


def test_activations_are_computed_twice_only_where_they_would_not_fit() -> None:
    tight = chosen_on(12)
    assert tight.checkpointing
    assert tight.fits
    assert tight.micro_batch.tokens == 4096, "and then the micro-batches may be larger again"
    assert "the activations do not fit without" in "\n".join(tight.lines())
    assert chosen_on(12).flops_a_step > chosen_on(80).flops_a_step


def test_what_is_asked_for_is_done() -> None:
    assert not chosen_on(12, gradient_checkpointing="off").checkpointing
    assert chosen_on(80, gradient_checkpointing="on").checkpointing
    assert chosen_on(80, max_tokens_per_batch=999).micro_batch.tokens == 999
    assert chosen_on(80, per_gpu_train_batch_size=3).micro_batch.rows == 3
    assert chosen_on(80, packing=True).micro_batch.packing == "lines"
    assert chosen_on(80, packing=True, attn_implementation="flash_attention_2").micro_batch.packing == "line"
    assert not chosen_on(12, peft_type="prefix").checkpointing, "it cannot"


def test_what_does_not_fit_is_said_with_what_helps() -> None:
    small = chosen_on(5)
    assert not small.fits
    assert "90% can be used): --quantization_bit 4, a lower --cutoff_len" in "\n".join(small.lines())
    with pytest.raises(
        ValueError, match=r"would need 1\d.\d GB on a device with 5.0 GB free: choose --quantization_bit 4"
    ):
        small.require_memory()
    chosen_on(80).require_memory()


def test_a_row_longer_than_any_budget_is_a_micro_batch_of_its_own() -> None:
    assert chosen_on(80, [20_000, 10]).micro_batch.tokens == 20_000


def test_processes_share_a_step() -> None:
    one, four = (chosen_on(80, world_size=n) for n in (1, 4))
    assert four.flops_a_step == pytest.approx(one.flops_a_step / 4, rel=0.05)
    assert "each of 4 devices" in "\n".join(four.lines())


def test_unknown_memory_always_fits() -> None:
    found = replace(chosen_on(5), device=Device(kind="mps", memory=None, flops=1e12))
    assert found.fits
    assert "fit" not in "".join(line for line in found.lines() if "free" in line)


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if row.checkpoints])
def test_every_row_is_answered_without_network_or_device(name: str) -> None:
    from uniform_finetune import make_parser
    from utils.settings import resolve

    flags = ["--model_type", name, "--dry_run", "--device_memory", "80GB"]
    values = make_parser().parse_args(flags)
    lines = list(will_it_fit(resolve(values), Device.elsewhere(values.device_memory), world_size=1))
    fits = any("it fits" in line for line in lines)
    assert fits != any("does NOT fit" in line for line in lines)
    assert any(line.startswith("time:") and "assumed, not measured" in line for line in lines)


@pytest.mark.parametrize(("size", "flags", "fits"), [
    ("7b", [], True), ("13b", [], True), ("30b", [], True), ("65b", [], True),
    ("65b", ["--quantization_bit", "16"], False), ("65b", ["--quantization_bit", "4"], True),
    ("65b", ["--quantization_bit", "16", "--fsdp"], True), ("7b", ["--peft_type", "full"], False),
])  # fmt: skip
def test_the_questions_people_have_about_an_a100(size: str, flags: list[str], fits: bool) -> None:
    from uniform_finetune import make_parser
    from utils.settings import resolve

    values = make_parser().parse_args(["--model_type", "llama", "--size", size, "--dry_run", *flags])
    lines = "\n".join(will_it_fit(resolve(values), Device.elsewhere(80 * GIB), world_size=4))
    assert ("it fits" in lines) == fits, lines


def test_a_run_on_this_machine_is_foreseen_from_its_rows() -> None:
    from utils.loading import choose as choose_base

    base = choose_base(str(TINY_BASE), MODELS["tiny"])
    rows = [Encoded(input_ids=[5] * n, labels=[-100] * 3 + [5] * (n - 3), origin="", source="") for n in (9, 80, 40)]
    from uniform_finetune import make_parser
    from utils.settings import resolve

    found = foresee(resolve(make_parser().parse_args([])), base, rows, Device.here("fp32"), 7)
    assert found.fits
    assert 0 < found.footprint.total < GIB
    assert found.device.flops
    text = "\n".join(found.lines())
    assert "for 7 steps" in text
    assert "measured here" in text
    assert f"trainable parameters: {found.trainable:,}" in text


def test_packing_and_sharing_out_are_refused_before_anything_is_loaded() -> None:
    from uniform_finetune import make_parser
    from utils.settings import resolve

    for flags, message in (
        (["--model_type", "bloom", "--packing"], "--packing: bloom has ALiBi .*leave --packing out"),
        (["--model_type", "chatglm", "--packing"], "--packing: a prompt of this family sees itself"),
        (["--model_type", "llama", "--fsdp"], "--fsdp shares the base out among processes, and there is one"),
    ):
        chosen = resolve(make_parser().parse_args([*flags, "--dry_run"]))
        with pytest.raises(ValueError, match=message):
            list(will_it_fit(chosen, Device.elsewhere(80 * GIB), world_size=1))


def test_budgets_are_powers_of_two_below_the_largest() -> None:
    assert preflight.SMALLEST_BATCH in [preflight.LARGEST_BATCH["cuda"] // 2**i for i in range(10)]


def test_a_base_whose_memory_cannot_be_told_is_trained_all_the_same(tmp_path: Any) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    from utils.loading import choose as choose_base

    config = MixtralConfig(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    base = choose_base(str(tmp_path), MODELS["auto"])
    rows = [Encoded(input_ids=[5] * 40, labels=[5] * 40, origin="", source="")] * 3
    found = foresee(settings(lora_target_modules="q_proj"), base, rows, Device.here("fp32"), 7)
    found.require_memory()
    assert found.micro_batch.tokens
    text = "\n".join(found.lines())
    assert ("not predicted: " in text) == bool(found.unknown)
    assert f"at most {found.micro_batch.tokens:,} positions" in text


def test_what_stops_the_prediction_is_said_and_a_safe_batch_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from utils.loading import choose as choose_base

    def broken(*_: Any, **__: Any) -> Any:
        raise TypeError("this model is\nodd")

    monkeypatch.setattr(preflight, "MemoryModel", broken)
    base = choose_base(str(TINY_BASE), MODELS["tiny"])
    rows = [Encoded(input_ids=[5] * 40, labels=[5] * 40, origin="", source="")] * 300
    found = foresee(settings(lora_target_modules="q_proj"), base, rows, Device.elsewhere(80 * GIB), 7)
    found.require_memory()
    assert found.micro_batch.tokens == 2048
    assert "memory and time: not predicted: this model is odd" in list(found.lines())


def a_row(length: int) -> Encoded:
    return Encoded(input_ids=[5] * length, labels=[5] * length, origin="", source="")


def test_for_a_row_that_does_not_fit_what_takes_less_is_told() -> None:
    from utils.loading import choose as choose_base

    base = choose_base(str(TINY_BASE), MODELS["tiny"], quantization_bit=16)
    chosen = settings(lora_target_modules="q_proj", per_gpu_train_batch_size=8, cutoff_len=4096)
    said = remedies(chosen, base, [a_row(3000), a_row(9), a_row(2000)], Device.elsewhere(3 * GIB))
    found = re.fullmatch(
        r"([\d,]+) MB are predicted for it, ([\d,]+) MB with --gradient_checkpointing on, ([\d,]+) MB with "
        r"--quantization_bit 4, too, ([\d,]+) MB with --cutoff_len 1500 and no fewer bits; 3.0 GB were free before the "
        r"run. Another --size takes less, or --fsdp on several devices",
        said,
    )
    assert found, said
    plain, checkpointed, _, shorter = (int(size.replace(",", "")) for size in found.groups())
    assert plain > checkpointed > shorter > 0
    alone = foresee(settings(lora_target_modules="q_proj", per_gpu_train_batch_size=1), base, [a_row(3000)],
                    Device.elsewhere(GIB), None)  # fmt: skip
    assert plain == round(alone.footprint.total / 2**20), "of one row, whatever the micro-batches were"


def test_what_is_chosen_already_is_no_remedy() -> None:
    from utils.loading import choose as choose_base

    base = choose_base(str(TINY_BASE), MODELS["tiny"], quantization_bit=16)
    device = Device(kind="cpu", memory=None, flops=None)
    said = remedies(settings(lora_target_modules="q_proj", gradient_checkpointing="on"), base, [a_row(9)], device)
    assert "with --gradient_checkpointing on" not in said
    assert "with --cutoff_len 4 and no fewer bits. Another --size" in said, "and free memory is unknown here"
    assert "--quantization_bit 4" not in remedies(settings(peft_type="full"), base, [a_row(9)], device)
    assert "--gradient_checkpointing" not in remedies(settings(peft_type="prefix"), base, [a_row(9)], device)


def test_what_cannot_be_predicted_is_not_told_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from utils.loading import choose as choose_base

    def broken(*_: Any, **__: Any) -> Any:
        raise TypeError("this model is odd")

    monkeypatch.setattr(preflight, "MemoryModel", broken)
    base = choose_base(str(TINY_BASE), MODELS["tiny"])
    said = remedies(settings(lora_target_modules="q_proj"), base, [a_row(40)], Device.elsewhere(80 * GIB))
    assert said == "a lower --cutoff_len takes less, and so does another --size, or --fsdp on several devices"
