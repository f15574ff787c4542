import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.readers import read_rows

RECORD = {"instruction": "你好 👋", "input": "", "output": "Hello"}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def records(path: Path) -> list[Any]:
    return [row.record for row in read_rows(path)]


def test_every_format_gives_the_same_records(tmp_path: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    rows = [RECORD, {"instruction": 'a "quoted"\nline', "input": "b,c", "output": "\tÜ "}]
    array = write(tmp_path / "a.json", json.dumps(rows))
    lines = write(tmp_path / "b.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n")
    misnamed = write(tmp_path / "c.json", lines.read_text(encoding="utf-8"))
    marked = write(tmp_path / "d.json", "\ufeff" + json.dumps(rows))
    table = write(tmp_path / "e.csv", 'instruction,input,output\n你好 👋,,Hello\n"a ""quoted""\nline","b,c","\tÜ "\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "g"))
    for path in (array, lines, misnamed, marked, table, tmp_path / "f.parquet", tmp_path / "g"):
        assert records(path) == rows, path


def test_tab_separated(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "question\tanswer\n1+1?\t2\n")
    assert records(path) == [{"instruction": "1+1?", "input": "", "output": "2"}]


@pytest.mark.parametrize(
    ("raw", "record", "shape"),
    [
        ({"instruction": "I", "output": "O", "extra": 1}, {"instruction": "I", "input": "", "output": "O"}, "instruction/input/output"),
        ({"conversation": TURNS}, {"conversation": TURNS}, "conversation"),
        ({"messages": TURNS}, {"conversation": TURNS}, "messages"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, {"conversation": TURNS}, "ShareGPT"),
        ({"prompt": "P", "completion": "C"}, {"instruction": "P", "input": "", "output": "C"}, "prompt/completion"),
        ({"question": "Q", "answer": "A"}, {"instruction": "Q", "input": "", "output": "A"}, "question/answer"),
    ],
)  # fmt: skip
def test_shapes_are_recognised_and_named(tmp_path: Path, raw: Any, record: Any, shape: str) -> None:
    (row,) = read_rows(write(tmp_path / "a.json", json.dumps([raw])))
    assert (row.record, row.shape) == (record, shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no records: the file is empty"),
        ("[]", "holds no records"),
        ('[{"instruction": "a", "output": "b"}, {"instruction": ]', "row 2: broken JSON"),
        ('[{"instruction": "a", "output": "b"}', "row 1: broken JSON .*the file ends here"),
        ('[{"instruction": "a", "output": "b"} {', r"row 1: broken JSON .*comma or \] was expected, found '{'"),
        ('[{"instruction": "a", "output": "b"}] x', r"text follows the closing \] after row 1"),
        ('{"instruction": "a", "output": "b"}\n{"instruction"', "line 2: broken JSON"),
        ('[{"instruction": "a", "output": "b", "output": "c"}]', "row 1: broken JSON .*'output' stands twice"),
        ('[{"instruction": "a", "output": "b"},]', "row 1: broken JSON .a comma follows the last row"),
        ('\n\n{"instruction": "a"', "line 3: broken JSON"),
        ('{\n"instruction": "a"}', r"line 1: broken JSON .*one object over several lines belongs in \[ \]"),
        ('[{"instruction": "a", "output": NaN}]', "row 1: broken JSON .*NaN is not JSON"),
        ('[{"instruction": "a"}]', "row 1: 'output' is missing"),
        ('[{"instruction": "a", "output": null}]', "row 1: 'output' must be text, found null"),
        ('[{"instruction": "a", "output": 3}]', "row 1: 'output' must be text, found a number"),
        ('[{"instruction": "a", "input": {}, "output": "b"}]', "row 1: 'input' must be text, found an object"),
        ('[{"text": "a"}]', "row 1: its keys are text; a record has one of: instruction, output; conversation"),
        ('["a"]', "row 1: expected an object with instruction, input and output, found text"),
        ('[{"instruction": "\\ud800", "output": "b"}]', "row 1: 'instruction' holds half a character"),
        ('[{"conversation": []}]', "row 1: a conversation must be a list of turns"),
        (
            '[{"conversation": [{"role": "bot", "content": "x"}]}]',
            "row 1: turn 1 has the role 'bot'; it must be one of",
        ),
        ('[{"conversation": [{"role": "user", "content": 1}]}]', "row 1: the content of turn 1 must be text"),
        (
            '[{"conversation": [{"role": "user", "content": "x"}]}]',
            "row 1: the turns are user; .*ending with assistant",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.json", text)
    with pytest.raises(ValueError, match=f"bad.json.*{message}"):
        list(read_rows(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        list(read_rows(tmp_path / "none.json"))
    (tmp_path / "latin.json").write_bytes(b'[{"instruction": "\xe9"}]')
    with pytest.raises(ValueError, match=r"latin.json row 1: not UTF-8 \(character 17 of the row is the byte 0xe9\)"):
        list(read_rows(tmp_path / "latin.json"))
    with pytest.raises(ValueError, match="the ending '.xlsx' is not one of"):
        list(read_rows(write(tmp_path / "a.xlsx", "x")))
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        list(read_rows(write(tmp_path / "a.parquet", "x")))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="not one that datasets.save_to_disk wrote"):
        list(read_rows(tmp_path / "folder"))
    with pytest.raises(ValueError, match="broken table"):
        list(read_rows(write(tmp_path / "a.csv", 'instruction,output\n"a,b\n')))


def test_a_folder_of_splits_asks_for_one(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list([RECORD])}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ValueError, match=r"holds several splits \(train\): name one, such as .*d/train"):
        list(read_rows(tmp_path / "d"))


@pytest.mark.parametrize("key", ["instruction", "question", "prompt"])
def test_questions_need_no_answer(key: str, tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", json.dumps({key: "a"}))
    assert next(read_rows(path, answered=False)).record == {"instruction": "a", "input": "", "output": ""}
    with pytest.raises(ValueError, match="line 1"):
        list(read_rows(path))


def test_a_dialogue_that_asks_may_end_with_the_user(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", json.dumps({"messages": TURNS[:1]}))
    assert next(read_rows(path, answered=False)).record == {"conversation": TURNS[:1]}


def test_a_table_keeps_long_cells_odd_characters_and_its_width(tmp_path: Path) -> None:
    long = "长" * 200_000
    path = write(tmp_path / "a.csv", f"instruction,output\na\u2028b,{long}\n")
    assert records(path) == [{"instruction": "a\u2028b", "input": "", "output": long}]
    wide = write(tmp_path / "b.csv", "instruction,output\nList,1, 2, and 3\n")
    with pytest.raises(
        ValueError, match="b.csv row 1: more cells than the header has columns; quote a cell that holds ','"
    ):
        list(read_rows(wide))


def test_origins_count_from_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps([RECORD, RECORD]))
    assert [row.origin for row in read_rows(path)] == [f"{path} row 1", f"{path} row 2"]


def test_a_line_separator_inside_a_string_is_not_a_new_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"instruction": "a\u2028b", "output": "c"}, ensure_ascii=False))
    assert records(path)[0]["instruction"] == "a\u2028b"


def test_real_data_is_read(real_data: Path) -> None:
    expected = {"cot_aqua_train": 2728, "cot_qasc_train": 1084, "cot_strategyqa_train": 2061}
    assert {name: len(records(real_data / "unified" / f"{name}.json")) for name in expected} == expected
    with pytest.raises(ValueError, match="line 1: 'output' is missing"):
        list(read_rows(real_data / "raw" / "instructionwild_user_1.jsonl"))


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("你好 👋") | st.just("\ud800")
ROWS = st.dictionaries(
    st.sampled_from(["instruction", "input", "output", "conversation", "conversations", "messages", "prompt", "completion", "question", "answer", "x"]),
    VALUES | st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), VALUES | st.sampled_from(["user", "assistant", "human", "gpt", "system"]), max_size=3), max_size=4),
    max_size=4,
)  # fmt: skip


@given(rows=st.lists(ROWS | VALUES, max_size=4), answered=st.booleans())
@settings(deadline=None, max_examples=300, derandomize=True)
def test_any_rows_are_read_whole_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], answered: bool
) -> None:
    path = write(tmp_path_factory.mktemp("any") / "a.json", json.dumps(rows))
    read: list[Any] = []
    refusal = ""
    try:
        read.extend(read_rows(path, answered=answered))
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith(f"{path} row {len(read) + 1}") or not rows
    else:
        assert len(read) == len(rows)
    for row in read:
        json.dumps(row.record).encode()
        assert set(row.record) in ({"instruction", "input", "output"}, {"conversation"})


def test_a_null_input_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[{"instruction": "a", "input": null, "output": "b"}]')
    assert records(path) == [{"instruction": "a", "input": "", "output": "b"}]


def test_a_rows_reading_does_not_depend_on_the_rows_before(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "answer": "a", "instruction": "i", "output": "o"}]
    for order in (rows, rows[::-1]):
        found = {row.shape: row.record["output"] for row in read_rows(write(tmp_path / "a.json", json.dumps(order)))}
        assert found == {"question/answer": "a", "instruction/input/output": "o"}
