"""Encoded rows on disk come back as they were, in any order, however they were cut into chunks."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import store
from utils.proof import IGNORED, Encoded, Outcome
from utils.store import EncodedFile, Examined, Selection


def outcome(ids: list[int], spans: list[int]) -> Outcome:
    labels = [IGNORED] * len(ids)
    for start, end in zip(spans[::2], spans[1::2], strict=True):
        labels[start:end] = ids[start:end]
    return Outcome(encoded=Encoded(input_ids=ids, labels=labels, origin=""), spans=spans)


DROPPED = Outcome(encoded=None, what="longer than --cutoff_len 3")
OUTCOMES = [outcome([1, 5, 6, 2], [2, 4]), DROPPED, outcome([1, 7, 2, 8, 9, 2], [1, 3, 5, 6]), outcome([1, 2], [1, 2])]


def written(path: Path, outcomes: list[Outcome], chunk_rows: int) -> EncodedFile:
    examined = [Examined(number=10 + i, flags=i, prompt=2**64 - 1 - i, record=i) for i in range(len(outcomes))]
    cuts = range(0, len(outcomes), chunk_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "CHUNK_ROWS", chunk_rows)
        store.write(path, (store.chunk(outcomes[i : i + chunk_rows], examined[i : i + chunk_rows]) for i in cuts))
    return EncodedFile(path, origin="数据.json line", source="数据")


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 4])
def test_rows_and_columns_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_rows: int) -> None:
    monkeypatch.setattr(store, "CHUNK_ROWS", chunk_rows)
    file = written(tmp_path / "a.arrow", OUTCOMES, chunk_rows)
    assert len(file) == 4
    for i in (2, 0, 3):
        row, expected = file.row(i), OUTCOMES[i].encoded
        assert isinstance(expected, Encoded)
        assert (row.input_ids, row.labels) == (expected.input_ids, expected.labels)
        assert (row.origin, row.source) == (f"数据.json line {10 + i}", "数据")
    assert file.column("length").tolist() == [4, 0, 6, 2]
    assert file.column("targets").tolist() == [2, 0, 3, 1]
    assert file.column("kept").tolist() == [True, False, True, True]
    assert file.column("prompt").tolist() == [2**64 - 1 - i for i in range(4)]
    assert file.texts("what", ~file.column("kept")) == [("longer than --cutoff_len 3", 1)]
    assert file.texts("what", numpy.zeros(4, dtype=bool)) == []


@given(
    rows=st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=9), max_size=9),
    chunk_rows=st.integers(1, 5),
)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_any_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], chunk_rows: int) -> None:
    outcomes = [outcome(ids, [1, len(ids)]) for ids in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "CHUNK_ROWS", chunk_rows)
        file = written(tmp_path_factory.mktemp("store") / "a.arrow", outcomes, chunk_rows)
        assert [file.row(i).labels for i in range(len(file))] == [[IGNORED, *ids[1:]] for ids in rows]


def test_a_selection_reads_several_files_in_its_order(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{i}.arrow", OUTCOMES, 4) for i in range(2)]
    chosen = Selection(files, numpy.array([1, 0, 0, 1]), numpy.array([2, 0, 0, 3]))
    assert [row.input_ids for row in chosen] == [[1, 7, 2, 8, 9, 2], [1, 5, 6, 2], [1, 5, 6, 2], [1, 2]]
    assert chosen.lengths.tolist() == [6, 4, 4, 2]
    assert chosen.targets.tolist() == [3, 2, 2, 1]
    assert [row.input_ids for row in chosen[1:3]] == [[1, 5, 6, 2]] * 2
    assert chosen[-1] == chosen[3]
    assert (list(store.lengths(chosen)), list(store.targets(chosen))) == ([6, 4, 4, 2], [3, 2, 2, 1])
    with pytest.raises(IndexError):
        chosen[4]


def test_lengths_of_rows_in_memory() -> None:
    rows = [each.encoded for each in OUTCOMES if each.encoded]
    assert (store.lengths(rows), store.targets(rows)) == ([4, 6, 2], [2, 3, 1])
