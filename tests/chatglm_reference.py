"""ChatGLM-6B read a second time: slow, in float64, one token and one head at a time.

Knows: the equations of the model as they were published (GLM, arXiv 2103.10360, for blanks that are filled in and for
positions in two dimensions; the 2023 release for the rest). Does not know torch, transformers, batches, padding or a
cache, nor how `utils/chatglm` is written: the tests hold one reading against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Tensors = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the tensors do not say: the number of heads, ε of LayerNorm, the depth that α is made of, the marking ids."""

    heads: int
    layers: int
    epsilon: float
    sop: int
    gmask: int
    mask: int
    depth: int | None = None
    """The number of layers in α = √(2·depth); None: `layers`."""
    rounding: Callable[[float], Any] = np.float16
    """How rotary frequencies are held: the released model has them in half precision."""

    @property
    def alpha(self) -> float:
        """The weight of a residual, which grows with depth as in DeepNorm (arXiv 2203.00555)."""
        return (2 * (self.layers if self.depth is None else self.depth)) ** 0.5


Positions = list[tuple[int, int]]
Visible = Callable[[int, int, int], bool]


def positions(ids: Sequence[int], shape: Shape) -> Positions:
    """(position, block position) of each token (GLM, section 2.2).

    The context counts 0, 1, 2, … in the first and stands at 0 in the second; from `<sop>` on, a token stands where the
    blank is that it fills, and counts 1, 2, 3, … inside it. The blank is `[gMASK]`, or `[MASK]` in a row without one.
    """
    begin = ids.index(shape.sop)
    blank = ids.index(shape.gmask) if shape.gmask in ids else ids.index(shape.mask)
    return [(at, 0) if at < begin else (blank, at - begin + 1) for at in range(len(ids))]


def visible(query: int, key: int, begin: int) -> bool:
    """Whether the token at `query` attends to the one at `key`; `begin` is where `<sop>` stands.

    Everything sees the context, `<sop>` excluded from it; beyond, a token sees what came before and itself (GLM,
    section 2.1, figure 2).
    """
    return key < begin or key <= query


def rotated(vector: Array, position: int, rounding: Callable[[float], Any]) -> Array:
    """`vector` of even length r with each pair (i, i + r/2) turned by position · 10000^(-2i/r) (arXiv 2104.09864)."""
    half = len(vector) // 2
    out = np.empty_like(vector)
    for i in range(half):
        angle = position * float(rounding(10000.0 ** (-2 * i / len(vector))))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        out[[i, i + half]] = turn @ vector[[i, i + half]]
    return out


def rotated_twice(vector: Array, position: tuple[int, int], rounding: Callable[[float], Any]) -> Array:
    """One head's query or key: the first half turned by position, the second by block position."""
    half = len(vector) // 2
    first, second = rotated(vector[:half], position[0], rounding), rotated(vector[half:], position[1], rounding)
    return np.concatenate([first, second])


def normalised(vector: Array, tensors: Tensors, name: str, epsilon: float) -> Array:
    """LayerNorm (arXiv 1607.06450) with the variance of the population."""
    centred = vector - vector.mean()
    return centred / np.sqrt((centred**2).mean() + epsilon) * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def projected(vector: Array, tensors: Tensors, name: str) -> Array:
    """W·x + b."""
    return tensors[f"{name}.weight"] @ vector + tensors[f"{name}.bias"]


def gelu(value: float) -> float:
    """x · Φ(x) by its tanh approximation (arXiv 1606.08415, section 2)."""
    return 0.5 * value * (1 + np.tanh(np.sqrt(2 / np.pi) * (value + 0.044715 * value**3)))


def softmax(scores: Array) -> Array:
    """Weights that sum to one."""
    raised = np.exp(scores - scores.max())
    return raised / raised.sum()


def attention(
    inputs: list[Array], tensors: Tensors, name: str, shape: Shape, where: Positions, sees: Callable[[int, int], bool]
) -> list[Array]:
    """Each token's attention output; `inputs` and the result are one vector of the hidden size a token.

    The packed projection holds q, k and v of the first head, then of the second, and so on.
    """
    heads, width = shape.heads, len(inputs[0]) // shape.heads
    packed = [projected(x, tensors, f"{name}.query_key_value").reshape(heads, 3, width) for x in inputs]
    gathered = [np.zeros_like(x) for x in inputs]
    for head in range(heads):
        keys = [rotated_twice(packed[at][head, 1], where[at], shape.rounding) for at in range(len(inputs))]
        for at in range(len(inputs)):
            query = rotated_twice(packed[at][head, 0], where[at], shape.rounding)
            seen = [other for other in range(len(inputs)) if sees(at, other)]
            weights = softmax(np.array([query @ keys[other] / np.sqrt(width) for other in seen]))
            gathered[at][head * width : (head + 1) * width] = sum(
                weight * packed[other][head, 2] for weight, other in zip(weights, seen, strict=True)
            )
    return [projected(x, tensors, f"{name}.dense") for x in gathered]


def reference_logits(
    tensors: Tensors,
    ids: Sequence[int],
    shape: Shape,
    *,
    where: Positions | None = None,
    sees: Visible = visible,
) -> Array:
    """Logits (tokens, vocabulary) of one row of ids without padding; `tensors` have the public checkpoint's names.

    `where` and `sees` replace the positions and the mask, for controls. A row without `<sop>`, or without a blank, is a
    ValueError.
    """
    ids, begin = list(ids), list(ids).index(shape.sop)
    places = positions(ids, shape) if where is None else where
    hidden = [tensors["transformer.word_embeddings.weight"][token] for token in ids]
    for layer in range(shape.layers):
        name = f"transformer.layers.{layer}"
        inputs = [normalised(x, tensors, f"{name}.input_layernorm", shape.epsilon) for x in hidden]
        attended = attention(
            inputs, tensors, f"{name}.attention", shape, places, lambda query, key: sees(query, key, begin)
        )
        # Both residuals carry the value after the norm, not the one before it.
        hidden = [shape.alpha * x + y for x, y in zip(inputs, attended, strict=True)]
        inputs = [normalised(x, tensors, f"{name}.post_attention_layernorm", shape.epsilon) for x in hidden]
        for at, x in enumerate(inputs):
            inner = projected(x, tensors, f"{name}.mlp.dense_h_to_4h")
            active = np.array([gelu(value) for value in inner])
            hidden[at] = shape.alpha * x + projected(active, tensors, f"{name}.mlp.dense_4h_to_h")
    ends = [normalised(x, tensors, "transformer.final_layernorm", shape.epsilon) for x in hidden]
    return np.stack([tensors["lm_head.weight"] @ x for x in ends])
