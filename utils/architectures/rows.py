"""Architectures, one row each: a public checkpoint's `config.json` and tensor names as a class that runs here.

Knows: the keys and names of the published files, and what of them a native class cannot express; those checkpoints are
refused. Does not read any tensor; that is `utils.architectures.reading`.

The facts are of the code that each repository publishes beside its weights (`modeling_*.py`, `configuration_*.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

Facts = Mapping[str, Any]
"""`config.json`, as it stands in the file."""
CHATGLM2_VOCABULARY = 65024
QWEN_END_OF_TEXT = 151643
"""`<|endoftext|>`; Qwen's `config.json` names no EOS."""
PUBLISHED = "take the file of the published checkpoint"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One kind of checkpoint."""

    model_class: str
    """The class that runs it, an attribute of `module`."""
    module: str = "transformers"
    matches: Callable[[Facts], bool]
    """Whether a `config.json` is of this kind; asked in the order of `ARCHITECTURES`."""
    configure: Callable[[Facts], Any]
    """`config.json` → configuration of the class; `ValueError` for what the class cannot express."""
    names: Mapping[str, str] | None = None
    """Module of the class → module of the checkpoint, `*` being a layer's number; None: they have the same names."""
    groups: Callable[[Any], int] = lambda config: 1
    """Where q, k and v share a tensor: in how many groups its rows lie, each of queries, then keys, then values."""
    normalised: tuple[str, ...] = ()
    """Modules of the class whose rows the published code scales to length 1 at each use; here it is done once, as they
    are read, so that a head that is trained may leave that length."""
    derived: tuple[str, ...] = ()
    """Ends of the names of stored tensors that are computed from the configuration, and so are not read."""
    tokenizer: str | None = None
    """A row of `utils.slow_tokenizers`, or "chatglm" for that of `utils.chatglm`; None: transformers has it."""

    def native_class(self) -> Any:
        """The class itself; imports torch."""
        return getattr(import_module(self.module), self.model_class)

    def configuration(self, facts: Facts) -> Any:
        """The configuration of the class.

        Raises:
            ValueError: weights stored in fewer bits by the checkpoint's own code, a missing key, a value of the wrong
                kind, or one that the class cannot express.
        """
        bits = facts.get("quantization_bit") or (facts.get("wbits") if facts.get("wbits") in (4, 8) else None)
        if bits or facts.get("quantization_config"):
            raise ValueError(
                f"config.json says that the weights are stored quantised ({bits or facts['quantization_config']}), in "
                "a form that only their own code reads: take the 16-bit repository, and --quantization_bit"
            )
        with _one_line():
            return self.configure(facts)

    def empty(self, config: Any) -> Any:
        """The class's modules without memory or weights (on the meta device).

        Raises:
            ValueError: values of `config` from which nothing can be built.
        """
        import torch

        model_class = self.native_class()
        with _one_line(), torch.device("meta"):
            return model_class(config)


@contextmanager
def _one_line() -> Iterator[None]:
    """Says what goes wrong inside in one line that names the file; the libraries raise many kinds of errors."""
    try:
        yield
    except Exception as error:
        ours = isinstance(error, ValueError) and "config.json" in str(error)
        if ours or isinstance(error, ImportError | MemoryError):
            raise
        cause = error.__cause__ or error  # the errors of checked fields wrap the one that says what was expected
        what = f"{'KeyError ' * isinstance(cause, KeyError)}{' '.join(str(cause).split()).rstrip('.')}"
        raise ValueError(f"config.json: {what or type(cause).__name__}: {PUBLISHED}") from error


def _number(facts: Facts, key: str, default: float | None = None) -> Any:
    """A number above 0, be it a size, a count or a small ε."""
    value = facts.get(key, default)
    if key not in facts and default is None:
        raise ValueError(f"config.json has no {key!r}, which its architecture needs: {PUBLISHED}")
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"config.json has {key} = {value!r}, where it must have a number above 0: {PUBLISHED}")
    return value


def _mapping(facts: Facts, key: str) -> Facts:
    value = facts.get(key) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"config.json has {key} = {value!r}, where it must have a mapping: {PUBLISHED}")
    return value


