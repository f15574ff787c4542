import shutil
from pathlib import Path
from typing import Any

import pytest

from utils.preflight import (
    MEGABYTE,
    activation_bytes,
    checkpoint_bytes,
    megabytes,
    needs_checkpointing,
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


def test_a_7b_llama_in_8_bits_fits_an_80_gb_card_and_a_long_batch_does_not() -> None:
    shape = {"hidden": 4096, "layers": 32, "vocabulary": 32000, "bytes_per_value": 2}
    free = 70 * 1024 * MEGABYTE
    assert not needs_checkpointing(free, activation_bytes(4 * 512, **shape))
    assert needs_checkpointing(free, activation_bytes(128 * 512, **shape))
    assert not needs_checkpointing(None, activation_bytes(128 * 512, **shape))


@pytest.mark.parametrize(("size", "text"), [(0, "0 MB"), (1500 * MEGABYTE, "1.5 GB"), (12 * MEGABYTE, "12 MB")])
def test_sizes_for_people(size: int, text: str) -> None:
    assert megabytes(size) == text
