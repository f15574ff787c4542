"""The limit: the matrix products that LoRA training of this model on these tokens cannot do without, and nothing else.

Per layer the linear products forward, and backward their gradients by the input (the weights are frozen); LoRA's small
products with the gradients of their weights; attention's products by blocks of the causal half; the head on the
trained positions, forward and by the input. Below the first adapter nothing flows back. No padding, no softmax, norm,
activation or optimizer; every result is written into a buffer that is there already. The values are random and mean
nothing. Tokens of a micro-batch, rows of the head's chunks and the block of attention are whichever is fastest on the
first step, so that no contestant can gain on the limit by a better choice.

Options: none. `GEMM`, the processor's peak, is the fastest of a few plain products.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contestants.work import Recorder, Work, contest, trained

MICRO_BATCH_TOKENS = (1024, 2048, 4096)
CAUSAL_BLOCKS = (64, 128, 512)
HEAD_ELEMENTS = (2**23, 2**24, 2**25)
"""Logits of a chunk: 32, 64 and 128 MiB in float32."""
GEMM_SIZES = ((1024, 1024, 1024), (2048, 2048, 2048), (2048, 640, 1728), (4096, 1024, 4096))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model decides its products."""

    hidden: int
    layers: int
    heads: int
    vocabulary: int
    linear: tuple[tuple[int, int], ...]
    """(in, out) of a layer's linear products behind the first, which is that of queries, keys and values."""
    fused: bool
    """Whether one product makes queries, keys and values (BLOOM)."""


