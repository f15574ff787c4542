"""A tiny checkpoint for every row of the registry, as its public one is published: configuration, names, vocabulary.

Knows: which of the rows' checkpoints have a form of their own (`published_checkpoints`), and which kind of tokenizer each
has. Does not know what is done with them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import published_checkpoints
import torch
from conftest import TINY_BASE
from published_checkpoints import FACTS
from sentencepiece_models import train, train_chatglm
from test_models import CONFIGURATIONS, empty_model

CHAT_FORM = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 1024
# Each row with each of the classes that run it.
CASES = [(name, number) for name, classes in CONFIGURATIONS.items() for number in range(len(classes))]


def make_family(name: str, folder: Path, number: int = 0) -> Path:
    """A checkpoint of row `name` in `folder`, of its class with that number."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    if name == "chatglm":
        return _chatglm(folder)
    if name in FACTS:
        return _published(name, folder)
    config_class, values = CONFIGURATIONS[name][number]
    tokenizer = _byte_bpe(folder)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    model = empty_model(config_class, {**values, **ids, "vocab_size": len(tokenizer)})
    model.save_pretrained(folder)
    return folder


def _byte_bpe(folder: Path) -> Any:
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(TINY_BASE)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHAT_FORM
    made.save_pretrained(folder)
    return made


def _chatglm(folder: Path) -> Path:
    """The first release's names, in two pickled shards."""
    from tiny_chatglm import tiny_model

    from utils.chatglm import ChatGLMTokenizer

    train_chatglm(folder / "ice_text.model")
    settings = {"tokenizer_class": "ChatGLMTokenizer", "num_image_tokens": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    made = ChatGLMTokenizer.from_pretrained(str(folder))
    mask, gmask = made.convert_tokens_to_ids(["[MASK]", "[gMASK]"])
    ids = {"bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id, "pad_token_id": made.pad_token_id}
    model = tiny_model(vocab_size=len(made), mask_token_id=mask, gmask_token_id=gmask, **ids)
    facts = {**model.config.to_diff_dict(), "model_type": "chatglm", "position_encoding_2d": True}
    return published_checkpoints.write(folder, facts, dict(model.state_dict()), "shards")


def _published(name: str, folder: Path) -> Path:
    """Under the names of the code that came with the checkpoint."""
    vocabulary = {"qwen": _ranks, "moss": _merges}.get(name, _pieces)(name, folder)
    plain = published_checkpoints.VOCABULARY
    published_checkpoints.VOCABULARY = vocabulary
    try:
        native = published_checkpoints.native_model(name)
    finally:
        published_checkpoints.VOCABULARY = plain
    return published_checkpoints.write(
        folder, _facts(FACTS[name], vocabulary), published_checkpoints.publish(name, native), "shards"
    )


def _facts(facts: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    sizes = {"vocab_size": vocabulary, "padded_vocab_size": vocabulary}
    sizes |= dict.fromkeys(
        ("max_position_embeddings", "seq_length", "n_positions", "n_ctx", "model_max_length"), CONTEXT
    )
    return {key: sizes.get(key, value) for key, value in facts.items()}


def _pieces(name: str, folder: Path) -> int:
    from utils.slow_tokenizers import SLOW_TOKENIZERS

    controls = {"internlm2": ["<|im_start|>", "<|im_end|>"]}.get(name, [])
    train(folder / "tokenizer.model", user_defined_symbols=controls)
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    return len(SLOW_TOKENIZERS[name].from_pretrained(str(folder)))


def _ranks(name: str, folder: Path) -> int:
    """Every byte is a token, and nothing is merged."""
    from utils.slow_tokenizers import SLOW_TOKENIZERS

    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(SLOW_TOKENIZERS[name].from_pretrained(str(folder)))


def _merges(name: str, folder: Path) -> int:
    """GPT-2's alphabet of bytes, and nothing merged."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from utils.slow_tokenizers import SLOW_TOKENIZERS

    alphabet = ["<|endoftext|>", *bytes_to_unicode().values()]
    files: dict[str, dict[str, Any]] = {
        "vocab.json": {text: i for i, text in enumerate(alphabet)},
        "added_tokens.json": {"<eoh>": len(alphabet), "<eom>": len(alphabet) + 1},
        "special_tokens_map.json": {"eos_token": "<eom>", "additional_special_tokens": ["<eoh>"]},
        "tokenizer_config.json": {"tokenizer_class": "MossTokenizer"},
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return len(SLOW_TOKENIZERS[name].from_pretrained(str(folder)))
