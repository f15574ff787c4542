"""A ChatGLM-6B of a few thousand random parameters, and rows for it.

Knows: sizes and ids small enough for a test. Does not know what the model computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

VOCABULARY, PAD, MASK, GMASK, SOP, EOP = 60, 3, 50, 51, 52, 53
IDS = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "mask_token_id": MASK,
    "gmask_token_id": GMASK,
    "bos_token_id": SOP,
    "eos_token_id": EOP,
}


def tiny_config(**changes: Any) -> Any:
    """The keys of the public configuration, with small values."""
    from utils.chatglm import ChatGLMConfig

    values: dict[str, Any] = {
        "hidden_size": 32,
        "inner_hidden_size": 48,
        "layernorm_epsilon": 1e-5,
        "max_sequence_length": 2048,
        "num_attention_heads": 2,
        "num_layers": 2,
        "position_encoding_2d": True,
        "use_cache": True,
        **IDS,
    }
    return ChatGLMConfig(**{**values, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> Any:
    """In evaluation mode and float32. Every parameter is drawn, biases and norms too: a zero or a one hides a mistake."""
    import torch

    from utils.chatglm import ChatGLMForConditionalGeneration

    model = ChatGLMForConditionalGeneration(tiny_config(**changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if "layernorm" in name:
                parameter.copy_(drawn / 10 + name.endswith("weight"))
            elif "embeddings" in name or name.endswith("bias"):
                parameter.copy_(drawn / 2)
            else:
                parameter.copy_(drawn * 1.5 / parameter.shape[-1] ** 0.5)
    return model.eval()


def row(prompt: Sequence[int], answer: Sequence[int] = ()) -> list[int]:
    """Prompt, `[gMASK]`, `<sop>`, answer: what training and generation send."""
    return [*prompt, GMASK, SOP, *answer]


def padded(rows: Sequence[Sequence[int]], side: str, filler: int = PAD) -> tuple[Any, Any]:
    """Rows of mixed length as (ids, mask), both (rows, longest)."""
    import torch

    longest = max(map(len, rows))

    def fill(values: Sequence[int], value: int) -> list[int]:
        more = [value] * (longest - len(values))
        return [*more, *values] if side == "left" else [*values, *more]

    ids = torch.tensor([fill(one, filler) for one in rows])
    return ids, torch.tensor([fill([1] * len(one), 0) for one in rows])
