"""One writer: real processes, one of them killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import REPOSITORY

from utils import run_lock
from utils.run_lock import LOCK, NAMES, OWNER, held

SCRIPT = """
import sys
from pathlib import Path
from utils import run_lock
with run_lock.held(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds it until its input ends."""
    command = [sys.executable, "-c", SCRIPT, str(directory)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def take(directory: Path) -> list[str]:
    """What is said by one who holds it for a moment."""
    said: list[str] = []
    with held(directory, said.append):
        assert json.loads((directory / OWNER).read_text())["pid"] == os.getpid()
    return said


def fail(directory: Path, error: type[BaseException]) -> None:
    with held(directory, print):
        assert set(os.listdir(directory)) == set(NAMES)
        raise error


def test_nothing_is_left_after_an_end_and_after_an_error(tmp_path: Path) -> None:
    run = tmp_path / "new" / "目录 🌏"
    assert take(run) == []
    assert os.listdir(run) == []
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            fail(run, error)
        assert os.listdir(run) == []
    assert take(run) == []


def test_the_second_process_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as other:
        message = (
            rf"is being written to by process {other.pid} on {socket.gethostname()} \(since 20.*\): "
            "wait for its end, or choose another --output_dir"
        )
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                take(tmp_path)
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == other.pid, "being refused changes nothing"
        assert (tmp_path / LOCK).exists()
        other.communicate("")
        assert other.returncode == 0
    assert os.listdir(tmp_path) == []
    assert take(tmp_path) == []


def test_one_process_does_not_hold_it_twice(tmp_path: Path) -> None:
    with held(tmp_path, print), pytest.raises(ValueError, match=f"written to by process {os.getpid()} on"):
        take(tmp_path)
    assert take(tmp_path) == []


def test_after_a_killed_process_it_is_free_and_that_is_said(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        assert other.wait() == -signal.SIGKILL
    assert set(os.listdir(tmp_path)) == set(NAMES), "it had no chance to clear up"
    (said,) = take(tmp_path)
    assert said.startswith(f"process {other.pid} on {socket.gethostname()} (since ")
    assert said.endswith("did not end by itself; what it left is looked through")
    assert take(tmp_path) == []


def test_one_of_another_machine_cannot_be_asked_so_the_file_stays_until_a_person_deletes_it(tmp_path: Path) -> None:
    owner = {"host": "node-7.elsewhere", "pid": 12, "since": "2026-01-01T00:00:00+00:00"}
    (tmp_path / OWNER).write_text(json.dumps(owner))
    for _ in range(2):
        with pytest.raises(
            ValueError,
            match=r"belongs to process 12 on node-7.elsewhere \(since 2026.*\), which cannot be asked from .*: if it "
            rf"has ended, delete {tmp_path / OWNER} and run the command again",
        ):
            take(tmp_path)
        assert os.listdir(tmp_path) == [OWNER], "asking a second time gives the same answer"
    (tmp_path / OWNER).unlink()
    assert take(tmp_path) == []


@pytest.mark.parametrize("text", ["", '{"host": "', "[]", "null"])
def test_a_name_that_was_half_written_is_nobodys(text: str, tmp_path: Path) -> None:
    (tmp_path / OWNER).write_text(text)
    assert take(tmp_path) == []
    assert os.listdir(tmp_path) == []


def test_the_lock_loses_its_name_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one could open the old file, another make a new one, and both would hold a lock."""
    import filelock

    release = filelock.FileLock.release

    def look(self: filelock.FileLock, force: bool = False) -> None:
        assert not (tmp_path / LOCK).exists()
        release(self, force)

    monkeypatch.setattr(filelock.FileLock, "release", look)
    take(tmp_path)


def test_the_names_are_hidden_files() -> None:
    assert {name[0] for name in run_lock.NAMES} == {"."}
