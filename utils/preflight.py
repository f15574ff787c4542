"""What a run will need of its devices, before any weight is loaded: memory, time, and the batches that fit.

Knows: how much memory a device has, and what to choose so that a run fits into it. Does not know what a model keeps in
memory (`utils.memory`), nor how batches are made of rows (`utils.batching`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy
import psutil

from utils import adapters, batching, distributed, sharding, store
from utils.batching import Lengths, MicroBatchSize
from utils.disk import megabytes
from utils.loading import Base, imagine
from utils.memory import Footprint, MemoryModel, measured_flops, seconds
from utils.methods import schedule
from utils.models import get_model
from utils.models.configurations import STAND_INS
from utils.packing import in_one_line, require_packable
from utils.proof import Encoded
from utils.schedule import duration
from utils.settings import Settings

LARGEST_BATCH = {"cpu": 2048, "cuda": 8192}
"""Positions of a micro-batch beyond which nothing is gained: with steps of 128 rows, the cut with the least padding is
finer than that anyway (benchmarks/padding.py)."""
SMALLEST_BATCH = 1024
"""Positions of a micro-batch below which computing activations twice is the lesser loss: products of fewer rows leave
a GPU idle."""
USABLE = 0.9
"""Share of a device's free memory that a run is fitted into; the rest is for what the model of memory does not know."""
ASSUMED_FLOPS = 1e14
"""FLOP/s of a device that is not here: a third of an A100's peak in 16 bits (312e12, NVIDIA's data sheet). It is an
assumption, and what is printed says so."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One of those that a run is for."""

    kind: str
    """cuda, mps or cpu."""
    memory: int | None
    """Free bytes for this run's process; None: unknown."""
    flops: float | None
    """Measured FLOP/s of its large matrix products; None: it is not here."""

    @classmethod
    def here(cls, precision: distributed.Precision) -> Device:
        """The poorest of this run's, as they are now: all processes choose alike, or they would wait for each other."""
        device, free = distributed.device(), distributed.free_memory()
        if device.type == "cpu":
            free = psutil.virtual_memory().available // distributed.local_world_size()
        every = [size for size in distributed.gather(free) if size is not None]
        flops = min(distributed.gather(measured_flops(device, precision)))
        return cls(kind=device.type, memory=min(every, default=None), flops=flops)

    @classmethod
    def elsewhere(cls, memory: int) -> Device:
        """A CUDA device with this many free bytes."""
        return cls(kind="cuda", memory=memory, flops=None)


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found and chosen."""

    device: Device
    world_size: int
    footprint: Footprint
    micro_batch: MicroBatchSize
    checkpointing: bool
    why: str
    batches: float
    """Micro-batches that a device does in an optimizer step, on average."""
    padding: float
    flops_a_step: float
    """FLOPs of a device in an optimizer step."""
    steps: int | None
    trainable: int
    total: int
    """Parameters."""
    unknown: str = ""
    """Why memory and time are not predicted; empty: they are."""

    @property
    def fits(self) -> bool:
        """Whether the largest micro-batch fits; True where the device's memory is unknown."""
        return self.device.memory is None or self.footprint.total <= USABLE * self.device.memory

    @property
    def seconds_a_step(self) -> float:
        """Of an optimizer step."""
        return seconds(self.flops_a_step, self.device.flops or ASSUMED_FLOPS)

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"trainable parameters: {self.trainable:,} of {self.total:,} ({self.trainable / self.total:.2%})"
        if self.unknown:
            yield f"memory and time: not predicted: {self.unknown}"
            yield f"micro-batches: {self._batches()}"
            return
        number = f"each of {self.world_size} devices" if self.world_size > 1 else "the device"
        yield f"memory of {number} ({self.device.kind}), predicted:"
        parts = {name: size for name, size in vars(self.footprint).items() if size}
        for name, size in [*parts.items(), ("total", self.footprint.total)]:
            yield f"  {name:<12}{megabytes(size):>12}"
        if self.device.memory is not None:
            share = self.footprint.total / self.device.memory
            yield f"  {'free':<12}{megabytes(self.device.memory):>12}: it {self._verdict(share)}"
        checkpointing = f"gradient checkpointing {'on' if self.checkpointing else 'off'} ({self.why})"
        yield f"micro-batches: {self._batches()}; {checkpointing}"
        speed = f"{(self.device.flops or ASSUMED_FLOPS) / 1e12:,.2g} TFLOP/s"
        basis = "the matrix products measured here" if self.device.flops else "assumed, not measured"
        whole = "" if self.steps is None else f", {duration(self.steps * self.seconds_a_step)} for {self.steps:,} steps"
        step = f"{self.seconds_a_step:,.1f} s a step of {self.flops_a_step / 1e12:,.2f} TFLOP on each device"
        yield f"time: {step}{whole}, at {speed} ({basis})"

    def _batches(self) -> str:
        return (
            f"at most {self.micro_batch.said()}, {self.batches:.1f} a step on each device; padding {self.padding:.1%}"
        )

    def _verdict(self, share: float) -> str:
        if self.fits:
            return f"fits ({share:.0%})"
        smaller = "--quantization_bit 4, a lower --cutoff_len or another --size takes less"
        return f"does NOT fit ({share:.0%}; {USABLE:.0%} can be used): {smaller}"

    def require_memory(self) -> None:
        """`ValueError` with what helps if the run would take more than all free memory."""
        if self.device.memory is not None and self.footprint.total > self.device.memory:
            needed, free = megabytes(self.footprint.total), megabytes(self.device.memory)
            raise ValueError(
                f"the run would need {needed} on a device with {free} free: choose --quantization_bit 4, a lower "
                "--cutoff_len or --max_tokens_per_batch, another --size, or --fsdp on several devices"
            )


