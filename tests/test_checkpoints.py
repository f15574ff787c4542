"""A checkpoint is whole or absent, and what has happened to it since is seen."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import checkpoints
from utils.checkpoints import (
    MANIFEST,
    about_of,
    begin,
    fault,
    found,
    full_disk_explained,
    left_of,
    newest,
    path_of,
    step_of,
    thin_out,
    writing,
)

ABOUT = {"identity": {"lora_r": 8, "data": ["数据 🌏"], "rate": 3e-4, "nothing": None}, "total_steps": 9}
CONTENT = {"adapter_model.safetensors": bytes(range(256)), "trainer_state.json": '{"蓝": 1}\n'.encode(), "空": b""}


def make(directory: Path, *steps: int) -> list[Path]:
    for step in steps:
        with writing(directory, step, ABOUT) as folder:
            for name, content in CONTENT.items():
                (folder / name).write_bytes(content)
    return [path_of(directory, step) for step in steps]


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_checkpoint_is_whole_and_says_what_it_is_of(tmp_path: Path) -> None:
    (checkpoint,) = make(tmp_path, 12)
    assert (fault(checkpoint), step_of(checkpoint), about_of(checkpoint)) == (None, 12, ABOUT)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    assert manifest["files"].keys() == CONTENT.keys()
    assert {name: known["bytes"] for name, known in manifest["files"].items()} == {
        name: len(content) for name, content in CONTENT.items()
    }
    assert names(tmp_path) == ["checkpoint-12"]
    (checkpoint / "notes.txt").write_text("a file that nobody reads")
    assert fault(checkpoint) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (checkpoint,) = make(tmp_path_factory.mktemp("whole"), 3)
    return checkpoint


def bits(checkpoint: Path, name: str) -> int:
    return 8 * (checkpoint / name).stat().st_size


@given(name=st.sampled_from([MANIFEST, *(name for name, content in CONTENT.items() if content)]), data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_flipped_bit_anywhere_is_seen(whole: Path, name: str, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, bits(whole, name) - 1))
    flip(whole / name, bit)
    try:
        damaged = "is damaged: its sha256 is not the one it was written with"
        assert fault(whole) == (
            f"its {MANIFEST} is damaged, or of another version of this program"
            if name == MANIFEST
            else f"{name} {damaged}"
        )
    finally:
        flip(whole / name, bit)
    assert fault(whole) is None


def test_every_region_of_the_manifest_counts(whole: Path) -> None:
    for byte in range(0, bits(whole, MANIFEST) // 8, 7):
        flip(whole / MANIFEST, 8 * byte + byte % 8)
        assert fault(whole) == f"its {MANIFEST} is damaged, or of another version of this program", byte
        flip(whole / MANIFEST, 8 * byte + byte % 8)


def _cut(checkpoint: Path) -> None:
    os.truncate(checkpoint / "adapter_model.safetensors", 200)


def _other_manifest(text: str) -> Callable[[Path], object]:
    return lambda checkpoint: (checkpoint / MANIFEST).write_text(text)


def _renamed(checkpoint: Path) -> None:
    (checkpoint.parent / "checkpoint-7").rename(checkpoint.parent / "aside")
    checkpoint = checkpoint.parent / "checkpoint-5"
    checkpoint.rename(checkpoint.with_name("checkpoint-7"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / MANIFEST).unlink(), "it has no manifest.json: it was not finished, or another program"),
        (_cut, "adapter_model.safetensors has 200 bytes, and had 256"),
        (lambda path: (path / "空").unlink(), "空 is missing"),
        (lambda path: (path / "空").write_bytes(b"\0"), "空 has 1 bytes, and had 0"),
        (_other_manifest(""), "its manifest.json is damaged, or of another version"),
        (_other_manifest("[]"), "its manifest.json is damaged, or of another version"),
        (_other_manifest('{"format": 2, "files": {}}'), "its manifest.json is damaged, or of another version"),
        (lambda path: ((path / MANIFEST).unlink(), (path / MANIFEST).mkdir()), "its manifest.json is damaged"),
        (shutil.rmtree, "there is no such folder"),
        (_renamed, "it is of step 5: a folder of another name than checkpoint-5 is not read"),
    ],
)
def test_each_fault_is_named(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    *_, checkpoint = make(tmp_path, 5, 7)
    damage(checkpoint)
    assert (fault(checkpoint) or "").startswith(message)


def test_a_file_that_the_disk_does_not_give_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = make(tmp_path, 5, 7)

    def broken(path: Path) -> Any:
        if path.parent == newer:
            raise OSError(errno.EIO, "Input/output error")
        return described(path)

    described = checkpoints._described
    monkeypatch.setattr(checkpoints, "_described", broken)
    assert fault(newer) == "adapter_model.safetensors cannot be read (Input/output error)"
    assert newest(tmp_path) == older


def test_a_folder_of_another_program_is_no_checkpoint_of_ours(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    assert newest(tmp_path) is None
    assert left_of(tmp_path) == "no checkpoint was finished"


def test_they_are_found_by_number(tmp_path: Path) -> None:
    make(tmp_path, 20, 5, 100)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [step_of(path) for path in found(tmp_path)] == [5, 20, 100]
    assert newest(tmp_path) == tmp_path / "checkpoint-100"
    assert left_of(tmp_path) == f"{tmp_path / 'checkpoint-100'} is whole: add --resume_from_checkpoint to go on"


def test_a_damaged_one_is_passed_over_aloud_and_the_one_before_taken(tmp_path: Path) -> None:
    five, nine, ten = make(tmp_path, 5, 9, 10)
    flip(nine / "trainer_state.json", 3)
    (ten / MANIFEST).unlink()
    said: list[str] = []
    assert newest(tmp_path, said.append) == five
    assert said == [
        f"{ten} is passed over: it has no manifest.json: it was not finished, or another program wrote it",
        f"{nine} is passed over: trainer_state.json is damaged: its sha256 is not the one it was written with",
    ]


def half(directory: Path, step: int, error: BaseException) -> None:
    with writing(directory, step, {"another": True}) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), SystemExit(1)], ids=repr
)
@pytest.mark.parametrize("before", [[], [5]])
def test_an_error_leaves_nothing_and_the_older_one_of_the_same_step(
    error: BaseException, before: list[int], tmp_path: Path
) -> None:
    make(tmp_path, *before)
    with pytest.raises(type(error)):
        half(tmp_path, 5, error)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in before]
    assert [(fault(path), about_of(path)) for path in found(tmp_path)] == [(None, ABOUT)] * len(before)


def test_a_newer_one_of_the_same_step_takes_the_place(tmp_path: Path) -> None:
    make(tmp_path, 5)
    with writing(tmp_path, 5, {"another": True}) as folder:
        (folder / "a").write_text("")
    assert about_of(tmp_path / "checkpoint-5") == {"another": True}
    assert names(tmp_path / "checkpoint-5") == ["a", MANIFEST]
    assert fault(tmp_path / "checkpoint-5") is None


@pytest.mark.parametrize(
    ("present", "limit", "written", "kept", "left"),
    [
        ([1, 2, 3, 4], 3, 4, [], [2, 3, 4]),
        ([1, 2, 3, 4], 9, 4, [], [1, 2, 3, 4]),
        ([1, 2, 3, 4], 1, 4, [], [4]),
        ([1, 2, 3, 4], 1, 4, [1], [1, 4]),
        ([1, 2, 3, 4], 3, 4, [1], [1, 3, 4]),
        ([10, 20, 30, 40], 2, 20, [], [10, 20]),
        ([10, 20, 30, 40], 3, 20, [], [10, 20, 30]),
        ([10, 20, 30, 40], 1, 20, [30], [20, 30]),
        ([9, 10, 100], 2, 9, [], [9, 10]),
    ],
)
def test_what_is_thinned_out(
    present: Sequence[int], limit: int, written: int, kept: Sequence[int], left: list[int], tmp_path: Path
) -> None:
    make(tmp_path, *present)
    thin_out(tmp_path, limit, path_of(tmp_path, written), [path_of(tmp_path, step) for step in kept])
    assert [step_of(path) for path in found(tmp_path)] == left
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in left), "nothing is left aside"


@given(
    present=st.sets(st.integers(1, 50), min_size=1, max_size=7),
    limit=st.integers(1, 8),
    data=st.data(),
)
@settings(deadline=None, max_examples=30)
def test_thinning_out_never_costs_what_is_needed(
    tmp_path_factory: pytest.TempPathFactory, present: set[int], limit: int, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("run")
    for step in present:
        path_of(directory, step).mkdir()
    written = data.draw(st.sampled_from(sorted(present)))
    kept = data.draw(st.sets(st.sampled_from(sorted(present)), max_size=2))
    thin_out(directory, limit, path_of(directory, written), [path_of(directory, step) for step in kept])
    left = {step_of(path) for path in found(directory)}
    assert left >= kept | {written}
    assert len(left) == min(len(present), max(limit, len(kept | {written})))


def test_a_link_to_another_disk_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    make(tmp_path / "run", 1, 2)
    (tmp_path / "run" / "checkpoint-1").rename(tmp_path / "disk")
    (tmp_path / "run" / "checkpoint-1").symlink_to(tmp_path / "disk")
    thin_out(tmp_path / "run", 1, tmp_path / "run" / "checkpoint-2")
    assert names(tmp_path / "run") == ["checkpoint-2"]
    assert (tmp_path / "disk" / MANIFEST).is_file()


def killed_while(directory: Path, doing: str) -> None:
    script = (
        "import os, shutil, sys; from pathlib import Path; from utils import checkpoints, outputs\n"
        "def die(*_, **__): os.kill(os.getpid(), 9)\n"
        "directory = Path(sys.argv[1])\n" + doing
    )
    done = subprocess.run([sys.executable, "-c", script, str(directory)], cwd=REPOSITORY)
    assert done.returncode == -9


@pytest.mark.parametrize(
    ("doing", "left"),
    [
        ("with checkpoints.writing(directory, 9, {}) as folder: (folder / 'a').write_text('half'); die()", [5, 7]),
        ("with checkpoints.writing(directory, 7, {}) as folder: (folder / 'a').write_text('half'); die()", [5, 7]),
        (
            "with checkpoints.writing(directory, 7, {}) as folder:\n"
            "    rename = Path.rename\n"
            "    Path.rename = lambda self, to: die() if self.suffix == '.part' else rename(self, to)",
            [5, 7],
        ),
        ("with outputs.into(directory) as folder: (folder / 'adapter_model.safetensors').write_text('half'); die()", [5, 7]),
        ("with outputs.atomic(directory / 'training_log.jsonl') as file: file.write('half'); file.flush(); die()", [5, 7]),
        (
            "rmtree = shutil.rmtree\n"
            "shutil.rmtree = lambda path, **options: rmtree(path, **options) if options else die()\n"
            "checkpoints.thin_out(directory, 1, directory / 'checkpoint-7')",
            [7],
        ),
    ],
)  # fmt: skip
def test_what_killed_processes_left_is_cleared(doing: str, left: list[int], tmp_path: Path) -> None:
    make(tmp_path, 5, 7)
    killed_while(tmp_path, doing)
    assert names(tmp_path) != ["checkpoint-5", "checkpoint-7"]
    begin(tmp_path, overwrite=False)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]
    assert [fault(path) for path in found(tmp_path)] == [None] * len(left)
    assert [about_of(path) for path in found(tmp_path)] == [ABOUT] * len(left)


def test_what_processes_of_other_machines_left_is_cleared_too(tmp_path: Path) -> None:
    (checkpoint,) = make(tmp_path, 5)
    for name in (".checkpoint-5.node-2.example.org-17.part", ".checkpoint-9.gone-1.part", ".part-abc"):
        shutil.copytree(checkpoint, tmp_path / name)
    shutil.copytree(checkpoint, tmp_path / ".checkpoint-5.node-2.example.org-17.old")
    checkpoint.rename(tmp_path / ".checkpoint-5.node-3-18.old")
    (tmp_path / ".notes").mkdir()
    begin(tmp_path, overwrite=False)
    assert names(tmp_path) == [".notes", "checkpoint-5"], "what was moved aside is put back"
    assert fault(tmp_path / "checkpoint-5") is None


def test_overwriting_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path, 5)
    for name in ("run.json", "training_log.jsonl", "row_ids.jsonl", "notes.txt", ".writer.json"):
        (tmp_path / name).write_text("")
    begin(tmp_path, overwrite=False)
    assert len(names(tmp_path)) == 6
    begin(tmp_path, overwrite=True)
    assert names(tmp_path) == [".writer.json", "notes.txt"]


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EFBIG, "File too large"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 42368 vs 42260"),
    RuntimeError("basic_ios::clear: iostream error"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("Error while serializing: I/O error: File too large (os error 27)"),
    RuntimeError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_says_what_is_missing_and_how_to_go_on(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(9, 9, 2**20))
    with (
        pytest.raises(
            OSError,
            match=r"is full \(1 MB free; a checkpoint takes about 3 MB: 2 MB more are needed\), so the run stopped; "
            r".*checkpoint-5 is whole: make room, then add --resume_from_checkpoint",
        ) as raised,
        full_disk_explained(tmp_path, 3 * 2**20),
        writing(tmp_path, 9, {}),
    ):
        raise error
    assert raised.value.__cause__ is error
    assert names(tmp_path) == ["checkpoint-5"]


def test_a_full_disk_with_room_may_be_a_quota_and_before_the_first_checkpoint_nothing_is_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"a quota may be used up\), so the run stopped; no checkpoint was finished"),
        full_disk_explained(tmp_path, 1),
    ):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    for error in (ValueError("else"), OSError(errno.EACCES, "Permission denied")):
        with pytest.raises(type(error)) as raised, full_disk_explained(tmp_path, 1):
            raise error
        assert raised.value is error
