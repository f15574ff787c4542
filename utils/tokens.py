"""Text into ids and back: what encoding asks of a tokenizer, in batches and by the shortest way.

Knows: transformers' tokenizers by what they can do (`Tokenizer`), and the Rust tokenizer behind most of them. Does not
know records, templates or labels.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

PROBE = "A  sample,\n\n样本 🌏 <s></s> of\ttext "
"""Has what tokenizers differ in: doubled spaces, lines, Chinese, an emoji, control tokens typed as text."""


_SETTINGS = threading.RLock()
"""A Rust tokenizer's settings, whether control tokens are meant among them, are its own and no call's: between being
set and being used, no other thread may set them. transformers' own calls set them, too."""


class Tokenizer(Protocol):
    """What encoding needs of a tokenizer; transformers' have it."""

    bos_token_id: int | None
    eos_token_id: int | None
    eos_token: Any
    unk_token_id: int | None
    chat_template: Any
    all_special_tokens: list[str]
    all_special_ids: list[int]
    added_tokens_decoder: Mapping[int, Any]

    def __call__(self, text: Any, *, add_special_tokens: bool, split_special_tokens: bool = False) -> Any: ...
    def decode(
        self, token_ids: Any, *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> Any: ...
    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any: ...


def require_eos(tokenizer: Tokenizer) -> int:
    """The id of EOS; `ValueError` where there is none, for a model trained without it never stops."""
    if tokenizer.eos_token_id is None or not tokenizer.eos_token:
        raise ValueError(
            "this tokenizer has no EOS token, so the model could not learn to stop: set eos_token in its "
            "tokenizer_config.json (for the first LLaMA it is </s>)"
        )
    return tokenizer.eos_token_id


def prefix_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer itself puts before a text, usually BOS or nothing."""
    plain, dressed = _plain_and_dressed(tokenizer)
    for start in range(len(dressed) - len(plain) + 1):
        if dressed[start : start + len(plain)] == plain:
            return list(dressed[:start])
    return []


def suffix_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer itself puts after a prompt, EOS excepted; for most nothing, for ChatGLM-6B `[gMASK] <sop>`."""
    plain, dressed = _plain_and_dressed(tokenizer)
    after = dressed[len(prefix_ids(tokenizer)) + len(plain) :]
    return [token for token in after if token != tokenizer.eos_token_id]


def _plain_and_dressed(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    with _SETTINGS:
        return tuple(list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (False, True))  # pyright: ignore[reportReturnType]


def control_ids(tokenizer: Tokenizer) -> set[int]:
    """The ids of control tokens; not of UNK, which stands for text."""
    marked = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {*tokenizer.all_special_ids, *marked} - {tokenizer.unk_token_id}  # pyright: ignore[reportReturnType]


def fingerprint(tokenizer: Any) -> str:
    """Hex sha256 of all that decides its ids: the Rust tokenizer or, without one, what the tokenizer says of itself
    (`definition`), else the vocabulary and the settings; and the control tokens."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(backend, "to_str"):
        backend.no_truncation()
        backend.no_padding()
        inside = backend.to_str()
    elif hasattr(tokenizer, "definition"):
        inside = tokenizer.definition
    else:
        inside = json.dumps([tokenizer.get_vocab(), tokenizer.init_kwargs], sort_keys=True, default=str)
    outside = [
        type(tokenizer).__name__,
        tokenizer.all_special_tokens,
        sorted(control_ids(tokenizer)),
        prefix_ids(tokenizer),
        suffix_ids(tokenizer),
    ]
    return hashlib.sha256((inside + json.dumps(outside)).encode()).hexdigest()


class Codec:
    """A tokenizer's ids for many texts at once, and the texts of many ids.

    Where a Rust tokenizer stands behind it and gives the same ids for a probe, that one is asked directly: the call of
    transformers costs about as much again as the tokenizing (benchmarks/encode.py).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = backend if hasattr(backend, "encode_batch_fast") else None
        if self._backend is not None and not all(
            self.ids([PROBE], has_control=flag) == self._ids_by_call([PROBE], has_control=flag)
            and self.texts([ids]) == [self._text_by_call(ids)]
            for flag in (False, True)
            for ids in self.ids([PROBE], has_control=flag)
        ):
            self._backend = None

    def ids(self, texts: Sequence[str], *, has_control: bool) -> list[list[int]]:
        """The ids of each text, with nothing added.

        Args:
            has_control: control tokens in the texts are meant; otherwise `</s>` is four characters.
        """
        if not texts:
            return []
        if self._backend is None:
            return self._ids_by_call(texts, has_control=has_control)
        with _SETTINGS:
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = not has_control
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def texts(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """The text of each list of ids, control tokens included."""
        if self._backend is None:
            return [self._text_by_call(row) for row in ids]
        return self._backend.decode_batch([list(row) for row in ids], skip_special_tokens=False)

    def _ids_by_call(self, texts: Sequence[str], *, has_control: bool) -> list[list[int]]:
        with _SETTINGS:
            found = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=not has_control)
        return found["input_ids"]

    def _text_by_call(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
