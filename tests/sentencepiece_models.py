"""Tiny SentencePiece models with the pieces of the real ones, trained in a second."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Below is an instruction that describes a task.",
    "### Instruction:\nName a colour.\n\n### Response:",
    "A sop is bread; sop, sop, sop, eop and so on.",
    "把这句话翻译成英文。你好，世界！蓝色的天空。",
    "问：一加二等于几？答：三。",
    "def f(x):  return x + 1",
    "1 2 3 4 5 6 7 8 9 0 [ ] < > | _ / ! ? * ( ) { }",
] * 8
LAYOUT = ["<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81))]
CHATGLM_CONTROLS = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]

# What a person can write: scripts, blanks, layout, and control tokens typed as text.
SAYINGS = [
    "Name a colour.",
    "把这句话翻译成英文。你好",
    "Hello 🌏👩‍👩‍👧 世界 é",
    "a  b   c\td\n\n  e",
    " leading",
    "    four, and a tail  ",
    " " * 83 + "x",
    "\n\n\tindented",
    "</s> <s> <unk> [gMASK] <sop> <eop>",
    "<n><|tab|><|blank_3|> <0x0A> <n",
    "[gMASK]sop eop [MASK] sop",
    "<|user|>\n<|assistant|><|im_end|><reserved_106><eoh>",
    "[[gMASK] <<n>> <|blank_2|><|blank_2|>",
    "",
]


def train(path: Path, **options: Any) -> Path:
    """A model at `path`; without options as LLaMA's: bytes for what is rare, nothing normalised, a blank put first."""
    import sentencepiece

    settings: dict[str, Any] = {
        "vocab_size": 520,
        "model_type": "bpe",
        "byte_fallback": True,
        "character_coverage": 1.0,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS), model_writer=buffer, num_threads=1, **{**settings, **options}
    )
    path.write_bytes(buffer.getvalue())
    return path


def train_chatglm(path: Path, *, complete: bool = True, **options: Any) -> Path:
    """As `ice_text.model`: `<pad>` is 3 and `<n>` 4; `complete` as the later releases have it."""
    return train(
        path,
        **{
            "model_type": "unigram",
            "vocab_size": 620 if complete else 300,
            "byte_fallback": complete,
            "pad_id": 3,
            "user_defined_symbols": LAYOUT if complete else ["<n>"],
            "control_symbols": CHATGLM_CONTROLS if complete else [],
            **options,
        },
    )
