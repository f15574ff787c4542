"""ChatGLM-6B as a transformers model: prefix attention, two-dimensional rotary positions, DeepNorm-like residuals.

Knows: the published architecture (Du et al. 2022, GLM, arXiv 2103.10360; Zeng et al. 2022, GLM-130B, arXiv 2210.02414)
and the names of its public tensors. Does not know text.

A row is a context, `[gMASK]`, `<sop>` and an answer. The context, `[gMASK]` included, sees itself in both directions;
from `<sop>` on, a token sees the context and what comes before it. Both positions of a token follow from where
`[gMASK]` and `<sop>` stand, so `input_ids` are enough; where they are not given (virtual tokens come as embeddings), or
not all (decoding with a cache), `marks` says it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from utils.chatglm.configuration import ChatGLMConfig

ROTARY_BASE = 10000.0


def rotary_frequencies(dimension: int) -> torch.Tensor:
    """Radians a position (float32, `dimension / 2`) of a rotary embedding (Su et al. 2021, arXiv 2104.09864), rounded
    to fp16 as the released model has them: unrounded ones change its logits by 3e-3 at 200 tokens."""
    exponents = torch.arange(0, dimension, 2, dtype=torch.float32) / dimension
    return (1.0 / ROTARY_BASE**exponents).half().float()


class ChatGLMRotaryEmbedding(nn.Module):
    """Cosines and sines of one of the two positions. The public checkpoint brings the frequencies, once a layer."""

    inv_freq: torch.Tensor

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension
        self.register_buffer("inv_freq", rotary_frequencies(dimension))

    def forward(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(…, `dimension`) cosines and sines in `dtype` of positions (…)."""
        wide = torch.promote_types(dtype, torch.float32)
        angles = positions[..., None].to(wide) * self.inv_freq.to(wide)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ChatGLMRotaryEmbedding:
        """Moves, but never rounds: in bf16 a frequency keeps 8 bits, and positions would blur."""
        exact = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != exact.dtype and not exact.is_meta:
            self.inv_freq = exact.to(self.inv_freq.device)
        return self


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """`x` (rows, heads, length, d) turned by angles (rows, length, d); element i pairs with element i + d/2."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines[:, None] + torch.cat((-second, first), dim=-1) * sines[:, None]


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by its definition, softmax in float32; returns it (rows, length, heads, d) and its weights."""
    scores = (query @ key.transpose(2, 3) * scaling).float()
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class ChatGLMAttention(nn.Module):
    """Self-attention; the packed projection's rows are grouped by head as [query | key | value]."""

    def __init__(self, config: ChatGLMConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        # The published code divides queries by the layer's number and multiplies the scores by it again, to stay
        # inside fp16; that cancels, and SDPA accumulates in float32.
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.rotary_emb = ChatGLMRotaryEmbedding(self.head_dim // 2)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows, length, _ = hidden_states.shape
        packed = self.query_key_value(hidden_states).view(rows, length, self.num_heads, 3 * self.head_dim)
        query, key, value = packed.transpose(1, 2).chunk(3, dim=-1)
        turns = self.rotary_emb(position_ids, query.dtype)
        query, key = (self._turned(x, *turns) for x in (query, key))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation or "eager", eager_attention)
        context, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **options)
        return self.dense(context.reshape(rows, length, -1)), weights

    @staticmethod
    def _turned(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        """The first half of each head by the position, the second by the block position."""
        halves = x.chunk(2, dim=-1)
        return torch.cat([rotate(half, cosines[:, i], sines[:, i]) for i, half in enumerate(halves)], dim=-1)


class ChatGLMMLP(nn.Module):
    """Two linear layers with GELU in its tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415) between."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dense_4h_to_h(nn.functional.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh"))


class ChatGLMBlock(GradientCheckpointingLayer):
    """A block normalises its input and takes the residual from the normalised value, scaled by √(2 · layers) (compare
    DeepNorm, Wang et al. 2022, arXiv 2203.00555)."""

    def __init__(self, config: ChatGLMConfig, layer: int) -> None:
        super().__init__()
        self.alpha = math.sqrt(2 * config.num_layers)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLMAttention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLMMLP(config)

    def forward(self, hidden_states: torch.Tensor, **options: Any) -> torch.Tensor:
        normalised = self.input_layernorm(hidden_states)
        attended, _ = self.attention(normalised, **options)
        normalised = self.post_attention_layernorm(self.alpha * normalised + attended)
        return self.alpha * normalised + self.mlp(normalised)


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What transformers asks of a family."""

    config: ChatGLMConfig
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = False  # the mask is no function of distance alone, which flash kernels need
    _can_record_outputs = {"hidden_states": ChatGLMBlock, "attentions": ChatGLMAttention}

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ChatGLMRotaryEmbedding):
            initialization.copy_(module.inv_freq, rotary_frequencies(module.dimension))


