"""A forward and a backward pass without numbers: what a model keeps, how much memory it needs, how much it multiplies.

Knows: how a model is run without memory, and how a few of its layers tell of all. Does not know optimizers, budgets, or
what a GPU does differently (`utils.emulation`).

Floating-point tensors have a shape and no memory (torch's FakeTensor); ids, positions and masks are real, for models
decide by them. So every family is measured by its own code, and none has a formula. On a CPU the bytes are those of a
real pass, exactly (tests/test_rehearsal.py).
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from utils.allocations import Mark, Watch
from utils.distributed import DTYPES, Precision
from utils.emulation import CudaKernels, EightBit, FourBit, quantised_layers

DEPTH = 3
"""Layers that a pass goes through: the first, one that stands for all between, and the last. One more where layers are
of several kinds, for the first of each may keep what the others share."""

_PRIMES = (97, 101, 103, 107, 109, 113)
"""Rows of a pass: the first that divides no other size, so that what grows with the rows is known by its size."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A forward and a backward pass of a model as deep as it is, over any number of rows of one length. Its tensors end
    in a pair: bytes however many rows there are, and bytes a row."""

    live: torch.Tensor
    """int64 (events, 2): activations at every allocation and release, in order."""
    kept: torch.Tensor
    """int64 (2): of them, what the forward pass leaves to the backward pass."""
    hidden: tuple[int, torch.dtype]
    """Width and type of what the output head is given."""
    products: float
    """FLOPs a row of all products with weights but the head's; 2 for a multiplication and an addition."""
    attention: float
    """FLOPs a row of queries with keys and weights with values."""

    def kept_bytes(self, rows: int) -> int:
        """What the forward pass over `rows` rows keeps."""
        return int(self.kept[0] + rows * self.kept[1])

    def peak_bytes(self, rows: int) -> int:
        """The most that is there at a time."""
        return int((self.live[:, 0] + rows * self.live[:, 1]).max())


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of equal layers that holds most of the model; an empty one without such."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(child) for child in m}) == 1]
    return max(lists, key=lambda each: sum(p.numel() for p in each.parameters()), default=nn.ModuleList())


class Rehearsal:
    """An empty model (on the meta device, with what is trained in it), as it will be trained.

    Args:
        model: a causal model of transformers, or peft's around one. It is left as it was found.
        precision: of the frozen weights; what is trained is float32. Autocast is on unless it is fp32.
        quantization_bit: 16, 8 or 4.
        cuda: whether CUDA's kernels compute, or the CPU's.
        needs_mask: whether batches say which positions are padding.
    """

    def __init__(
        self, model: Any, *, precision: Precision, quantization_bit: int, cuda: bool, needs_mask: bool = False
    ) -> None:
        self.model, self.bits, self.cuda, self.needs_mask = model, quantization_bit, cuda, needs_mask
        self.dtype, self.autocast = DTYPES[precision], precision != "fp32"
        self.layers = decoder_layers(model)
        kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
        self._depth = min(len(self.layers), DEPTH + (len(set(kinds)) > 1))

    def run(self, *, length: int, checkpointing: bool) -> Pass:
        """Micro-batches of rows of `length` tokens, none of them padding.

        Raises:
            ValueError: the model decides something by the numbers it computes, so it cannot go without them.
        """
        sizes = {length, *(size for parameter in self.model.parameters() for size in parameter.shape)}
        rows = next((prime for prime in _PRIMES if all(size % prime for size in sizes)), _PRIMES[0])
        short = self._run(rows, length, checkpointing, self._depth)
        return short or self._run(rows, length, checkpointing, len(self.layers))  # pyright: ignore[reportReturnType]

    def _run(self, rows: int, length: int, checkpointing: bool, depth: int) -> Pass | None:
        """The pass through `depth` layers, extended to all; None where it does not show what another layer adds."""
        watch = Watch(rows)
        with ExitStack() as stack:
            enter = stack.enter_context
            enter(FakeTensorMode(allow_non_fake_inputs=True))
            enter(_no_collection())
            enter(_shortened(self.layers, depth))
            kernels = CudaKernels(self.dtype if self.autocast else None) if self.cuda else nullcontext()
            enter(_training(self.model, checkpointing, kernels))
            enter(self._without_numbers(watch))
            marks = enter(_marked(list(self.layers)[-2:], watch))
            captured = enter(_captured(self.model.get_output_embeddings()))
            enter(kernels)
            enter(watch)
            try:
                self._forward(rows, length)
                done, hidden = watch.here(), (captured[0].shape[-1], captured[0].dtype)
                _backward(captured)
            except RuntimeError as error:
                first = str(error).strip().split("\n")[0]
                raise ValueError(
                    f"the memory of {type(self.model).__name__} cannot be told without its weights ({first})"
                ) from error
        found = Pass(
            live=torch.tensor(watch.line),
            kept=done.live,
            hidden=hidden,
            products=watch.products / rows,
            attention=watch.attention / rows,
        )
        missing = len(self.layers) - depth
        if not missing:
            return found
        return _deepened(found, marks, done, missing, rows=rows) if len(marks) == 4 else None

    def _forward(self, rows: int, length: int) -> None:
        ids = torch.zeros((rows, length), dtype=torch.long)
        if hasattr(self.model, "marks"):  # it looks for the end of the prompt
            ids[:, 0], ids[:, 1] = self.model.config.gmask_token_id, self.model.config.bos_token_id
        batch = {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if self.needs_mask else {})
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.autocast):
            self.model(**batch)

    @contextmanager
    def _without_numbers(self, watch: Watch) -> Iterator[None]:
        """Gives the model's tensors their types in training and gradients, but no memory; they do not count."""
        made: dict[int, torch.Tensor] = {}
        with ExitStack() as undo:
            quantised = {id(layer) for layer in quantised_layers(self.model)} if self.bits < 16 else set()
            for module in self.model.modules():
                every = vars(module)
                for holder in (every, *(value for value in every.values() if isinstance(value, dict))):
                    for name, tensor in list(holder.items()):
                        if isinstance(tensor, torch.Tensor):
                            undo.callback(holder.__setitem__, name, tensor)
                            if id(tensor) not in made:
                                made[id(tensor)] = self._stand_in(tensor, watch)
                            holder[name] = made[id(tensor)]
                if id(module) in quantised:
                    self._quantise(module, watch)
                    undo.callback(module.__dict__.pop, "forward")
                if self.cuda and self.autocast and id(getattr(module, "base_layer", None)) in quantised:
                    module.cast_input_dtype_enabled = False  # peft's layers for bitsandbytes' leave that to autocast
                    undo.callback(module.__dict__.pop, "cast_input_dtype_enabled")
            yield

    def _stand_in(self, tensor: torch.Tensor, watch: Watch) -> torch.Tensor:
        if not tensor.is_floating_point() and not isinstance(tensor, nn.Parameter):
            with unset_fake_temporarily():
                made = torch.zeros(tensor.shape, dtype=tensor.dtype)
        elif not isinstance(tensor, nn.Parameter):
            made = torch.empty(tensor.shape, dtype=tensor.dtype)
        else:
            kind = torch.float32 if tensor.requires_grad else self.dtype if tensor.is_floating_point() else tensor.dtype
            made = nn.Parameter(torch.empty(tensor.shape, dtype=kind), requires_grad=tensor.requires_grad)
            if tensor.requires_grad:
                made.grad = torch.empty_like(made)
                watch.exclude(made.grad)
        watch.exclude(made)
        return made

    def _quantise(self, layer: Any, watch: Watch) -> None:
        from transformers.pytorch_utils import Conv1D

        shape = layer.weight.shape[::-1] if isinstance(layer, Conv1D) else layer.weight.shape
        codes = torch.empty(shape, dtype=torch.int8 if self.bits == 8 else torch.uint8)
        watch.exclude(codes)
        layer._parameters["weight"] = nn.Parameter(codes, requires_grad=False)
        layer.forward = lambda x: self._quantised_product(x, layer.weight, layer.bias)

    def _quantised_product(self, x: torch.Tensor, codes: torch.Tensor, bias: torch.Tensor | None) -> Any:
        if self.bits == 8:
            return EightBit.apply(x, codes, bias, self.cuda)
        made: Any = FourBit.apply(x.to(self.dtype), codes, bias)
        return made.to(x.dtype)