def _must_be(facts: Facts, **expected: Any) -> None:
    """Refuses a key whose value the native class has no switch for; an absent key has the published default."""
    for key, value in expected.items():
        if facts.get(key, value) != value:
            raise ValueError(
                f"config.json has {key} = {facts[key]!r}; only {value!r} can be run without the checkpoint's own code"
            )


def _given(facts: Facts, *keys: str) -> dict[str, Any]:
    return {key: facts[key] for key in keys if key in facts}


COMMON = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "initializer_range")


def _chatglm(facts: Facts) -> Any:
    from utils.chatglm import ChatGLMConfig

    sizes = ("vocab_size", "hidden_size", "inner_hidden_size", "num_layers", "num_attention_heads")
    for key in _given(facts, *sizes, "layernorm_epsilon", "max_sequence_length"):
        _number(facts, key)
    return ChatGLMConfig(**{key: value for key, value in facts.items() if key not in ("model_type", "auto_map")})


def _is_glm(facts: Facts) -> bool:
    return facts.get("model_type") == "chatglm" and "multi_query_group_num" in facts


def _says_chatglm3(facts: Facts) -> bool:
    """Nothing else in the two generations' configurations tells them apart, and only their tokenizers differ; one that
    was saved under a path of its own counts as the second."""
    return "chatglm3" in str(facts.get("_name_or_path", "")).lower()


def _glm_positions(facts: Facts) -> dict[str, Any]:
    """Half of each head turns, in neighbouring pairs. `rope_ratio`, which the 32k and 128k checkpoints have, divides
    the positions in ChatGLM2's code and multiplies the base in ChatGLM3's: published code of
    THUDM/chatglm2-6b-32k and THUDM/chatglm3-6b-32k, compared in https://github.com/ztxz16/fastllm/issues/374."""
    ratio = float(_number(facts, "rope_ratio") if facts.get("rope_ratio") else 1)
    name = str(facts.get("_name_or_path", "")).lower()
    positions: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    if ratio == 1:
        return positions
    if "chatglm3" in name:
        return {**positions, "rope_theta": 10000.0 * ratio}
    if "chatglm2" in name:
        return {**positions, "rope_type": "linear", "factor": ratio}
    raise ValueError(
        f"config.json has rope_ratio = {ratio:g}, which ChatGLM2 and ChatGLM3 read differently, and its _name_or_path "
        f"{facts.get('_name_or_path')!r} names neither: write THUDM/chatglm2-6b-32k or THUDM/chatglm3-6b-32k there"
    )


def _glm(facts: Facts) -> Any:
    from transformers import GlmConfig

    if _number(facts, "padded_vocab_size") > CHATGLM2_VOCABULARY * 2:
        raise ValueError(
            f"config.json has padded_vocab_size = {facts['padded_vocab_size']}: this is GLM-4 in its first form; take "
            "the repository whose name ends with -hf, which transformers reads"
        )
    _must_be(
        facts,
        rmsnorm=True,
        original_rope=True,
        add_bias_linear=False,
        post_layer_norm=True,
        apply_residual_connection_post_layernorm=False,
        multi_query_attention=True,
    )
    return GlmConfig(
        vocab_size=facts["padded_vocab_size"],
        hidden_size=_number(facts, "hidden_size"),
        intermediate_size=_number(facts, "ffn_hidden_size"),
        num_hidden_layers=_number(facts, "num_layers"),
        num_attention_heads=_number(facts, "num_attention_heads"),
        num_key_value_heads=_number(facts, "multi_query_group_num"),
        head_dim=_number(facts, "kv_channels"),
        max_position_embeddings=_number(facts, "seq_length"),
        rms_norm_eps=_number(facts, "layernorm_epsilon"),
        attention_bias=facts.get("add_qkv_bias", False),
        rope_parameters=_glm_positions(facts),
        # Without these keys, GlmConfig would take GLM-4's ids, which lie outside this vocabulary.
        **{"eos_token_id": 2, "pad_token_id": 0, **_given(facts, *COMMON)},
    )


def _llama(facts: Facts, **more: Any) -> Any:
    from transformers import LlamaConfig

    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    needed = {key: _number(facts, key) for key in (*sizes, "max_position_embeddings", "rms_norm_eps")}
    return LlamaConfig(**needed, **_given(facts, "num_key_value_heads", "hidden_act", *COMMON), **more)


