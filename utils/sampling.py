"""How the next token is chosen from a model's logits: decoding parameters as transformers' processors, and a draw that
is each row's own.

Knows: the parameters of `utils.cli.GENERATION`. Does not know models, prompts or where an answer ends.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_WARPERS = ("temperature", "top_k", "top_p")
"""What transformers applies only where it draws itself."""


class Draw:
    """Draws each row's token by a number from the row's own generator, so that a row's sample does not depend on the
    rows beside it; as a logits processor that leaves one token (transformers then takes the likeliest).

    A number u in [0, 1) stands for the token in whose part of the cumulated probabilities it lies (inverse transform
    sampling; Devroye 1986, Non-Uniform Random Variate Generation, section III.2). One number a token, from Python's
    generator, so that a seed means the same on every device.

    Args:
        generators: of the rows.
    """

    def __init__(self, generators: Sequence[random.Random]) -> None:
        self._generators = generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (rows, vocabulary) with all but the drawn token at -inf."""
        cumulated = scores.double().softmax(-1).cumsum(-1)
        numbers = [[generator.random()] for generator in self._generators]
        wanted = torch.tensor(numbers, dtype=cumulated.dtype, device=scores.device) * cumulated[:, -1:]
        # The first whose sum exceeds the number: one without probability adds nothing, so it is never that.
        chosen = torch.searchsorted(cumulated, wanted, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


def draws_alone(settings: Mapping[str, Any]) -> bool:
    """Whether a row must be decoded by itself: beams that are drawn at random are drawn by transformers, from one
    generator for all rows."""
    return bool(settings.get("do_sample")) and settings.get("num_beams", 1) > 1


@contextmanager
def seeded(settings: Mapping[str, Any], seed: int) -> Iterator[None]:
    """While it holds, what transformers draws itself follows `seed`; afterwards its generators are as before."""
    if not draws_alone(settings):
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def chosen_by(settings: Mapping[str, Any], generators: Sequence[random.Random]) -> dict[str, Any]:
    """What `generate` of transformers is told. In greedy decoding the sampling parameters of the model's own
    generation_config are switched off.

    Raises:
        ValueError: a parameter that transformers refuses.
    """
    if draws_alone(settings):
        return dict(settings)
    told = {**dict.fromkeys(_WARPERS), **settings}
    if not settings.get("do_sample"):
        return told
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers: list[Any] = []
    temperature, top_k, top_p = (settings.get(name) for name in _WARPERS)
    if temperature not in (None, 1.0):
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    processors = LogitsProcessorList([*warpers, Draw(generators)])
    return {**told, **dict.fromkeys(_WARPERS), "do_sample": False, "logits_processor": processors}


def row_seeds(seed: int, count: int, *, first: int = 0) -> list[int]:
    """A seed for each of `count` rows from number `first` on: no two rows of a run have the same."""
    return [random.Random(f"{seed}:{row}").getrandbits(63) for row in range(first, first + count)]
