"""A study's commands, run: several lines at a time, each once, and gone on with where they were stopped.

Knows: processes, devices, and what to do where one fails or a person stops all. Does not know what a command computes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.schedule import duration
from utils.studies.plan import Command, Line, Plan

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PATIENCE = 60
"""Seconds in which a command that is asked to end may save what it has."""
MEMORY_A_LINE = 2 * 2**30
"""Bytes that a process takes for its libraries, a small model and its batches."""


class Stopped(Exception):
    """Another line has failed, or a person stopped the study."""


class Workers:
    """The processes of a study.

    Args:
        slots: one environment for each line that runs at a time: its device, its threads.
        say: told what has been done.
    """

    def __init__(self, slots: Sequence[Mapping[str, str]], say: Callable[[str], object]) -> None:
        self._free = list(slots)
        self._slots, self._say = len(slots), say
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def carry_out(self, plan: Plan) -> None:
        """Runs what of `plan` is not done yet.

        Raises:
            ValueError: a command failed; the message has its last lines and its log. The others that were running have
                ended by then, and keep what they had saved.
        """
        todo = [line for line in plan.lines if not all(command.is_done for command in line.commands)]
        started, whole = time.perf_counter(), sum(_cost(line, plan) for line in todo)
        done = 0.0
        with ThreadPoolExecutor(self._slots) as pool, self._ended_with_this():
            futures = {pool.submit(self._line, line): line for line in todo}
            try:
                for number, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    done += _cost(futures[future], plan)
                    passed = time.perf_counter() - started
                    left = f", about {duration(passed / done * (whole - done))} left" if number < len(todo) else ""
                    self._say(f"{number} of {len(todo)} lines in {duration(passed)}{left}")
            except BaseException:
                self.stop()
                pool.shutdown(cancel_futures=True)
                raise

    def stop(self) -> None:
        """Asks every command to save what it has and to end, and ends those that do not."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)

    @contextmanager
    def _ended_with_this(self) -> Iterator[None]:
        """While it holds, SIGTERM is what Ctrl-C is: commands run in sessions of their own, and would outlive this
        program."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _line(self, line: Line) -> None:
        with self._lock:
            slot = self._free.pop()
        try:
            for command in line.commands:
                if not command.is_done:
                    self._command(command, slot)
        finally:
            with self._lock:
                self._free.append(slot)

    def _command(self, command: Command, slot: Mapping[str, str]) -> None:
        command.note()
        started = time.perf_counter()
        script, *rest = command.going_on()
        argv = [sys.executable, str(REPOSITORY / script), *rest]
        with command.log.open("ab") as log:
            with self._lock:
                if self._stopped:
                    raise Stopped(command.title)
                process = subprocess.Popen(
                    argv, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **slot}, start_new_session=True
                )
                self._running.add(process)
            try:
                code = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
        if code and self._stopped:
            raise Stopped(command.title)
        if code or not command.is_done:
            raise ValueError(
                f"{command.title} ended with exit code {code}. Its last words:\n{_tail(command.log)}\nAll of them: "
                f"{command.log}. The same command goes on with the study"
            )
        self._say(f"{command.title}: {duration(time.perf_counter() - started)}")


def slots(jobs: int | None, base_bytes: int) -> list[dict[str, str]]:
    """One environment for each line that runs at a time.

    Args:
        jobs: how many; None: one a GPU, or as many as the cores and the free memory allow.
        base_bytes: of a base's weights.
    """
    import psutil
    import torch

    from utils import distributed

    devices = torch.cuda.device_count()
    if devices:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices)))).split(",")
        return [{"CUDA_VISIBLE_DEVICES": chosen[place % devices]} for place in range(jobs or devices)]
    cores = distributed.usable_cores()
    room = psutil.virtual_memory().available // (MEMORY_A_LINE + 4 * base_bytes)
    count = jobs or max(1, min(cores, room))
    return [{"OMP_NUM_THREADS": str(max(1, cores // count))}] * count


def _cost(line: Line, plan: Plan) -> float:
    """Of a line that is to run, in the tokens of an average one: asking costs, too."""
    mean = sum(each.positions for each in plan.lines) / len(plan.lines)
    return line.positions + 0.1 * mean


def _tail(log: Path, lines: int = 8) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To it and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
