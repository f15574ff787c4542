"""Faults of rows and of files, in every format: each is a clear error, or a row that is dropped."""

from __future__ import annotations

import gzip
import json
import re
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any

import faulty_files
import pytest
from conftest import RECORDS
from faulty_files import GOOD, HINT, broken_either_way, build, ids, is_bad, row, written
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import formats, records
from utils.catalog import parse_mixture
from utils.formats import BadRow, faults, opening

own_cache = faulty_files.own_cache

# The line, the reason it is counted under, and the message.
LINES: dict[str, tuple[bytes, str, str]] = {
    "bad UTF-8": (row('"caf\xe9"').decode().encode("latin-1"), "not UTF-8", "not UTF-8 (byte 35 of the line is 0xe9); save the file as UTF-8"),
    "half a character at the end": (row('"中').rstrip(b"}")[:-1], "not UTF-8", "not UTF-8 (byte 32 of the line is 0xe4)"),
    "UTF-16": (row('"b"').decode().encode("utf-16-be").replace(b"\0", b"\xff"), "not UTF-8", "not UTF-8 (byte 0 of the line is 0xff)"),
    "a mark between joined files": (b"\xef\xbb\xbf" + row('"b"'), "broken JSON", "broken JSON (Expecting value at character 0); a byte-order mark stands before it, as where files were joined: take it out"),
    "a NUL byte": (row('"a\0b"'), "broken JSON", "broken JSON (Invalid control character at at character 33)"),
    "a NUL character": (row('"a\\u0000b"'), "a NUL character", "'output' holds a NUL character (at 1), which ends a text for many programs: take it out"),
    "a lone surrogate": (row('"a\\ud83c"'), "half a character", "'output' holds half a character (a lone surrogate at 1); it cannot be written as UTF-8"),
    "a line that is cut": (b'{"instruction": "a", "outp', "broken JSON", "broken JSON (Unterminated string starting at at character 21)"),
    "two objects on a line": (row('"b"') * 2, "broken JSON", "broken JSON (Extra data at character 35)"),
    "a key twice": (b'{"instruction": "a", "output": "b", "output": "c"}', "a key twice", "broken JSON (the key 'output' stands twice in one object); leave one of them"),
    "a key twice inside": (b'{"conversation": [{"role": "user", "role": "system", "content": "a"}]}', "a key twice", "broken JSON (the key 'role' stands twice"),
    "a number": (row("5"), "not text", "'output' must be text, found a number"),
    "a number beyond any": (row("1e999"), "not text", "'output' must be text, found a number"),
    "a number of 5,000 digits": (row("1" * 5000), "broken JSON", "broken JSON (Exceeds the limit"),
    "true": (row("true"), "not text", "'output' must be text, found true or false"),
    "null": (row("null"), "not text", "'output' must be text, found null"),
    "a list": (row('["b"]'), "not text", "'output' must be text, found a list"),
    "nested lists": (row("[" * 90 + "]" * 90), "not text", "'output' must be text, found a list"),
    "lists without end": (row("[" * 200_000), "broken JSON", "broken JSON ("),
    "an object": (row("{}"), "not text", "'output' must be text, found an object"),
    "a row that is a list": (b'[["a", "b"]]', "no object", "expected an object with instruction, input and output, found a list"),
    "NaN": (row("NaN"), "NaN or Infinity", "broken JSON (NaN is not JSON); write null, or a number as text"),
    "NaN in a key that is not read": (row('"b", "score": -Infinity'), "NaN or Infinity", "broken JSON (-Infinity is not JSON)"),
    "no output": (b'{"instruction": "a"}', "a field is missing", "'output' is missing; a record has instruction, input (may be empty) and output"),
    "keys of no shape": (b'{"text\\n\\ud800": "a"}', "no known shape", r"its keys are text\n\ud800; a record has one of: instruction, output; "),
    "turns that are text": (b'{"conversation": "a"}', "no dialogue", "a conversation must be a list of turns with role and content, found text"),
    "no turns": (b'{"conversation": []}', "no dialogue", "a conversation must be a list of turns with role and content, found an empty one"),
    "a role that is none": (b'{"conversation": [{"role": "bot", "content": "x"}]}', "no dialogue", "turn 1 has the role 'bot'; it must be one of system, user, assistant"),
    "a turn that is a list": (b'{"conversation": [{"role": "user", "content": ["x"]}]}', "not text", "the content of turn 1 must be text, found a list"),
    "a turn that is not answered": (b'{"conversation": [{"role": "user", "content": "x"}]}', "no dialogue", "the turns are user; after an optional system turn, user and assistant must alternate"),
}  # fmt: skip


