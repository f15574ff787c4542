"""The linear layers of a model, and which of them a method's flags name.

Knows: names and shapes of layers, and what peft makes of a name. Does not know what is done to a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def linear_names(model: nn.Module) -> list[str]:
    """The last parts of the names of all linear layers but the head, sorted."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # pyright: ignore[reportCallIssue]
    return sorted({name.rpartition(".")[2] for name, layer in _linear_layers(model) if layer is not head})


def check_targets(model: nn.Module, target_modules: Sequence[str], *, flag: str = "lora_target_modules") -> None:
    """`ValueError` for a target that names no linear layer."""
    if list(target_modules) == ["all-linear"] and flag == "lora_target_modules":
        return
    for target in target_modules:
        if not matching(model, [target]):
            every = " (or all-linear)" if flag == "lora_target_modules" else ""
            raise ValueError(
                f"--{flag} {target}: no linear layer of this model has that name. "
                f"It has: {', '.join(linear_names(model))}{every}"
            )


# By name, where peft has no row for a kind of model: keys and values, or the layer that packs them; and the layer that
# leads back out of a feed-forward block.
_KEYS_AND_VALUES = (("k_proj", "v_proj"), ("query_key_value",), ("qkv_proj",), ("c_attn",))
_SECOND_LAYERS = ("down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2")


def ia3_layers(model: Any) -> tuple[list[str], list[str]]:
    """(keys and values, second feed-forward layers): the names of what (IA)³ scales in `model`.

    Raises:
        ValueError: they cannot be told.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS

    kind, names = model.config.model_type, linear_names(model)
    second = list(FEEDFORWARD.get(kind, ()))
    attention = [name for name in TARGETS.get(kind, ()) if name not in second]
    if not all(matching(model, [name]) for name in [*attention, *second]) or not attention:
        attention = next((list(group) for group in _KEYS_AND_VALUES if set(group) <= set(names)), [])
        second = [name for name in _SECOND_LAYERS if name in names]
    if attention and second:
        return attention, second
    raise ValueError(
        f"--peft_type ia3: which layers of a {kind} model make keys, values and the feed-forward block's output is not "
        f"known here: name them with --ia3_target_modules, and the last once more with --ia3_feedforward_modules, of: "
        f"{', '.join(names)}"
    )


def _linear_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """GPT-2's `Conv1D` is a linear layer with its weight transposed."""
    from transformers.pytorch_utils import Conv1D

    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)]


def matching(model: nn.Module, names: Sequence[str]) -> list[tuple[str, Any]]:
    """The linear layers that `names` name, as peft reads them."""
    everything = list(names) == ["all-linear"]
    wanted = linear_names(model) if everything else names
    return [
        (name, layer)
        for name, layer in _linear_layers(model)
        if any(name == target or name.endswith(f".{target}") for target in wanted)
    ]
