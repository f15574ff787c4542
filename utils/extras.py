"""Optional accelerations: kernels and compilers that must give the plain model's loss and gradients.

Knows: how each is switched on and off in a model, and what shows that it computes the same. Does not know flags'
values, the batches of a run or the training loop.

A fast kernel that is wrong trains a wrong model without an error. So each extra is tried on a probe before the first
step: loss and gradients with it must be those without it, up to what the arithmetic rounds. Otherwise, and after any
error, it is switched off again, and its note says so. A model whose extras were all refused is bit for bit the one that
never had any.
"""

from __future__ import annotations

import importlib.util
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy
import torch
from torch import nn

from utils import distributed, lookup
from utils.batching import Batch
from utils.distributed import Precision
from utils.rehearsal import decoder_layers

Loss = Callable[[Any, Batch], torch.Tensor]
"""Model and batch → loss (scalar), computed as in training: autocast, head and all."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an extra may be from the plain model, relative to the plain model."""

    loss: float
    gradient: float
    """Norm of the difference of all trained gradients, taken as one vector."""


TOLERANCES: Mapping[Precision, Tolerance] = MappingProxyType(
    {
        "fp32": Tolerance(loss=1e-5, gradient=1e-4),
        "fp16": Tolerance(loss=2e-4, gradient=1e-2),
        "bf16": Tolerance(loss=1e-3, gradient=5e-2),
    }
)
"""By precision, at least five times what rounding was measured to do on a CPU between two right kernels (eager
attention and SDPA; random Llamas of 2 to 32 layers, with 8- and 4-bit weights, too): to the gradients 5e-7, 2e-3 and
1e-2. A kernel that forgets the causal mask puts them off by 0.9 and more; the loss of a random model hardly shows that
(6e-4)."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """One row; see the fields."""

    flag: str
    does: str
    needs: str
    package: str = ""
    """What pip installs; empty where torch brings it."""
    refusal: Callable[[nn.Module, Precision], str | None] = lambda model, precision: None
    """Why this model cannot have it here, with the next step; None: it can be tried."""
    switch_on: Callable[[nn.Module], None]
    """May raise, and may leave the change half done: what it changed in the model is noted and undone."""


@dataclass(frozen=True, kw_only=True)
class Enabled:
    """What came of the extras that were wanted."""

    on: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """A line for each, to be printed."""
    switch_off: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)
    """Makes the model again what it was: for a comparison with one that never had an extra."""


def enable(
    model: nn.Module,
    wanted: Sequence[str],
    probe: Batch,
    loss: Loss,
    *,
    precision: Precision,
    attention: str | None = None,
    extras: Mapping[str, Extra] | None = None,
) -> Enabled:
    """Switches on those of `wanted` with which `model` has the loss and the gradients on `probe` that it has without.

    Every process calls it, before the model is wrapped; an extra that fails in one is switched off in all. Random
    numbers go on afterwards as if nothing had happened, and no gradient is left.

    Args:
        wanted: names of `EXTRAS`.
        probe: a small batch of two or more rows of different length, on the model's device.
        precision: what is computed in; it says how much may differ by rounding (`TOLERANCES`).
        attention: an attention implementation of `EXTRAS`, tried first; None leaves the model its own.
        extras: the table, where it is another than `EXTRAS`.

    Raises:
        ValueError: an unknown name; or an extra that could not be undone, so that the model must not be trained.
    """
    table = EXTRAS if extras is None else extras
    if attention == _attention(model):
        attention = None
    names: list[str] = [*([attention] if attention else []), *wanted]
    rows = {name: lookup.find("extra", name, table) for name in names}
    if not rows:
        return Enabled()
    measure = partial(_measure, model, probe, loss)
    plain, undo = measure(), ExitStack()
    on, notes = [], []
    for name, extra in rows.items():
        changes = _Changes(model)
        refused, found = _tried(extra, model, precision, measure, plain)
        changes.note()
        refusals = [reason for reason in distributed.gather(refused) if reason]
        if not refusals:
            on.append(name)
            undo.callback(changes.undo)
            notes.append(f"{extra.flag}: on; loss {found:.5f} with it and {plain.loss:.5f} without")
            continue
        notes.append(f"{extra.flag}: OFF: {refusals[0]}; training goes on without it")
        if changes.undo() and (left := _mismatch(measure(), plain, TOLERANCES[precision])):
            raise ValueError(f"{extra.flag} failed ({refusals[0]}) and cannot be undone ({left}): leave the flag out")
    return Enabled(on=tuple(on), notes=tuple(notes), switch_off=undo.close)


def _tried(
    extra: Extra, model: nn.Module, precision: Precision, measure: Callable[[], _Measured], plain: _Measured
) -> tuple[str | None, float]:
    """Why the extra must go, or None, and the loss with it."""
    if reason := extra.refusal(model, precision):
        return reason, math.nan
    try:
        extra.switch_on(model)
        found = measure()
    except Exception as error:  # whatever a kernel or a compiler raises, the run is none the worse for it
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300], math.nan
    return _mismatch(found, plain, TOLERANCES[precision]), found.loss


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Loss, and the gradients of the trained parameters, on the CPU in their own precision."""

    loss: float
    gradients: list[torch.Tensor]