def foresee(
    chosen: Settings,
    base: Base,
    rows: Sequence[Encoded],
    device: Device,
    steps: int | None,
    *,
    world_size: int | None = None,
) -> Preflight:
    """What training on `rows` takes, and what was chosen for it. No weights are read.

    Args:
        chosen: with all options of the method decided.
        steps: optimizer steps; None: unknown.
        world_size: None: this run's processes.

    Raises:
        ValueError: the base cannot be packed or shared out as `chosen` wants it, or has not the layers it names.
    """
    world_size, method = world_size or distributed.world_size(), chosen.method
    if chosen.packing:
        attention = chosen.attn_implementation or "sdpa"
        require_packable(base.spec, base.config(), method.method, attention=attention, device_type=device.kind)
    if chosen.fsdp and (
        reason := sharding.refusal(method.method, quantization_bit=base.quantization_bit, world_size=world_size)
    ):
        raise ValueError(reason)
    model = adapters.attach(base.empty(), method, total_steps=steps or 1).model
    lengths, targets = store.lengths(rows), store.targets(rows)
    here = distributed.local_world_size()
    memory = partial(
        MemoryModel,
        model,
        precision=base.precision,
        quantization_bit=base.quantization_bit,
        world_size=here if chosen.fsdp and here > 1 else world_size,  # as `sharding.pieces` has it
        sharded=chosen.fsdp,
        device=device.kind,
    )
    trainable, total = adapters.count_parameters(model)
    known, reason = _asked(memory, int(numpy.max(lengths)))
    if reason and not (chosen.max_tokens_per_batch or chosen.per_gpu_train_batch_size):
        chosen = replace(chosen, max_tokens_per_batch=max(LARGEST_BATCH["cpu"], int(numpy.max(lengths))))
    return choose(
        known,
        lengths,
        device,
        chosen,
        world_size=world_size,
        steps=steps,
        targets_share=float(numpy.sum(targets) / numpy.sum(lengths)),
        trainable=trainable,
        total=total,
        unknown=reason,
    )


