"""Proof that a saved adapter is the trained one.

Knows: what an adapter file must hold, and how far two models' logits may lie apart. Does not know how a model is
loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from utils.distributed import Precision


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the check of a saved adapter measured."""

    tensors: int
    max_logit_difference: float
    """Largest absolute difference between the trained model's logits and those of base + saved adapter."""
    max_logit: float
    tolerance: float
    """Allowed share of `max_logit`."""
    probe_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`."""
        return asdict(self)


class AdapterError(ValueError):
    """A saved adapter that is not what was trained."""


# Relative to the largest logit. The same weights on the same device repeat to the last bits in fp32; the lower
# precisions round at each layer, and kernels may be chosen anew.
TOLERANCE: Mapping[str, float] = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}


@torch.no_grad()
def probe_logits(model: Any, probe: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits (float32, CPU) of `model` at the unpadded positions of `probe` (`input_ids`, `attention_mask`), shape
    (positions, vocabulary); the model is left in eval mode."""
    model.eval()
    on_device = {name: probe[name].to(model.device) for name in ("input_ids", "attention_mask")}
    return model(**on_device).logits[on_device["attention_mask"].bool()].float().cpu()


def check_adapter_file(directory: Path) -> int:
    """The number of tensors of the adapter in `directory`.

    Raises:
        AdapterError: no file, no tensors, a tensor that is empty or not finite, or a B matrix that is all zeros (an
            adapter that changes nothing).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / "adapter_model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"the saved adapter {path} cannot be read: {error}") from error
    if not tensors:
        raise AdapterError(f"the saved adapter {path} holds no tensors")
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise AdapterError(f"{path}: tensor {name} is empty")
        if not tensor.isfinite().all():
            raise AdapterError(f"{path}: tensor {name} is not finite (NaN or infinity)")
        if "lora_B" in name and not tensor.any():
            raise AdapterError(f"{path}: tensor {name} is all zeros: the adapter was not trained")
    return len(tensors)


def verify_adapter(
    directory: Path, reloaded: Any, probe: Mapping[str, torch.Tensor], expected: torch.Tensor, *, precision: Precision
) -> Verified:
    """Compares the logits of `reloaded`, a fresh base with the adapter read from `directory`, with `expected`, those of
    the trained model on `probe` (see `probe_logits`).

    Raises:
        AdapterError: the file is bad (`check_adapter_file`), or the logits differ by more than `TOLERANCE`.
    """
    tensors = check_adapter_file(directory)
    found = probe_logits(reloaded, probe)
    scale, difference = expected.abs().max().item(), (found - expected).abs().max().item()
    if not difference <= TOLERANCE[precision] * max(scale, 1.0):
        raise AdapterError(
            f"the adapter in {directory} does not reproduce the trained model: logits differ by {difference:.3g} "
            f"where the largest is {scale:.3g} (allowed: {TOLERANCE[precision]:.0e} of it). Do not use it"
        )
    return Verified(
        tensors=tensors,
        max_logit_difference=difference,
        max_logit=scale,
        tolerance=TOLERANCE[precision],
        probe_tokens=int(probe["attention_mask"].sum()),
    )
