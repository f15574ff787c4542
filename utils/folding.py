"""What an adapter changes, put into the weights of its base, in memory.

Knows: the layers of a peft model, and what 8- and 4-bit layers stand for. Does not know files, or how a model is
loaded.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

PEFT_PREFIX = "base_model.model."


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Name in the base → layer with an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name.removeprefix(PEFT_PREFIX): layer
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }


def copy_dequantised(quantised: nn.Module, model: nn.Module) -> None:
    """Replaces the weights of `model` by what the 8- or 4-bit layers of `quantised` stand for."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    for name, layer in quantised.named_modules():
        if isinstance(layer, Linear8bitLt | Linear4bit):
            target: Any = model.get_submodule(name)
            weight = dequantize_module_weight(layer).data
            target.weight.data.copy_(weight.T if isinstance(target, Conv1D) else weight)


@torch.no_grad()
def merge_layers(model: Any) -> Any:
    """The base of a peft `model` with its adapter merged in, in place: sums are taken in fp32 and rounded once,
    whatever the method. One layer at a time is held twice."""
    untie(model)
    for layer in adapted_layers(model).values():
        parameters = list(layer.get_base_layer().parameters(recurse=False))
        stored = [parameter.dtype for parameter in parameters]
        for parameter in parameters:
            parameter.data = parameter.data.float()
        layer.merge(safe_merge=True)
        for parameter, dtype in zip(parameters, stored, strict=True):
            parameter.data = parameter.data.to(dtype)
    return model.unload()


def untie(model: Any) -> None:
    """Gives an adapted layer that shares its weight with another (a head tied to the embeddings) a weight of its own,
    for the adapter changes only the one, and says so in the configuration."""
    users = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for layer in adapted_layers(model).values():
        base = layer.get_base_layer()
        if users[id(base.weight)] > 1:
            users[id(base.weight)] -= 1
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
