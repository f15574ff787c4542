"""Formats: the same rows from every one, errors that name the place, and memory that does not grow with the file."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import formats
from utils.formats import BadRow, json_rows

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def values(path: Path) -> list[Any]:
    return [value for _, value in formats.read(path)]


@given(rows=st.lists(JSON, max_size=6), indent=st.sampled_from([None, 1]), chunk=st.integers(1, 40))
@settings(deadline=None, max_examples=150, derandomize=True)
def test_an_array_reads_the_same_however_it_is_cut_into_chunks(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK", chunk)
        assert values(path) == rows


@given(text=st.text(alphabet='[]{},:"\\ \n1ae\u4e2d\U0001f30f', max_size=40), chunk=st.integers(1, 20))
@settings(deadline=None, max_examples=300, derandomize=True)
def test_no_text_raises_anything_but_a_value_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, text: str, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK", chunk)
        try:
            found = values(path)
        except ValueError as error:
            named = str(path) in str(error)
            found = None
        else:
            named = True
        assert named
        if found is not None:
            stripped = text.strip()
            assert found == (
                json.loads(stripped)
                if stripped.startswith("[")
                else [*map(json.loads, filter(str.strip, text.split("\n")))]
            )


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv"])
def test_gzip_is_unpacked_and_a_cut_one_is_said_so(tmp_path: Path, name: str) -> None:
    rows = [{"instruction": "你好 👋", "output": "a"}] * 500
    text = {
        "a.json": json.dumps(rows),
        "a.jsonl": "\n".join(map(json.dumps, rows)),
        "a.csv": "instruction,output\n" + "你好 👋,a\n" * 500,
        "a.tsv": "instruction\toutput\n" + "你好 👋\ta\n" * 500,
    }[name]
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert values(path) == rows
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"broken gzip file \(.*\); fetch it again"):
        values(path)
    path.write_bytes(b"plain text")
    with pytest.raises(ValueError, match="broken gzip file"):
        values(path)


@pytest.mark.parametrize("fill", [0, 10, json_rows.CHUNK, json_rows.CHUNK + 7])
@pytest.mark.parametrize("tail", [b"\xff", "é".encode("latin-1"), "中".encode()[:2]])
def test_bytes_that_are_not_utf8_are_found(tmp_path: Path, fill: int, tail: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b" " * fill + b'"' + tail)
    with pytest.raises(BadRow, match=rf"a.jsonl line 1: not UTF-8 \(byte {fill + 1} of the line is 0x"):
        values(path)
    with pytest.raises(ValueError, match=rf"byte {fill + 1} is 0x|ends in the middle of a character"):
        list(formats.lines(path))


def test_plain_lines_end_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes("\ufeffa\tb\u2028c\r\n\nlast\x0bone".encode())
    assert list(formats.lines(path)) == [("line 1", "a\tb\u2028c"), ("line 2", ""), ("line 3", "last\x0bone")]


def test_a_document_is_one_value(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"example": [1]}')
    assert formats.document(path) == {"example": [1]}
    path.write_text('{"example": [1]')
    with pytest.raises(ValueError, match="broken JSON"):
        formats.document(path)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    def peak(rows: int) -> int:
        path = tmp_path / name
        row = {"instruction": "问" * 500, "output": "x" * 500}
        with path.open("w", encoding="utf-8") as file:
            match name:
                case "a.json":
                    file.write("[" + ",".join(json.dumps(row) for _ in range(rows)) + "]")
                case "a.jsonl":
                    file.writelines(json.dumps(row) + "\n" for _ in range(rows))
                case _:
                    file.write("instruction,output\n" + f"{row['instruction']},{row['output']}\n" * rows)
        tracemalloc.start()
        assert sum(1 for _ in formats.read(path)) == rows
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    # 2,000 rows are 5 MB or more of text and well beyond one chunk.
    assert peak(8000) < 1.3 * peak(2000)


def test_known_endings() -> None:
    assert all(map(formats.has_known_ending, ("a.json", "a.JSONL", "a.csv.gz", "a.parquet")))
    assert not any(map(formats.has_known_ending, ("alpaca", "a.txt", "a.parquet.gz", "belle1.5m")))


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,output,output\na,b,c\n")
    with pytest.raises(ValueError, match="the header names the column 'output' twice"):
        values(path)


def test_a_missing_comma_is_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a":1}{"a":2}' + ',{"a":3}' * 1_000_000 + "]")
    tracemalloc.start()
    with pytest.raises(ValueError, match="row 1: broken JSON .*a comma or ] was expected, found '{'"):
        values(path)
    assert tracemalloc.get_traced_memory()[1] < 4 * json_rows.CHUNK
    tracemalloc.stop()


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"instruction": [f"question {i}" for i in range(5000)], "output": ["a"] * 5000})
    pyarrow.parquet.write_table(table, path)
    whole = path.read_bytes()
    for at in (60, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:at] + b"\xff" * 30 + whole[at + 30 :])
        try:
            list(formats.read(path))
        except ValueError as error:
            message = str(error)
        else:
            message = f"{path}: the damage is in a part that nothing reads"
        assert message.startswith(f"{path}: ")
        assert "\n" not in message


def test_provenance_is_no_data(tmp_path: Path) -> None:
    path = tmp_path / "a.json.source.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="tells where the file beside it came from; it holds no data"):
        values(path)


@pytest.mark.parametrize(
    ("name", "stem"), [("a.jsonl.gz", "a"), ("b.c.JSON", "b.c"), ("folder", "folder"), ("a.txt", "a.txt")]
)
def test_stems(name: str, stem: str) -> None:
    assert formats.stem(name) == stem
