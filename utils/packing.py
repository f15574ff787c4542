"""Several rows in one line of a batch, without one seeing another.

Knows: bins, the tensors of packed rows, and how it is proved that a model keeps rows apart. Does not know files, flags
or optimizer steps.

What keeps rows apart is `position_ids` that start anew with each row: transformers makes the attention mask of them,
and its variable-length kernels the boundaries. It does so only with no attention mask and no cache, and not for every
family; one that does not still trains without a word, each row on the rows before it. So a model is asked before it
trains, and what fails is refused.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from utils import store
from utils.methods import Method
from utils.models import ModelSpec
from utils.proof import IGNORED, Encoded

Batch = dict[str, torch.Tensor]
Lengths = Any
"""A sequence of whole numbers by row: a list, or a numpy array."""
INSTEAD = "leave --packing out; batches of rows of like length hold only a few percent of padding"
# transformers' names. The code of the first makes its mask without positions (5.23); a test holds both against what the
# models do.
_MASKS_WITHOUT_POSITIONS = ("opt", "falcon")
_ALIBI = ("bloom", "mpt")
PROBE_TOKENS = 24
"""Tokens of a row that the proof takes: enough to look back on, and few enough for any vocabulary."""


def bins(rows: Sequence[int], lengths: Lengths, capacity: int) -> list[list[int]]:
    """`rows` in bins of at most `capacity` tokens: each row, longest first, where it leaves the least space.

    Best fit decreasing needs at most 11/9 of the fewest bins that hold the rows, and four more (Johnson et al. 1974,
    doi:10.1137/0203025). The same rows, in any order, give the same bins.

    Args:
        rows: row numbers, each once.
        lengths: tokens by row number.

    Raises:
        ValueError: a row that is longer than a bin.
    """
    packed_rows: list[list[int]] = []
    with_space: dict[int, list[int]] = {}
    spaces: list[int] = []  # the keys of with_space, in order; never more than `capacity`
    for row in sorted(rows, key=lambda row: (-int(lengths[row]), row)):
        length = int(lengths[row])
        if length > capacity:
            raise ValueError(
                f"--packing: row {row} has {length} tokens and a bin holds {capacity}: raise --max_tokens_per_batch or "
                "lower --cutoff_len"
            )
        at = bisect_left(spaces, length)
        if at == len(spaces):
            chosen, space = len(packed_rows), capacity
            packed_rows.append([])
        else:
            space = spaces[at]
            chosen = with_space[space].pop()
            if not with_space[space]:
                del with_space[space], spaces[at]
        packed_rows[chosen].append(row)
        if (left := space - length) not in with_space:
            with_space[left] = []
            insort(spaces, left)
        with_space[left].append(chosen)
    return packed_rows


def packed(bins_of_rows: Sequence[Sequence[Encoded]], pad_id: int) -> Batch:
    """`input_ids`, `labels` and `position_ids`, each int64 of shape (bins, longest bin), for a model without a cache.

    Positions count from 0 in each row, and there is no attention mask. A row's first token has no label, for what
    stands before it is another row. A token of padding is a row of its own, at position 0: no position is beyond those
    that the rows have.
    """
    longest = max(sum(len(row.input_ids) for row in rows) for rows in bins_of_rows)

    def column(lines: Iterator[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([line + [fill] * (longest - len(line)) for line in lines])

    return {
        "input_ids": column(([i for row in rows for i in row.input_ids] for rows in bins_of_rows), pad_id),
        "labels": column(([i for row in rows for i in _labels(row)] for rows in bins_of_rows), IGNORED),
        "position_ids": column(([i for row in rows for i in range(len(row.input_ids))] for rows in bins_of_rows), 0),
    }


def flattened(bins_of_rows: Sequence[Sequence[Encoded]], pad_id: int) -> Batch:
    """`packed`, in one line of shape (1, sum of all lengths), without padding."""
    return packed([[row for rows in bins_of_rows for row in rows]], pad_id)


def in_one_line(attention: str) -> bool:
    """Whether packed rows have to be `flattened` for this implementation of attention. transformers gives the flash
    kernels a batch's boundaries only where it has one line; of several it attends over the whole of each."""
    return "flash" in attention


def refusal(spec: ModelSpec, config: Any, method: Method, *, attention: str, device_type: str) -> str | None:
    """Why rows cannot be packed, for people, as far as it is known before weights are loaded; None: nothing is known.

    Args:
        config: of the base, as `loading.Base.config` gives it.
        attention: transformers' name: `sdpa`, `eager`, `flash_attention_2`, `flex_attention`.
        device_type: `cpu` or `cuda`.
    """
    if spec.attention == "prefix":
        return "a prompt of this family sees itself in both directions, and positions do not say where it ends"
    if spec.remote_code:
        return "the code of the checkpoint's own repository runs this family, and makes its masks in its own way"
    model_type = getattr(config, "model_type", "")
    if model_type in _ALIBI or getattr(config, "alibi", False):
        return f"{model_type} has ALiBi for positions, and looks at the rows that stand before in a line"
    if model_type in _MASKS_WITHOUT_POSITIONS and not in_one_line(attention):
        return f"{attention} attention of {model_type} does not ask where a row begins, and looks at those before it"
    if "num_virtual_tokens" in method.options:
        return f"{method.label} puts its virtual tokens before a line, not before each of the rows in it"
    if attention == "flex_attention" and device_type == "cpu":
        return "flex attention ends the interpreter on CPU"
    return None