def _backward(captured: list[torch.Tensor]) -> None:
    loss = captured.pop().sum()
    if loss.requires_grad:
        loss.backward()


def _deepened(found: Pass, marks: list[Mark], done: Mark, missing: int, *, rows: int) -> Pass:
    """`found` with `missing` layers more before the last, each like the one before that.

    Args:
        marks: those of `_marked`; `done`: the end of the forward pass.
        rows: that were run.
    """
    before, last, back_at_last, back_before = marks
    forward, back = last.live - before.live, back_at_last.live - back_before.live
    live = found.live.clone()
    live[last.events : done.events] += missing * forward
    more = missing * torch.minimum(forward, back)  # forward, autocast keeps until the end what it has cast
    live[done.events : back_before.events] += more
    products = last.products - before.products + back_before.products - back_at_last.products
    attention = last.attention - before.attention + back_before.attention - back_at_last.attention
    return replace(
        found,
        live=live,
        kept=found.kept + more,
        products=found.products + missing * products / rows,
        attention=found.attention + missing * attention / rows,
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing is released but by its last reference, so that two passes have the same events."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _shortened(layers: nn.ModuleList, depth: int) -> Iterator[None]:
    every = layers._modules
    layers._modules = dict(list(every.items())[:depth])
    try:
        yield
    finally:
        layers._modules = every


@contextmanager
def _training(model: Any, checkpointing: bool, again: AbstractContextManager[Any]) -> Iterator[None]:
    """As a base is loaded and a trainer trains it: without a cache of keys and values. `again` is entered wherever a
    layer is computed a second time, for the backward pass leaves such contexts."""
    was_training, cached = model.training, model.config.use_cache
    model.config.use_cache = False
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            if checkpointing:
                options = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), again)}
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            yield
        finally:
            if checkpointing:
                model.gradient_checkpointing_disable()
            model.config.use_cache = cached
            model.train(was_training)


@contextmanager
def _marked(layers: list[nn.Module], watch: Watch) -> Iterator[list[Mark]]:
    """Fills a list: the beginning of the last but one of the layers, and of the last; the gradient back before the
    last, and before the last but one."""
    marks: list[Mark] = []

    def begun(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        handles.pop(layer).remove()  # a layer that is computed twice begins once
        marks.append(watch.here())
        hidden = given[0] if given else named["hidden_states"]
        if hidden.requires_grad:
            hidden.register_hook(lambda _: marks.append(watch.here()))

    handles = {layer: layer.register_forward_pre_hook(begun, with_kwargs=True) for layer in layers}
    try:
        yield marks
    finally:
        for handle in handles.values():
            handle.remove()


@contextmanager
def _captured(head: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Fills a list with what the output head is given for the last position of each row, and has it compute nothing:
    what it does for the trained positions is not the model's affair (`utils.target_loss`)."""
    found: list[torch.Tensor] = []

    def take(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        positions = torch.zeros(given[0].shape[:2], dtype=torch.bool)
        positions[:, -1] = True
        found.append(given[0][positions])
        return (given[0][:, :0], *given[1:])

    handle = head.register_forward_pre_hook(take)
    try:
        yield found
    finally:
        handle.remove()