def _measure(model: nn.Module, probe: Batch, loss: Loss) -> _Measured:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with _same_random_numbers(probe["input_ids"].device), _training_without_dropout(model), _off_zero(trained):
        try:
            value = loss(model, probe)
            value.backward()
            gradients = [torch.zeros(()) if p.grad is None else p.grad.detach().to("cpu", copy=True) for p in trained]
        finally:
            for parameter in trained:
                parameter.grad = None
    return _Measured(loss=value.item(), gradients=gradients)


def _mismatch(found: _Measured, plain: _Measured, allowed: Tolerance) -> str | None:
    """What differs by more than rounding; None: nothing. A loss or gradient that is not finite never passes."""
    if not abs(found.loss - plain.loss) <= allowed.loss * abs(plain.loss):
        return f"the loss differs: {found.loss:.5f} with it and {plain.loss:.5f} without"
    pairs = list(zip(found.gradients, plain.gradients, strict=True))
    apart = math.sqrt(sum((one.double() - other.double()).square().sum().item() for one, other in pairs))
    size = math.sqrt(sum(other.double().square().sum().item() for _, other in pairs))
    if not apart <= allowed.gradient * size:
        return f"the gradients differ: by {apart:.3g}, where their norm is {size:.3g}"
    return None


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Fixed seeds within, and outside everything as if no number had been drawn."""
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])


@contextmanager
def _training_without_dropout(model: nn.Module) -> Iterator[None]:
    """Training mode, for kernels may differ between the modes; without dropout, for kernels draw in their own order."""
    was = []
    for module in model.modules():
        own = vars(module)
        chances = [name for name, value in own.items() if isinstance(value, float) and "drop" in name]
        chances += ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        was += [(own, name, own[name]) for name in ("training", *chances)]
        own.update(dict.fromkeys(chances, 0.0), training=True)
    try:
        yield
    finally:
        for own, name, value in was:
            own[name] = value


@contextmanager
def _off_zero(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """A fresh LoRA has B = 0: its A gets no gradient and its output does not count, so nothing of it would be seen."""
    zeros = [parameter for parameter in parameters if not parameter.any()]
    with torch.no_grad():
        for parameter in zeros:
            parameter.normal_(std=0.02)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in zeros:
                parameter.zero_()


class _Changes:
    """What an extra replaces: attributes of modules and configurations, and globals of the files of their classes."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        configurations = {id(c): c for module in modules if (c := getattr(module, "config", None)) is not None}
        files = {type(module).__module__ for module in modules}
        files = {name for name in files if name.partition(".")[0] != "torch"}
        self._objects = [(vars(one), dict(vars(one))) for one in (*modules, *configurations.values())]
        self._files = [(vars(sys.modules[name]), dict(vars(sys.modules[name]))) for name in files]
        self._found: list[tuple[MutableMapping[str, Any], str, Any, Any]] = []

    def note(self) -> None:
        """Compares with the beginning. New globals stay: what a compiler keeps under them serves other models, too."""
        for now, was in self._objects:
            changed = [name for name in {**was, **now} if now.get(name, _ABSENT) is not was.get(name, _ABSENT)]
            self._found += [(now, name, was.get(name, _ABSENT), now.get(name, _ABSENT)) for name in changed]
        for now, was in self._files:
            changed = [name for name in was if now.get(name, _ABSENT) is not was[name]]
            self._found += [(now, name, was[name], now.get(name, _ABSENT)) for name in changed]

    def undo(self) -> bool:
        """Puts back what nobody replaced once more; says whether there was anything."""
        for now, name, old, new in self._found:
            if now.get(name, _ABSENT) is not new:
                continue
            if old is _ABSENT:
                del now[name]
            else:
                now[name] = old
        return bool(self._found)


_ABSENT = object()


