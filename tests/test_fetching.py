from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import BODY, COMMIT, NAME, REPOSITORY, SHA, Hub, git_id

from utils import fetching
from utils.fetching import fetch, fetch_url

online, server, target = hub_server.online, hub_server.server, hub_server.target


def parts(target: Path) -> list[Path]:
    return sorted(target.parent.glob(".*.part"))


def test_a_file_comes_whole_and_a_rerun_asks_for_no_bytes(server: Hub, target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    found = fetch(REPOSITORY, NAME, target, on_progress=lambda here, whole: seen.append((here, whole)))
    assert target.read_bytes() == BODY
    assert (found.path, found.bytes, found.sha256, found.skipped) == (target, len(BODY), SHA, False)
    assert found.checked == "the hub's sha256"
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert seen == sorted(seen)
    assert os.listdir(target.parent) == [target.name]
    assert COMMIT in server.asked[1].path, "the bytes are those of the commit that the tags are of"
    again = fetch(REPOSITORY, NAME, target)
    assert (again.skipped, again.sha256, len(server.bodies())) == (True, SHA, 1)


def test_a_known_file_needs_no_network(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    target.parent.mkdir()
    target.write_bytes(BODY)
    found = fetch(REPOSITORY, NAME, target, sha256=SHA.upper())
    assert (found.skipped, found.checked) == (True, "the given sha256")


def test_a_small_file_is_checked_by_its_git_id_and_an_empty_one_is_a_file(server: Hub, tmp_path: Path) -> None:
    assert fetch(REPOSITORY, "README.md", tmp_path / "r").checked == "the hub's git id"
    assert fetch(REPOSITORY, "empty.json", tmp_path / "e").bytes == 0
    assert (tmp_path / "e").read_bytes() == b""
    server.wrong["README.md"] = b"# x\n"
    (tmp_path / "r").unlink()
    with pytest.raises(
        ValueError,
        match=f"broken: the hub's git id is {git_id(server.files['README.md'])}, what came has {git_id(b'# x' + bytes([10]))};",
    ):
        fetch(REPOSITORY, "README.md", tmp_path / "r")


def test_a_cut_connection_is_taken_up_where_it_broke(server: Hub, target: Path) -> None:
    server.cuts = [100_000, 50_000]
    fetch(REPOSITORY, NAME, target, sha256=SHA)
    assert target.read_bytes() == BODY
    assert [asked.range for asked in server.bodies()] == [None, "bytes=100000-", "bytes=150000-"]
    assert {asked.coding for asked in server.bodies()} == {"identity"}, "a range of packed bytes is not one of the file"


def test_an_end_without_an_announced_length_is_seen_by_the_size(server: Hub, target: Path) -> None:
    server.lengths, server.cuts = False, [1000]
    fetch(REPOSITORY, NAME, target)
    assert [asked.range for asked in server.bodies()] == [None, "bytes=1000-"]
    assert target.read_bytes() == BODY


def test_a_download_that_keeps_breaking_is_resumed_by_the_next_run(server: Hub, target: Path) -> None:
    server.cuts = [1000] * 4
    with pytest.raises(ConnectionError) as caught:
        fetch(REPOSITORY, NAME, target)
    message = str(caught.value)
    assert f"broke while {NAME!r} of {REPOSITORY} was fetched (" in message
    assert (
        f"4,000 of {len(BODY):,} bytes are kept; run the same command again; or by hand: download https://hugging"
        in message
    )
    assert not target.exists()
    assert [part.stat().st_size for part in parts(target)] == [4000]
    fetch(REPOSITORY, NAME, target)
    assert (server.bodies()[-1].range, target.read_bytes(), parts(target)) == ("bytes=4000-", BODY, [])


def test_a_megabyte_more_earns_new_attempts(server: Hub, target: Path) -> None:
    server.files["big.json"] = os.urandom(9 << 20)
    server.cuts = [1 << 20] * 8
    assert fetch(REPOSITORY, "big.json", target).bytes == 9 << 20


def test_interrupting_keeps_what_came(server: Hub, target: Path) -> None:
    def interrupt(here: int, whole: int | None) -> None:
        if here > 60_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(REPOSITORY, NAME, target, on_progress=interrupt)
    kept = parts(target)[0].read_bytes()
    assert len(kept) > 60_000
    assert BODY.startswith(kept)
    fetch(REPOSITORY, NAME, target)
    assert (server.bodies()[-1].range, target.read_bytes()) == (f"bytes={len(kept)}-", BODY)


def test_a_server_without_ranges_begins_anew(server: Hub, target: Path) -> None:
    server.ranges, server.cuts = False, [1000]
    assert fetch(REPOSITORY, NAME, target).sha256 == SHA


def test_a_part_of_another_version_is_not_continued(server: Hub, target: Path) -> None:
    server.cuts = [1000] * 4
    with pytest.raises(ConnectionError):
        fetch(REPOSITORY, NAME, target)
    server.files[NAME] = BODY[::-1]
    fetch(REPOSITORY, NAME, target)
    assert (target.read_bytes(), server.bodies()[-1].range, parts(target)) == (BODY[::-1], None, [])


def test_wrong_bytes_never_reach_the_target(server: Hub, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    server.wrong[NAME] = b"x" + BODY[1:]
    bad = hashlib.sha256(server.wrong[NAME]).hexdigest()
    with pytest.raises(
        ValueError, match=f"broken: the hub's sha256 is {SHA}, what came has {bad}; it was not kept"
    ) as caught:
        fetch(REPOSITORY, NAME, target)
    assert "another mirror with HF_ENDPOINT" in str(caught.value)
    assert (target.read_bytes(), parts(target)) == (b"mine", [])
    server.wrong.clear()
    assert fetch(REPOSITORY, NAME, target).sha256 == SHA, "a file that is not the hub's is replaced by a checked one"
    assert target.read_bytes() == BODY


def test_a_file_of_the_same_size_is_not_taken_for_the_hubs(server: Hub, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"x" + BODY[1:])
    assert not fetch(REPOSITORY, NAME, target).skipped
    assert target.read_bytes() == BODY


def test_a_file_that_changed_upstream_is_not_even_downloaded(server: Hub, target: Path) -> None:
    with pytest.raises(
        ValueError, match=f"has changed: its sha256 should be {'0' * 64}, and on the hub it is {SHA}; nothing was"
    ):
        fetch(REPOSITORY, NAME, target, sha256="0" * 64)
    assert server.bodies() == []


def test_a_disk_too_small_is_seen_before(server: Hub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["big.json"] = bytes(3 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 2 << 20))
    with pytest.raises(OSError, match=r"'big.json' of .* takes 3 MB more in .*data, where 2 MB are free: make room"):
        fetch(REPOSITORY, "big.json", target)
    assert server.bodies() == []


class Filling:
    """A file whose disk has room for 100,000 bytes."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Filling:
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        room = 100_000 - self.file.tell()
        self.file.write(data[:room])
        if len(data) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


def test_a_disk_that_fills_keeps_what_came(server: Hub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = Path.open
    with monkeypatch.context() as full:
        full.setattr(
            Path, "open", lambda path, *a, **k: Filling(ordinary(path, *a)) if a == ("ab",) else ordinary(path, *a, **k)
        )
        with pytest.raises(
            OSError,
            match=rf"the disk of .*data is full \(.* free\) while .*; 100,000 of {len(BODY):,} bytes are kept; make room, then run the same",
        ):
            fetch(REPOSITORY, NAME, target)
    assert not target.exists()
    fetch(REPOSITORY, NAME, target)
    assert (server.bodies()[-1].range, target.read_bytes()) == ("bytes=100000-", BODY)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("name", [NAME, "alpaca/alpaca_data.json"])
def test_a_full_disk_speaks_at_the_last_moment_too(name: str, server: Hub, target: Path) -> None:
    def interrupt(here: int, whole: int | None) -> None:
        if here:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(REPOSITORY, name, target, on_progress=interrupt)
    part = parts(target)[0]
    part.unlink()
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match="the disk of .* is full"):
        fetch(REPOSITORY, name, target)


def test_two_processes_do_not_write_one_part(server: Hub, target: Path) -> None:
    import fcntl

    server.cuts = [1000] * 4
    with pytest.raises(ConnectionError):
        fetch(REPOSITORY, NAME, target)
    with parts(target)[0].open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process is fetching .* let it finish"):
            fetch(REPOSITORY, NAME, target)
    assert fetch(REPOSITORY, NAME, target).sha256 == SHA


def test_a_part_that_another_process_has_just_renamed_is_not_written(
    server: Hub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finished_meanwhile(file: Any, operation: int) -> None:
        os.replace(parts(target)[0], target)

    monkeypatch.setattr("fcntl.flock", finished_meanwhile)
    with pytest.raises(OSError, match="another process has just fetched .*: run the same command again"):
        fetch(REPOSITORY, NAME, target)
    assert (target.read_bytes(), server.bodies()) == (b"", [])


def test_a_folder_in_the_way(target: Path) -> None:
    target.mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="is a folder, where .* would be saved: move it away"):
        fetch(REPOSITORY, NAME, target)


def test_an_hf_address_is_the_hubs(server: Hub, target: Path) -> None:
    assert fetch_url(f"hf://datasets/{REPOSITORY}/{NAME}", target).checked == "the hub's sha256"
    assert fetching.parse_hf("hf://datasets/a/b@refs-1/c d/e.json") == ("a/b", "c d/e.json", "refs-1")


def test_raw_files_are_kept_apart() -> None:
    folder = Path("raw")
    assert fetching.raw_targets(["hf://datasets/a/b/c d#1?.json"], folder) == [folder / "c d#1?.json"]
    urls = ["hf://datasets/a/b/en/train.json", "https://h/zh/train.json?x=1", "https://h/%E4%B8%AD.tsv"]
    assert fetching.raw_targets(urls[:1], folder) == [folder / "train.json"]
    assert fetching.raw_targets(urls, folder) == [
        folder / name for name in ("en_train.json", "zh_train.json", "中.tsv")
    ]
    assert fetching.raw_targets([], folder) == []
    with pytest.raises(ValueError, match="two of the raw files have one name"):
        fetching.raw_targets(["https://h/a", "https://g/a"], folder)
