"""What a GPU and bitsandbytes make and keep in a training step, where torch on a CPU makes and keeps something else.

Knows: CUDA's fused kernels, its autocast, and the layers of bitsandbytes. Does not know models, and computes nothing:
it is for tensors without numbers (`utils.rehearsal`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_ATEN = torch.ops.aten

# Of the functions that CUDA's autocast computes in float32 (torch/csrc's autocast_mode.h) and the CPU's does not.
_IN_FLOAT32 = frozenset(
    (
        "layer_norm",
        "group_norm",
        "softmax",
        "log_softmax",
        "softplus",
        "pow",
        "rsqrt",
        "reciprocal",
        "exp",
        "log",
        "sum",
    )
    + ("cumsum", "prod", "norm", "logsumexp")
)


class CudaKernels(TorchFunctionMode):
    """What CUDA does where torch on a CPU does something else: fused attention, fused dropout, autocast to float32.

    Args:
        autocast: the type that autocast computes products in; None where it is off.
    """

    def __init__(self, autocast: torch.dtype | None) -> None:
        super().__init__()
        self._autocast = autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is nn.functional.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is nn.functional.dropout:
            return _dropout(*args, **kwargs)
        if self._autocast and name in _IN_FLOAT32:
            args, kwargs = tree_map(_widened, (args, kwargs))
        return func(*args, **kwargs)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        dtype = self._autocast or query.dtype
        query, key, value = (x.to(dtype) for x in (query, key, value))
        if attn_mask is None and dtype is not torch.float32 and query.shape[-1] == value.shape[-1] <= 256:
            return _ATEN._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
        if attn_mask is not None:
            if attn_mask.dtype is torch.bool:
                attn_mask = torch.zeros(attn_mask.shape, dtype=dtype).masked_fill(~attn_mask, -torch.inf)
            attn_mask = attn_mask.to(dtype).expand(*query.shape[:-1], key.shape[-2])
        return _ATEN._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
        )[0]


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


def _widened(x: Any) -> Any:
    return x.float() if isinstance(x, torch.Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x


class EightBit(torch.autograd.Function):
    """What bitsandbytes' 8-bit layer (Dettmers et al. 2022, arXiv 2208.07339) makes and keeps while it trains.

    What it would keep of its input is dropped (`quantised.forget_inputs`). On CUDA it makes codes and int32 sums; on a
    CPU, and in the backward pass, a copy of the weight (bitsandbytes 0.50, autograd/_functions.py).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, cuda: bool) -> torch.Tensor:
        """`x` (…, in), int8 `weight` (out, in), `bias` (out) → (…, out), in the type of `x`."""
        ctx.dtype, ctx.weight = x.dtype, weight
        if not cuda:
            return nn.functional.linear(x, weight.to(x.dtype), bias if bias is None else bias.to(x.dtype))
        codes = x.reshape(-1, x.shape[-1]).to(torch.float16).to(torch.int8)
        return _ATEN._int_mm(codes, weight.t()).to(torch.float16).to(x.dtype).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        """The gradient of the input."""
        return grad_outputs[0].to(ctx.dtype) @ ctx.weight.to(ctx.dtype), None, None, None


class FourBit(torch.autograd.Function):
    """The same of the 4-bit layer (Dettmers et al. 2023, arXiv 2305.14314), which keeps nothing: a copy of the weight,
    forward and backward. CUDA makes none forward for up to 1,536 tokens, which are cheap in any case."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, codes: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`x` (…, in), `codes` (out, in), `bias` (out) → (…, out)."""
        ctx.codes = codes
        return nn.functional.linear(x, codes.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        """The gradient of the input."""
        gradient = grad_outputs[0]
        return gradient @ ctx.codes.to(gradient.dtype), None, None


def quantised_layers(model: Any) -> list[Any]:
    """The layers that transformers has bitsandbytes quantise: linear, frozen, and not the output head."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [
        layer
        for layer in model.modules()
        if type(layer) in (nn.Linear, Conv1D) and layer is not head and not layer.weight.requires_grad
    ]
