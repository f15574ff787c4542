"""Processes: how many there are, which this one is, and what one of them does for all.

Knows: the environment that torchrun, `torch.distributed.launch` and accelerate set, devices, threads and the precision
a device can compute in. Does not know models or data.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
import torch
import torch.distributed as dist

Precision = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=12)
"""For another process: a machine that finds its rows encoded waits for one that encodes them."""
LONGEST_STEP = timedelta(minutes=30)
"""For another process while training: much more than a checkpoint takes to write."""


def world_size() -> int:
    """Processes of this run, before and after the process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process prints and writes for all."""
    return rank() == 0


def say(*values: object) -> None:
    """Prints in the main process only, and at once. Where nobody reads any more (Ctrl-C ends `| tee`, too), what comes
    after is not printed: a run that is to save and end must not break off over a line."""
    if not is_main():
        return
    try:
        print(*values, flush=True)  # noqa: T201 — the one place below the scripts that prints
    except BrokenPipeError:
        let_go_of_output()


def let_go_of_output() -> None:
    """After a `BrokenPipeError`: what is left in standard output's buffer, and what comes after, goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def join() -> None:
    """Joins the process group if there are several processes: NCCL on CUDA, gloo elsewhere."""
    if world_size() > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank())
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=LONGEST_WAIT)


def start() -> tuple[int, int]:
    """Joins the processes and sets the threads; returns (threads, usable cores)."""
    join()
    return set_threads()


def leave() -> None:
    """Leaves the process group, if any, once all have come so far."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """`value` of every process, in rank order, in every process; a list of one where there is one."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_numbers(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """As `gather`, of as many numbers in each process, by one exchange of tensors on `device`: cheap enough for every
    step."""
    own = torch.tensor(values, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    if not dist.is_initialized():
        return [own.tolist()]
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    return [each.tolist() for each in every]


def decided_by_main(decide: Callable[[], T]) -> T:
    """What `decide` gives in the main process, in every process. What it raises there ends the others without a
    word."""
    made: list[Any] = [None, False]
    if is_main():
        try:
            made = [decide(), True]
        finally:
            if dist.is_initialized():
                dist.broadcast_object_list(made, src=0)
    else:
        dist.broadcast_object_list(made, src=0)
    if not made[1]:
        raise SystemExit(1)
    return made[0]


def in_turn(work: Callable[[], T]) -> T:
    """What `work` gives in this process, where a machine's processes do it one after the other: what it needs of the
    machine's memory, it needs once."""
    done: list[T] = []
    for turn in range(max(gather(local_world_size()))):
        if turn == local_rank():
            done.append(work())
        barrier()
    return done[0]


@contextmanager
def waits_at_most(limit: timedelta) -> Iterator[None]:
    """While it holds, a process that has waited `limit` for another raises: for training, where nobody is away for
    long. A machine that lost its power closes no connection, and would be waited for."""
    if not dist.is_initialized():
        yield
        return
    _set_timeout(limit)
    try:
        yield
    finally:
        _set_timeout(LONGEST_WAIT)


def _set_timeout(limit: timedelta) -> None:
    # Without a public name, but with a documentation of its own.
    from torch.distributed.distributed_c10d import _set_pg_timeout

    _set_pg_timeout(limit)


_BROKEN = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
"""In the errors of a process that cannot reach another; torch raises a plain RuntimeError on CPU."""


@contextmanager
def lost_processes_explained(advice: Callable[[], str]) -> Iterator[None]:
    """Turns what torch raises where another process is gone, and the signal with which a launcher then ends the others,
    into one `OSError`; without other processes it does nothing.

    Args:
        advice: asked for what is left of the run and how to go on, when it comes to that.
    """
    if world_size() < 2:
        yield
        return
    after = signal.signal(signal.SIGTERM, _raise_ended) or signal.SIG_DFL
    try:
        yield
    except (RuntimeError, _Ended) as error:
        what = "another process of the run cannot be reached any more"
        if isinstance(error, _Ended):
            what = "ended by SIGTERM, which a launcher sends when another process of the run has ended"
        elif not (isinstance(error, dist.DistError) or any(sign in str(error) for sign in _BROKEN)):
            raise
        after = signal.SIG_IGN  # it ends by itself now; a signal would only cut its words short
        raise OSError(
            f"{what}; the launcher's summary names the first, and its exit code (-9: killed, often for memory); "
            f"{advice()}"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, after)