@pytest.mark.parametrize("fault", LINES)
def test_a_bad_line(fault: str, tokenizer: Any, tmp_path: Path) -> None:
    line, reason, message = LINES[fault]
    path = written(tmp_path / "a.jsonl", b"\n".join([*GOOD[:2], b"", line, GOOD[2]]))
    is_bad(path, "line 4", reason, message, tokenizer)


ELEMENTS = [
    "a NUL character", "a lone surrogate", "a key twice", "a key twice inside", "a number", "a number beyond any", "true", "null", "a list",
    "nested lists", "an object", "NaN", "NaN in a key that is not read", "no output", "keys of no shape", "no turns", "a role that is none",
]  # fmt: skip


@pytest.mark.parametrize("fault", ELEMENTS)
def test_a_bad_element_of_an_array(fault: str, tokenizer: Any, tmp_path: Path) -> None:
    element, reason, message = LINES[fault]
    path = written(tmp_path / "a.json", b"[" + b",\n".join([*GOOD[:2], element, GOOD[2]]) + b"]")
    is_bad(path, "row 3", reason, message, tokenizer)


def test_an_element_of_an_array_that_is_not_utf8(tokenizer: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", b"[" + b",".join([GOOD[0], LINES["bad UTF-8"][0], *GOOD[1:]]) + b"]")
    is_bad(path, "row 2", "not UTF-8", "not UTF-8 (character 35 of the row is the byte 0xe9)", tokenizer)


CELLS = {
    "bad UTF-8": (b"a,caf\xe9", "not UTF-8", "not UTF-8 (character 3 of 'output' is the byte 0xe9); save the file as UTF-8"),
    "a NUL byte": (b"a,b\0c", "a NUL character", "'output' holds a NUL character (at 1)"),
    "a comma that is not quoted": (b"a,b,c", "too many cells", "more cells than the header has columns; quote a cell that holds ','"),
    "a cell that is missing": (b"a", "a field is missing", "'output' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("fault", CELLS)
def test_a_bad_row_of_a_table(fault: str, tokenizer: Any, tmp_path: Path) -> None:
    cells, reason, message = CELLS[fault]
    good = [",".join(f'"{record[key]}"' for key in ("instruction", "output")).encode() for record in RECORDS[:3:2]]
    path = written(tmp_path / "a.csv", b"\n".join([b"instruction,output", good[0], cells, good[1]]))
    with pytest.raises(ValueError, match=re.escape(f"{path} row 2: {message}")) as caught:
        build(path, tokenizer=tokenizer)
    assert str(caught.value).endswith(HINT)
    data = build(path, tokenizer=tokenizer, bad_rows="drop")
    assert dict(data.ledger.total.dropped) == {f"bad row: {reason}": 1}
    expected = build(written(tmp_path / "b.csv", b"\n".join([b"instruction,output", *good])), tokenizer=tokenizer)
    assert ids(data) == ids(expected)


@pytest.mark.parametrize(
    ("outputs", "reason", "message"),
    [
        (["b", None], "not text", "'output' must be text, found null"),
        (["b", "a\0"], "a NUL character", "'output' holds a NUL character (at 1)"),
        (["b", b"caf\xe9"], "not UTF-8", "not UTF-8 (a column of text holds other bytes); write it as UTF-8"),
    ],
)
def test_a_bad_row_of_a_parquet_file(
    outputs: list[Any], reason: str, message: str, tokenizer: Any, tmp_path: Path
) -> None:
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.array([text.encode() if isinstance(text, str) else text for text in outputs], pyarrow.binary())
    table = pyarrow.table({"instruction": ["a", "c"], "output": column.cast(pyarrow.string(), safe=False)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    path = tmp_path / "a.parquet"
    with pytest.raises(ValueError, match=re.escape(f"{path} row 2: {message}")):
        build(path, tokenizer=tokenizer)
    data = build(path, tokenizer=tokenizer, bad_rows="drop")
    assert (len(data.train), dict(data.ledger.total.dropped)) == (1, {f"bad row: {reason}": 1})


def test_numbers_and_nan_in_the_columns_of_a_parquet_file(tokenizer: Any, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    for output in ([1.5, float("nan")], [1, 2], [["b"], []]):
        path = tmp_path / f"{output}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"instruction": ["a", "c"], "output": output}), path)
        with pytest.raises(ValueError, match=r"row 1: 'output' must be text, found a (number|list)"):
            build(path, tokenizer=tokenizer)
        with pytest.raises(ValueError, match=r"all 2 rows were dropped \(2: bad row: not text\)"):
            build(path, tokenizer=tokenizer, bad_rows="drop")


def test_a_mark_at_the_start_and_windows_line_ends_change_nothing(tokenizer: Any, tmp_path: Path) -> None:
    plain = build(written(tmp_path / "a.jsonl", b"\n".join(GOOD)), tokenizer=tokenizer)
    for end in (b"\n", b"\r\n"):
        for mark in (b"", b"\xef\xbb\xbf"):
            for name, content in {
                "b.jsonl": end.join([*GOOD, b""]),
                "b.json": b"[" + (b"," + end).join(GOOD) + b"]" + end,
            }.items():
                path = written(tmp_path / name, mark + content)
                for policy in ("error", "drop"):
                    assert ids(build(path, tokenizer=tokenizer, bad_rows=policy)) == ids(plain)
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress(mark + content))
                assert ids(build(tmp_path / f"{name}.gz", tokenizer=tokenizer)) == ids(plain)


def test_windows_line_ends_of_a_table_and_inside_a_field(tmp_path: Path) -> None:
    rows = [{"instruction": "a\r\nb\nc\rd", "output": " x "}, {"instruction": "é", "output": "y"}]
    expected = [value for _, value in formats.read(written(tmp_path / "a.json", json.dumps(rows).encode()))]
    assert expected == rows
    lines = "\r\n".join(map(json.dumps, rows)).encode()
    assert [value for _, value in formats.read(written(tmp_path / "a.jsonl", lines))] == rows
    for end in ("\n", "\r\n"):
        table = f'instruction,output{end}"a\r\nb\nc\rd", x {end}é,y{end}'.encode()
        for mark in (b"", b"\xef\xbb\xbf"):
            assert [value for _, value in formats.read(written(tmp_path / "a.csv", mark + table))] == rows


def test_a_row_of_100_megabytes(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b"\n".join(GOOD[:2]) + b"\n" + b'{"instruction": "a", "output": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + GOOD[2])
    message = f"longer than {faults.LONGEST_ROW:,} bytes; shorten it, or leave it out"
    is_bad(path, "line 3", "too long", message, tokenizer)
    tracemalloc.start()
    assert [where for where, _ in formats.scan(path)] == ["line 1", "line 2", "line 3", "line 4"]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2.2 * faults.LONGEST_ROW, "the line is read past, not held"


@pytest.mark.parametrize("length", [150, 1000])
def test_a_long_row_of_any_format(length: int, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "LONGEST_ROW", 120)
    monkeypatch.setattr("utils.formats.json_rows.CHUNK", 16)
    long = row(f'"{"x" * length}"')
    path = written(tmp_path / "a.jsonl", b"\n".join([GOOD[0], long, *GOOD[1:]]))
    is_bad(path, "line 2", "too long", "longer than 120 bytes", tokenizer)
    path = written(tmp_path / "a.json", b"[" + b",".join([GOOD[0], long, *GOOD[1:]]) + b"]")
    if length < 2 * 120:
        is_bad(path, "row 2", "too long", "longer than 120 characters; shorten it, or leave it out", tokenizer)
    else:
        broken_either_way(
            path, "row 2: broken JSON (no end within 240 characters); mend it, for in an array", tokenizer
        )
    path = written(tmp_path / "a.csv", b"instruction,output\na,b\nc," + b"x" * length)
    broken_either_way(path, "a line is longer than 120 characters: is this a table?", tokenizer)
    path = written(tmp_path / "a.csv", b'instruction,output\na,b\nc,"' + b"x\n" * length)
    broken_either_way(
        path, "row 2: broken table (field larger than field limit (120)); look for a quote that", tokenizer
    )


def test_a_zip_bomb(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "bomb.jsonl.gz", gzip.compress(b" " * (opening.UNPACKED_ANYHOW + 1_000_000)))
    said = f"unpacks to more than 200 times its {path.stat().st_size:,} bytes, as a zip bomb does; unpack it yourself"
    broken_either_way(path, said, tokenizer)
    monkeypatch.setattr(opening, "UNPACKED_ANYHOW", 100_000)
    content = b"\n".join([GOOD[0]] * 2000)
    for name, text in {
        "rows.jsonl.gz": content,
        "array.json.gz": b"[" + content.replace(b"\n", b",") + b"]",
        "table.csv.gz": b"instruction,output\n" + b"a,b\n" * 50_000,
    }.items():
        path = written(tmp_path / name, gzip.compress(text))
        assert len(text) > 200 * path.stat().st_size
        broken_either_way(path, "as a zip bomb does", tokenizer)
    monkeypatch.setattr(opening, "UNPACKED_TIMES", 1000)
    assert len(build(path, tokenizer=tokenizer).train) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[" + GOOD[0] + b', {"instruction": ]', "row 2: broken JSON (Expecting value at character 16); mend it, for in an array the next row cannot be found behind it"),
        ("a.json", b"[" + GOOD[0] + b", \xff]", "row 2: broken JSON (Expecting value at character 0)"),
        ("a.json", b"[" + GOOD[0] + b"\xff]", r"row 1: broken JSON (after it a comma or ] was expected, found '\udcff')"),
        ("a.json", b"[" + row('"a\0b"') + b"]", "row 1: broken JSON (Invalid control character at at character 33)"),
        ("a.json", b"[]", "holds no records: the file is empty"),
        ("a.jsonl", b"\n \n\xe3\x80\x80\n", "holds no records: the file is empty"),
        ("a.csv", b'instruction,output\na,b\n"c,d\n', "row 2: broken table (unexpected end of data); look for a quote that is never closed"),
        ("a.csv", b"instruction,caf\xe9\na,b\n", "header: not UTF-8 (character 15 of the line is the byte 0xe9)"),
        ("a.csv", b"instruction,output,output\na,b,c\n", "the header names the column 'output' twice"),
        ("a.jsonl.gz", gzip.compress(b"\n".join(GOOD))[:-9], "broken gzip file"),
        ("a.jsonl.gz", b"\n".join(GOOD), "broken gzip file"),
    ],
)  # fmt: skip
def test_a_fault_of_the_file(name: str, content: bytes, message: str, tokenizer: Any, tmp_path: Path) -> None:
    broken_either_way(written(tmp_path / name, content), message, tokenizer)


def test_one_bad_line_among_a_million(tokenizer: Any, tmp_path: Path) -> None:
    lines = [b'{"instruction":"q%d","output":"a"}\n' % i for i in range(20_000)]
    lines[12_344] = b'{"instruction":"q","output":\n'
    short = written(tmp_path / "short.jsonl", b"".join(lines))
    data = build(short, tokenizer=tokenizer, bad_rows="drop")
    assert (data.ledger.total.read, data.ledger.total.trained) == (20_000, 19_999)
    assert data.ledger.notes == [
        f"bad row: {short} line 12345: broken JSON (Expecting value at character 28)",
    ]
    with (tmp_path / "long.jsonl").open("wb") as file:
        for i in range(1_000_000):
            file.write(b'{"instruction":"q","output":"a"}\n' if i != 999_998 else b'{"instruction":"q"\n')
    rows = formats.read(tmp_path / "long.jsonl")
    assert sum(1 for _ in islice(rows, 999_998)) == 999_998
    with pytest.raises(
        BadRow, match=r"long.jsonl line 999999: broken JSON \(Expecting ',' delimiter at character 18\)"
    ):
        next(rows)
    assert sum(isinstance(value, BadRow) for _, value in formats.decoded(formats.scan(short), short)) == 1


def test_a_message_quotes_little_and_can_be_shown_on_any_terminal() -> None:
    bad = BadRow("a.json row 1", "no known shape", f"its keys are \x1b[2J\n{'k' * 10_000}\ud800; a record has one")
    assert str(bad).startswith(r"a.json row 1: its keys are \x1b[2J\nkkk")
    assert str(bad).endswith(r"kkk\ud800; a record has one")
    assert len(str(bad)) < 700
    str(bad).encode()


@given(noise=st.binary(min_size=1, max_size=8), at=st.integers(0, 60))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_whatever_bytes_a_line_holds_the_others_are_read(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    line = row('"x", "input": "y"')
    noisy = line[:at] + noise.replace(b"\n", b"") + line[at:]
    path = written(tmp_path_factory.mktemp("noise") / "a.jsonl", b"\n".join([GOOD[0], noisy, GOOD[1]]))
    (part,) = parse_mixture([str(path)])
    first, middle, last = records.outcomes_chosen(part, 0)
    assert not isinstance(first, BadRow)
    assert not isinstance(last, BadRow)
    assert (first.record, last.record) == (RECORDS[0], RECORDS[1])
    if isinstance(middle, BadRow):
        assert str(middle).startswith(f"{path} line 2: ")
    else:
        expected = {"input": ""} | json.loads(noisy.decode().strip())
        assert middle.record == {key: expected[key] for key in ("instruction", "input", "output")}