def require_packable(spec: ModelSpec, config: Any, method: Method, *, attention: str, device_type: str) -> None:
    """`ValueError` for what `refusal` knows of."""
    if reason := refusal(spec, config, method, attention=attention, device_type=device_type):
        raise ValueError(f"--packing: {reason}: {INSTEAD}")


def isolation_error(model: Any, rows: Sequence[Encoded], pad_id: int) -> str | None:
    """Why rows cannot be packed for `model`, for people; None where they can. Measured on the shortest of `rows`.

    A row must have the same logits behind two different rows of the same length, and those that it has alone. The
    first holds to the bit, for nothing differs but what the other row says; where a kernel mixes the tokens of a batch
    (experts take them in groups), to what the same change does to rows in lines of their own. The second holds to
    rounding, and there the model counts the positions itself.

    It costs four forward passes of at most 200 tokens, without gradients, and leaves the model in its mode.
    """
    first, *others = _beginnings(rows)
    changed = next(ids for ids in (first[::-1], [pad_id] * len(first), [int(not pad_id)] * len(first)) if ids != first)
    together, alone = [], []
    with torch.no_grad(), _alone_with_attention(model):
        for before in (first, changed):
            found = _logits(model, [[before, *others], [others[-1][:1], *others]], pad_id)
            together.append(torch.cat(found[1 : 1 + len(others)]))
            found = _logits(model, [[before], *([row] for row in others)], pad_id, counted=True)
            alone.append(torch.cat(found[1:]))
    leak, noise = (float((one - other).abs().max()) for one, other in (together, alone))
    attention = f"{model.config.model_type} with {_attention(model)} attention"
    if not leak <= 8 * noise:
        return f"{attention} looks at the rows before: behind another one, a row's logits differ by {leak:.1e}"
    apart = float((together[0] - alone[0]).norm() / alone[0].norm())
    if not apart <= _rounding(model, alone[0].dtype):
        return (
            f"{attention} does not count each row's positions from 0: its logits are {apart:.1%} off those it has alone"
        )
    return None


def require_isolation(model: Any, rows: Sequence[Encoded], pad_id: int) -> None:
    """`ValueError` for a model that does not keep packed rows apart; see `isolation_error`."""
    if reason := isolation_error(model, rows, pad_id):
        raise ValueError(f"--packing: {reason}: {INSTEAD}")


def _labels(row: Encoded) -> list[int]:
    return [IGNORED, *row.labels[1:]]


def _attention(model: Any) -> str:
    return model.config._attn_implementation


def _beginnings(rows: Sequence[Encoded]) -> list[list[int]]:
    """Three rows' first ids, of the shortest ones; some twice where there are fewer."""
    lengths = store.lengths(rows)
    shortest = sorted(range(len(rows)), key=lambda row: (int(lengths[row]), row))[:3]
    return [list(rows[shortest[i % len(shortest)]].input_ids[:PROBE_TOKENS]) for i in range(3)]


@contextmanager
def _alone_with_attention(model: Any) -> Iterator[None]:
    """Nothing but attention mixes the rows of a batch: no dropout, and no outliers in 8-bit products, for which they
    look in all tokens of a batch (Dettmers et al. 2022, arXiv 2208.07339). Afterwards everything is as it was."""
    training = [module for module in model.modules() if module.training]
    states: list[Any] = [getattr(module, "state", None) for module in model.modules()]
    thresholds = [(state, state.threshold) for state in states if hasattr(state, "threshold")]
    model.eval()
    for state, _ in thresholds:
        state.threshold = 0.0
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for state, threshold in thresholds:
            state.threshold = threshold


def _logits(
    model: Any, bins_of_rows: Sequence[Sequence[list[int]]], pad_id: int, *, counted: bool = False
) -> list[torch.Tensor]:
    """Each row's logits, (tokens, vocabulary), in order; `counted`: the model is left to count positions itself."""
    if in_one_line(_attention(model)) and not counted:
        bins_of_rows = [[row for rows in bins_of_rows for row in rows]]
    batch = packed([[Encoded(input_ids=ids, labels=ids, origin="") for ids in rows] for rows in bins_of_rows], pad_id)
    given = {name: batch[name].to(model.device) for name in ("input_ids", "position_ids")[: 1 if counted else 2]}
    logits = model(**given, use_cache=False).logits
    found = []
    for rows, line in zip(bins_of_rows, logits, strict=True):
        sizes = [len(row) for row in rows]
        found += line[: sum(sizes)].split(sizes)
    return found


def _rounding(model: Any, dtype: torch.dtype) -> float:
    """How far logits may lie apart, as a share of their size, where only the shapes of products differ.

    The least precise arithmetic counts: that of `dtype`, of the weights (8-bit ones have the resolution of bf16), of
    autocast, or TF32, whose fraction has fp16's ten bits.
    """
    device = model.device.type
    dtypes = {dtype, *(p.dtype if p.is_floating_point() else torch.bfloat16 for p in model.parameters())}
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    if device == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        dtypes.add(torch.float16)
    return max(1e-4, 8 * max(torch.finfo(one).eps for one in dtypes))
