import dataclasses
from typing import Any

import peft
import pytest

from utils.methods import METHODS, OPTIONS, Choice, choose, get_method, method_name, schedule

FAMILY = {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lora_target_modules": ["q_proj"]}


def adalora(total_steps: int, **given: Any) -> dict[str, Any]:
    return dict(schedule(choose("adalora", given, FAMILY), total_steps).options)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_names_what_exists(name: str) -> None:
    row = METHODS[name]
    assert row.options.keys() <= OPTIONS.keys()
    assert row.defaults.keys() <= row.options.keys()
    assert bool(row.paper) == bool(row.config) == (not row.trains_base)
    assert bool(row.not_quantized) == (row.quantization_bits == (16,)), "whoever is refused is told why"
    if row.config:
        fields = {field.name for field in dataclasses.fields(getattr(peft, row.config))}
        assert {field for field in row.options.values() if field} | row.fixed.keys() <= fields


def test_every_option_belongs_to_a_method() -> None:
    assert {option for row in METHODS.values() for option in row.options} == set(OPTIONS)


def test_the_original_projects_methods_and_defaults_are_here() -> None:
    assert {"lora", "adalora", "prompt", "p_tuning", "prefix"} < METHODS.keys()
    original = {"adalora_init_r": 12, "adalora_tinit": 200, "adalora_tfinal": 1000, "adalora_delta_t": 10}
    assert original.items() <= adalora(total_steps=5000).items()
    assert choose("p_tuning", {}, FAMILY).options == {"num_virtual_tokens": 20, "prompt_encoder_hidden_size": 128}


def test_names() -> None:
    assert [method_name(name) for name in ("LoRA", "lora+", "LoRA+", "prefix")] == [
        "lora",
        "loraplus",
        "loraplus",
        "prefix",
    ]
    with pytest.raises(ValueError, match=r"unknown method 'adalor' in --peft_type. Did you mean adalora"):
        get_method("adalor")


def test_given_options_hold_and_zero_is_given() -> None:
    chosen = choose("lora", {"lora_dropout": 0.0, "lora_r": 2, "num_virtual_tokens": None}, FAMILY)
    assert chosen == Choice(name="lora", options=FAMILY | {"lora_dropout": 0.0, "lora_r": 2})


@pytest.mark.parametrize("total", [5, 30, 300, 2399, 2400, 9000])
def test_adaloras_schedule_leaves_half_of_a_short_run_to_shrink(total: int) -> None:
    options = adalora(total)
    shrinking = total - options["adalora_tinit"] - options["adalora_tfinal"]
    assert shrinking >= total / 2
    assert (options["adalora_tinit"], options["adalora_tfinal"]) <= (200, 1000)
    assert shrinking // options["adalora_delta_t"] >= min(10, shrinking)


def test_adaloras_given_steps_hold() -> None:
    options = adalora(100, adalora_tinit=0, adalora_delta_t=3)
    assert (options["adalora_tinit"], options["adalora_tfinal"], options["adalora_delta_t"]) == (0, 41, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adalora_tinit": 200, "adalora_tfinal": 1000}, "--adalora_tinit 200 and --adalora_tfinal 1000 leave none of the run's 30 steps"),
        ({"adalora_tfinal": 28}, "leave none of the run's 30 steps for ranks to shrink: lower them, leave them out, or train longer"),
        ({"adalora_init_r": 8}, "--adalora_init_r 8: ranks shrink to --lora_r 8 on average, .* give 9 or more"),
    ],
)  # fmt: skip
def test_an_adalora_with_nothing_to_shrink(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adalora(30, **given)


def test_other_methods_do_not_depend_on_the_length_of_a_run() -> None:
    for name in METHODS.keys() - {"adalora"}:
        assert schedule(choose(name, {}, FAMILY), 1) == choose(name, {}, FAMILY)
