"""How much memory and how many operations training takes, before a weight is read and without the device.

Knows: parameters in their types, gradients, the optimizer's moments, what a rehearsal of the model keeps and needs, and
the output head's chunks. Does not know a device's free memory, batches, or what to choose (`utils.preflight`).

Held against measured peaks on a CPU by benchmarks/preflight.py. What is added for CUDA (`CONTEXT`, `FRAGMENTATION`) is
assumed until it is measured on one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from utils.distributed import DTYPES, Precision
from utils.emulation import quantised_layers
from utils.rehearsal import Pass, Rehearsal, decoder_layers
from utils.target_loss import chunk_rows, tile

CONTEXT = 600_000_000
"""Bytes that CUDA and its libraries take on a device before the first tensor; an assumption."""
FRAGMENTATION = 0.05
"""Share of activations and workspace that CUDA's allocator holds and cannot use; an assumption."""
LAYERS_WHOLE = 2
"""Layers of a sharded base that are whole at a time: one computes while the next one comes."""
BYTES = {8: 1.0, 4: 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Of a quantised weight. 4 bits: a scale in 8 bits for 64 weights, and one in 32 bits for 256 of those (Dettmers et al.
2023, arXiv 2305.14314, section 3); 8 bits have one in 32 bits for each output (`_stored`)."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes on one device at the fullest moment of a step."""

    weights: int
    """All that is not the adapter's, in full fine-tuning all."""
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    """What a micro-batch's forward pass leaves to the backward pass, but for the head's part."""
    logits: int
    """Of a chunk of trained positions, with the gradient of what the output head is given."""
    workspace: int
    """What comes and goes beside the activations in the layers. It and a chunk's logits are never there together, so
    this is what it needs above them."""
    overhead: int
    """CUDA's own, and what its allocator loses."""

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(vars(self).values())


class MemoryModel:
    """Memory and operations of one run: of a base, a method, a precision and a number of bits.

    Args:
        model: empty (on the meta device), with what is trained in it.
        precision: of the weights that are frozen; what is trained is float32.
        quantization_bit: 16 (as `precision` says), 8 or 4.
        world_size: processes; with `sharded`, those among which the frozen matrices of the layers are shared out.
        device: whose kernels compute.
        needs_mask: whether batches say which positions are padding; None: where the model looks for the end of a
            prompt, or virtual tokens stand before it.
    """

    def __init__(
        self,
        model: Any,
        *,
        precision: Precision,
        quantization_bit: int,
        world_size: int = 1,
        sharded: bool = False,
        device: Literal["cuda", "cpu"] | str = "cuda",
        needs_mask: bool | None = None,
    ) -> None:
        self._dtype, self._bits, self._device = DTYPES[precision], quantization_bit, device
        self._processes, self._sharded = world_size, sharded
        if needs_mask is None:
            configs = getattr(model, "peft_config", {}).values()
            virtual = any(getattr(config, "num_virtual_tokens", None) for config in configs)
            needs_mask = virtual or hasattr(model, "marks")
        self._rehearsal = Rehearsal(
            model,
            precision=precision,
            quantization_bit=quantization_bit,
            cuda=device == "cuda",
            needs_mask=needs_mask,
        )
        self._passes: dict[tuple[int, bool], Pass] = {}
        self._model = model
        head = model.get_output_embeddings()
        self._head, self._head_trains = head.weight, any(p.requires_grad for p in head.parameters())
        # The steps of a tangent, and its slope.
        self._capped = bool(getattr(model.config.get_text_config(), "final_logit_softcapping", None))
        self._weights, self._trained, self._adapter = self._parameters()

    def footprint(self, *, rows: int, length: int, targets: int, checkpointing: bool) -> Footprint:
        """Bytes for a micro-batch.

        Args:
            rows, length: of its ids.
            targets: trained positions in it.
            checkpointing: whether each layer's activations are computed a second time instead of kept.

        Raises:
            ValueError: the model decides something by the numbers that it computes.
        """
        made = self._pass(length, checkpointing)
        activations, peak = made.kept_bytes(rows), made.peak_bytes(rows)
        of_head, stays = self._logits(targets, made)
        workspace = max(0, peak - activations + stays - of_head)
        cuda = self._device == "cuda"
        return Footprint(
            weights=self._weights,
            adapter=self._adapter,
            # DistributedDataParallel sums them in buckets of their own; a sharded base's are averaged where they are.
            gradients=4 * self._trained * (2 if self._processes > 1 and not self._sharded else 1),
            optimizer=8 * self._trained,  # AdamW's two moments in float32
            activations=activations,
            logits=of_head,
            workspace=workspace,
            overhead=CONTEXT + round(FRAGMENTATION * (activations + of_head + workspace)) if cuda else 0,
        )

    def flops(self, tokens: int, targets: int, length: int, *, checkpointing: bool) -> float:
        """FLOPs of a forward and a backward pass as they are really computed: no gradients of frozen weights, nothing
        below the first trained layer, the head at the trained positions alone, half of causal attention.

        Args:
            tokens: positions in all, padding included.
            targets: trained ones.
            length: of a row; what attention takes grows with it.
        """
        known = next((key for key in self._passes if key[1] == checkpointing), (length, checkpointing))
        made = self._pass(*known)
        by_token = (made.products + made.attention * length / known[0]) / known[0]
        of_target = (8.0 if self._head_trains else 4.0) * self._head.numel()
        return tokens * by_token + targets * of_target

    def _pass(self, length: int, checkpointing: bool) -> Pass:
        key = length, checkpointing
        if key not in self._passes:
            self._passes[key] = self._rehearsal.run(length=length, checkpointing=checkpointing)
        return self._passes[key]

    def _logits(self, targets: int, made: Pass) -> tuple[int, int]:
        """(bytes while the head computes, bytes of them that stay until the backward pass is through), beside the
        activations; see `target_loss`."""
        width, kind = made.hidden
        vocabulary = self._head.shape[0]
        narrow = 0 if self._dtype is torch.float32 else self._dtype.itemsize  # a second copy, in that type
        given = targets * width * kind.itemsize
        if self._head_trains:
            chunk = min(targets, chunk_rows(vocabulary, self._device))
            # Backward: the softmax's logarithm, its gradient and that of the logits; then that of the weight.
            numbers = 3 * 4 * chunk * vocabulary + (4 + narrow) * self._head.numel()
            return given + numbers, given
        # float32 logits; in another type, what the product gives and what it is given; a cap's steps
        copies = 4 + 2 * narrow + (12 if self._capped else 0)
        gradient = 4 * targets * width
        size = tile(vocabulary, self._device)
        rows, columns = min(targets, size.rows), min(vocabulary, size.columns)
        return given + gradient + rows * (columns * copies + 12 * width), gradient

    def _parameters(self) -> tuple[int, int, int]:
        """(bytes of the weights on a device, trained parameters, bytes of the adapter)."""
        quantised = {id(layer.weight) for layer in quantised_layers(self._model)}
        parameters = list(self._model.parameters())
        layers = decoder_layers(self._model)
        of_layers = {id(p) for p in layers.parameters()}
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        everything = all(p.requires_grad for p in parameters)
        fixed = matrices = 0.0
        for p in parameters:
            if p.requires_grad and not everything:
                continue
            size = 4.0 * p.numel() if p.requires_grad else _stored(p, self._dtype, self._bits, id(p) in quantised)
            if self._sharded and id(p) in of_layers and p.dim() > 1 and not p.requires_grad:
                matrices += size
            else:
                fixed += size
        buffers = sum(b.numel() * b.itemsize for b in self._model.buffers())
        if matrices:
            whole = min(LAYERS_WHOLE, len(layers)) / len(layers)
            fixed += matrices / self._processes + matrices * whole
        return round(fixed + buffers), trained, 0 if everything else 4 * trained


def weight_bytes(model: Any, *, precision: Precision, quantization_bit: int) -> int:
    """Bytes of the weights of an empty `model`, all of them frozen, and of its buffers."""
    quantised = {id(layer.weight) for layer in quantised_layers(model)}
    stored = (_stored(p, DTYPES[precision], quantization_bit, id(p) in quantised) for p in model.parameters())
    return round(sum(stored) + sum(b.numel() * b.itemsize for b in model.buffers()))


def _stored(weight: nn.Parameter, dtype: torch.dtype, bits: int, is_quantised: bool) -> float:
    """Bytes of a frozen weight. 8 bits have a scale of 32 bits for each output."""
    if not is_quantised or bits == 16:
        return weight.numel() * dtype.itemsize
    return weight.numel() * BYTES[bits] + (4 * weight.shape[0] if bits == 8 else 0)


def seconds(flops: float, device_flops: float) -> float:
    """How long a device that does `device_flops` a second takes for `flops`."""
    return flops / device_flops


def measured_flops(device: torch.device | str, precision: Precision, *, most: int = 2048) -> float:
    """FLOP/s of square products on `device` in `precision`: the fastest of those of a twentieth of a second, each of
    twice the width of the one before, up to `most`: where a precision is emulated, a large one would take minutes."""
    kind = DTYPES[precision]
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    best, spent, width = 0.0, 0.0, 128
    small = torch.ones((width, width), dtype=kind, device=device)
    torch.mm(small, small)  # a process's first one loads the library: 1.7 s on a busy machine
    wait()
    while spent < 0.05:
        left = torch.ones((width, width), dtype=kind, device=device)
        started = time.perf_counter()
        torch.mm(left, left)
        wait()
        took = time.perf_counter() - started
        best, spent, width = max(best, 2.0 * width**3 / took), spent + took, min(most, 2 * width)
    return best
