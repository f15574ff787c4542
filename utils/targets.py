"""Where a method has something to train in a model: linear layers by their names, and cached keys and values.

Knows: names and shapes of layers, and what peft makes of a name. Does not know what is done to a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def linear_names(model: nn.Module) -> list[str]:
    """The last parts of the names of all linear layers but the head, sorted."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # pyright: ignore[reportCallIssue]
    return sorted({name.rpartition(".")[2] for name, layer in _linear_layers(model) if layer is not head})


def check_targets(model: nn.Module, target_modules: Sequence[str], *, flag: str = "lora_target_modules") -> None:
    """`ValueError` for a target that names no linear layer, or `all-linear` (a target of LoRA's flag) beside others."""
    takes_all = flag == "lora_target_modules"
    if takes_all and list(target_modules) == ["all-linear"]:
        return
    if takes_all and "all-linear" in target_modules:
        raise ValueError(f"--{flag} all-linear stands for every linear layer: give it alone, or names without it")
    for target in target_modules:
        if target == "all-linear" or not matching(model, [target]):
            every = " (or all-linear)" if takes_all else ""
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


def cache_shape(model: Any) -> tuple[int, int, int]:
    """(layers, heads, width of a head) of the keys and values that the model caches, seen at one token. How many heads
    those are has no common name among configurations: Falcon-7B caches one, Falcon-40B all, and neither says so."""
    ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    # One that looks for the end of a prompt in its ids would find none.
    told = {"marks": torch.ones((1, 2), dtype=torch.long, device=model.device)} if hasattr(model, "marks") else {}
    layers = getattr(getattr(model(input_ids=ids, use_cache=True, **told), "past_key_values", None), "layers", [])
    shapes = {getattr(getattr(layer, part, None), "shape", None) for layer in layers for part in ("keys", "values")}
    shape = shapes.pop() if len(shapes) == 1 else None
    if shape is None:
        raise ValueError(
            f"--peft_type prefix: {type(model).__name__} does not keep keys and values of one shape in every layer, "
            "which is what prefix tuning trains: choose --peft_type prompt or lora"
        )
    return len(layers), shape[1], shape[3]
