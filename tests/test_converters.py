"""Single exchanges, several answers, tasks and exams; dialogues have a file of their own."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from utils.converters import CONVERTERS, Dropped, Options, convert

NAMES = {
    "flan_cot_tsv", "gsm8k", "aqua", "fields", "sharegpt", "dialogue_text", "moss", "answers", "self_instruct", "gaokao",
    "camel", "stack_exchange", "coig", "prosocial", "ultrachat", "natural_instructions",
}  # fmt: skip


def outcomes(tmp_path: Path, name: str, rows: Any, options: Options | None = None) -> list[Any]:
    """What a converter makes of `rows`, written as JSON Lines; of a mapping, as one document."""
    if isinstance(rows, Mapping):
        path = tmp_path / "raw.json"
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path = tmp_path / "raw.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [outcome for _, outcome in convert(name, path, options)]


def exchange(instruction: str, output: str, given: str = "") -> dict[str, str]:
    return {"instruction": instruction, "input": given, "output": output}


def test_the_registry_holds_the_formats_of_the_catalogue() -> None:
    assert set(CONVERTERS) == NAMES
    with pytest.raises(ValueError, match=r"unknown converter 'sharegtp'\. Did you mean sharegpt\?"):
        list(convert("sharegtp", Path("x.json")))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "你好", "input": "🙂", "output": "好"}, exchange("你好", "好", "🙂")),
        ({"instruction": "Q", "input": "", "response": "A"}, exchange("Q", "A")),
        ({"instruction": "Q", "context": "C", "response": "A", "category": "qa"}, exchange("Q", "A", "C")),
        ({"kind": "NLI", "input": "问", "target": "答"}, exchange("问", "答")),
        ({"inputs": "Q", "targets": "A"}, exchange("Q", "A")),
        ({"prompt": "Q", "completion": "A"}, exchange("Q", "A")),
        ({"prompt": "Q", "response": "A", "source": "x"}, exchange("Q", "A")),
        ({"question": "Q", "std_answer": "A", "class": "open qa"}, exchange("Q", "A")),
        ({"instruction": "Q", "input": None, "output": "A"}, exchange("Q", "A")),
        ({"instruction": " ", "input": "really asked", "output": "A"}, exchange("really asked", "A")),
        ({"instruction": "Q", "input": "", "output": " "}, Dropped("no output")),
        ({"instruction": "Q", "instruction_type": "QA"}, Dropped("no output")),
        ({"instruction": "", "input": "", "output": "A"}, Dropped("no instruction")),
    ],
)
def test_exchanges_under_other_names(tmp_path: Path, row: Any, expected: Any) -> None:
    assert outcomes(tmp_path, "fields", [row]) == [expected]


def test_compressed_and_tabular_files_are_read(tmp_path: Path) -> None:
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress('{"inputs": "问", "targets": "答"}\n'.encode()))
    table = tmp_path / "a.csv"
    table.write_text("prompt,response\nQ,A\n", encoding="utf-8")
    assert [outcome for _, outcome in convert("fields", packed)] == [exchange("问", "答")]
    assert [outcome for _, outcome in convert("fields", table)] == [exchange("Q", "A")]


def test_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"question": "Q", "response_j": "好", "response_k": "B"}]), path
    )
    assert [outcome for _, outcome in convert("stack_exchange", path)] == [exchange("Q", "好")]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("fields", "x", "expected an object, found text"),
        ("fields", {"text": "x"}, "expected one of the keys instruction, prompt, question, inputs, input, found text"),
        ("fields", {"instruction": "Q", "output": None}, "expected text in 'output', found null"),
        ("fields", {"instruction": 3, "output": "A"}, "expected text in 'instruction', found a number"),
        ("fields", {"instruction": "Q", "output": "\ud800"}, "found half a character .a lone surrogate at 0"),
        ("gsm8k", {"question": "Q"}, "expected the key 'answer', found question"),
        ("aqua", {"question": "Q", "options": "A)1", "rationale": "r", "correct": "A"}, "expected a list in 'options', found text"),
        ("aqua", {"question": "Q", "options": ["1"], "rationale": "r", "correct": "A"}, "found one without a letter"),
        ("answers", {"question": "Q", "human_answers": ["a"]}, "expected the key 'chatgpt_answers'"),
        ("answers", {"question": {"full_text": "Q"}, "answer_0": "a", "answer_1": "b", "score_0": True, "score_1": 0}, "expected a number in 'score_0', found true or false"),
        ("stack_exchange", {"question": "Q", "response_k": "a"}, "expected the key 'response_j'"),
        ("self_instruct", {"instruction": "Q", "instances": {}}, "expected a list in 'instances', found an object"),
        ("self_instruct", {"instruction": "Q", "instances": [{"input": "i"}]}, "expected the key 'output', found input"),
        ("coig", {"textbox_question": "Q"}, "expected the key 'textbox_answer'"),
        ("coig", {"round_0": {"response": "{"}}, "expected JSON text in the response of 'round_0', found '{'"),
        ("camel", {"message_1": "a", "message_2": None}, "expected text in 'message_2', found null"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_in_the_format_is_named(tmp_path: Path, name: str, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"raw\.jsonl line 1: .*{message}"):
        outcomes(tmp_path, name, [row])


def test_origins_name_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n\n{"prompt": "c"}\n', encoding="utf-8")
    assert list(convert("fields", path)) == [
        (f"{path} line 1", exchange("a", "b")),
        (f"{path} line 3", Dropped("no output")),
    ]


def test_the_better_answer_is_taken(tmp_path: Path) -> None:
    hc3 = {"question": "问", "human_answers": ["人 🙂"], "chatgpt_answers": [" ", "机"]}
    silent = {"question": "Q", "human_answers": ["human"], "chatgpt_answers": []}
    assert outcomes(tmp_path, "answers", [hc3, silent]) == [exchange("问", "机"), exchange("Q", "human")]
    assert outcomes(tmp_path, "answers", [hc3], Options(answer_source="human")) == [exchange("问", "人 🙂")]
    assert outcomes(tmp_path, "answers", [{**silent, "human_answers": []}]) == [Dropped("no output")]

    def compared(first: float, second: float) -> dict[str, Any]:
        return {"question": {"full_text": "Q", "dataset": "eli5"}, "answer_0": "zero [1]", "answer_1": "one", "score_0": first, "score_1": second}  # fmt: skip

    assert outcomes(tmp_path, "answers", [compared(0.5, -0.5), compared(-1, 1), compared(0, 0.0)]) == [
        exchange("Q", "zero [1]"),
        exchange("Q", "one"),
        Dropped("both answers have the same score"),
    ]


def test_every_instance_of_a_task_is_a_record(tmp_path: Path) -> None:
    seed = {"instruction": "翻译", "instances": [{"input": "<noinput>", "output": "a"}, {"input": "i", "output": "🌏"}]}
    empty = {"instruction": "Q", "instances": []}
    assert outcomes(tmp_path, "self_instruct", [seed, empty]) == [
        exchange("翻译", "a"), exchange("翻译", "🌏", "i"), Dropped("no instances"),
    ]  # fmt: skip
    task = {"Definition": ["Say it", "twice."], "Instances": [{"input": "嗨", "output": ["", "嗨嗨", "x"]}, {"input": "i", "output": "o"}, {"input": "i", "output": []}]}  # fmt: skip
    assert outcomes(tmp_path, "natural_instructions", task) == [
        exchange("Say it\ntwice.", "嗨嗨", "嗨"), exchange("Say it\ntwice.", "o", "i"), Dropped("no output"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"raw\.json: expected the key 'Definition', found Instances"):
        outcomes(tmp_path, "natural_instructions", {"Instances": []})


def test_gaokao_letters_become_a_chain_and_text_an_answer(tmp_path: Path) -> None:
    question = {
        "question": "1．（ 6分）下列$\\neg p$正确的是（　　）\nA．甲\nB．乙\n",
        "analysis": "解：甲错。\n故选： B。\n",
    }
    document = {"keywords": "x", "example": [{**question, "answer": ["B"]}, {**question, "answer": ["A", "B"]}, {**question, "answer": "乙\n"}, {**question, "answer": []}]}  # fmt: skip
    one, two, text, none = outcomes(tmp_path, "gaokao", document)
    assert "下列$\\neg p$正确的是（　　）\nA．甲\nB．乙" in one["instruction"]
    assert "6分" not in one["instruction"]
    assert one["output"].startswith("解：甲错。\n")
    assert "故选" not in one["output"]
    assert one["output"].rsplit("\n", 1)[1].rstrip("。").endswith("B")
    assert "A、B" in two["output"]
    assert text == exchange("下列$\\neg p$正确的是（　　）\nA．甲\nB．乙", "乙")
    assert none == Dropped("no answer")
    with pytest.raises(ValueError, match=r"raw\.json: expected the key 'example', found a"):
        outcomes(tmp_path, "gaokao", {"a": 1})
    with pytest.raises(ValueError, match=r"raw\.json example 1: expected an object, found text"):
        outcomes(tmp_path, "gaokao", {"example": ["x"]})


def test_coig_in_its_four_forms(tmp_path: Path) -> None:
    exam = {"textbox_q_instruction": "回答", "textbox_q_context": "文", "textbox_question": "问？", "textbox_answer": "B", "textbox_answer_analysis": "因为。"}  # fmt: skip
    plain = {**exam, "textbox_answer_analysis": "", "textbox_q_context": ""}
    translated = {"instruction": "I", "input": "", "output": "O", "trans_instruction": "译", "trans_input": "入", "trans_output": "出"}  # fmt: skip
    chat = {f"round_{n}": {"response": json.dumps({"Q": f"问{n}", "A": f"答{n}"})} for n in range(2)}
    assert outcomes(tmp_path, "coig", [exam, plain, translated, {"instruction": "I", "input": "", "output": "O"}, chat]) == [
        exchange("回答", "因为。\n答案：B", "文\n问？"),
        exchange("回答", "B", "问？"),
        exchange("译", "出", "入"),
        exchange("I", "O"),
        {"conversation": [{"role": role, "content": f"{word}{n}"} for n in range(2) for role, word in (("user", "问"), ("assistant", "答"))]},
    ]  # fmt: skip
