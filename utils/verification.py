"""Proof that something was trained, and that what is saved is what was trained.

Knows: what a saved file must hold, which parameters must have moved, and how far two models' logits may lie apart.
Does not know how a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from utils.distributed import Precision
from utils.methods import DEFAULT_METHOD, METHODS, Method


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the check of a saved adapter measured."""

    tensors: int
    moved: int
    """Trained parameters (as tensors) that are not what they were before."""
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
    logits = model(**on_device).logits[:, -probe["input_ids"].shape[1] :]  # virtual tokens stand before the probe's
    return logits[on_device["attention_mask"].bool()].float().cpu()


@torch.no_grad()
def marks(model: Any) -> dict[str, tuple[float, float]]:
    """Sum and norm of every trainable parameter: what tells, without a copy, whether it has moved."""
    return {
        name: (p.sum(dtype=torch.float64).item(), torch.linalg.vector_norm(p, dtype=torch.float64).item())
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def require_moved(model: Any, before: Mapping[str, tuple[float, float]], method: Method) -> int:
    """The number of parameters that are not what they were when `marks` gave `before`.

    Raises:
        AdapterError: one that training must move did not (`Method.trained`, `Method.all_move`).
    """
    after = marks(model)
    moved = {name for name in before if after.get(name) != before[name]}
    wanted = [name for name in before if method.trained in name]
    still = [name for name in wanted if name not in moved]
    if not wanted or len(still) == len(wanted) or (method.all_move and still):
        named = f"{still[0]} and {len(still) - 1} more of {len(wanted)}" if still else "nothing"
        raise AdapterError(
            f"{method.label} was not trained: after the run as before it: {named}. The run is not finished; raise "
            "--learning_rate, train longer, or choose --precision bf16 or fp32"
        )
    return len(moved)


def check_files(directory: Path, method: Method) -> int:
    """The number of tensors that a run of `method` saved in `directory`; raises as `check_adapter_file` does."""
    if not method.trains_base:
        return check_adapter_file(directory)
    paths = sorted(directory.glob("model*.safetensors"))
    if not paths:
        raise AdapterError(f"{directory} holds no model*.safetensors")
    return sum(_check_tensors(path) for path in paths)


def check_adapter_file(directory: Path) -> int:
    """The number of tensors of the adapter in `directory`.

    Raises:
        AdapterError: no file, no tensors, a tensor that is empty or not finite, or a B matrix that is all zeros (an
            adapter that changes nothing).
    """
    return _check_tensors(directory / "adapter_model.safetensors")


def _check_tensors(path: Path) -> int:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    if not tensors:
        raise AdapterError(f"{path} holds no tensors")
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise AdapterError(f"{path}: tensor {name} is empty")
        if not tensor.isfinite().all():
            raise AdapterError(f"{path}: tensor {name} is not finite (NaN or infinity)")
        if "lora_B" in name and not tensor.any():
            raise AdapterError(f"{path}: tensor {name} is all zeros: the adapter was not trained")
    return len(tensors)


def verify_adapter(
    directory: Path,
    reloaded: Any,
    probe: Mapping[str, torch.Tensor],
    expected: torch.Tensor,
    *,
    precision: Precision,
    method: Method = METHODS[DEFAULT_METHOD],
    moved: int = 0,
) -> Verified:
    """Compares the logits of `reloaded`, a fresh base with the adapter read from `directory` (or all weights, read from
    there), with `expected`, those of the trained model on `probe` (see `probe_logits`).

    Raises:
        AdapterError: the file is bad (`check_adapter_file`), or the logits differ by more than `TOLERANCE`.
    """
    tensors = check_files(directory, method)
    found = probe_logits(reloaded, probe)
    scale, difference = expected.abs().max().item(), (found - expected).abs().max().item()
    if not difference <= TOLERANCE[precision] * max(scale, 1.0):
        raise AdapterError(
            f"what was saved in {directory} does not reproduce the trained model: logits differ by {difference:.3g} "
            f"where the largest is {scale:.3g} (allowed: {TOLERANCE[precision]:.0e} of it). Do not use it"
        )
    return Verified(
        tensors=tensors,
        moved=moved,
        max_logit_difference=difference,
        max_logit=scale,
        tolerance=TOLERANCE[precision],
        probe_tokens=int(probe["attention_mask"].sum()),
    )
