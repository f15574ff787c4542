"""Kept work: made once, whole or not at all, by one process while others wait."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

from utils import cache


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALPACA_COT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_entry_is_made_once() -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "a").write_text("蓝色")

    first, second = cache.entry("k", make), cache.entry("k", make)
    assert first == second
    assert (first / "a").read_text() == "蓝色"
    assert len(made) == 1


def test_an_entry_that_could_not_be_made_is_not_there(home: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ValueError("row 3")

    with pytest.raises(ValueError, match="row 3"):
        cache.entry("k", make)
    assert [path.name for path in home.iterdir()] == ["k.lock"]
    assert cache.entry("k", lambda folder: None).is_dir()


def test_processes_that_want_the_same_wait_for_the_first(home: Path) -> None:
    program = (
        "import sys; from utils import cache\n"
        "def make(folder):\n"
        f"    with open({str(home) + '.log'!r}, 'a') as log: log.write('made\\n')\n"
        "    sys.stdin.read(); (folder / 'a').write_text('x' * 9)\n"
        "print('ready', flush=True)\n"
        "assert (cache.entry('k', make) / 'a').read_text() == 'x' * 9"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in running:  # whichever makes it goes on only now, when all want it
        assert process.stdin
        process.stdin.close()
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert Path(f"{home}.log").read_text() == "made\n"


def test_a_full_disk_and_a_read_only_one_name_the_way_out(home: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=f"the cache {home} cannot be written .*No space left.*ALPACA_COT_CACHE"):
        cache.entry("k", full)


def test_an_unreadable_source_is_not_the_caches_fault(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "data.json"))

    with pytest.raises(PermissionError, match="data.json"):
        cache.entry("k", make)


def test_the_key_depends_on_every_value() -> None:
    made_from = {"a": 1, "b": ["x", None]}
    assert cache.key_of(made_from) == cache.key_of({"b": ["x", None], "a": 1})
    assert len({cache.key_of(made_from | change) for change in ({}, {"a": 2}, {"b": ["x"]}, {"c": 0})}) == 4


def test_content_counts_and_names_do_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("same")
    assert cache.content_hash(tmp_path / "a") == cache.content_hash(tmp_path / "b")
    (tmp_path / "b").write_text("sane")
    assert cache.content_hash(tmp_path / "a") != cache.content_hash(tmp_path / "b")


def test_a_large_file_is_hashed_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"1" * 100)
    expected = cache.content_hash(path)
    monkeypatch.setattr(cache, "LARGE_FILE", 10)
    assert cache.content_hash(path) == expected
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_sha256", lambda path: pytest.fail("hashed again"))
        assert cache.content_hash(path) == expected
    path.write_bytes(b"2" * 100)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    assert cache.content_hash(path) != expected


def test_a_folders_content_is_its_files_and_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a").write_text("x")
    first = cache.content_hash(folder)
    (folder / "in" / "a").rename(folder / "in" / "b")
    assert cache.content_hash(folder) != first


def test_what_was_not_used_for_a_month_goes(home: Path) -> None:
    old = cache.entry("old", lambda folder: None)
    kept = cache.entry("kept", lambda folder: None)
    leftover = home / "x.1.tmp"
    leftover.mkdir()
    month_ago = time.time() - (cache.FORGET_AFTER_DAYS + 1) * 24 * 3600
    for path in (old, leftover):
        os.utime(path, (month_ago, month_ago))
    cache.entry("new", lambda folder: None)
    assert (old.exists(), leftover.exists(), kept.exists()) == (False, False, True)


def test_the_code_hash_follows_the_sources() -> None:
    assert cache.code_hash(["encode"]) != cache.code_hash(["encode", "tokens"])
    assert cache.code_hash(["formats/__init__"]) != cache.code_hash(["formats"]), "a package is all its modules"
    with pytest.raises(FileNotFoundError, match="no_such_module"):
        cache.code_hash(["no_such_module"])


def test_processes_at_different_entries_do_not_disturb_each_other(home: Path) -> None:
    program = (
        "import sys; from utils import cache\n"
        "for i in range(150): cache.entry(f'{sys.argv[1]}{i}', lambda folder: (folder / 'a').write_text('x'))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, name], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    assert [(process.communicate()[1], process.returncode) for process in running] == [("", 0), ("", 0)]


def test_an_old_lock_still_locks(home: Path) -> None:
    cache.entry("k", lambda folder: None)
    lock = home / "new.lock"
    lock.touch()
    year_ago = time.time() - 365 * 24 * 3600
    os.utime(lock, (year_ago, year_ago))
    cache.entry("new", lambda folder: None)
    assert lock.exists()


def test_what_a_killed_process_left_goes_with_the_next_attempt(home: Path) -> None:
    leftover = home / "k.99999999.tmp"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("x")
    cache.entry("k", lambda folder: None)
    assert not leftover.exists()


def test_waiting_is_said(home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(cache, "PATIENCE_SECONDS", 0.01)
    home.mkdir()
    program = (
        "import sys, filelock\n"
        f"with filelock.FileLock({str(home / 'k.lock')!r}): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdout.readline()
        close = holder.stdin.close
        warn = cache.LOG.warning
        # The lock is let go once the warning has been given.
        monkeypatch.setattr(cache.LOG, "warning", lambda *words: (warn(*words), close()))
        cache.entry("k", lambda folder: None)
    assert "waiting for another process that makes the same" in caplog.text