def compile_layers(model: nn.Module, *, backend: str = "inductor") -> None:
    """Compiles each decoder layer by itself and for any shape: layers share their code, so that it is compiled once,
    and a micro-batch of another shape does not compile it anew.

    Raises:
        ValueError: the model has no list of layers.
    """
    layers = decoder_layers(model)
    if not len(layers):
        raise ValueError(f"{type(model).__name__} has no list of layers")
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)


def _compile_refusal(model: nn.Module, precision: Precision) -> str | None:
    if _device(model).type == "cuda" and not _installed("triton"):
        return "triton, which compiles for CUDA, is not installed: pip install triton"
    return None


def use_liger(model: nn.Module) -> None:
    """Liger's norms, rotary positions and gated products. Not its loss: it takes every position through the head, where
    ours takes the trained ones.

    Raises:
        ValueError: Liger has no kernels for this kind of model.
    """
    from liger_kernel.transformers import monkey_patch  # pyright: ignore[reportMissingImports]

    base: Any = _base(model)
    if base.config.model_type not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"Liger has no kernels for a model of type {base.config.model_type}")
    monkey_patch._apply_liger_kernel_to_instance(base, cross_entropy=False, fused_linear_cross_entropy=False)


def _liger_refusal(model: nn.Module, precision: Precision) -> str | None:
    if _device(model).type != "cuda":
        return f"its kernels run on CUDA, and the model is on {_device(model).type}"
    for module, package in (("triton", "triton"), ("liger_kernel", "liger-kernel")):
        if not _installed(module):
            return f"{package} is not installed: pip install {package}"
    return None


def use_attention(name: str, model: nn.Module) -> None:
    """Has `model` compute its attention with `name`.

    Raises:
        ValueError, ImportError: it cannot, in transformers' words.
    """
    base: Any = _base(model)
    before = base.config._attn_implementation
    base.set_attn_implementation(name)
    if base.config._attn_implementation == before:
        raise ValueError(f"{type(base).__name__} cannot change its attention from {before}")


def _flash_refusal(package: str, model: nn.Module, precision: Precision) -> str | None:
    if _device(model).type != "cuda":
        return f"flash attention runs on CUDA, and the model is on {_device(model).type}"
    if precision == "fp32":
        return "flash attention computes in 16 bits: give --precision bf16 or fp16"
    if not (_installed(package) or _installed("kernels")):
        return "no flash attention is installed: pip install -r requirements-gpu.txt"
    return None


def _attention(model: nn.Module) -> str | None:
    return getattr(getattr(_base(model), "config", None), "_attn_implementation", None)


def _base(model: Any) -> Any:
    """The model that peft wraps, or the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _attention_row(name: str, **facts: Any) -> Extra:
    return Extra(flag=f"--attn_implementation {name}", switch_on=partial(use_attention, name), **facts)


EXTRAS: Mapping[str, Extra] = MappingProxyType(
    {
        "sdpa": _attention_row(
            "sdpa",
            does="torch's fused attention; what a model has unless its family lacks it",
            needs="a family that has it (not BLOOM)",
        ),
        "eager": _attention_row(
            "eager",
            does="attention in plain products, which keeps its matrices: slow, to compare with",
            needs="nothing",
        ),
        "flash_attention_2": _attention_row(
            "flash_attention_2",
            does="FlashAttention 2, which takes rows of any lengths",
            needs="CUDA of compute capability 8.0, 16 bits",
            package="kernels, or flash-attn",
            refusal=partial(_flash_refusal, "flash_attn"),
        ),
        "flash_attention_3": _attention_row(
            "flash_attention_3",
            does="FlashAttention 3, for Hopper",
            needs="CUDA of compute capability 9.0, 16 bits",
            package="kernels",
            refusal=partial(_flash_refusal, "flash_attn_interface"),
        ),
        "liger_kernel": Extra(
            flag="--liger_kernel",
            does="fused norms, rotary positions and gated products",
            needs="CUDA, triton, a family that Liger knows",
            package="liger-kernel",
            refusal=_liger_refusal,
            switch_on=use_liger,
        ),
        "torch_compile": Extra(
            flag="--torch_compile",
            does="compiles each decoder layer, once for all shapes",
            needs="triton on CUDA, a C++ compiler on CPU",
            refusal=_compile_refusal,
            switch_on=compile_layers,
        ),
    }
)
ATTENTION: tuple[str, ...] = tuple(name for name, extra in EXTRAS.items() if extra.flag.startswith("--attn_"))
"""The implementations that a flag can name."""
