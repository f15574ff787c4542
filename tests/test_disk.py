import shutil
from pathlib import Path
from typing import Any

import pytest

from utils.disk import (
    MEGABYTE,
    checkpoint_bytes,
    megabytes,
    require_space,
    run_bytes,
)


def test_a_run_needs_room_for_one_checkpoint_more_than_it_keeps() -> None:
    assert run_bytes(1000, 3) - run_bytes(1000, 2) == checkpoint_bytes(1000) == 12_000
    assert run_bytes(1000, 1) > 3 * checkpoint_bytes(1000)


def test_too_little_room_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return shutil._ntuple_diskusage(100, 95, 5 * MEGABYTE)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    require_space(tmp_path / "not" / "yet", 5 * MEGABYTE)
    with pytest.raises(OSError, match="would write about 6 MB to .*where 5 MB are free: make room, choose another"):
        require_space(tmp_path / "not" / "yet", 6 * MEGABYTE)
    assert set(asked) == {tmp_path}


@pytest.mark.parametrize(("size", "text"), [(0, "0 MB"), (1500 * MEGABYTE, "1.5 GB"), (12 * MEGABYTE, "12 MB")])
def test_sizes_for_people(size: int, text: str) -> None:
    assert megabytes(size) == text