def shape_of(base: str) -> Shape:
    """Of a Llama or BLOOM, from its `config.json`."""
    config = json.loads((Path(base) / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] == "bloom":
        size = config["hidden_size"]
        linear, heads, layers = ((size, size), (size, 4 * size), (4 * size, size)), config["n_head"], config["n_layer"]
    else:
        size, inner = config["hidden_size"], config["intermediate_size"]
        linear = ((size, size), (size, inner), (size, inner), (inner, size))
        heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    fused, vocabulary = config["model_type"] == "bloom", config["vocab_size"]
    return Shape(hidden=size, layers=layers, heads=heads, vocabulary=vocabulary, linear=linear, fused=fused)


class Products:
    """Buffers for micro-batches of at most `tokens` tokens, and the products on them; counts their operations."""

    def __init__(self, shape: Shape, rank: int, *, tokens: int, block: int, chunk: int, dtype: Any) -> None:
        import torch

        self.shape, self.block, self.chunk, self.flops = shape, block, chunk, 0
        self._mm, self._bmm = torch.mm, torch.bmm

        def matrix(*sizes: int) -> Any:
            return torch.randn(*sizes, dtype=dtype) * 0.02

        size = shape.hidden
        self._projections = ((size, 3 * size),) if shape.fused else ((size, size),) * 3
        self._adapted = (True,) if shape.fused else (True, False, True)
        widest = max(size * 3, *itertools.chain.from_iterable(shape.linear))
        self._wide = [matrix(tokens, widest).view(-1) for _ in range(2)]
        self._weights = [
            [matrix(out, into) for into, out in (*self._projections, *shape.linear)] for _ in range(shape.layers)
        ]
        self._a, self._b = matrix(rank, size), matrix(3 * size, rank)
        self._small, self._small_b = matrix(tokens * rank), matrix(tokens * rank)
        self._grad_a, self._grad_b = matrix(rank, size), matrix(3 * size * rank)
        self._scores = matrix(shape.heads * 512 * 512)
        self._qkv = [matrix(shape.heads, tokens, size // shape.heads) for _ in range(5)]
        self._head = matrix(shape.vocabulary, size)
        self._logits = matrix(chunk, shape.vocabulary)

    def step(self, lengths: Sequence[int], targets: int) -> None:
        """One micro-batch: rows of these lengths, of which `targets` positions go through the head."""
        tokens = sum(lengths)
        for layer in range(self.shape.layers):
            self._forward(layer, lengths, tokens)
        for start in range(0, targets, self.chunk):
            rows = min(self.chunk, targets - start)
            self._product(self._view(0, rows, self.shape.hidden), self._head.t(), self._logits[:rows])
            self._product(self._logits[:rows], self._head, self._view(1, rows, self.shape.hidden))
        for layer in reversed(range(self.shape.layers)):
            self._backward(layer, lengths, tokens)

    def _forward(self, layer: int, lengths: Sequence[int], tokens: int) -> None:
        weights = self._weights[layer]
        for weight, adapted in zip(weights, self._adapted, strict=False):
            out, into = weight.shape
            inputs = self._view(0, tokens, into)
            self._product(inputs, weight.t(), self._view(1, tokens, out))
            if adapted:
                self._product(inputs, self._a.t(), self._of(self._small, tokens))
                self._product(self._of(self._small, tokens), self._b[:out].t(), self._view(1, tokens, out))
        self._attention(lengths, products=((0, 1, "scores"), ("scores", 2, 3)))
        for weight in weights[len(self._adapted) :]:
            out, into = weight.shape
            self._product(self._view(0, tokens, into), weight.t(), self._view(1, tokens, out))

    def _backward(self, layer: int, lengths: Sequence[int], tokens: int) -> None:
        weights = self._weights[layer]
        for weight in reversed(weights[len(self._adapted) :]):
            out, into = weight.shape
            self._product(self._view(0, tokens, out), weight, self._view(1, tokens, into))
        # Gradients of the probabilities, values and queries; of the keys where something is trained behind them.
        keys = layer > 0 or self.shape.fused
        backward = ((3, 2, "scores"), ("scores^T", 3, 4), ("scores", 1, 4), *((("scores^T", 0, 4),) if keys else ()))
        self._attention(lengths, products=backward)
        for weight, adapted in zip(weights, self._adapted, strict=False):
            out, into = weight.shape
            gradient, inputs = self._view(0, tokens, out), self._view(1, tokens, into)
            if adapted:
                small, back = self._of(self._small, tokens), self._of(self._small_b, tokens)
                self._product(gradient.t(), small, self._grad_b[: out * small.shape[1]].view(out, -1))
                self._product(gradient, self._b[:out], back)
                self._product(back.t(), inputs, self._grad_a)
            if layer > 0:
                self._product(gradient, weight, inputs)
                if adapted:
                    self._product(back, self._a, inputs)  # pyright: ignore[reportPossiblyUnboundVariable]

    def _attention(self, lengths: Sequence[int], products: Sequence[tuple[Any, Any, Any]]) -> None:
        """Products of queries with the keys up to their block's end, row by row; `scores` are (queries, keys)."""
        for start, length in zip(itertools.accumulate(lengths, initial=0), lengths, strict=False):
            for first in range(0, length, self.block):
                last = min(first + self.block, length)
                wide = slice(start, start + last)
                some = slice(start + first, start + last)
                scores = self._scores[: self.shape.heads * (last - first) * last].view(self.shape.heads, -1, last)
                for left, right, out in products:
                    if out == "scores":
                        self._batched(self._qkv[left][:, some], self._qkv[right][:, wide].transpose(1, 2), scores)
                    elif left == "scores":
                        self._batched(scores, self._qkv[right][:, wide], self._qkv[out][:, some])
                    else:
                        self._batched(scores.transpose(1, 2), self._qkv[right][:, some], self._qkv[out][:, wide])

    def _view(self, which: int, rows: int, columns: int) -> Any:
        return self._wide[which][: rows * columns].view(rows, columns)

    def _of(self, small: Any, tokens: int) -> Any:
        rank = self._a.shape[0]
        return small[: tokens * rank].view(tokens, rank)

    def _product(self, left: Any, right: Any, out: Any) -> None:
        self._mm(left, right, out=out)
        self.flops += 2 * left.shape[0] * left.shape[1] * right.shape[1]

    def _batched(self, left: Any, right: Any, out: Any) -> None:
        self._bmm(left, right, out=out)
        self.flops += 2 * left.shape[0] * left.shape[1] * left.shape[2] * right.shape[2]


Piece = tuple[list[int], int]
"""A micro-batch: the lengths of its rows, and how many of their positions are trained."""


def cut(batch: Sequence[Any], tokens: int) -> Iterator[Piece]:
    """A global batch by length, in micro-batches of at most `tokens` tokens, padding not counted."""
    lengths, targets = list[int](), 0
    for row in sorted(batch, key=lambda row: len(row["input_ids"])):
        if lengths and sum(lengths) + len(row["input_ids"]) > tokens:
            yield lengths, targets
            lengths, targets = [], 0
        lengths.append(len(row["input_ids"]))
        targets += trained(row)
    yield lengths, targets


def gemm_peak(dtype: Any, seconds: float = 1.0) -> dict[str, float]:
    """The best of plain products (rows, inner, columns), in GFLOP/s."""
    import torch

    found = {}
    for rows, inner, columns in GEMM_SIZES:
        left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
        out, best, until = torch.empty(rows, columns, dtype=dtype), float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < until:
            started = time.perf_counter()
            torch.mm(left, right, out=out)
            best = min(best, time.perf_counter() - started)
        found[f"{rows}x{inner}x{columns}"] = round(2 * rows * inner * columns / best / 1e9, 1)
    return found


def run(work: Work, recorder: Callable[[], Recorder]) -> Recorder:
    import torch

    told, dtype = recorder(), {"fp32": torch.float32, "bf16": torch.bfloat16}[work.precision]
    shape, batches = shape_of(work.base), work.batches()

    def products(tokens: int, block: int, elements: int) -> Products:
        chunk = max(1, elements // shape.vocabulary)
        return Products(shape, work.lora_r, tokens=max(tokens, 512), block=block, chunk=chunk, dtype=dtype)

    def seconds(made: Products, tokens: int) -> float:
        started = time.perf_counter()
        for lengths, targets in cut(batches[0], tokens):
            made.step(lengths, targets)
        return time.perf_counter() - started

    seconds(products(1024, 128, 2**24), 1024)  # the first time is slower whatever it does
    tokens, block, elements = MICRO_BATCH_TOKENS[1], CAUSAL_BLOCKS[1], HEAD_ELEMENTS[1]
    tokens = min(MICRO_BATCH_TOKENS, key=lambda each: seconds(products(each, block, elements), each))
    block = min(CAUSAL_BLOCKS, key=lambda each: seconds(products(tokens, each, elements), tokens))
    elements = min(HEAD_ELEMENTS, key=lambda each: seconds(products(tokens, block, each), tokens))
    made = products(tokens, block, elements)
    flops = []
    told.start()
    for batch in batches:
        made.flops = 0
        for lengths, targets in cut(batch, tokens):
            made.step(lengths, targets)
            told.count(positions=sum(lengths), non_padding=sum(lengths), trained=targets)
        told.end_step()
        flops.append(made.flops)
    told.end()
    told.facts |= {
        "flops": flops,
        "gemm_gflops": gemm_peak(dtype),
        "chosen": {"tokens": tokens, "block": block, "logits": elements},
    }
    return told


if __name__ == "__main__":
    contest(run)
