"""Decoding: prompts as ids in, new tokens out.

Knows: batches, streaming and where an answer ends. Does not know records, templates or flags; a prompt comes as ids
from `utils.encode.encode_prompt`, and the answer is cut by index, never by splitting text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch


def check_length(ids: Sequence[int], max_new_tokens: int, context: int | None) -> None:
    """`ValueError` if the prompt and the longest answer do not fit into the model's context (None: unknown)."""
    if context is not None and len(ids) + max_new_tokens > context:
        raise ValueError(
            f"the prompt has {len(ids)} tokens; with --max_new_tokens {max_new_tokens} that is more than the model's "
            f"context of {context}: shorten the prompt or lower --max_new_tokens"
        )


def context_length(model: Any) -> int | None:
    """Positions the model has; None where its configuration does not say (ALiBi has no limit)."""
    return getattr(model.config, "max_position_embeddings", None)


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
        check_length(ids, settings["max_new_tokens"], context_length(model))
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
            answers[i] = tokenizer.decode(_until_stop(ids, stop_ids), skip_special_tokens=True)
        on_batch(start + len(members))
    return answers


def stream(
    model: Any, tokenizer: Any, prompt: Sequence[int], *, stop_ids: Sequence[int], settings: Mapping[str, Any]
) -> Iterator[str]:
    """The answer to one prompt, piece by piece as it is decoded. Beams cannot be streamed: it is one piece then.

    Raises:
        ValueError: the prompt does not fit (`check_length`).
    """
    if settings.get("num_beams", 1) > 1:
        yield from generate(model, tokenizer, [prompt], stop_ids=stop_ids, settings=settings)
        return
    from transformers import TextIteratorStreamer

    check_length(prompt, settings["max_new_tokens"], context_length(model))
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    input_ids = torch.tensor([list(prompt)], device=model.device)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with torch.no_grad():
                model.generate(
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    use_cache=True,
                    streamer=streamer,
                    **_ends(tokenizer, stop_ids),
                    **_decoding(settings),
                )
        except BaseException as error:  # it belongs to the reader of the stream, who raises it
            failed.append(error)
            streamer.end()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield from (piece for piece in streamer if piece)
    thread.join()
    if failed:
        raise failed[0]


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
