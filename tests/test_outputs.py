import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from utils.outputs import atomic, atomic_directory, into, recover, require_ending, write_records

ROWS = [{"a": "你好 🌏\n"}, {"a": ""}]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], []])
@pytest.mark.parametrize("array", [True, False])
def test_records_read_back(tmp_path: Path, rows: list[dict[str, str]], array: bool) -> None:
    path = tmp_path / "new" / "a"
    with atomic(path) as file:
        assert write_records(iter(rows), file, array=array) == len(rows)
    text = path.read_text(encoding="utf-8")
    assert (json.loads(text) if array else [json.loads(line) for line in text.splitlines()]) == rows
    assert "你好" in text or not rows


def half_written(path: Path, error: type[BaseException]) -> None:
    with atomic(path) as file:
        file.write("half")
        raise error


def test_what_goes_wrong_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            half_written(path, error)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_new_file_has_the_usual_rights(tmp_path: Path) -> None:
    with atomic(tmp_path / "a.json") as file:
        file.write("x")
    (tmp_path / "b.json").write_text("x")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b.json").stat().st_mode


def test_the_ending_is_checked() -> None:
    require_ending(Path("a.jsonl"))
    with pytest.raises(ValueError, match=r"a.csv: the ending '.csv' is not one of .json, .jsonl"):
        require_ending(Path("a.csv"))


def put(path: Path, text: str, error: type[BaseException] | None = None) -> None:
    with atomic_directory(path) as folder:
        (folder / "a").write_text(text, encoding="utf-8")
        if error:
            raise error


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_a_directory_takes_its_place_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "目录 🌏"
    put(path, "你好")
    assert contents(path) == {"a": "你好"}
    (path / "old").write_text("")
    put(path, "")
    assert contents(path) == {"a": ""}
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            put(path, "half", error)
    assert contents(path) == {"a": ""}
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_a_stop_between_the_two_renames_puts_the_old_one_back(
    error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a", "old")
    rename = Path.rename

    def stop(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        put(tmp_path / "a", "new")
    assert os.listdir(tmp_path) == ["a"]
    assert contents(tmp_path / "a") == {"a": "old"}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    put(tmp_path / "disk" / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    put(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "disk" / "real") == {"a": "new"}
    assert os.listdir(tmp_path / "disk") == ["real"]


def test_the_working_directory_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    put(Path("."), "x")
    assert contents(tmp_path / "here") == {"a": "x"}


def killed_while_writing(path: Path, *, after_rename: bool) -> None:
    """Another process that is killed in the block, or between the two renames."""
    script = (
        "import os, sys; from pathlib import Path; from utils.outputs import atomic_directory\n"
        "def die(*_): os.kill(os.getpid(), 9)\n"
        "with atomic_directory(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'a').write_text('half')\n"
        "    if sys.argv[2] == 'False': die()\n"
        "    rename = Path.rename\n"
        "    Path.rename = lambda self, to: die() if self.suffix == '.part' else rename(self, to)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path), str(after_rename)], cwd=Path(__file__).parents[1])
    assert done.returncode == -9


def test_what_a_killed_process_left_is_cleared_and_the_old_one_put_back(tmp_path: Path) -> None:
    put(tmp_path / "a", "old")
    put(tmp_path / "a.b", "another")
    killed_while_writing(tmp_path / "a", after_rename=False)
    assert len(os.listdir(tmp_path)) == 3
    recover(tmp_path / "a")
    assert contents(tmp_path / "a") == {"a": "old"}
    killed_while_writing(tmp_path / "a", after_rename=True)
    killed_while_writing(tmp_path / "a.b", after_rename=True)
    assert not (tmp_path / "a").exists()
    recover(tmp_path / "a")
    assert contents(tmp_path / "a") == {"a": "old"}
    assert not (tmp_path / "a.b").exists(), "it is another's to recover"
    put(tmp_path / "a.b", "new")
    assert sorted(os.listdir(tmp_path)) == ["a", "a.b"]


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "a") as folder:
        mine = folder.name.rpartition("-")[0]
        other = folder.with_name(f"{mine}-{os.getppid()}.part")
        elsewhere = folder.with_name(".a.another-host-99999999.part")
        for path in (other, elsewhere):
            path.mkdir()
    recover(tmp_path / "a")
    assert other.is_dir()
    assert elsewhere.is_dir()


def test_files_take_their_places_beside_others(tmp_path: Path) -> None:
    run = tmp_path / "new" / "目录"
    with into(run) as folder:
        (folder / "a").write_text("1")
        (folder / "b 🌏").write_text("你好", encoding="utf-8")
        assert os.listdir(run) == [folder.name]
    (run / "c").write_text("mine")
    with into(run) as folder:
        (folder / "a").write_text("2")
    assert contents(run) == {"a": "2", "b 🌏": "你好", "c": "mine"}
    (tmp_path / "usual").write_text("")
    assert (run / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def put_into(path: Path, error: type[BaseException]) -> None:
    with into(path) as folder:
        (folder / "a").write_text("half")
        raise error


def test_where_it_goes_wrong_no_file_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            put_into(tmp_path, error)
        assert contents(tmp_path) == {"a": "before"}


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    synced, rename, replace = os.fsync, Path.rename, Path.replace

    def named(descriptor: int) -> None:
        number = os.fstat(descriptor).st_ino
        (path,) = (path for path in [tmp_path, *tmp_path.rglob("*")] if path.stat().st_ino == number)
        order.append(f"sync {path.name.partition('.part')[0]}")
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", named)
    monkeypatch.setattr(Path, "rename", lambda self, to: (order.append(f"name {to.name}"), rename(self, to))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append(f"name {to.name}"), replace(self, to))[1])
    put(tmp_path / "run", "x")
    folder = f".run.{socket.gethostname()}-{os.getpid()}"
    assert order == ["sync a", f"sync {folder}", "name run", f"sync {tmp_path.name}"]
    order.clear()
    with into(tmp_path / "run") as folder:
        (folder / "b").write_text("")
    assert order[0] == "sync b"
    assert order[-2:] == ["name b", "sync run"]
    order.clear()
    with atomic(tmp_path / "run" / "c") as file:
        file.write("x")
    assert [line.partition(" ")[0] for line in order] == ["sync", "name", "sync"]
    assert order[1:] == ["name c", "sync run"]


def test_who_is_alone_clears_what_is_left_of_any_machine(tmp_path: Path) -> None:
    put(tmp_path / "a", "new")
    for name in (".a.node-2.example.org-7.part", ".a.node-2.example.org-7.old", f".a.{socket.gethostname()}-1.part"):
        (tmp_path / name).mkdir()
    (tmp_path / ".ab.node-2-7.part").mkdir()
    (tmp_path / ".a.notes").mkdir()
    recover(tmp_path / "a")
    assert len(os.listdir(tmp_path)) == 6, "processes elsewhere, and process 1 here, may be alive"
    recover(tmp_path / "a", alone=True)
    assert sorted(os.listdir(tmp_path)) == [".a.notes", ".ab.node-2-7.part", "a"]
    assert contents(tmp_path / "a") == {"a": "new"}


def test_who_is_alone_puts_back_what_another_machine_had_moved_aside(tmp_path: Path) -> None:
    put(tmp_path / "a", "old")
    (tmp_path / "a").rename(tmp_path / ".a.node-2-7.old")
    (tmp_path / ".a.node-2-7.part").mkdir()
    recover(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    recover(tmp_path / "a", alone=True)
    assert os.listdir(tmp_path) == ["a"]
    assert contents(tmp_path / "a") == {"a": "old"}
