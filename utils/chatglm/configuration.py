"""The configuration of ChatGLM-6B, under the keys of its public `config.json`.

Knows: those keys and their public values. Does not know what is computed from them.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class ChatGLMConfig(PreTrainedConfig):
    """ChatGLM-6B (https://huggingface.co/THUDM/chatglm-6b). The defaults are the released model's; the first release
    had 20,000 unused image tokens, and so a vocabulary of 150,528 whose control tokens lie 20,000 higher."""

    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    vocab_size: int = 130528
    hidden_size: int = 4096
    inner_hidden_size: int = 16384
    num_layers: int = 28
    num_attention_heads: int = 32
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 130004
    """`<sop>`: an answer begins with it."""
    eos_token_id: int | list[int] | None = 130005
    pad_token_id: int | None = 3
    mask_token_id: int | None = None
    """`[MASK]`; None: the fourth id before `<sop>`, as in both vocabularies."""
    gmask_token_id: int | None = None
    """`[gMASK]`, in place of which the answer is written; None: the third id before `<sop>`."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Derives the ids that the first release's file does not give.

        Raises:
            ValueError: heads that do not divide the hidden size into two rotary halves each; 1-D positions, which no
                public checkpoint has.
        """
        if self.bos_token_id is None:
            raise ValueError("ChatGLM's config.json must give bos_token_id, the id of <sop>")
        if self.mask_token_id is None:
            self.mask_token_id = self.bos_token_id - 4
        if self.gmask_token_id is None:
            self.gmask_token_id = self.bos_token_id - 3
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of 4 × num_attention_heads "
                f"{self.num_attention_heads}: a head has two rotary embeddings, of pairs"
            )
        if not self.position_encoding_2d:
            raise ValueError("position_encoding_2d is false: no published ChatGLM has one-dimensional positions")
        super().__post_init__(**kwargs)
