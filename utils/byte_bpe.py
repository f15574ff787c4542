"""Byte BPE from a file of ranks, as tiktoken keeps it: bytes are merged by the rank of what they become.

Knows: that file, and Qwen's words and control tokens. Does not know transformers or what is put around a text.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Qwen's tokenizer code: the words that a text is cut into before merging, and the control tokens behind the ranks.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token → rank, from a file with a token in base64 and its rank on each line.

    Raises:
        ValueError: a line that is not that; the message names it.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise ValueError(
                f"{path} line {number}: expected a token in base64 and its rank, found {line[:40]!r}; download it again"
            ) from error
    return ranks


def byte_bpe(ranks: Mapping[bytes, int], words: str, controls: Sequence[str]) -> Any:
    """A Rust tokenizer that merges bytes by the rank of what they become; ids are ranks.

    Args:
        words: the pattern of the pieces within which bytes are merged.
        controls: control tokens; their ids follow the ranks.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = _letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [tuple(spelled[part] for part in _halves(token, ranks)) for token in sorted(ranks, key=ranks.__getitem__)]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[pair for pair in merges if len(pair) == 2]))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in controls])
    return made


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The parts that `token` is merged from: its bytes, merged by every rank below its own."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        joined = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:], strict=False)]
        best = min(joined)
        if best >= ranks[token]:
            break
        i = joined.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _letters() -> list[str]:
    """A letter for each byte, as GPT-2's vocabularies are written: its own where it has one to be seen, else the next
    from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + unseen.index(byte)) for byte in range(256)]
