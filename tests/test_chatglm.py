"""ChatGLM-6B against a second reading of the published model, and against the public checkpoint's names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chatglm_reference import Array, Shape, reference_logits
from tiny_chatglm import GMASK, MASK, SOP, padded, row, tiny_model

from utils.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration

SHAPES: list[dict[str, Any]] = [
    {},
    {"num_layers": 1, "num_attention_heads": 4},
    {"num_layers": 3, "hidden_size": 48, "num_attention_heads": 3, "inner_hidden_size": 40},
    {"hidden_size": 64, "layernorm_epsilon": 1e-2},
]
ROWS = {
    "prompt and answer": row([10, 11, 12, 13], [20, 21, 22]),
    "no answer yet": row([10, 11, 12, 13, 14]),
    "no prompt": row([], [20, 21]),
    "a long answer": row([7], list(range(5, 25))),
    "a long prompt": row([5 + i % 40 for i in range(150)], [9, 8]),
    "text after the blank": [10, GMASK, 11, 12, SOP, 20, 21],
    "two blanks": [10, GMASK, 11, GMASK, SOP, 20, 21],
    "a short blank": [10, 11, MASK, 12, SOP, 20, 21],
    "both blanks": [10, MASK, 11, GMASK, SOP, 20, 21],
    "a second <sop>": row([10, 11], [20, SOP, 21]),
}


def arrays(model: Any) -> dict[str, Array]:
    """The parameters as the reference takes them."""
    return {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}


def shape(config: Any) -> Shape:
    return Shape(
        heads=config.num_attention_heads,
        layers=config.num_layers,
        epsilon=config.layernorm_epsilon,
        sop=config.bos_token_id,
        gmask=config.gmask_token_id,
        mask=config.mask_token_id,
    )


def logits(model: Any, ids: list[int]) -> Array:
    """(tokens, vocabulary) of one row without padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().numpy()


def distance(one: Array, other: Array) -> float:
    """The largest difference, as a share of the largest logit."""
    assert one.shape == other.shape
    return float(np.abs(one - other).max() / np.abs(one).max())


@pytest.mark.parametrize("changes", SHAPES, ids=["two layers", "one layer", "three heads", "wide, other epsilon"])
@pytest.mark.parametrize("ids", ROWS.values(), ids=ROWS.keys())
def test_the_logits_are_those_of_the_second_reading(ids: list[int], changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    off = distance(reference_logits(arrays(model), ids, shape(model.config)), logits(model, ids))
    assert off < 1e-5


@pytest.mark.parametrize("ids", ROWS.values(), ids=ROWS.keys())
def test_in_double_precision_they_agree_to_rounding(ids: list[int]) -> None:
    model = tiny_model().double()
    off = distance(reference_logits(arrays(model), ids, shape(model.config)), logits(model, ids))
    assert off < 1e-10


def test_another_reading_would_be_seen() -> None:
    """What a wrong mask, position or residual costs: a thousand times the tolerance above and more."""
    model, ids = tiny_model(), ROWS["prompt and answer"]
    told, tensors, own = shape(model.config), arrays(model), logits(tiny_model(), ROWS["prompt and answer"])
    begin = ids.index(SOP)
    counted = list(range(len(ids)))

    def off(of: Shape = told, **options: Any) -> float:
        return distance(reference_logits(tensors, ids, of, **options), own)

    assert off() < 1e-5
    others = {
        "a causal mask": off(sees=lambda query, key, _: key <= query),
        "<sop> as context": off(sees=lambda query, key, sop: key <= max(query, sop)),
        "no mask": off(sees=lambda *_: True),
        "positions in one dimension": off(where=[(at, at) for at in counted]),
        "positions that run on": off(where=[(at, max(0, at - begin + 1)) for at in counted]),
        "<sop> where the answer's first token stands": off(
            where=[(min(at, begin - 1), max(0, at - begin)) for at in counted]
        ),
        "the blank one off": off(where=[(min(at, begin), max(0, at - begin + 1)) for at in counted]),
        "alpha of another depth": off(dataclasses.replace(told, depth=28)),
        "another epsilon": off(dataclasses.replace(told, epsilon=1e-1)),
    }
    assert {name: value for name, value in others.items() if value < 1e-2} == {}


def test_frequencies_are_those_of_half_precision() -> None:
    """0.1 in half precision is 0.09998: after 150 tokens the second pair has turned by 0.004 less."""
    model, ids = tiny_model(), ROWS["a long prompt"]
    exact = dataclasses.replace(shape(model.config), rounding=float)
    off = distance(reference_logits(arrays(model), ids, exact), logits(model, ids))
    assert off > 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_the_second_reading_row_by_row(side: str) -> None:
    model = tiny_model()
    rows = list(ROWS.values())
    ids, mask = padded(rows, side)
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits
    for at, one in enumerate(rows):
        expected = reference_logits(arrays(model), one, shape(model.config))
        off = distance(expected, found[at][mask[at].bool()].double().numpy())
        assert off < 1e-5


def real_names(real_data: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """The public configuration, each tensor's file, and the bytes of all."""
    folder = real_data / "checkpoints"
    index = json.loads((folder / "chatglm-6b.pytorch_model.bin.index.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "chatglm-6b.config.json").read_text(encoding="utf-8"))
    return config, index["weight_map"], index["metadata"]["total_size"]


@pytest.mark.parametrize("vocabulary", [130528, 150528])
def test_the_public_tensors_are_all_and_only_those_of_the_model(real_data: Path, vocabulary: int) -> None:
    config, files, total = real_names(real_data)
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(ChatGLMConfig(**{**config, "vocab_size": vocabulary}))
    assert set(model.state_dict()) == set(files)
    # The published index counts the larger vocabulary, sixteen bits a weight and 32 in the norms.
    bytes_ = sum(t.numel() * (4 if "layernorm" in name else 2) for name, t in model.state_dict().items())
    assert total - bytes_ == 2 * 2 * 4096 * (150528 - vocabulary)
