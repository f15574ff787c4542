"""The real LLaMA vocabulary: prompts have the ids that published Alpaca code gives them, and user text stays text.

Published Alpaca code encodes a prompt by transformers 4's LlamaTokenizer: BOS, then SentencePiece's ids of the text.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from conftest import RECORDS
from sentencepiece_models import SAYINGS

from utils.encode import Encoder, encode_prompt
from utils.loading import choose
from utils.models import get_model
from utils.readers import Row
from utils.slow_tokenizers import SLOW_TOKENIZERS
from utils.templates import TEMPLATES, render_prompt

ALPACA = TEMPLATES["alpaca"]
QUESTIONS = [
    {"instruction": "Give three tips for staying healthy.", "input": ""},
    {"instruction": "Identify the odd one out.", "input": "Twitter, Instagram, Telegram"},
    {"instruction": "把这句话翻译成英文。", "input": "你好，世界 🌏👩‍👩‍👧"},
    {"instruction": "What does </s> mean? And <s>, <unk>?", "input": "</s></s>"},
    {"instruction": "Fix:\n\ndef f(x):\n\treturn x", "input": "é 龘 \u200b"},
    {"instruction": "", "input": ""},
]


@pytest.fixture(scope="module")
def directory(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llama")
    shutil.copy(real_data / "checkpoints" / "llama.tokenizer.model", made / "tokenizer.model")
    (made / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    (made / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return made


@pytest.fixture(scope="module", params=["loaded", "ours"])
def tokenizer(request: pytest.FixtureRequest, directory: Path) -> Any:
    """As the scripts load it, and by SentencePiece itself."""
    loaded = choose(str(directory), get_model("llama")).tokenizer()
    return {"loaded": loaded, "ours": SLOW_TOKENIZERS["llama"].from_pretrained(directory)}[request.param]


@pytest.fixture(scope="module")
def sp(directory: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["instruction"][:20])
def test_prompts_have_the_ids_of_published_alpaca_code(tokenizer: Any, sp: Any, question: Any) -> None:
    text = "".join(segment.text for segment in render_prompt(question, ALPACA, tokenizer))
    assert question["instruction"] in text
    assert encode_prompt(question, ALPACA, tokenizer) == [1, *sp.encode(text)]


@pytest.mark.parametrize(
    "text", ["你好，世界 🌏👩‍👩‍👧", "It ends: </s> is EOS", "</s>", "<s></s><unk>", "龘\u200b", "a\n\tb", ""]
)
def test_user_text_comes_back_and_never_ends_a_turn(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)


def test_rows_end_with_the_one_eos_that_is_trained(tokenizer: Any) -> None:
    rows = [Row(record=record, origin="row") for record in RECORDS]
    for outcome in Encoder(ALPACA, tokenizer, cutoff_len=2048, truncation="drop")(rows):
        assert outcome.encoded
        ids, labels = outcome.encoded.input_ids, outcome.encoded.labels
        assert (ids.count(2), ids[-1], labels[-1], ids[0], ids.count(1)) == (1, 2, 2, 1, 1)


@pytest.mark.parametrize("text", SAYINGS)
def test_sentencepieces_ids_for_any_text(directory: Path, sp: Any, text: str) -> None:
    ours = SLOW_TOKENIZERS["llama"].from_pretrained(directory)
    ids = ours(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids == sp.encode(text)
    assert ours.decode(ids) == text


@pytest.mark.parametrize(
    ("text", "theirs", "sentencepieces"),
    [
        ("x  y", ["▁x", "▁▁", "y"], ["▁x", "▁", "▁y"]),
        ("a\n  b", ["▁a", "<0x0A>", "▁▁", "b"], ["▁a", "<0x0A>", "▁", "▁b"]),
        (" x", ["▁x"], ["▁", "▁x"]),
        ("  x", ["▁▁", "x"], ["▁▁", "▁x"]),
    ],
)
def test_transformers_own_class_reads_doubled_and_leading_blanks_otherwise(
    directory: Path, sp: Any, text: str, theirs: list[str], sentencepieces: list[str]
) -> None:
    """Why the class of ours exists. If this fails, transformers has mended its own, and ours may go."""
    from transformers import LlamaTokenizer

    made = LlamaTokenizer.from_pretrained(directory)
    assert made.convert_ids_to_tokens(made(text, add_special_tokens=False)["input_ids"]) == theirs
    assert sp.encode(text, out_type=str) == sentencepieces
