"""Decoding: prompts as ids in, answers out; many at a time, or one as it comes.

Knows: which prompts share a batch, and what an answer is made of. Does not know records, templates or flags: a prompt
comes as ids from `utils.encode.encode_prompt`, and where an answer ends from `utils.stopping`. The answer is cut by
index, never by splitting text.

A row's answer is its own: what is beside it in a batch, how the batch is padded, and in which order rows are decoded do
not change it, but for the rounding of sums.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from utils import sampling
from utils.adapters import context_length, virtual_tokens
from utils.decoding import Batch, Row
from utils.stopping import Ends, HeldBack, decoded
from utils.streaming import Streamer

SEED = 42


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said to one prompt."""

    text: str
    """Without control tokens and without what ended it."""
    finish_reason: Literal["stop", "length"]
    """`stop`: the model, or a text that was to end the answer, ended it; `length`: `max_new_tokens` did, or whoever
    read the stream."""
    prompt_tokens: int
    new_tokens: int
    """Decoded ones, the one that ends the answer included."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """What else a line of results has of it."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a prompt has no answer."""

    message: str


def check_length(model: Any, ids: Sequence[int], max_new_tokens: int) -> None:
    """`ValueError` if virtual tokens, the prompt and the longest answer do not fit into the model's context."""
    context, virtual = context_length(model), virtual_tokens(model)
    if context is not None and virtual + len(ids) + max_new_tokens > context:
        before = f" and {virtual} virtual tokens before it" if virtual else ""
        raise ValueError(
            f"the prompt has {len(ids)} tokens{before}; with --max_new_tokens {max_new_tokens} that is more than the "
            f"model's context of {context}: shorten the prompt or lower --max_new_tokens"
        )


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ends: Ends,
    settings: Mapping[str, Any],
    seeds: Sequence[int] | None = None,
    batch_size: int = 32,
    max_tokens_per_batch: int | None = None,
    on_batch: Callable[[int], object] = lambda done: None,
) -> list[Answer]:
    """The answer to each prompt, in order.

    Prompts of like length are decoded together, padded on the left, the longest first: if memory runs out, it does so
    at once. Rows that have ended leave the batch.

    Args:
        settings: parameters of transformers' `generate`, as `utils.cli.generation_settings` gives them.
        seeds: of each row's sampling; None: `SEED` for each.
        batch_size: the most rows that are decoded together.
        max_tokens_per_batch: the most positions, those of the longest answers included; None: no limit.
        on_batch: is told how many are done.

    Raises:
        ValueError: a prompt that does not fit (`check_length`).
    """
    for ids in prompts:
        check_length(model, ids, settings["max_new_tokens"])
    longest, seeds = settings["max_new_tokens"], [SEED] * len(prompts) if seeds is None else seeds
    rows = [
        Row(prompt=ids, ends=ends, max_new_tokens=longest, seed=seed) for ids, seed in zip(prompts, seeds, strict=True)
    ]
    together = 1 if sampling.draws_alone(settings) else batch_size
    done = 0
    for members in batches([len(ids) for ids in prompts], together, settings, max_tokens_per_batch):
        batch = Batch(model, tokenizer, settings)
        batch.add([rows[i] for i in members])
        while batch.rows:
            batch.run()
        done += len(members)
        on_batch(done)
    return [answer_of(row, tokenizer) for row in rows]


def answer_of(row: Row, tokenizer: Any) -> Answer:
    """What a row that has ended says."""
    end = row.ends.end_of(row.new)
    text, cut = row.ends.cut(decoded(tokenizer, row.new[:end]))
    return Answer(
        text=text,
        finish_reason="length" if end is None and not cut else "stop",
        prompt_tokens=len(row.prompt),
        new_tokens=len(row.new) if end is None else end + 1,
    )


def batches(
    lengths: Sequence[int], batch_size: int, settings: Mapping[str, Any], max_tokens: int | None
) -> Iterator[list[int]]:
    """Prompts that are decoded together, by number: like lengths, the longest first."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[batch[0]] if batch else lengths[i]
        positions = (len(batch) + 1) * (longest + settings["max_new_tokens"])
        if batch and (len(batch) == batch_size or (max_tokens is not None and positions > max_tokens)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def stream(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    *,
    ends: Ends,
    settings: Mapping[str, Any],
    seed: int = SEED,
) -> Generator[str, None, Answer]:
    """The answer to one prompt, piece by piece as it is decoded; together they are what `generate` gives, which is also
    what the generator returns. Closing it ends the decoding at the next token. Beams cannot be streamed: it is one
    piece then.

    Raises:
        ValueError: the prompt does not fit (`check_length`).
    """
    check_length(model, prompt, settings["max_new_tokens"])
    row = Row(prompt=prompt, ends=ends, max_new_tokens=settings["max_new_tokens"], seed=seed)
    batch = Batch(model, tokenizer, settings)
    batch.add([row])
    if settings.get("num_beams", 1) > 1:
        batch.run()
        answer = answer_of(row, tokenizer)
        if answer.text:
            yield answer.text
        return answer
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    streamer = Streamer(tokenizer, ends.ids, pieces.put)
    row.on_token = streamer.put
    failed: list[BaseException] = []

    def run() -> None:
        try:
            while batch.rows:
                batch.run()
            streamer.end()
        except BaseException as error:  # it belongs to the reader of the stream, who raises it
            failed.append(error)
        finally:
            pieces.put(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    held = HeldBack(ends)
    try:
        for piece in iter(pieces.get, None):
            yield from held.add(piece)
    finally:
        row.cancelled = True
        thread.join()
    if failed:
        raise failed[0]
    yield from held.rest()
    return answer_of(row, tokenizer)
