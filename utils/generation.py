"""Decoding: prompts as ids in, answers out; many at a time, or one as it comes.

Knows: batches, and what transformers' `generate` is asked for. Does not know records, templates or flags: a prompt
comes as ids from `utils.encode.encode_prompt`, and where an answer ends from `utils.stopping`. The answer is cut by
index, never by splitting text.

A row's answer is its own: what is beside it in a batch, how the batch is padded, and in which order rows are decoded do
not change it, but for the rounding of sums.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from utils import kv_cache, sampling
from utils.adapters import context_length, virtual_tokens
from utils.stopping import Ends, Halt, HeldBack, decoded
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
    seeds = [SEED] * len(prompts) if seeds is None else seeds
    decoder = _Decoder(model, tokenizer, ends, settings)
    answers: dict[int, Answer] = {}
    for members in batches([len(ids) for ids in prompts], decoder.rows(batch_size), settings, max_tokens_per_batch):
        found = decoder.decode([prompts[i] for i in members], [seeds[i] for i in members])
        answers.update((i, decoder.answer(prompts[i], ids)) for i, ids in zip(members, found, strict=True))
        on_batch(len(answers))
    return [answers[i] for i in range(len(prompts))]


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
    decoder = _Decoder(model, tokenizer, ends, settings)
    if settings.get("num_beams", 1) > 1:
        (ids,) = decoder.decode([prompt], [seed])
        answer = decoder.answer(prompt, ids)
        if answer.text:
            yield answer.text
        return answer
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    streamer = Streamer(tokenizer, ends.ids, pieces.put)
    halt = Halt(tokenizer, ends, len(prompt), pauses=False)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            decoder.ask([prompt], halt, sampling.chosen_by(settings, [seed])[0], streamer=streamer)
        except BaseException as error:  # it belongs to the reader of the stream, who raises it
            failed.append(error)
        finally:
            pieces.put(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    text, held = "", HeldBack(ends)
    try:
        for piece in iter(pieces.get, None):
            for shown in held.add(piece):
                text += shown
                yield shown
    finally:
        halt.cancelled = True
        thread.join()
    if failed:
        raise failed[0]
    for shown in held.rest():
        text += shown
        yield shown
    ended = streamer.stopped or held.ended
    return Answer(
        text=text,
        finish_reason="stop" if ended else "length",
        prompt_tokens=len(prompt),
        new_tokens=streamer.count,
    )


class _Decoder:
    """A model that decodes batches."""

    def __init__(self, model: Any, tokenizer: Any, ends: Ends, settings: Mapping[str, Any]) -> None:
        self._model, self._tokenizer, self._ends, self._settings = model, tokenizer, ends, settings

    def rows(self, batch_size: int) -> int:
        """How many rows may be decoded together."""
        return 1 if sampling.draws_alone(self._settings) else batch_size

    def answer(self, prompt: Sequence[int], ids: Sequence[int]) -> Answer:
        """The decoded ids, those that ended the answer included, as an answer."""
        end = self._ends.end_of(ids)
        text, cut = self._ends.cut(decoded(self._tokenizer, ids[:end]))
        return Answer(
            text=text,
            finish_reason="length" if end is None and not cut else "stop",
            prompt_tokens=len(prompt),
            new_tokens=len(ids),
        )

    def decode(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[int]]:
        """The new ids of each prompt, up to the one that ended it."""
        told, draw = sampling.chosen_by(self._settings, seeds)
        stays = self._settings.get("num_beams", 1) == 1
        # Virtual tokens stand in a cache that peft makes; beams change places in transformers'.
        cache = kv_cache.make(self._model) if stays and not virtual_tokens(self._model) else None
        width = max(map(len, prompts))
        padding = [width - len(ids) for ids in prompts]
        texts, rows = [list(ids) for ids in prompts], list(range(len(prompts)))
        while rows:
            halt = Halt(self._tokenizer, self._ends, width, stays=stays, pauses=cache is not None)
            left = self._settings["max_new_tokens"] - (padding[rows[0]] + len(texts[rows[0]]) - width)
            asked = [texts[row] for row in rows], halt, {**told, "max_new_tokens": left}
            with sampling.seeded(self._settings, seeds[0]):
                output = self.ask(*asked, [padding[row] for row in rows], cache).tolist()
            for row, ids, length in zip(rows, output, halt.lengths or [None] * len(rows), strict=True):
                texts[row] = ids[padding[row] : length]
            ended = [length is not None for length in halt.lengths]
            is_last = cache is None or len(output[0]) == width + self._settings["max_new_tokens"]
            stay = [] if is_last else [i for i, over in enumerate(ended) if not over]
            rows = [rows[i] for i in stay]
            if rows and cache is not None:
                cache.batch_select_indices(torch.tensor(stay, device=self._model.device))
                if draw is not None:
                    draw.keep(stay)
        return [self._until_end(ids[len(prompt) :]) for ids, prompt in zip(texts, prompts, strict=True)]

    @torch.no_grad()
    def ask(
        self,
        texts: Sequence[Sequence[int]],
        halt: Halt,
        told: Mapping[str, Any],
        padding: Sequence[int] = (0,),
        cache: Any = None,
        streamer: Streamer | None = None,
    ) -> torch.Tensor:
        """transformers' `generate` on ids of any lengths, padded on the left: (rows, positions)."""
        # With a token that the row has anyway: a penalty on repetitions looks at padding, too.
        rows = [[*[ids[0]] * count, *ids] for ids, count in zip(texts, padding, strict=True)]
        masks = [[0] * count + [1] * len(ids) for ids, count in zip(texts, padding, strict=True)]
        device = self._model.device
        return self._model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(masks, device=device),
            use_cache=True,
            eos_token_id=list(self._ends.ids),
            pad_token_id=self._tokenizer.pad_token_id,
            stopping_criteria=[halt],
            **({} if cache is None else {"past_key_values": cache}),
            **({} if streamer is None else {"streamer": streamer}),
            **told,
        )

    def _until_end(self, ids: list[int]) -> list[int]:
        end = self._ends.end_of(ids)
        return ids if end is None else ids[: end + 1]
