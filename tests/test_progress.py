"""The files that a run writes while it trains, and goes on with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils import checkpoints
from utils.progress import LOG_NAME, ROWS_NAME, LogFile, RowLog, rewrite
from utils.proof import Encoded

# U+2028 and U+0085 may be in a file's name, and end a line for `str.splitlines`.
ORIGINS = ["数据 🌏.json row 1", "a\u2028b\u0085c.json row 2", "x.json line 3"]
ROWS = [Encoded(input_ids=[1], labels=[1], origin=origin) for origin in ORIGINS]


def state_at(step: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, log_history=[])


def trained(directory: Path, *members: Sequence[int], start: int = 0, before: Path | None = None) -> None:
    """A run, or a part of one from step `start` on, with these rows in its steps."""
    now: list[int] = []
    log = RowLog(directory, lambda: now, ROWS, checkpoints.path_of(before or directory, start) if start else None)
    log.on_train_begin(None, state_at(start), None)
    for step, each in enumerate(members, start=start + 1):
        now[:] = each
        log.on_step_end(None, state_at(step), None)


def logged(directory: Path) -> list[tuple[int, list[str]]]:
    lines = (directory / ROWS_NAME).read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return [(entry["step"], entry["rows"]) for entry in map(json.loads, lines)]


def expected(*members: Sequence[int]) -> list[tuple[int, list[str]]]:
    return [(step, [ORIGINS[row] for row in each]) for step, each in enumerate(members, start=1)]


def test_the_rows_of_every_step_are_written_in_their_order(tmp_path: Path) -> None:
    trained(tmp_path, [2, 0], [1], [0, 0])
    assert logged(tmp_path) == expected([2, 0], [1], [0, 0])


def test_a_run_that_goes_on_has_each_step_once(tmp_path: Path) -> None:
    trained(tmp_path, [0], [1], [2], [0])
    trained(tmp_path, [2], [1], start=2)
    assert logged(tmp_path) == expected([0], [1], [2], [1])
    trained(tmp_path, [1])
    assert logged(tmp_path) == expected([1]), "one that begins anew has none of before"


def test_a_line_that_a_killed_process_has_begun_is_gone(tmp_path: Path) -> None:
    trained(tmp_path, [0], [1])
    whole = (tmp_path / ROWS_NAME).read_bytes()
    torn = json.dumps({"step": 3, "rows": ORIGINS}, ensure_ascii=False).encode()
    for length in range(len(torn)):
        (tmp_path / ROWS_NAME).write_bytes(whole + torn[:length])
        trained(tmp_path, start=9)
        assert (tmp_path / ROWS_NAME).read_bytes() == whole, torn[:length]


DAMAGED = {
    "no JSON": b"\x00\x00\x00",
    "half of a line": '{"step": 2, "rows": ["数据'.encode(),
    "no UTF-8": b'{"step": \xff}',
    "another thing": b'["step", 2]',
    "no step": b'{"rows": []}',
    "a step in words": '{"step": "二", "rows": []}'.encode(),
    "nothing": b"",
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_a_line_that_cannot_be_read_is_named_before_anything_is_changed(damaged: bytes, tmp_path: Path) -> None:
    trained(tmp_path, [0], [1], [2])
    path = tmp_path / ROWS_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + damaged + b"\n" + lines[2])
    before = path.read_bytes()
    message = (
        f"{path} line 2 is not a step with its rows: mend it, or delete the file to go on without the rows of the steps "
        "so far"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trained(tmp_path, start=3)
    assert path.read_bytes() == before
    trained(tmp_path, [0], start=1)
    assert logged(tmp_path) == expected([0], [0]), "behind the checkpoint nothing is asked of it"


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_the_last_line_may_be_what_a_crash_left(damaged: bytes, tmp_path: Path) -> None:
    trained(tmp_path, [0], [1])
    path = tmp_path / ROWS_NAME
    path.write_bytes(path.read_bytes() + damaged + b"\n")
    trained(tmp_path, [2], start=9)
    assert [step for step, _ in logged(tmp_path)] == [1, 2, 10]


def test_one_that_goes_on_elsewhere_brings_its_rows_along(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    trained(tmp_path / "old", [0], [1], [2])
    trained(tmp_path / "new", [0], start=2, before=tmp_path / "old")
    assert logged(tmp_path / "new") == expected([0], [1], [0])
    assert logged(tmp_path / "old") == expected([0], [1], [2])
    trained(tmp_path / "new", start=2, before=tmp_path)
    assert logged(tmp_path / "new") == [], "the run before did not write its rows down"


def test_only_the_main_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    trained(tmp_path, [0], [1])
    log = LogFile(tmp_path)
    log.on_train_begin(None, state_at(0), None)
    assert list(tmp_path.iterdir()) == []


def test_the_log_is_rewritten_whole_or_not_at_all(tmp_path: Path) -> None:
    entries = [{"step": 1, "loss": 2.5}, {"step": 2, "eval_loss": 1e-9}]
    rewrite(tmp_path, [{"step": 9}])
    rewrite(tmp_path, entries)
    assert [json.loads(line) for line in (tmp_path / LOG_NAME).read_text().splitlines()] == entries
    with pytest.raises(TypeError):
        rewrite(tmp_path, [{"step": 1}, {"step": object()}])
    assert [json.loads(line) for line in (tmp_path / LOG_NAME).read_text().splitlines()] == entries
    rewrite(tmp_path, [])
    assert (tmp_path / LOG_NAME).read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == [LOG_NAME]


def test_a_run_that_begins_to_train_is_no_finished_one_any_more(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    log, state = LogFile(tmp_path), state_at(4)
    state.log_history = [{"step": 4, "loss": 1.0}]
    log.on_train_begin(None, state, None)
    assert not (tmp_path / "run.json").exists()
    state.log_history.append({"step": 5, "loss": 0.5})
    log.on_log(None, state, None)
    lines = (tmp_path / LOG_NAME).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 5]
