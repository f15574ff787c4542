import os

import pytest
import torch

from utils import distributed


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.world_size(), distributed.rank(), distributed.local_rank()) == (1, 0, 0)
    distributed.join()
    assert distributed.gather("x") == ["x"]
    distributed.barrier()
    distributed.leave()
    distributed.say("heard")
    assert capsys.readouterr().out == "heard\n"


def test_only_the_main_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    distributed.say("not heard")
    assert not distributed.is_main()
    assert capsys.readouterr().out == ""


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
