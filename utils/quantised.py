"""What libraries do to adapters on 8- and 4-bit weights, and how it is kept from doing harm.

Knows: three faults, each with the versions it was measured in. Does not know methods or how a base is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_QUANTISED = ("Linear8bitLt", "Linear4bit")
"""Classes of bitsandbytes, which need not be there to ask."""


def keep_8bit_scales(model: nn.Module) -> None:
    """At every pass of DoRA on CPU, peft puts a copy of an 8-bit weight in its place, without the scales that
    bitsandbytes then takes from it (measured: peft 0.21, bitsandbytes 0.50). The layer still has them."""
    for module in model.modules():
        if hasattr(module, "init_8bit_state"):
            module.register_forward_pre_hook(_use_own_scales)


def _use_own_scales(layer: Any, _: Any) -> None:
    if layer.state.SCB is not None and getattr(layer.weight, "SCB", None) is None:
        layer.weight.CB = None


def forget_inputs(model: nn.Module) -> None:
    """An 8-bit layer keeps its input until it is called again, for the gradient of a weight that has none, and
    gradient checkpointing does not drop it either (measured: bitsandbytes 0.50 on CPU; its CUDA layer read in its
    source)."""
    for module in model.modules():
        if hasattr(module, "init_8bit_state"):
            module.register_forward_hook(_forget_input)


def _forget_input(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
    made: Any = output.grad_fn
    if made is None or getattr(made, "is_empty", False):
        return  # of an empty batch, the backward pass does ask for the input
    if hasattr(made, "A"):
        made.A = None
    elif hasattr(made, "tensors"):
        made.tensors = (*made.tensors[:2], None)


def keep_dtypes(model: nn.Module) -> None:
    """Has adapted layers return what their base layer would. On a quantised base in bf16, those of AdaLoRA and (IA)³
    return fp32, which the next layer does not take (measured: peft 0.21)."""
    from peft.tuners.adalora.layer import AdaLoraLayer
    from peft.tuners.ia3.layer import IA3Layer

    for module in model.modules():
        if not isinstance(module, AdaLoraLayer | IA3Layer) or _as_base in module._forward_hooks.values():
            continue  # a second adapter may bring layers of its own beside those of the first
        if type(module.get_base_layer()).__name__ in _QUANTISED:
            module.register_forward_hook(_as_base)


def _as_base(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    device = output.device.type
    return output.to(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs[0].dtype)
