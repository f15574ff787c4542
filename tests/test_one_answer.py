"""Rows that can have one answer: ChatGLM-6B's tokenizer, whose prompt ends with the place of it (`[gMASK] <sop>`), and
its prompt with any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS
from sentencepiece_models import train_chatglm
from test_encode import rows

from utils.catalog import parse_mixture
from utils.dataset import build
from utils.encode import Encoder, encode_prompt, encode_rows, stop_ids
from utils.hygiene import resolve
from utils.proof import IGNORED
from utils.templates import get_template
from utils.tokens import prefix_ids, suffix_ids

TEMPLATE = get_template("chatglm")
DIALOGUE = {
    "conversation": [
        {"role": "user", "content": "你好，世界 🌏"},
        {"role": "assistant", "content": "Hello, world 🌏"},
        {"role": "user", "content": "Again?\n\tPlease."},
        {"role": "assistant", "content": "再来一次：Hello."},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": ""},
    ]
}


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from utils.chatglm import ChatGLMTokenizer

    folder = tmp_path_factory.mktemp("glm")
    train_chatglm(folder / "ice_text.model")
    return ChatGLMTokenizer(str(folder / "ice_text.model"))


def ids_of(tokenizer: Any, *names: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(name) for name in names]


def test_the_suffix_is_what_follows_a_prompt(glm: Any, tokenizer: Any) -> None:
    assert suffix_ids(glm) == ids_of(glm, "[gMASK]", "<sop>")
    assert prefix_ids(glm) == []
    assert suffix_ids(tokenizer) == [], "EOS is an answer's end, not a prompt's"


def test_a_row_is_prompt_gmask_sop_answer_eop(glm: Any) -> None:
    gmask, sop, eop = ids_of(glm, "[gMASK]", "<sop>", "<eop>")
    encoded, dropped, _ = encode_rows(rows(*RECORDS), TEMPLATE, glm, cutoff_len=512, truncation="drop")
    assert not dropped
    for record, row in zip(RECORDS, encoded, strict=True):
        at = row.input_ids.index(sop)
        assert row.input_ids[at - 1] == gmask
        assert row.labels == [IGNORED] * (at + 1) + row.input_ids[at + 1 :]
        assert row.input_ids[-1] == eop
        assert glm.decode(row.input_ids[at + 1 : -1]) == record["output"]
        assert row.input_ids[: at + 1] == encode_prompt(record, TEMPLATE, glm)
    assert stop_ids(TEMPLATE, glm) == [eop]


def test_a_dialogue_becomes_a_row_for_each_answer(glm: Any) -> None:
    encoder = Encoder(TEMPLATE, glm, cutoff_len=512, truncation="drop")
    (row,) = rows(DIALOGUE)
    examples = encoder.examples(row)
    assert [len(example.record["conversation"]) for example in examples] == [2, 4, 6]
    assert {example.origin for example in examples} == {row.origin}
    outcomes = encoder(examples)
    texts = []
    for outcome in outcomes:
        assert outcome.encoded
        ids = outcome.encoded.input_ids
        assert sum(token == glm.convert_tokens_to_ids("<sop>") for token in ids) == 1
        assert ids.count(glm.eos_token_id) == 1, "an earlier answer is context, and ends nothing"
        texts.append(glm.decode([i for i in ids if i not in glm.all_special_ids]))
    assert (
        texts[1]
        == "[Round 0]\n问：你好，世界 🌏\n答：Hello, world 🌏\n[Round 1]\n问：Again?\n\tPlease.\n答： 再来一次：Hello."
    )
    assert texts[0] == "你好，世界 🌏 Hello, world 🌏", "a first question is sent as it is"


def test_where_a_first_question_is_asked_otherwise_than_a_later_one_the_same_holds(tokenizer: Any) -> None:
    """Any tokenizer with this prompt: the row of a later answer does not begin as a first question is sent."""
    encoder = Encoder(TEMPLATE, tokenizer, cutoff_len=512, truncation="drop")
    (row,) = rows(DIALOGUE)
    turns = DIALOGUE["conversation"]
    outcomes = encoder(encoder.examples(row))
    assert len(outcomes) == 3
    for number, outcome in enumerate(outcomes):
        assert outcome.encoded
        ids, labels = outcome.encoded.input_ids, outcome.encoded.labels
        sent = encode_prompt({"conversation": turns[: 2 * number + 1]}, TEMPLATE, tokenizer)
        assert ids[: len(sent)] == sent
        assert labels == [IGNORED] * len(sent) + ids[len(sent) :]
        assert tokenizer.decode(ids[len(sent) : -1]) == turns[2 * number + 1]["content"]
        assert ids.index(tokenizer.eos_token_id) == len(ids) - 1, "an earlier answer ends nothing"
    assert tokenizer.decode(encode_prompt({"conversation": turns[:1]}, TEMPLATE, tokenizer)[1:]) == turns[0]["content"]


def test_a_causal_tokenizer_keeps_a_dialogue_in_one_row(tokenizer: Any) -> None:
    (row,) = rows(DIALOGUE)
    assert Encoder(get_template("alpaca"), tokenizer, cutoff_len=512, truncation="drop").examples(row) == [row]


@pytest.mark.parametrize("cutoff", range(4, 30, 3))
def test_a_cut_prompt_keeps_the_place_of_the_answer(glm: Any, cutoff: int) -> None:
    record = {"instruction": "one two three four five six seven", "input": "", "output": "八"}
    encoded, dropped, _ = encode_rows(rows(record), TEMPLATE, glm, cutoff_len=cutoff, truncation="prompt")
    gmask, sop = ids_of(glm, "[gMASK]", "<sop>")
    if encoded:
        at = encoded[0].input_ids.index(sop)
        assert encoded[0].input_ids[at - 1] == gmask
    else:
        assert list(dropped) == [f"longer than --cutoff_len {cutoff} even without its prompt"]


def test_rows_of_one_dialogue_are_no_near_duplicates_of_each_other(glm: Any, tmp_path: Path) -> None:
    turns = [
        {"role": role, "content": f"{role} {i}: {'一二三四五六七八九'[i]} words that differ {i * 7919}"}
        for i in range(9)
        for role in ("user", "assistant")
    ]
    path = tmp_path / "talk.jsonl"
    same = {"conversation": turns[:-2] + [{**turns[-2], "content": turns[-2]["content"] + "."}, turns[-1]]}
    path.write_text("\n".join(json.dumps(each) for each in ({"conversation": turns}, same)), encoding="utf-8")
    drop = resolve(["near_duplicate"])
    data = build(
        parse_mixture([str(path)]), TEMPLATE, glm, cutoff_len=4096, truncation="drop", val_set_size=0, seed=0, drop=drop
    )
    assert [int(row.origin.rpartition(" ")[2]) for row in data.train] == [1] * 9, "the second dialogue goes, and whole"


def test_the_ledger_and_the_split_know_that_rows_are_of_one_dialogue(glm: Any, tmp_path: Path) -> None:
    dialogues = [
        {"conversation": [{**turn, "content": f"{turn['content']} {i}"} for turn in DIALOGUE["conversation"]]}
        for i in range(12)
    ]
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in dialogues), encoding="utf-8")
    data = build(
        parse_mixture([str(path)]), TEMPLATE, glm, cutoff_len=512, truncation="drop", val_set_size=4, seed=0
    )  # fmt: skip
    account = data.ledger.total
    assert (account.read, account.split, account.trained + account.validation) == (12, 24, 36)
    lines = lambda rows: {int(row.origin.rpartition(" ")[2]) for row in rows}  # noqa: E731
    assert not lines(data.train) & lines(data.validation), "answers of one dialogue stay together"
    assert "split: 24 more rows of" in "\n".join(data.ledger.lines())