class ChatGLMModel(ChatGLMPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ChatGLMBlock(config, layer) for layer in range(config.num_layers)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.word_embeddings = value

    def marks(self, input_ids: torch.Tensor) -> torch.Tensor:
        """How far from the end of each row its mask token and its `<sop>` stand: int64 (rows, 2), 1 for the last place.
        The mask token is the first `[gMASK]`, else the first `[MASK]`.

        Raises:
            ValueError: a row without `<sop>` or without a mask token, so that nothing says where its answer begins.
        """
        length = input_ids.shape[1]
        config = self.config
        ids = (config.bos_token_id, config.mask_token_id, config.gmask_token_id)
        sop, blank, gblank = (input_ids == token for token in ids)
        if not torch.compiler.is_compiling():
            for name, token, found in (("<sop>", ids[0], sop), ("[gMASK]", ids[2], blank | gblank)):
                present = found.any(dim=1)
                if not bool(present.all()):
                    raise ValueError(
                        f"row {int(present.int().argmin())} has no {name} (id {token}), so nothing says where its "
                        "answer begins: end the prompt with [gMASK] <sop>, as the tokenizer does with "
                        "add_special_tokens=True"
                    )
        first = [found.int().argmax(dim=1) for found in (sop, blank, gblank)]
        sop, mask = first[0], torch.where(gblank.any(dim=1), first[2], first[1])
        return length - torch.stack((mask, sop), dim=1)

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        marks: torch.Tensor | None = None,
        **options: Any,
    ) -> BaseModelOutputWithPast:
        """See `ChatGLMForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if marks is None:
            if input_ids is None:
                raise ValueError("inputs_embeds do not say where the answer begins: give marks too")
            marks = self.marks(input_ids)
        hidden_states = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache
        if use_cache and past_key_values is None and not (self.gradient_checkpointing and self.training):
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None and past_key_values.is_compileable:
            raise ValueError("ChatGLM-6B decodes with a cache that grows: leave cache_implementation out")
        length = hidden_states.shape[1]
        total = length + (past_key_values.get_seq_length() if past_key_values is not None else 0)
        if attention_mask is not None:
            attention_mask = attention_mask.bool()
        if position_ids is None:
            position_ids = _positions(marks, attention_mask, total)[..., -length:]
        visible = _visible(marks, attention_mask, length, total)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_ids=position_ids,
                attention_mask=visible,
                past_key_values=past_key_values,
                **options,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(hidden_states), past_key_values=past_key_values
        )


def _positions(marks: torch.Tensor, real: torch.Tensor | None, total: int) -> torch.Tensor:
    """Both positions of each token, int64 (rows, 2, total), padding not counted. The first counts the context, and
    stays at that of the mask token from `<sop>` on; the second is 0 in the context and counts from 1 at `<sop>`."""
    column = torch.arange(total, device=marks.device).expand(marks.shape[0], -1)
    mask, sop = (total - marks).unsqueeze(2).unbind(1)
    place = column if real is None else (real.long().cumsum(dim=1) - 1).clamp(min=0)
    first = torch.where(column < sop, place, place.gather(1, mask))
    return torch.stack((first, (column - sop + 1).clamp(min=0)), dim=1)


def _visible(marks: torch.Tensor, real: torch.Tensor | None, length: int, total: int) -> torch.Tensor | None:
    """What each of the last `length` tokens sees: bool (rows, 1, length, total); None: everything."""
    if length == 1 and real is None:
        return None
    column = torch.arange(total, device=marks.device)
    in_context = column < (total - marks[:, 1:])
    seen = in_context[:, None] | (column <= column[total - length :, None])
    return (seen if real is None else seen & real[:, None])[:, None]


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):
    """ChatGLM-6B with its head, which is not tied to the embedding; under the class name of the published code."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def marks(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`ChatGLMModel.marks`."""
        return self.transformer.marks(input_ids)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        marks: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token at each position.

        Args:
            input_ids: int64 (rows, length); each row with its `<sop>`, unless `marks` says where that is.
            attention_mask: (rows, cached + length), 0 where padding is, on either side; None: no padding.
            position_ids: int64 (rows, 2, length), instead of what follows from `marks` and the mask.
            inputs_embeds: (rows, length, hidden), instead of `input_ids`; `marks` must be given then.
            labels: int64 (rows, length), -100 where there is no loss; the loss is the mean over the others, each
                predicted from the place before it.
            logits_to_keep: that many of the last positions, or their numbers; 0: all.
            marks: int64 (rows, 2), see `ChatGLMModel.marks`.
            num_items_in_batch: by how many targets the loss is divided, where a step has several batches.

        Raises:
            ValueError: a row without `<sop>` or mask token; neither or both of `input_ids` and `inputs_embeds`.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            marks=marks,
            **options,
        )
        hidden_states = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """transformers' own, with the marks of the whole row: the token that is decoded next no longer shows them."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        inputs.pop("position_ids", None)  # one-dimensional ones, made for other families
        return {**inputs, "marks": self.marks(input_ids)}
