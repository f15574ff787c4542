"""Several processes, as their launchers start them: on one machine and on two, with a base that is shared out, and
with a process that is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import FLAGS, RECORDS, REPOSITORY
from safetensors.torch import load_file

from utils import checkpoints, runinfo

STEPS = 6
SHAPE = ["--per_gpu_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--val_set_size", "3"]
LAUNCH, RUN = "torch.distributed.launch", "torch.distributed.run"


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


class Job:
    """Launchers of one job, a folder and a cache for each machine, as if they shared no disk."""

    def __init__(self, folder: Path, base: Path, *flags: object, launchers: Sequence[Sequence[str]]) -> None:
        self.machines = [folder / f"machine{i}" for i in range(len(launchers))]
        self.launchers = [self._start(*given, base, *flags) for given in zip(self.machines, launchers, strict=True)]

    @staticmethod
    def _start(machine: Path, launcher: Sequence[str], base: Path, *flags: object) -> subprocess.Popen[str]:
        machine.mkdir(parents=True)
        data = machine / "records.json"
        data.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
        run = ["--model_name_or_path", base, "--data", data, "--output_dir", machine / "run", *SHAPE, *flags]
        return subprocess.Popen(
            [sys.executable, "-m", *launcher, REPOSITORY / "uniform_finetune.py", *FLAGS, *map(str, run)],
            cwd=machine,
            env={**os.environ, "ALPACA_COT_CACHE": str(machine / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def done(self) -> list[str]:
        """What each launcher printed, once all have ended; they must have ended well."""
        printed = [launcher.communicate(timeout=240)[0] for launcher in self.launchers]
        assert [each.returncode for each in self.launchers] == [0] * len(self.launchers), "\n".join(printed)[-3000:]
        return printed


def one(module: str) -> list[list[str]]:
    """One machine with two processes."""
    return [[module, "--nproc_per_node", "2", "--master_port", free_port()]]


def two() -> list[list[str]]:
    """Two machines with a process each."""
    common = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", free_port()]
    return [[RUN, *common, "--node_rank", str(rank)] for rank in range(2)]


def assert_same(first: Path, second: Path) -> None:
    """Two folders hold the same adapter, to what float32 keeps of sums in another order."""
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def entries(run: Path) -> list[dict[str, Any]]:
    """The log's lines about training steps."""
    lines = (run / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "learning_rate" in entry]


