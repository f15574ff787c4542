import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from utils import distributed


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.world_size(), distributed.rank(), distributed.local_rank()) == (1, 0, 0)
    distributed.join()
    assert distributed.gather("x") == ["x"]
    assert distributed.gather_numbers([1, 0.25], torch.device("cpu")) == [[1.0, 0.25]]
    assert distributed.decided_by_main(lambda: "蓝") == "蓝"
    distributed.barrier()
    distributed.leave()
    distributed.say("heard")
    assert capsys.readouterr().out == "heard\n"


def test_only_the_main_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    distributed.say("not heard")
    assert not distributed.is_main()
    assert capsys.readouterr().out == ""


def test_what_nobody_reads_any_more_costs_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    script = "from utils import distributed\nfor i in range(3): distributed.say('蓝' * 9999)\nraise SystemExit(130)"
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=Path(__file__).parents[1], stdout=closed, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (130, b"")


def test_a_cpu_computes_in_fp32_and_has_no_device_memory() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert distributed.best_precision() == "fp32"
    assert distributed.free_memory() is None


@pytest.mark.parametrize(("busy", "processes", "threads"), [(0, 1, 4), (50, 1, 2), (100, 1, 1), (100, 2, 2), (0, 8, 1)])
def test_threads_are_the_free_cores_shared(
    busy: int, processes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(distributed, "usable_cores", lambda: 4)
    monkeypatch.setattr(distributed, "_affinity", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(distributed, "_quota", lambda: None)
    # Cores 4 and 5 are not ours: their load must not count.
    monkeypatch.setattr(distributed.psutil, "cpu_percent", lambda interval, percpu: [busy] * 4 + [100, 100])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        assert distributed.set_threads() == (threads, 4)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        torch.set_num_threads(3)
        expected = 3 if processes == 1 else threads  # set by hand; or by torchrun, which sets 1 whatever there is
        assert distributed.set_threads()[0] == expected
    finally:
        torch.set_num_threads(before)


def test_a_quota_of_the_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.Path, "is_file", lambda self: True)
    monkeypatch.setattr(distributed.Path, "read_text", lambda self: "100000 100000\n")
    assert distributed.usable_cores() == 1
    monkeypatch.setattr(distributed.Path, "read_text", lambda self: "max 100000\n")
    assert distributed.usable_cores() == len(os.sched_getaffinity(0))


def _process(rank: int, work: Callable[[Path], Any], port: int, folder: Path) -> None:
    """One of two: does `work`, and leaves what it gives, or the error's text, in `folder`."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.join()
    try:
        found = work(folder)
    except OSError as error:
        found = str(error)
    torch.save(found, folder / f"{rank}.pt")


def in_two_processes(work: Callable[[Path], Any], folder: Path) -> list[Any]:
    """What `work` gives in each, by rank; None for one that left nothing."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # A fork has all that is imported here; elsewhere than on Linux it is not safe.
    start = "fork" if sys.platform == "linux" else "spawn"
    start_processes(_process, (work, port, folder), nprocs=2, start_method=start)
    files = [folder / f"{rank}.pt" for rank in range(2)]
    return [torch.load(file, weights_only=False) if file.is_file() else None for file in files]


def _turns(folder: Path) -> tuple[int, list[str]]:
    def work() -> int:
        for step in ("begins", "ends"):
            with (folder / "turns.txt").open("a") as file:
                file.write(f"{distributed.rank()} {step}\n")
            time.sleep(0.05)
        return distributed.rank()

    return distributed.in_turn(work), (folder / "turns.txt").read_text().split("\n")[:-1]


def test_processes_of_a_machine_take_turns(tmp_path: Path) -> None:
    order = ["0 begins", "0 ends", "1 begins", "1 ends"]
    assert in_two_processes(_turns, tmp_path) == [(0, order), (1, order)]


def test_one_process_has_the_only_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.in_turn(lambda: "蓝色 👋") == "蓝色 👋"


def _gradients(_: Path) -> list[Any]:
    rank = distributed.rank()
    own, shared, frozen = (
        torch.nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float32)
    )
    frozen.requires_grad_(False)
    shared.grad = torch.tensor([1.0, 3.0], dtype=torch.bfloat16) * (rank + 1)
    if rank == 1:
        own.grad = torch.tensor([4.0, float("inf")])
    distributed.average_gradients([own, frozen, shared])
    return [own.grad, shared.grad, frozen.grad]


def test_gradients_are_averaged_and_none_counts_as_zero(tmp_path: Path) -> None:
    for own, shared, frozen in in_two_processes(_gradients, tmp_path):
        assert own.tolist() == [2.0, float("inf")], "what is not finite is seen by every process"
        assert (shared.tolist(), shared.dtype, frozen) == ([1.5, 4.5], torch.bfloat16, None)