class _Ended(BaseException):
    """This process was sent SIGTERM."""


def _raise_ended(*_: object) -> None:
    raise _Ended


@contextmanager
def everywhere(directory: Path, names: Sequence[str]) -> Iterator[Path]:
    """The main process's `directory` in every process, with the files `names` at least: machines need not share a disk.

    Raises:
        OSError: a file is not there, in the main process; the others are ended by the launcher.
    """
    sent: list[Any] = [{name: (directory / name).read_bytes() for name in names} if is_main() else None]
    if dist.is_initialized():
        dist.broadcast_object_list(sent, src=0)
    if is_main():
        yield directory
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / directory.name
        folder.mkdir()
        for file, content in sent[0].items():
            (folder / file).write_bytes(content)
        yield folder


AVERAGED = 2**24
"""Numbers of gradients that are exchanged at a time."""


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Puts the mean over all processes in the place of every gradient; one that a process does not have counts as zero
    there. It is done once a step has gone well in every process (DistributedDataParallel would begin during the
    backward pass, and a process that runs out of memory there would be waited for), a part after the other."""
    if not dist.is_initialized():
        return
    part: list[torch.nn.Parameter] = []
    size = 0
    for parameter in (p for p in parameters if p.requires_grad):
        if part and size + parameter.numel() > AVERAGED:
            _average(part)
            part, size = [], 0
        part.append(parameter)
        size += parameter.numel()
    if part:
        _average(part)


def _average(part: Sequence[torch.nn.Parameter]) -> None:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in part]
    flat = torch.cat([gradient.flatten().float() for gradient in gradients]) / dist.get_world_size()
    dist.all_reduce(flat)
    for parameter, mean in zip(part, flat.split([p.numel() for p in part]), strict=True):
        parameter.grad = mean.view_as(parameter).to(parameter.dtype)


def device() -> torch.device:
    """Where this process computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def free_memory() -> int | None:
    """Free bytes of this process's CUDA device; None elsewhere."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def best_precision() -> Precision:
    """bf16 where the device computes in it, fp16 on older CUDA, fp32 elsewhere: on CPU bf16 gained nothing at the size
    of the tiny base (`docs/log.md`)."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "fp32"


def seed(value: int) -> None:
    """Seeds every generator that a run draws from: Python's, NumPy's and torch's, on every device."""
    from transformers import set_seed

    set_seed(value)


def usable_cores() -> int:
    """Cores this process may run on: its affinity, and the quota of its cgroup if there is one."""
    return min(len(_affinity()), _quota() or sys.maxsize)


def set_threads() -> tuple[int, int]:
    """Sets torch's threads to this process's share of the cores that are free now; returns (threads, usable cores).

    Threads above the free cores are ruinous for a CPU run: measured 461 tokens/CPU-second with two threads on a busy
    2-core box against 5,000 and more with one. `OMP_NUM_THREADS` set by hand is left alone; torchrun's own 1 is not.
    """
    cores = usable_cores()
    share = local_world_size()
    if "OMP_NUM_THREADS" not in os.environ or share > 1:
        # The processes of a run start together and would take each other for strangers, so only a lone one measures.
        # Under a quota the cores are shared with strangers by design, and their load says nothing.
        busy = _busy_cores() if share == 1 and _quota() is None else 0
        torch.set_num_threads(max(1, (cores - busy) // share))
    return torch.get_num_threads(), cores


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quota() -> int | None:
    """Cores' worth of time that the cgroup (version 2) grants, at least 1; None for no limit."""
    file = Path("/sys/fs/cgroup/cpu.max")
    if not file.is_file():
        return None
    quota, period = file.read_text().split()
    return None if quota == "max" else max(1, int(quota) // int(period))


def _busy_cores() -> int:
    """How many of the allowed cores others keep busy, over half a second in which this process sleeps."""
    load = psutil.cpu_percent(interval=0.5, percpu=True)
    return round(sum(load[core] for core in _affinity() if core < len(load)) / 100)