def _is_rotary_baichuan(facts: Facts) -> bool:
    """The 13B checkpoints (hidden size 5120) attend by distance (ALiBi), which Llama's class cannot; their
    configuration has no `max_position_embeddings`."""
    return (
        facts.get("model_type") == "baichuan"
        and "max_position_embeddings" in facts
        and facts.get("hidden_size") != 5120
    )


def _is_baichuan2(facts: Facts) -> bool:
    """The second generation differs in its head alone, whose rows its code normalises."""
    return "z_loss_weight" in facts or facts.get("vocab_size") == 125696


def _internlm(facts: Facts) -> Any:
    """Both types that `rotary` names turn alike up to `max_position_embeddings`; beyond it "dynamic" grows the base."""
    rotary = _mapping(facts, "rotary") or {"type": "origin"}
    if rotary.get("type") not in ("dynamic", "origin"):
        raise ValueError(f"config.json has rotary type {rotary.get('type')!r}; the published types are dynamic, origin")
    positions: dict[str, Any] = {"rope_type": "default", "rope_theta": float(_number(rotary, "base", 10000))}
    if rotary["type"] == "dynamic":
        positions |= {"rope_type": "dynamic", "factor": float(_number(rotary, "scaling_factor", 1))}
    return _llama(facts, attention_bias=facts.get("bias", True), rope_parameters=positions)


def _internlm2(facts: Facts) -> Any:
    positions: dict[str, Any] = {"rope_type": "default", "rope_theta": float(_number(facts, "rope_theta", 10000))}
    if scaling := _mapping(facts, "rope_scaling"):
        kind = scaling.get("type", scaling.get("rope_type"))
        if kind not in ("linear", "dynamic"):
            raise ValueError(f"config.json has rope_scaling {scaling}; the published types are linear and dynamic")
        positions |= {"rope_type": kind, "factor": float(_number(scaling, "factor"))}
    return _llama(facts, attention_bias=facts.get("bias", True), rope_parameters=positions)


def _moss(facts: Facts) -> Any:
    from transformers import CodeGenConfig

    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "rotary_dim")
    more = ("n_ctx", "n_inner", "activation_function", "resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon")
    return CodeGenConfig(**{key: _number(facts, key) for key in sizes}, **_given(facts, *more, *COMMON))