def remedies(chosen: Settings, base: Base, rows: Sequence[Encoded], device: Device) -> str:
    """What a single row of the longest takes, by prediction, under settings that take less; for people whose memory
    has just run out."""
    longest = int(numpy.max(store.lengths(rows)))
    least = replace(chosen, per_gpu_train_batch_size=1, max_tokens_per_batch=None, packing=False)

    def one_row(choice: Settings, on: Base, length: int) -> Preflight:
        row = Encoded(input_ids=[0] * length, labels=[0] * length, origin="", source="")
        return foresee(choice, on, [row], device, None)

    def total(choice: Settings, on: Base, length: int) -> str:
        return megabytes(one_row(choice, on, length).footprint.total)

    if one_row(least, base, longest).unknown:
        return "a lower --cutoff_len takes less, and so does another --size, or --fsdp on several devices"
    method = chosen.method.method
    found = [f"{total(least, base, longest)} are predicted for it"]
    if method.gradient_checkpointing and chosen.gradient_checkpointing != "on":
        least = replace(least, gradient_checkpointing="on")
        found.append(f"{total(least, base, longest)} with --gradient_checkpointing on")
    if base.quantization_bit > 4 and 4 in method.quantization_bits:
        smaller = replace(base, quantization_bit=4)
        found.append(f"{total(replace(least, quantization_bit=4), smaller, longest)} with --quantization_bit 4, too")
    found.append(
        f"{total(least, base, max(1, longest // 2))} with --cutoff_len {max(1, longest // 2)} and no fewer bits"
    )
    free = "" if device.memory is None else f"; {megabytes(device.memory)} were free before the run"
    return f"{', '.join(found)}{free}. Another --size takes less, or --fsdp on several devices"


class _Unknown:
    """In the place of a memory model, for a base that cannot be asked."""

    def footprint(self, **_: Any) -> Footprint:
        return Footprint(**dict.fromkeys(Footprint.__dataclass_fields__, 0))

    def flops(self, **_: Any) -> float:
        return 0.0


def _asked(make: Callable[[], MemoryModel], length: int) -> tuple[MemoryModel | _Unknown, str]:
    """What `make` gives, or what stands for it and why: a family that nobody has tried may do anything, and that its
    memory cannot be predicted must not keep it from being trained."""
    try:
        memory = make()
        memory.footprint(rows=1, length=length, targets=1, checkpointing=False)  # kept: it will be asked for again
    except Exception as error:
        return _Unknown(), " ".join(str(error).split()) or type(error).__name__
    return memory, ""


def will_it_fit(chosen: Settings, device: Device, *, world_size: int) -> Iterator[str]:
    """The answer to whether a run fits on `world_size` devices that need not be here, for people. Of a checkpoint of
    the registry nothing is read; every row is taken to be as long as the longest may be.

    Raises:
        ValueError, OSError: as `foresee`; a base that is not of the registry and cannot be had.
    """
    base = imagine(
        chosen.model_name_or_path,
        get_model(chosen.model_type),
        precision=chosen.precision,
        quantization_bit=chosen.quantization_bit,
    )
    method = schedule(chosen.method, 1)
    options = {**method.options}
    if base.sizes is not None and "lora_target_modules" in options:
        names = [STAND_INS.get(name, (name,)) for name in options["lora_target_modules"]]
        options["lora_target_modules"] = [name for group in names for name in group]
    chosen = replace(chosen, peft_options=options)
    longest = Encoded(input_ids=[0] * chosen.cutoff_len, labels=[0] * chosen.cutoff_len, origin="", source="")
    devices = f"{world_size} device{'s' * (world_size > 1)} of {megabytes(device.memory or 0)}"
    yield f"{chosen.model_name_or_path} in {base.quantization_bit} bits, {method.name}, on {devices}"
    yield f"lengths: every row is taken as --cutoff_len {chosen.cutoff_len} trained tokens, which is the most it can be"
    found = foresee(chosen, base, [longest] * chosen.rows_a_step(world_size), device, None, world_size=world_size)
    yield from found.lines()