def _many_gradients(_: Path) -> list[Any]:
    made = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 7, 1, 5, 2)]
    for parameter in made:
        parameter.grad = torch.arange(len(parameter), dtype=torch.float32) * (distributed.rank() + 1)
    found = []
    for most in (1, 4, 8, 99):
        copies = [torch.nn.Parameter(p.detach().clone()) for p in made]
        for copy, parameter in zip(copies, made, strict=True):
            copy.grad = parameter.grad.clone() if parameter.grad is not None else None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "AVERAGED", most)
            distributed.average_gradients(iter(copies))
        found.append([copy.grad.tolist() for copy in copies if copy.grad is not None])
    distributed.average_gradients([])
    return found


def test_gradients_are_averaged_in_parts_of_any_size(tmp_path: Path) -> None:
    means = [[1.5 * i for i in range(n)] for n in (3, 7, 1, 5, 2)]
    assert in_two_processes(_many_gradients, tmp_path) == [[means] * 4] * 2


def _numbers(_: Path) -> list[list[float]]:
    rank = distributed.rank()
    return distributed.gather_numbers([rank, 143.0, 2**53 - 1 + rank, float("nan")], torch.device("cpu"))


def test_numbers_of_every_process_come_in_order_and_exactly(tmp_path: Path) -> None:
    for found in in_two_processes(_numbers, tmp_path):
        assert [each[:3] for each in found] == [[0.0, 143.0, 2**53 - 1], [1.0, 143.0, 2**53]]
        assert all(each[3] != each[3] for each in found)


def _decided(folder: Path) -> tuple[list[str], Any]:
    rank, asked = distributed.rank(), []

    def decide() -> dict[str, Any]:
        asked.append(f"process {rank}")
        return {"checkpoint": folder / "蓝", "none": None}

    return asked, distributed.decided_by_main(decide)


def test_what_the_main_process_decides_holds_for_all(tmp_path: Path) -> None:
    decision = {"checkpoint": tmp_path / "蓝", "none": None}
    assert in_two_processes(_decided, tmp_path) == [(["process 0"], decision), ([], decision)]


def _not_decided(_: Path) -> str:
    def decide() -> None:
        raise ValueError("it is of another run")

    try:
        distributed.decided_by_main(decide)
    except (ValueError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "went on"


def test_what_the_main_process_refuses_ends_the_others_without_a_word(tmp_path: Path) -> None:
    assert in_two_processes(_not_decided, tmp_path) == ["ValueError: it is of another run", "SystemExit: 1"]


def test_one_process_hears_its_own_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ZeroDivisionError):
        distributed.decided_by_main(lambda: 1 // 0)


def _files(folder: Path) -> tuple[bool, dict[str, bytes]]:
    own = folder / "run" if distributed.is_main() else folder / "not there"
    with distributed.everywhere(own, ["蓝.json", "empty"]) as found:
        return found == own, {path.name: path.read_bytes() for path in found.iterdir()}


def test_files_of_the_main_process_are_everywhere(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "蓝.json").write_text("👋", encoding="utf-8")
    (tmp_path / "run" / "empty").touch()
    content = {"蓝.json": "👋".encode(), "empty": b""}
    assert in_two_processes(_files, tmp_path) == [(True, content), (False, content)]


def _killed(_: Path) -> None:
    with distributed.lost_processes_explained(lambda: "checkpoint-4 is whole"):
        distributed.barrier()
        if distributed.rank() == 1:
            dist.destroy_process_group()
            return
        dist.all_reduce(torch.ones(1))


def test_a_process_that_is_gone_is_one_line(tmp_path: Path) -> None:
    said, nothing = in_two_processes(_killed, tmp_path)
    assert nothing is None
    assert said == (
        "another process of the run cannot be reached any more; the launcher's summary names the first, and its exit "
        "code (-9: killed, often for memory); checkpoint-4 is whole"
    )


def _away(_: Path) -> float:
    started = time.monotonic()
    with distributed.lost_processes_explained(lambda: "nothing was saved"):
        distributed.barrier()
        with distributed.waits_at_most(timedelta(seconds=1)):
            if distributed.rank() == 1:
                time.sleep(3)
                return 0.0
            try:
                dist.all_reduce(torch.ones(1))
            finally:
                assert time.monotonic() - started < 3
    return -1.0


def test_a_process_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    said, late = in_two_processes(_away, tmp_path)
    assert late == 0.0
    assert said.startswith("another process of the run cannot be reached any more")
    assert said.endswith("nothing was saved")


def _ended(_: Path) -> None:
    with distributed.lost_processes_explained(lambda: "nothing was saved"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_a_launchers_signal_is_one_line(tmp_path: Path) -> None:
    for said in in_two_processes(_ended, tmp_path):
        assert said.startswith("ended by SIGTERM, which a launcher sends when another process of the run has ended; ")


def test_other_errors_are_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError, match="a shape is wrong"), distributed.lost_processes_explained(lambda: ""):
            raise RuntimeError("a shape is wrong")
        monkeypatch.setenv("WORLD_SIZE", "1")
        with pytest.raises(RuntimeError, match="gloo"), distributed.lost_processes_explained(lambda: ""):
            raise RuntimeError("gloo: in one process there is no other to lose")
    finally:
        signal.signal(signal.SIGTERM, before)