def _qwen(facts: Facts) -> Any:
    """Beyond `seq_length` the published code changes base and scores (`use_dynamic_ntk`, `use_logn_attn`), which the
    class does not; up to it neither does anything, so that is where the positions end."""
    from transformers import Qwen2Config

    _must_be(facts, no_bias=True, rotary_pct=1.0, scale_attn_weights=True)
    hidden, heads = _number(facts, "hidden_size"), _number(facts, "num_attention_heads")
    _must_be(facts, kv_channels=hidden // heads)
    ids = {"bos_token_id": QWEN_END_OF_TEXT, "eos_token_id": QWEN_END_OF_TEXT, **_given(facts, *COMMON)}
    return Qwen2Config(
        vocab_size=_number(facts, "vocab_size"),
        hidden_size=hidden,
        # The gate and what it gates, together.
        intermediate_size=_number(facts, "intermediate_size") // 2,
        num_hidden_layers=_number(facts, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=_number(facts, "seq_length"),
        rms_norm_eps=_number(facts, "layer_norm_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": float(_number(facts, "rotary_emb_base", 10000))},
        **ids,
    )


def _attention(layer: str, packed: str, output: str) -> dict[str, str]:
    """The names of a layer whose q, k and v share the tensor `packed`."""
    inputs = {f"model.layers.*.self_attn.{part}_proj": f"{layer}.{packed}" for part in "qkv"}
    return {**inputs, "model.layers.*.self_attn.o_proj": f"{layer}.{output}"}


GLM = {
    "model.embed_tokens": "transformer.embedding.word_embeddings",
    "model.layers.*.input_layernorm": "transformer.encoder.layers.*.input_layernorm",
    **_attention("transformer.encoder.layers.*.self_attention", "query_key_value", "dense"),
    "model.layers.*.post_attention_layernorm": "transformer.encoder.layers.*.post_attention_layernorm",
    "model.layers.*.mlp.gate_up_proj": "transformer.encoder.layers.*.mlp.dense_h_to_4h",
    "model.layers.*.mlp.down_proj": "transformer.encoder.layers.*.mlp.dense_4h_to_h",
    "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer",
}
BAICHUAN = _attention("model.layers.*.self_attn", "W_pack", "o_proj")
INTERNLM2 = {
    "model.embed_tokens": "model.tok_embeddings",
    "model.layers.*.input_layernorm": "model.layers.*.attention_norm",
    **_attention("model.layers.*.attention", "wqkv", "wo"),
    "model.layers.*.post_attention_layernorm": "model.layers.*.ffn_norm",
    "model.layers.*.mlp.gate_proj": "model.layers.*.feed_forward.w1",
    "model.layers.*.mlp.up_proj": "model.layers.*.feed_forward.w3",
    "model.layers.*.mlp.down_proj": "model.layers.*.feed_forward.w2",
    "lm_head": "output",
}
QWEN = {
    "model.embed_tokens": "transformer.wte",
    "model.layers.*.input_layernorm": "transformer.h.*.ln_1",
    **_attention("transformer.h.*.attn", "c_attn", "c_proj"),
    "model.layers.*.post_attention_layernorm": "transformer.h.*.ln_2",
    "model.layers.*.mlp.gate_proj": "transformer.h.*.mlp.w2",
    "model.layers.*.mlp.up_proj": "transformer.h.*.mlp.w1",
    "model.layers.*.mlp.down_proj": "transformer.h.*.mlp.c_proj",
    "model.norm": "transformer.ln_f",
}
ROTARY = ("inv_freq",)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "chatglm": Architecture(
            module="utils.chatglm",
            model_class="ChatGLMForConditionalGeneration",
            matches=lambda facts: (
                facts.get("model_type") == "chatglm"
                and bool({"position_encoding_2d", "inner_hidden_size"} & facts.keys())
            ),
            configure=_chatglm,
            tokenizer="chatglm",
        ),
        "chatglm3": Architecture(
            model_class="GlmForCausalLM",
            matches=lambda facts: _is_glm(facts) and _says_chatglm3(facts),
            configure=_glm,
            names=GLM,
            derived=ROTARY,
            tokenizer="chatglm3",
        ),
        "chatglm2": Architecture(
            model_class="GlmForCausalLM",
            matches=_is_glm,
            configure=_glm,
            names=GLM,
            derived=ROTARY,
            tokenizer="chatglm2",
        ),
        "baichuan2": Architecture(
            model_class="LlamaForCausalLM",
            matches=lambda facts: _is_rotary_baichuan(facts) and _is_baichuan2(facts),
            configure=_llama,
            names=BAICHUAN,
            normalised=("lm_head",),
            derived=ROTARY,
            tokenizer="baichuan2",
        ),
        "baichuan": Architecture(
            model_class="LlamaForCausalLM",
            matches=_is_rotary_baichuan,
            configure=_llama,
            names=BAICHUAN,
            derived=ROTARY,
            tokenizer="baichuan",
        ),
        "internlm": Architecture(
            model_class="LlamaForCausalLM",
            matches=lambda facts: facts.get("model_type") == "internlm",
            configure=_internlm,
            derived=ROTARY,
            tokenizer="internlm",
        ),
        "internlm2": Architecture(
            model_class="LlamaForCausalLM",
            matches=lambda facts: facts.get("model_type") == "internlm2",
            configure=_internlm2,
            names=INTERNLM2,
            groups=lambda config: config.num_key_value_heads,
            derived=ROTARY,
            tokenizer="internlm2",
        ),
        "moss": Architecture(
            model_class="CodeGenForCausalLM",
            matches=lambda facts: facts.get("model_type") == "moss" and "rotary_dim" in facts,
            configure=_moss,
            derived=("causal_mask",),
            tokenizer="moss",
        ),
        "qwen": Architecture(
            model_class="Qwen2ForCausalLM",
            # Qwen-VL and Qwen-Audio say the same, and see and hear besides.
            matches=lambda facts: facts.get("model_type") == "qwen" and not {"visual", "audio"} & facts.keys(),
            configure=_qwen,
            names=QWEN,
            derived=ROTARY,
            tokenizer="qwen",
        ),
    }
)


def find(facts: Facts) -> Architecture | None:
    """The row of a `config.json`; None where there is none, and transformers must have the class itself."""
    return next((row for row in ARCHITECTURES.values() if row.matches(facts)), None)