def losses(run: Path) -> list[float]:
    lines = (run / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.fixture(scope="module")
def reference(llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One machine, two processes, by the launcher of the original project's commands: the run, and what it printed."""
    flags = ["--max_steps", STEPS, "--save_steps", 3, "--logging_steps", 1]
    job = Job(tmp_path_factory.mktemp("one"), llama_base, *flags, launchers=one(LAUNCH))
    (printed,) = job.done()
    return job.machines[0] / "run", printed


def test_the_launcher_of_the_original_commands(reference: tuple[Path, str]) -> None:
    run, printed = reference
    assert printed.count("adapter verified") == 1, "one process speaks for all"
    assert runinfo.read(run).world_size == 2
    assert len(losses(run)) == STEPS


def test_two_machines_train_what_one_does(reference: tuple[Path, str], llama_base: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, llama_base, "--max_steps", STEPS, "--save_steps", 3, "--logging_steps", 1, launchers=two())
    first, second = job.done()
    assert (first.count("adapter verified"), second.count("adapter verified")) == (1, 0)
    assert_same(reference[0], job.machines[0] / "run")
    assert losses(job.machines[0] / "run") == pytest.approx(losses(reference[0]), rel=1e-5)
    cached = [sorted(path.name for path in (machine / "cache").iterdir()) for machine in job.machines]
    assert all(cached), "each machine encoded for itself"
    assert not (job.machines[1] / "run" / "run.json").exists(), "one process saves"


def test_a_base_shared_out_goes_on_from_a_checkpoint_of_one_that_was_not(
    reference: tuple[Path, str], llama_base: Path, tmp_path: Path
) -> None:
    flags = ["--max_steps", STEPS, "--save_steps", STEPS, "--logging_steps", 1, "--fsdp"]
    gone_on = ["--resume_from_checkpoint", reference[0] / "checkpoint-3", "--resume_anyway"]
    job = Job(tmp_path, llama_base, *flags, *gone_on, launchers=one(RUN))
    (printed,) = job.done()
    run = job.machines[0] / "run"
    assert printed.count("adapter verified") == 1
    assert_same(reference[0], run)
    assert losses(run)[-3:] == pytest.approx(losses(reference[0])[-3:], rel=1e-5)
    there, here = ({path.name for path in folder.glob(f"checkpoint-{STEPS}/*")} for folder in (reference[0], run))
    assert "optimizer.pt" in there
    assert here == there, "its checkpoints are those of a run without --fsdp"


def test_a_base_shared_out_between_machines(reference: tuple[Path, str], llama_base: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, llama_base, "--max_steps", STEPS, "--fsdp", "--gradient_checkpointing", "on", launchers=two())
    job.done()
    assert_same(reference[0], job.machines[0] / "run")
    assert runinfo.read(job.machines[0] / "run").settings["fsdp"] is True


LONG = ["--save_steps", 3, "--logging_steps", 1, "--lora_dropout", 0.2]


def stopped(number: signal.Signals, folder: Path, base: Path) -> tuple[Path, Path]:
    """A job that a signal to its launcher ended: its machine, and the newest checkpoint, which it has named."""
    job = Job(folder, base, "--max_steps", 100_000, *LONG, launchers=one(RUN))
    (launcher,), run = job.launchers, job.machines[0] / "run"
    deadline = time.monotonic() + 120
    while not (run / "checkpoint-3").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    launcher.send_signal(number)
    printed = launcher.communicate(timeout=60)[0]
    assert launcher.returncode
    newest = checkpoints.newest(run)
    assert newest is not None, printed
    step = checkpoints.step_of(newest)
    assert f"after step {step:,} of 100,000; saved: {newest}. The same command with --resume_from_checkpoint" in printed
    assert not (run / "run.json").exists()
    return job.machines[0], newest


def test_ctrl_c_ends_the_job_after_its_step(llama_base: Path, tmp_path: Path) -> None:
    stopped(signal.SIGINT, tmp_path / "stopped", llama_base)


def test_a_signal_ends_the_job_and_it_goes_on_as_if_nothing_had_been(llama_base: Path, tmp_path: Path) -> None:
    machine, newest = stopped(signal.SIGTERM, tmp_path / "stopped", llama_base)
    steps = checkpoints.step_of(newest) + 3
    whole = Job(tmp_path / "whole", llama_base, "--max_steps", steps, *LONG, launchers=one(RUN))
    whole.done()
    gone_on = ["--data", machine / "records.json", "--resume_from_checkpoint", newest]
    resumed = Job(tmp_path / "resumed", llama_base, "--max_steps", steps, *LONG, *gone_on, launchers=one(RUN))
    resumed.done()
    ends = [job.machines[0] / "run" / "adapter_model.safetensors" for job in (whole, resumed)]
    rates = [[entry["learning_rate"] for entry in entries(end.parent)] for end in ends]
    assert rates[0][-3:] == rates[1][-3:]
    rows = [[entry["trained_tokens"] for entry in entries(end.parent)] for end in ends]
    assert rows[0] == rows[1], "the same rows in every step"


def test_two_processes_go_on_to_the_byte(llama_base: Path, tmp_path: Path) -> None:
    """One of the two is killed; the run goes on from the checkpoint before."""
    flags = ["--max_steps", 9, "--save_steps", 2, "--logging_steps", 2, "--lora_dropout", 0.2, "--log_row_ids"]
    whole = Job(tmp_path / "whole", llama_base, *flags, launchers=one(RUN))
    whole.done()
    broken = Job(tmp_path / "broken", llama_base, *flags, launchers=one(RUN))
    run, deadline = broken.machines[0] / "run", time.monotonic() + 120
    while not (run / "checkpoint-2").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for worker in workers(broken.launchers[0])[:1]:
        worker.send_signal(signal.SIGKILL)
    broken.launchers[0].communicate(timeout=60)
    newest = checkpoints.newest(run)
    assert newest is not None
    gone_on = Job(tmp_path / "gone on", llama_base, *flags, "--resume_from_checkpoint", newest, launchers=one(RUN))
    gone_on.done()
    ends = [job.machines[0] / "run" for job in (whole, gone_on)]
    assert len({(end / "adapter_model.safetensors").read_bytes() for end in ends}) == 1
    steps = [[json.loads(line)["step"] for line in (end / "row_ids.jsonl").read_text().splitlines()] for end in ends]
    assert steps[0] == list(range(1, 10)) == steps[1]
    assert losses(ends[0]) == losses(ends[1])


@pytest.fixture
def endless(llama_base: Path, tmp_path: Path) -> Iterator[Job]:
    """Two machines that would train for hours."""
    job = Job(tmp_path, llama_base, "--max_steps", 100_000, "--save_steps", 20, launchers=two())
    yield job
    for launcher in job.launchers:
        launcher.kill()


def workers(launcher: subprocess.Popen[Any]) -> list[psutil.Process]:
    """The processes that a launcher started."""
    return psutil.Process(launcher.pid).children()


def test_a_killed_process_ends_the_job_in_one_line(endless: Job) -> None:
    run, deadline = endless.machines[0] / "run", time.monotonic() + 120
    while not (run / "checkpoint-20").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    (victim,) = workers(endless.launchers[1])
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    survivor, other = (launcher.communicate(timeout=60)[0] for launcher in endless.launchers)
    assert time.monotonic() - killed < 30
    assert all(launcher.returncode for launcher in endless.launchers)
    (line,) = [line for line in survivor.splitlines() if "error: another process of the run cannot be reached" in line]
    assert "run/checkpoint-" in line
    assert line.endswith("is whole: add --resume_from_checkpoint to go on")
    assert "Traceback" not in survivor.partition(line)[0], "nothing of the library's own is printed before"
    assert "(SIGKILL)" in other, "the launcher names who ended first, and how"
