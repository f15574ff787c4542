"""The short way through the Rust tokenizer gives what the tokenizer's own call gives; where it does not, it is not taken."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from utils.tokens import PROBE, Codec, control_ids

TEXTS = ["", " ", PROBE, "你好，世界 🌏", "two  spaces", "</s>", "a" * 3000, "\u2028\x00e\u0301"]


@pytest.mark.parametrize("has_control", [False, True])
def test_ids_are_those_of_the_tokenizers_own_call(tokenizer: Any, has_control: bool) -> None:
    expected = [
        tokenizer(t, add_special_tokens=False, split_special_tokens=not has_control)["input_ids"] for t in TEXTS
    ]
    tokenizer(TEXTS[:2], padding=True, truncation=True, max_length=4)  # leaves its settings in the Rust tokenizer
    assert Codec(tokenizer).ids(TEXTS, has_control=has_control) == expected
    assert (tokenizer.eos_token_id in expected[TEXTS.index("</s>")]) is has_control


def test_texts_are_those_of_the_tokenizers_own_call(tokenizer: Any) -> None:
    codec = Codec(tokenizer)
    ids = [*codec.ids(TEXTS, has_control=False), [tokenizer.eos_token_id, 50]]
    assert codec.texts(ids) == [tokenizer.decode(row, skip_special_tokens=False) for row in ids]


def test_a_tokenizer_that_does_more_than_its_rust_half_is_called_itself(tokenizer: Any) -> None:
    class Shouting(type(tokenizer)):
        def __call__(self, text: Any, **options: Any) -> Any:
            return super().__call__([t.upper() for t in text], **options)

    shouting = copy.deepcopy(tokenizer)
    shouting.__class__ = Shouting
    expected = tokenizer("DIAL", add_special_tokens=False)["input_ids"]
    assert Codec(shouting).ids(["dial"], has_control=False) == [expected]
    assert Codec(shouting).ids([], has_control=False) == []


def test_unk_is_no_control_token(tokenizer: Any) -> None:
    assert tokenizer.eos_token_id in control_ids(tokenizer)
    assert tokenizer.unk_token_id not in control_ids(tokenizer) - {tokenizer.eos_token_id, tokenizer.bos_token_id}


def test_threads_that_share_a_tokenizer_get_what_they_asked_for(tokenizer: Any) -> None:
    """Whether `</s>` is four characters or EOS is a setting of the tokenizer, not of a call."""
    from concurrent.futures import ThreadPoolExecutor

    from utils.tokens import Codec, prefix_ids

    text = "说 </s> 三次 </s> 🌏 </s>"
    expected = {control: Codec(tokenizer).ids([text], has_control=control) for control in (False, True)}
    assert expected[True] != expected[False]

    def ask(number: int) -> bool:
        control = number % 2 == 0
        return Codec(tokenizer).ids([text], has_control=control) == expected[control] and prefix_ids(tokenizer) == [1]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(600)))
