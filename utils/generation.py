"""Decoding: prompts as ids in, new tokens out.

Knows: batches, streaming and where an answer ends. Does not know records, templates or flags; a prompt comes as ids
from `utils.encode.encode_prompt`, and the answer is cut by index, never by splitting text.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from utils.adapters import context_length, virtual_tokens

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""The name of a byte piece in SentencePiece's vocabularies."""


def check_length(model: Any, ids: Sequence[int], max_new_tokens: int) -> None:
    """`ValueError` if virtual tokens, the prompt and the longest answer do not fit into the model's context."""
    context, virtual = context_length(model), virtual_tokens(model)
    if context is not None and virtual + len(ids) + max_new_tokens > context:
        before = f" and {virtual} virtual tokens before it" if virtual else ""
        raise ValueError(
            f"the prompt has {len(ids)} tokens{before}; with --max_new_tokens {max_new_tokens} that is more than the "
            f"model's context of {context}: shorten the prompt or lower --max_new_tokens"
        )


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    settings: Mapping[str, Any],
    batch_size: int = 32,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """The answer to each prompt, in order, without control tokens.

    Prompts of like length are decoded together, padded on the left; `on_batch` is told how many are done.

    Raises:
        ValueError: a prompt that does not fit (`check_length`).
    """
    for ids in prompts:
        check_length(model, ids, settings["max_new_tokens"])
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        longest = max(len(prompts[i]) for i in members)
        pad = [[tokenizer.pad_token_id] * (longest - len(prompts[i])) for i in members]
        input_ids = torch.tensor(
            [[*fill, *prompts[i]] for fill, i in zip(pad, members, strict=True)], device=model.device
        )
        mask = torch.tensor([[0] * len(fill) + [1] * (longest - len(fill)) for fill in pad], device=model.device)
        output = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            use_cache=True,
            **_ends(tokenizer, stop_ids),
            **_decoding(settings),
        )
        for i, ids in zip(members, output[:, longest:].tolist(), strict=True):
            answers[i] = _text(tokenizer, _until_stop(ids, stop_ids))
        on_batch(start + len(members))
    return answers


def stream(
    model: Any, tokenizer: Any, prompt: Sequence[int], *, stop_ids: Sequence[int], settings: Mapping[str, Any]
) -> Iterator[str]:
    """The answer to one prompt, piece by piece as it is decoded; together they are what `generate` gives. Beams cannot
    be streamed: it is one piece then.

    Raises:
        ValueError: the prompt does not fit (`check_length`).
    """
    if settings.get("num_beams", 1) > 1:
        yield from generate(model, tokenizer, [prompt], stop_ids=stop_ids, settings=settings)
        return
    check_length(model, prompt, settings["max_new_tokens"])
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    input_ids = torch.tensor([list(prompt)], device=model.device)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with torch.no_grad():
                model.generate(
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    use_cache=True,
                    streamer=_Streamer(tokenizer, stop_ids, pieces.put),
                    **_ends(tokenizer, stop_ids),
                    **_decoding(settings),
                )
        except BaseException as error:  # it belongs to the reader of the stream, who raises it
            failed.append(error)
        finally:
            pieces.put(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield from iter(pieces.get, None)
    thread.join()
    if failed:
        raise failed[0]


class _Streamer:
    """Ids one by one → the text that no later id changes; transformers' interface of a streamer (`put`, `end`).

    A decoder takes a blank from what it thinks the beginning of a text. So ids are decoded behind those that were shown
    last, never alone, and what is new is shown; what was shown before those is not decoded again.

    Args:
        show: is called with each piece, none of them empty.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], show: Callable[[str], object]) -> None:
        self._tokenizer, self._stop_ids, self._show = tokenizer, stop_ids, show
        self._shown_ids: list[int] = []
        self._shown = ""
        self._new_ids: list[int] = []
        self._text = ""
        self._answers = self._stopped = False

    def put(self, value: Any) -> None:
        """Takes a tensor of ids of any shape: the prompt at the first call, then the answer's."""
        for token in value.flatten().tolist() if self._answers else []:
            self._stopped |= token in self._stop_ids
            if not self._stopped:
                self._add(token)
        self._answers = True

    def end(self) -> None:
        """Shows what was held back."""
        if piece := self._text[len(self._shown) :]:
            self._show(piece)

    def _add(self, token: int) -> None:
        before = self._text
        self._new_ids.append(token)
        self._text = _text(self._tokenizer, [*self._shown_ids, *self._new_ids])
        # A character may lack bytes. Some decoders make a whole run of byte pieces U+FFFD when one of them is wrong: it
        # is held back until another piece follows, which a control token, that adds no text, is not.
        if self._text == before or self._text.endswith(_BROKEN) or self._is_byte(token):
            return
        self._show(self._text[len(self._shown) :])
        self._shown_ids, self._new_ids = self._new_ids, []
        self._shown = self._text = _text(self._tokenizer, self._shown_ids)

    def _is_byte(self, token: int) -> bool:
        return _BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(token) or "") is not None


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    # As training's proof reads an answer: cleaning up would take blanks that the model wrote.
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _ends(tokenizer: Any, stop_ids: Sequence[int]) -> dict[str, Any]:
    return {"eos_token_id": list(stop_ids), "pad_token_id": tokenizer.pad_token_id}


def _decoding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with sampling parameters of the model's own generation_config switched off in greedy decoding."""
    if settings.get("do_sample"):
        return dict(settings)
    return {"temperature": None, "top_p": None, "top_k": None, **settings}


def _until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return list(ids[:end])
