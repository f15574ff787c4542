"""Whatever stands in a raw file: a documented error, or an outcome for every row."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import cot
from utils.converters import CONVERTERS, Dropped, Options, convert, outcomes
from utils.scoring import canonical, extract_answer

# The same examples in every run, so that a red test is red for everyone.
fuzz = settings(max_examples=50, deadline=None, derandomize=True)

KEYS = [
    "instruction", "input", "output", "response", "prompt", "completion", "question", "answer", "context", "inputs", "targets",
    "target", "conversations", "from", "value", "chosen", "text", "chat", "turn_1", "Human", "MOSS", "meta_instruction",
    "human_answers", "chatgpt_answers", "answer_0", "answer_1", "score_0", "score_1", "full_text", "instances", "example",
    "analysis", "message_1", "message_2", "role_type", "content", "response_j", "textbox_question", "textbox_answer", "round_0",
    "trans_instruction", "trans_output", "dialogue_id", "data", "Definition", "Instances", "options", "rationale", "correct",
]  # fmt: skip
# A row of each format in which every part can be changed.
SAMPLES: dict[str, Any] = {
    "gsm8k": [{"question": "Q", "answer": "1+1=<<1+1=2>>2\n#### 2"}],
    "aqua": [{"question": "Q", "options": ["A)1", "B)2"], "rationale": "r", "correct": "B"}],
    "fields": [{"instruction": "i", "input": "", "output": "o"}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}],
    "dialogue_text": [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": ""}],
    "moss": {"meta_instruction": "m", "chat": {"turn_1": {"Human": "<|Human|>: a<eoh>", "MOSS": "<|MOSS|>: b<eom>"}}},
    "answers": [{"question": {"full_text": "Q"}, "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": -1}],
    "self_instruct": [{"instruction": "i", "instances": [{"input": "", "output": "o"}]}],
    "gaokao": {"keywords": "k", "example": [{"question": "Q", "answer": ["A"], "analysis": "r"}]},
    "camel": {
        "message_1": {"role_type": "USER", "content": "a"},
        "message_2": {"role_type": "ASSISTANT", "content": "b"},
    },
    "stack_exchange": [{"question": "Q", "response_j": "a"}],
    "coig": [{"round_0": {"response": '{"Q": "a", "A": "b"}'}}],
    "prosocial": [{"context": "a", "response": "b", "dialogue_id": 1}],
    "ultrachat": [{"id": "1", "data": ["a", "b"]}],
    "natural_instructions": {"Definition": ["d"], "Instances": [{"input": "i", "output": ["o"]}]},
}
words = st.sampled_from(
    ["", " ", "human", "gpt", "system", "A", "(B)", "A)1", "#### 3", "<<1+1=2>>", "你好", "🙂", "\x00", "\u2028", "\ud800", "<noinput>",
     "\n\nHuman: a\n\nAssistant: b", "[|Human|] a\n[|AI|] b", "<human>: a\n<bot>: b", "User: a\nAssistant: b", '{"Q": "a", "A": "b"}'],
) | st.text(max_size=12)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | words, inner, max_size=6),
    max_leaves=12,
)
printable = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=30).filter(str.strip)


def in_file(name: str, content: bytes, check: Callable[[Path], None]) -> None:
    """`content` as a file; hypothesis runs many examples in one test, so `tmp_path` would be shared."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        check(path)