def choose(
    memory: MemoryModel | _Unknown,
    lengths: Lengths,
    device: Device,
    chosen: Settings,
    *,
    world_size: int,
    steps: int | None,
    targets_share: float,
    trainable: int,
    total: int,
    unknown: str = "",
) -> Preflight:
    """The largest micro-batches that fit, without gradient checkpointing if they are large enough for the device.

    Args:
        lengths: tokens of each row.
        steps: optimizer steps of the run; None: unknown.
        targets_share: trained tokens among all.
        unknown: why `memory` knows nothing; empty: it does.
    """
    longest = int(numpy.max(lengths))
    sizes = list(_sizes(device, longest, chosen))
    auto = [False, True] if chosen.method.method.gradient_checkpointing else [False]
    modes = {"on": [True], "off": [False], "auto": auto}[chosen.gradient_checkpointing]

    def needs(size: MicroBatchSize, twice: bool) -> Footprint:
        return _largest(memory, lengths, size, longest, twice, targets_share)

    def fits(footprint: Footprint) -> bool:
        return device.memory is None or footprint.total <= USABLE * device.memory

    least = min(SMALLEST_BATCH, sizes[0].tokens or 0) if len(sizes) > 1 else 0
    found = next(((s, t) for t in modes for s in sizes if (t or (s.tokens or 0) >= least) and fits(needs(s, t))), None)
    size, twice = found or (sizes[-1], modes[-1])
    fitting = "the activations do not fit without" if twice else "everything fits without"
    why = fitting if found else "it does not fit either way"
    batches, padding, positions = _step(lengths, size, chosen, world_size)
    flops = memory.flops(
        tokens=round(positions),
        targets=round(positions * (1 - padding) * targets_share),
        length=int(numpy.mean(lengths)),
        checkpointing=twice,
    )
    return Preflight(
        device=device,
        world_size=world_size,
        footprint=needs(size, twice),
        micro_batch=size,
        checkpointing=twice,
        why=why if chosen.gradient_checkpointing == "auto" else "asked for",
        batches=batches,
        padding=padding,
        flops_a_step=flops,
        steps=steps,
        trainable=trainable,
        total=total,
        unknown=unknown,
    )


def _step(
    lengths: Lengths, size: MicroBatchSize, chosen: Settings, world_size: int, *, looked_at: int = 20
) -> tuple[float, float, float]:
    """Micro-batches of a device in a step, the share of padding, and positions of a device in a step: means over the
    first steps."""
    batch_size = chosen.rows_a_step(world_size)
    plan = batching.EpochPlan(len(lengths), batch_size, seed=chosen.seed, epoch=0)[:looked_at]
    batches = [len(batching.deal(step, lengths, size, world_size=world_size)[0]) for step in plan]
    padding = batching.padding_share(lengths, size, batch_size=batch_size, seed=chosen.seed, world_size=world_size)
    tokens = [sum(int(lengths[row]) for row in step) for step in plan]
    return float(numpy.mean(batches)), padding, float(numpy.mean(tokens)) / world_size / (1 - padding)


def _sizes(device: Device, longest: int, chosen: Settings) -> Iterator[MicroBatchSize]:
    """Micro-batches to try, the largest first; what was asked for, alone."""
    if chosen.per_gpu_train_batch_size:
        yield MicroBatchSize(rows=chosen.per_gpu_train_batch_size)
        return
    packing = None
    if chosen.packing:
        packing = "line" if in_one_line(chosen.attn_implementation or "sdpa") else "lines"
    if chosen.max_tokens_per_batch:
        yield MicroBatchSize(tokens=chosen.max_tokens_per_batch, packing=packing)
        return
    budget = max(LARGEST_BATCH.get(device.kind, LARGEST_BATCH["cpu"]), longest)
    while budget > longest:
        yield MicroBatchSize(tokens=budget, packing=packing)
        budget //= 2
    yield MicroBatchSize(tokens=longest, packing=packing)


def _largest(
    memory: MemoryModel | _Unknown,
    lengths: Lengths,
    size: MicroBatchSize,
    longest: int,
    twice: bool,
    targets_share: float,
) -> Footprint:
    """Of the micro-batches that `size` allows, what the neediest takes: as many of the longest rows as fit, or, as
    attention is computed by row, as many of the usual ones."""
    shapes = []
    for length in {longest, int(numpy.median(lengths))}:
        rows = size.rows if size.rows is not None else max(1, (size.tokens or 0) // length)
        shapes.append((min(rows, len(lengths)), length))
    footprints = [
        memory.footprint(rows=rows, length=length, targets=int(rows * length * targets_share), checkpointing=twice)
        for rows, length in shapes
    ]
    return max(footprints, key=lambda footprint: footprint.total)
