import json
import os
from pathlib import Path

import pytest

from utils.outputs import atomic, require_ending, write_records

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
