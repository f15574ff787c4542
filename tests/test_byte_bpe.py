"""Byte BPE by rank, held against a loop that does what BPE is defined to do."""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import regex
from conftest import RECORDS
from sentencepiece_models import SAYINGS, TEXTS

from utils.byte_bpe import QWEN_CONTROLS, QWEN_WORDS, read_ranks
from utils.encode import Encoder
from utils.readers import Row
from utils.slow_tokenizers import SLOW_TOKENIZERS
from utils.templates import TEMPLATES
from utils.tokens import control_ids, prefix_ids


def ids_of(tokenizer: Any, text: str, *, literally: bool = True) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=literally)["input_ids"]


def by_rank(text: str, ranks: Mapping[bytes, int], words: str) -> list[int]:
    """BPE as it is defined: in each word, join the neighbours of the lowest rank, the leftmost first, while any join."""
    ids: list[int] = []
    for word in regex.findall(words, text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            joins = [
                (ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks
            ]
            if not joins:
                break
            i = min(joins)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def learned(texts: Sequence[str], words: str, num_merges: int) -> dict[bytes, int]:
    """Ranks of bytes, in an order that is not the bytes' own, and of what is joined most often."""
    ranks = {bytes([(byte * 7) % 256]): byte for byte in range(256)}
    split = [[bytes([b]) for b in word.encode()] for text in texts for word in regex.findall(words, text)]
    for _ in range(num_merges):
        pairs = Counter(a + b for word in split for a, b in zip(word, word[1:], strict=False))
        best = max((token for token in pairs if token not in ranks), key=lambda token: (pairs[token], token))
        ranks[best] = len(ranks)
        for word in split:
            i = 0
            while i + 1 < len(word):
                if word[i] + word[i + 1] == best:
                    word[i : i + 2] = [best]
                i += 1
    return ranks


MIXED = [*TEXTS[:8], *SAYINGS, "        deep\n\n\n   x", "don't WE'LL 2024年 １２", "aaaaaaaaaaa    aaaa"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[bytes, int]]:
    directory = tmp_path_factory.mktemp("qwen")
    ranks = learned(MIXED, QWEN_WORDS, 150)
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()]
    (directory / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    return SLOW_TOKENIZERS["qwen"].from_pretrained(str(directory)), ranks


def shuffled_texts() -> list[str]:
    rng = random.Random(0)
    letters = "".join(MIXED)
    return ["".join(rng.choice(letters) for _ in range(rng.randrange(40))) for _ in range(200)] + MIXED


def test_qwens_ids_are_ranks(qwen: Any) -> None:
    tokenizer, ranks = qwen
    for text in shuffled_texts():
        ids = ids_of(tokenizer, text)
        assert ids == by_rank(text, ranks, QWEN_WORDS)
        assert tokenizer.decode(ids) == text


def test_qwens_control_tokens_follow_the_ranks(qwen: Any, tmp_path: Path) -> None:
    """With the real file's 151643 ranks: <|endoftext|> 151643, <|im_start|> 151644, <|im_end|> 151645."""
    tokenizer, ranks = qwen
    assert tokenizer.convert_tokens_to_ids(list(QWEN_CONTROLS)) == [len(ranks) + k for k in range(208)]
    assert (tokenizer.eos_token, tokenizer.pad_token, prefix_ids(tokenizer)) == ("<|endoftext|>", "<|endoftext|>", [])
    assert tokenizer.decode(ids_of(tokenizer, "<|im_end|>")) == "<|im_end|>"
    assert not control_ids(tokenizer) & set(ids_of(tokenizer, "<|im_end|><|endoftext|>"))
    tokenizer.save_pretrained(tmp_path)
    again = SLOW_TOKENIZERS["qwen"].from_pretrained(str(tmp_path))
    assert [ids_of(again, t, literally=False) for t in MIXED] == [ids_of(tokenizer, t, literally=False) for t in MIXED]
    assert again.chat_template == tokenizer.chat_template


def test_qwens_chat_is_chatml_with_a_system_message(qwen: Any) -> None:
    tokenizer, _ = qwen
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "你好 </s> 👋"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n你好 </s> 👋<|im_end|>\n<|im_start|>assistant\n"
    )
    rows = [Row(record=record, origin="row") for record in RECORDS]
    for template in (TEMPLATES["alpaca"], TEMPLATES["chat"]):
        outcomes = Encoder(template, tokenizer, cutoff_len=4096, truncation="drop")(rows)
        assert all(outcome.encoded is not None for outcome in outcomes)


@pytest.mark.parametrize("line", [b"notbase64! 3", b"YQ==", b"YQ== x"])
def test_a_broken_line_of_ranks_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(b"YQ== 0\n\n" + line)
    with pytest.raises(ValueError, match="qwen.tiktoken line 3: expected a token in base64 and its rank, found b'"):
        read_ranks(tmp_path / "qwen.tiktoken")


def test_moss_is_codegens_byte_bpe_with_its_own_control_tokens(tmp_path: Path) -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    letters, ranks = bytes_to_unicode(), learned(MIXED, words, 120)
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()} | {"<|endoftext|>": len(ranks)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    halves = [f"{spelled[t[:i]]} {spelled[t[i:]]}" for t, i in ((t, half(t, ranks)) for t in list(ranks)[256:])]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(halves) + "\n")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<eoh>": len(ranks) + 1, "<eom>": len(ranks) + 2}))
    roles = {"eos_token": "<eom>", "additional_special_tokens": ["<eoh>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MossTokenizer"}))
    tokenizer = SLOW_TOKENIZERS["moss"].from_pretrained(str(tmp_path))
    for text in shuffled_texts():
        ids = ids_of(tokenizer, text)
        assert ids == by_rank(text, ranks, words)
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == len(ranks) + 2
    assert ids_of(tokenizer, "a<eoh>", literally=False)[-1] == len(ranks) + 1
    assert ids_of(tokenizer, "<eom>") == by_rank("<eom>", ranks, words)


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_moss_without_a_file_names_it(file: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert ids_of(SLOW_TOKENIZERS["moss"].from_pretrained(str(tmp_path)), "ab") == [2]
    for content, cause in (
        (b"", "has an empty {}: download it again"),
        (b"version https://", "is not whole .*: download them"),
    ):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(ValueError, match=cause.format(file)) as caught:
            SLOW_TOKENIZERS["moss"].from_pretrained(str(tmp_path))
        assert str(caught.value).startswith(str(tmp_path))
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=f"^{tmp_path} has no {file}: download it again$"):
        SLOW_TOKENIZERS["moss"].from_pretrained(str(tmp_path))


def half(token: bytes, ranks: Mapping[bytes, int]) -> int:
    """The length of the first of the two parts that `token` is joined from."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        _, i = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return len(parts[0])