def only_documented(name: str, path: Path) -> None:
    """Either a ValueError of one line that names the file, or outcomes for every row that was read."""
    message = ""
    try:
        rows = list(CONVERTERS[name].read(path))
        found = list(outcomes(name, path, Options(set_name="ecqa" if name == "flan_cot_tsv" else "")))
    except ValueError as error:
        rows, found, message = [], [], str(error)
    assert not message or str(path) in message
    assert "\n" not in message
    assert {where for where, _, _ in found} == {where for where, _ in rows}
    assert len(found) >= len(rows)
    for _, _, outcome in found:
        assert isinstance(outcome, Dropped) or json.dumps(outcome, ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("name", CONVERTERS)
@fuzz
@given(rows=st.lists(values, min_size=1, max_size=3))
def test_any_json_gives_outcomes_or_the_documented_error(name: str, rows: list[Any]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    in_file("flan_ecqa.json", content, lambda path: only_documented(name, path))
    in_file("flan_ecqa.json", json.dumps(rows[0], indent=1).encode(), lambda path: only_documented(name, path))


@pytest.mark.parametrize("name", SAMPLES)
@fuzz
@given(data=st.data())
def test_a_row_with_one_value_changed_gives_outcomes_or_the_documented_error(name: str, data: st.DataObject) -> None:
    row = json.loads(json.dumps(SAMPLES[name]))
    inner = row
    while isinstance(inner, dict | list) and inner:
        key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else list(range(len(inner)))))
        if isinstance(inner[key], dict | list) and data.draw(st.booleans()):
            inner = inner[key]
            continue
        if isinstance(inner, dict) and data.draw(st.booleans()):
            del inner[key]
        else:
            inner[key] = data.draw(values)
        break
    in_file("flan_ecqa.json", (json.dumps(row, indent=1)).encode(), lambda path: only_documented(name, path))
    in_file("flan_ecqa.jsonl", (json.dumps(row) + "\n").encode(), lambda path: only_documented(name, path))


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_are_in_their_formats(name: str) -> None:
    def check(path: Path) -> None:
        assert not any(isinstance(outcome, Dropped) for _, outcome in convert(name, path))

    in_file("a.json", json.dumps(SAMPLES[name], indent=1).encode(), check)


@pytest.mark.parametrize("name", CONVERTERS)
@fuzz
@given(content=st.binary(max_size=60) | words.map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_give_outcomes_or_the_documented_error(name: str, content: bytes) -> None:
    in_file("flan_ecqa.jsonl", content, lambda path: only_documented(name, path))


@fuzz
@given(fields=st.lists(words, min_size=1, max_size=4))
def test_any_line_of_a_table_gives_outcomes_or_the_documented_error(fields: list[str]) -> None:
    content = ("\t".join(fields) + "\n").encode("utf-8", "replace")
    in_file("ecqa.tsv", content, lambda path: only_documented("flan_cot_tsv", path))


@fuzz
@given(asked=printable, given_=st.text(st.characters(codec="utf-8"), max_size=10), said=printable)
def test_well_formed_exchanges_lose_nothing(asked: str, given_: str, said: str) -> None:
    rows = {
        "fields": {"instruction": asked, "context": given_, "response": said},
        "self_instruct": {"instruction": asked, "instances": [{"input": given_, "output": said}]},
        "stack_exchange": {"question": asked, "response_j": said},
        "camel": {"message_1": asked, "message_2": said},
        "answers": {"question": asked, "human_answers": ["x"], "chatgpt_answers": [said]},
    }
    for name, row in rows.items():
        kept = given_ if name in ("fields", "self_instruct") else ""
        expected = {"instruction": asked, "input": kept, "output": said}

        def check(path: Path, name: str = name, expected: Any = expected) -> None:
            assert [outcome for _, outcome in convert(name, path)] == [expected]

        in_file("a.jsonl", json.dumps(row).encode(), check)


@fuzz
@given(said=st.lists(printable, min_size=1, max_size=3).map(lambda half: [*half, *half]))
def test_well_formed_dialogues_lose_nothing(said: list[str]) -> None:
    expected = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]
    pairs = list(zip(said[::2], said[1::2], strict=True))
    rows = {
        "sharegpt": {
            "conversations": [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]
        },
        "ultrachat": {"data": said},
        "prosocial": [{"context": asked, "response": answer, "dialogue_id": 1} for asked, answer in pairs],
    }
    for name, row in rows.items():

        def check(path: Path, name: str = name) -> None:
            assert [outcome for _, outcome in convert(name, path)] == [{"conversation": expected}]

        in_file("a.json", json.dumps(row if isinstance(row, list) else [row]).encode(), check)


@fuzz
@given(answer=printable, rationale=printable, set_name=st.sampled_from(["ecqa", "gsm8k", "cot_cn", "gaokao"]))
def test_any_answer_reads_back_or_is_refused(answer: str, rationale: str, set_name: str) -> None:
    for style in cot.STYLES:
        try:
            record = cot.render(question="Q", answer=answer, rationale=rationale, set_name=set_name, style=style)
        except cot.Unusable:
            continue
        assert extract_answer(record["output"]) == canonical(cot.mend(answer))
        if style == "cot":
            assert record["output"].startswith(cot.mend(rationale) + "\n")
