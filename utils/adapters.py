"""Adapters in a base: attached to be trained, read back to be served, and several of them at a time.

Knows: what makes an adapter whole in a model, and the virtual tokens before its prompts. Does not know how a base is
loaded, what each method wants of training (`utils.attached`), flags or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils import adapter_files, quantised
from utils.attached import KINDS, Attached
from utils.methods import Choice, Method
from utils.targets import linear_names as linear_names  # the names that --lora_target_modules takes


def attach(model: Any, choice: Choice, *, total_steps: int) -> Attached:
    """What `choice` trains, fresh in `model`; all else is frozen.

    Args:
        model: a base as `utils.loading` gives it; an empty one gets the same parameters without values.
        choice: with all options decided (`methods.schedule`).
        total_steps: optimizer steps of the run.

    Raises:
        ValueError: a layer named in an option that the model does not have, or that the method cannot take; more
            virtual tokens than the model's positions leave room for.
    """
    kind = KINDS.get(choice.name, Attached)
    _check_virtual_tokens(model, choice.options.get("num_virtual_tokens", 0))
    quantised.keep_8bit_scales(model)
    quantised.forget_inputs(model)
    prepared = kind.prepare(model, choice, total_steps)
    quantised.keep_dtypes(prepared)
    _tell_marks(prepared)
    return kind(prepared, choice)


def attach_lora(model: Any, target_modules: Sequence[str], *, r: int, alpha: int, dropout: float) -> Any:
    """The model with a fresh LoRA adapter (Hu et al. 2021, arXiv 2106.09685); only the adapter trains.

    Raises:
        ValueError: a name in `target_modules` that no linear layer has, with the names that exist.
    """
    options = {"lora_r": r, "lora_alpha": alpha, "lora_dropout": dropout, "lora_target_modules": list(target_modules)}
    return attach(model, Choice(name="lora", options=options), total_steps=1).model


def reopen(base: Any, method: Method, directory: Path) -> Any:
    """The model that a run of `method` saved in `directory`, for inference.

    Args:
        base: the `loading.Base` that it was trained on; of a run that holds all weights, how they are to be loaded.

    Raises:
        ValueError: the run's files are not whole, or not for this base.
        OSError: the base cannot be had.
    """
    if method.trains_base:
        return replace(base, name=str(directory), revision=None).load().eval()
    adapter_files.tensor_names(directory)  # a missing file is found before the minutes that a base takes
    return load_adapter(base.load(), directory)


def load_adapter(model: Any, directory: Path) -> Any:
    """`model` with the adapter in `directory`, for inference.

    Raises:
        ValueError: a file is missing or broken, or its tensors are not all those of this adapter in this model.
    """
    from peft import PeftModel

    names = adapter_files.tensor_names(directory)
    quantised.keep_8bit_scales(model)
    with adapter_files.reading(directory, names):
        adapted: Any = PeftModel.from_pretrained(model, str(directory)).eval()
    # An adapter may bring embeddings of its base; the next one would get them, too.
    own = _own_tensors(adapted)
    adapter_files.require_tensors(directory, names, own, allowed=set(adapted.state_dict()))
    adapted.replaced_tensors = sorted(names - own)
    quantised.keep_dtypes(adapted.requires_grad_(False))
    _tell_marks(adapted)
    return adapted


def load_more(model: Any, name: str, directory: Path) -> None:
    """Puts the adapter in `directory` into `model` beside those it has; which one is active stays.

    Args:
        model: as `load_adapter` gave it.
        name: peft's for it, which finds its adapters' names in those of tensors: no dot, and no word such as `weight`.

    Raises:
        ValueError: its files are not whole or not for this model; it is of another kind than the first one; or one of
            them changes weights of the base, which the others would get, too. `model` is then as it was.
    """
    names = adapter_files.tensor_names(directory)
    config = adapter_files.config(directory)
    if config.peft_type != model.peft_type:
        raise ValueError(
            f"{directory} is {config.peft_type.value}, and beside {model.peft_type.value} peft takes no other kind of "
            "adapter: open it by itself"
        )
    # (IA)³: peft keeps of a layer, not of an adapter, on which side it is scaled.
    sides = [set(getattr(each, "feedforward_modules", None) or ()) for each in (config, *model.peft_config.values())]
    if any(side != sides[0] for side in sides):
        raise ValueError(
            f"{directory} scales {' '.join(sorted(sides[0])) or 'no layer'} at the input, and the adapter beside it "
            f"{' '.join(sorted(sides[1])) or 'none'}: open each by itself"
        )
    copied = tuple(f".{module}." for module in getattr(config, "modules_to_save", None) or ())
    replaced = [t for t in names & set(model.state_dict()) if not any(part in t for part in copied)]
    changes = [f"brings {tensor}" for tensor in sorted([*model.replaced_tensors, *replaced])]
    changes += filter(None, map(_trained_biases, [config, *model.peft_config.values()]))
    if changes:
        raise ValueError(
            f"{directory} cannot be loaded beside another adapter: one of the two {changes[0]}, so the base that both "
            "stand on would not stay as it is: open each by itself"
        )
    try:
        with adapter_files.reading(directory, names):
            model.load_adapter(str(directory), adapter_name=name)
        adapter_files.require_tensors(directory, names, _own_tensors(model, name), allowed=set())
    except BaseException:
        if name in model.peft_config:
            model.delete_adapter(name)
        raise
    quantised.keep_dtypes(model.requires_grad_(False))


def _own_tensors(model: Any, name: str = "default") -> set[str]:
    """The names that the tensors of the adapter `name` have in a file."""
    from peft import get_peft_model_state_dict

    return set(get_peft_model_state_dict(model, save_embedding_layers=False, adapter_name=name))


def _trained_biases(config: Any) -> str:
    """Says that an adapter of this peft configuration holds biases of its base; empty where it does not."""
    bias = getattr(config, "bias", "none")
    return f"trained the base's biases (bias {bias})" if bias != "none" else ""


def virtual_tokens(model: Any) -> int:
    """Trained positions that stand before every prompt of `model`, with the adapter that is active; 0 for most
    methods."""
    configs = getattr(model, "peft_config", {})
    active = model.active_adapters if configs else ()
    return max((getattr(configs[name], "num_virtual_tokens", 0) or 0 for name in active), default=0)


def context_length(model: Any) -> int | None:
    """Positions the model has, virtual tokens' included; None where its configuration does not say (ALiBi has no
    limit)."""
    return getattr(model.config, "max_position_embeddings", None)


def _check_virtual_tokens(model: Any, number: int) -> None:
    positions = context_length(model)
    if positions is not None and number >= positions:
        raise ValueError(
            f"--num_virtual_tokens {number}: the model has {positions} positions, and virtual tokens must leave some "
            "to the prompt and its answer: lower --num_virtual_tokens"
        )


@torch.no_grad()
def _tell_marks(model: Any) -> None:
    """Behind virtual tokens a base gets embeddings instead of ids. One that finds the end of its prompt in the ids
    (prefix attention; `marks`, counted from the end of a row) is told."""
    marks = getattr(model.get_base_model(), "marks", None) if virtual_tokens(model) else None
    if marks is not None:
        model.register_forward_pre_hook(
            lambda _, given, named: (given, {"marks": marks(named["input_ids"]), **named}), with_kwargs=True
        )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; a 4-bit weight counts its elements, not its bytes."""
    sizes = [(p.requires_grad, getattr(p, "quant_state", None), p) for p in model.parameters()]
    counts = [(trains, state.shape.numel() if state is not None else p.numel()) for trains, state, p in sizes]
    return sum(n for trains, n in counts if trains), sum(n for _, n in counts)
