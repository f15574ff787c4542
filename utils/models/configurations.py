"""What of each checkpoint's configuration decides its sizes, so that a model can be built empty without network.

Knows: those fields, under the names of the class that runs the checkpoint here (a row's `native`): converted families
as the class they become. Does not know what is not a size (positions' frequencies, ε, dropout): nothing here may be
used to load weights, whose own `config.json` says it all. Nor does it build anything; `utils.loading` does. The longest
text is given too, though only OPT has parameters for its positions.

Baichuan-13B has no native class: a Llama of the same layers stands in. It has the same number of parameters, but other
names (q, k and v share `W_pack` in the published code), and not the memory that ALiBi takes.

The facts are those of each repository's `config.json`; `tests/test_configurations.py` holds the number of parameters
that they make against the published number.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from utils.models import MOVED

Configuration = Mapping[str, Any]


def configuration(checkpoint: str) -> dict[str, Any] | None:
    """The fields of the hub id `checkpoint`, `model_type` first; of an id that has left the hub, those of the one that
    holds its weights today. None: an id or directory that is not in the table."""
    found = CONFIGURATIONS.get(MOVED.get(checkpoint, checkpoint))
    return None if found is None else dict(found)


def _decoder(
    model_type: str,
    shape: tuple[int, int, int, int],
    *,
    vocabulary: int,
    positions: int,
    key_heads: int | None = None,
    tied: bool = False,
    **more: Any,
) -> Configuration:
    """What most classes call alike; `shape`: hidden size, feed-forward size, layers, heads. `key_heads` None: as many
    heads of keys and values as of queries."""
    hidden, feed_forward, layers, heads = shape
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads or heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
        **more,
    }


_B7, _B13, _B70 = (4096, 11008, 32, 32), (5120, 13824, 40, 40), (8192, 28672, 80, 64)
"""LLaMA's shapes, which others took over."""


def _llama(shape: tuple[int, int, int, int], positions: int = 2048, **more: Any) -> Configuration:
    return _decoder("llama", shape, **{"vocabulary": 32000, "positions": positions, **more})


def _llama3(shape: tuple[int, int, int, int], positions: int = 131072, **more: Any) -> Configuration:
    return _llama(shape, positions, vocabulary=128256, key_heads=8, **more)


_LLAMA = {
    "huggyllama/llama-7b": _llama(_B7),
    "huggyllama/llama-13b": _llama(_B13),
    "huggyllama/llama-30b": _llama((6656, 17920, 60, 52)),
    "huggyllama/llama-65b": _llama((8192, 22016, 80, 64)),
    "meta-llama/Llama-2-7b-hf": _llama(_B7, 4096),
    "meta-llama/Llama-2-13b-hf": _llama(_B13, 4096),
    "meta-llama/Llama-2-70b-hf": _llama(_B70, 4096, key_heads=8),
    "meta-llama/Llama-2-7b-chat-hf": _llama(_B7, 4096),
    "meta-llama/Llama-3.1-8B": _llama3((4096, 14336, 32, 32)),
    "meta-llama/Llama-3.1-70B": _llama3(_B70),
    "meta-llama/Meta-Llama-3-8B": _llama3((4096, 14336, 32, 32), 8192),
    "meta-llama/Llama-3.2-1B": _llama3((2048, 8192, 16, 32), tied=True),
    "meta-llama/Llama-3.2-3B": _llama3((3072, 8192, 28, 24), tied=True),
    "meta-llama/Llama-3.3-70B-Instruct": _llama3(_B70),
}


def _bloom(hidden: int, layers: int, heads: int) -> Configuration:
    """ALiBi: no size depends on a longest text. The feed-forward block is four times as wide as the rest."""
    return {
        "model_type": "bloom",
        "hidden_size": hidden,
        "n_layer": layers,
        "n_head": heads,
        "vocab_size": 250880,
        "tie_word_embeddings": True,
    }


_BLOOM = {
    "bigscience/bloomz-7b1-mt": _bloom(4096, 30, 32),
    "bigscience/bloomz-3b": _bloom(2560, 30, 32),
    "bigscience/bloomz-1b7": _bloom(2048, 24, 16),
    "bigscience/bloomz-560m": _bloom(1024, 24, 16),
    "bigscience/bloom-7b1": _bloom(4096, 30, 32),
    "bigscience/bloom-3b": _bloom(2560, 30, 32),
    "bigscience/bloom-560m": _bloom(1024, 24, 16),
}


def _glm(
    model_type: str, shape: tuple[int, int, int, int], positions: int, *, biased: bool = True, **more: Any
) -> Configuration:
    """`biased`: q, k and v have a bias."""
    sizes = {"vocabulary": 151552, "key_heads": 2, **more}
    return _decoder(model_type, shape, positions=positions, head_dim=128, attention_bias=biased, **sizes)


def _chatglm2(positions: int) -> Configuration:
    # GlmConfig's own ids are GLM-4's, which lie outside this vocabulary.
    ids: dict[str, Any] = {"eos_token_id": 2, "pad_token_id": 0}
    return _glm("glm", (4096, 13696, 28, 32), positions, vocabulary=65024, **ids)


_GLM = {
    "zai-org/chatglm-6b": {
        "model_type": "chatglm",
        "hidden_size": 4096,
        "inner_hidden_size": 16384,
        "num_layers": 28,
        "num_attention_heads": 32,
        "vocab_size": 130528,
        "max_sequence_length": 2048,
        "tie_word_embeddings": False,
    },
    "zai-org/chatglm2-6b": _chatglm2(32768),
    "zai-org/chatglm3-6b-base": _chatglm2(32768),
    "zai-org/chatglm3-6b": _chatglm2(8192),
    "zai-org/glm-4-9b-hf": _glm("glm", (4096, 13696, 40, 32), 8192),
    "zai-org/glm-4-9b-chat-hf": _glm("glm", (4096, 13696, 40, 32), 131072),
    "zai-org/GLM-4-9B-0414": _glm("glm4", (4096, 13696, 40, 32), 32768),
    "zai-org/GLM-4-32B-Base-0414": _glm("glm4", (6144, 23040, 61, 48), 32768, biased=False),
    "zai-org/GLM-4-32B-0414": _glm("glm4", (6144, 23040, 61, 48), 32768, biased=False),
}

_MOSS_16B = {
    "model_type": "codegen",
    "n_embd": 6144,
    "n_layer": 34,
    "n_head": 24,
    "n_ctx": 2048,
    "n_positions": 2048,
    "rotary_dim": 64,
    "vocab_size": 107008,
    "tie_word_embeddings": False,
}
_MOSS = {"OpenMOSS-Team/moss-moon-003-base": _MOSS_16B, "OpenMOSS-Team/moss-moon-003-sft": _MOSS_16B}

_BAICHUAN = {
    "baichuan-inc/Baichuan-7B": _llama(_B7, 4096, vocabulary=64000),
    "baichuan-inc/Baichuan2-7B-Base": _llama(_B7, 4096, vocabulary=125696),
    "baichuan-inc/Baichuan2-7B-Chat": _llama(_B7, 4096, vocabulary=125696),
    # Stand-ins; their positions are ALiBi, and trained to 4096.
    "baichuan-inc/Baichuan-13B-Base": _llama((5120, 13696, 40, 40), 4096, vocabulary=64000),
    "baichuan-inc/Baichuan2-13B-Base": _llama((5120, 13696, 40, 40), 4096, vocabulary=125696),
}


def _internlm2(shape: tuple[int, int, int, int], positions: int = 32768) -> Configuration:
    return _llama(shape, positions, vocabulary=92544, key_heads=8)


_INTERNLM = {
    "internlm/internlm-7b": _llama(_B7, 2048, vocabulary=103168, attention_bias=True),
    "internlm/internlm-20b": _llama((5120, 13824, 60, 40), 4096, vocabulary=103168),
    "internlm/internlm2-7b": _internlm2((4096, 14336, 32, 32)),
    "internlm/internlm2-1_8b": _internlm2((2048, 8192, 24, 16)),
    "internlm/internlm2-20b": _internlm2((6144, 16384, 48, 48)),
    "internlm/internlm2-chat-7b": _internlm2((4096, 14336, 32, 32)),
    "internlm/internlm2_5-1_8b": _internlm2((2048, 8192, 24, 16)),
    "internlm/internlm2_5-7b": _internlm2((4096, 14336, 32, 32)),
    "internlm/internlm2_5-7b-chat": _internlm2((4096, 14336, 32, 32)),
    "internlm/internlm2_5-20b": _internlm2((6144, 16384, 48, 48)),
    "internlm/internlm3-8b-instruct": _llama((4096, 10240, 48, 32), 32768, vocabulary=128512, key_heads=2),
}


def _qwen(shape: tuple[int, int, int, int], positions: int, vocabulary: int, **more: Any) -> Configuration:
    return _decoder("qwen2", shape, vocabulary=vocabulary, positions=positions, **more)


def _qwen3(shape: tuple[int, int, int, int], *, tied: bool = False) -> Configuration:
    """Heads are 128 wide, whatever the hidden size is."""
    return _decoder("qwen3", shape, vocabulary=151936, positions=32768, key_heads=8, tied=tied, head_dim=128)


_QWEN = {
    # The first generation's files give the gate and what it gates as one feed-forward size: twice this one.
    "Qwen/Qwen-7B": _qwen(_B7, 8192, 151936),
    "Qwen/Qwen-1_8B": _qwen((2048, 5504, 24, 16), 8192, 151936),
    "Qwen/Qwen-14B": _qwen((5120, 13696, 40, 40), 2048, 152064),
    "Qwen/Qwen-72B": _qwen((8192, 24576, 80, 64), 32768, 152064),
    "Qwen/Qwen2.5-7B": _qwen((3584, 18944, 28, 28), 131072, 152064, key_heads=4),
    "Qwen/Qwen2.5-0.5B": _qwen((896, 4864, 24, 14), 32768, 151936, key_heads=2, tied=True),
    "Qwen/Qwen2.5-1.5B": _qwen((1536, 8960, 28, 12), 131072, 151936, key_heads=2, tied=True),
    "Qwen/Qwen2.5-3B": _qwen((2048, 11008, 36, 16), 32768, 151936, key_heads=2, tied=True),
    "Qwen/Qwen2.5-14B": _qwen((5120, 13824, 48, 40), 131072, 152064, key_heads=8),
    "Qwen/Qwen2.5-32B": _qwen((5120, 27648, 64, 40), 131072, 152064, key_heads=8),
    "Qwen/Qwen2.5-72B": _qwen((8192, 29568, 80, 64), 131072, 152064, key_heads=8),
    "Qwen/Qwen2-0.5B": _qwen((896, 4864, 24, 14), 131072, 151936, key_heads=2, tied=True),
    "Qwen/Qwen2-7B": _qwen((3584, 18944, 28, 28), 131072, 152064, key_heads=4),
    "Qwen/Qwen3-8B-Base": _qwen3((4096, 12288, 36, 32)),
    "Qwen/Qwen3-0.6B-Base": _qwen3((1024, 3072, 28, 16), tied=True),
    "Qwen/Qwen3-1.7B-Base": _qwen3((2048, 6144, 28, 16), tied=True),
    "Qwen/Qwen3-4B-Base": _qwen3((2560, 9728, 36, 32), tied=True),
    "Qwen/Qwen3-14B-Base": _qwen3((5120, 17408, 40, 40)),
}


def _mistral(
    vocabulary: int, *, layers: int = 32, hidden: int = 4096, positions: int = 32768, window: int | None = None
) -> Configuration:
    """Heads are 128 wide, whatever the hidden size is."""
    sizes: dict[str, Any] = {"vocabulary": vocabulary, "positions": positions, "key_heads": 8, "head_dim": 128}
    return _decoder("mistral", (hidden, 14336, layers, 32), **sizes, sliding_window=window)


_MISTRAL = {
    "mistralai/Mistral-7B-v0.3": _mistral(32768),
    "mistralai/Mistral-Nemo-Base-2407": _mistral(131072, layers=40, hidden=5120, positions=128000),
    "mistralai/Mistral-7B-v0.1": _mistral(32000, window=4096),
    "mistralai/Mistral-7B-Instruct-v0.3": _mistral(32768),
}


def _gemma(
    model_type: str,
    shape: tuple[int, int, int, int],
    *,
    key_heads: int,
    vocabulary: int = 256000,
    positions: int = 8192,
    head_dim: int = 256,
    **more: Any,
) -> Configuration:
    sizes = {"vocabulary": vocabulary, "positions": positions, "key_heads": key_heads, "head_dim": head_dim}
    return _decoder(model_type, shape, tied=True, **sizes, **more)


def _gemma2(shape: tuple[int, int, int, int], *, key_heads: int, head_dim: int = 256) -> Configuration:
    """Every second layer sees 4096 tokens back, the class's own order of layers."""
    return _gemma("gemma2", shape, key_heads=key_heads, head_dim=head_dim, sliding_window=4096)


def _gemma3(shape: tuple[int, int, int, int]) -> Configuration:
    """Five of six layers see 512 tokens back, the class's own order of layers."""
    longest: dict[str, Any] = {"positions": 32768, "sliding_window": 512}
    return _gemma("gemma3_text", shape, key_heads=1, vocabulary=262144, **longest)


_GEMMA = {
    "google/gemma-2-2b": _gemma2((2304, 9216, 26, 8), key_heads=4),
    "google/gemma-2-9b": _gemma2((3584, 14336, 42, 16), key_heads=8),
    "google/gemma-2-27b": _gemma2((4608, 36864, 46, 32), key_heads=16, head_dim=128),
    "google/gemma-2b": _gemma("gemma", (2048, 16384, 18, 8), key_heads=1),
    "google/gemma-7b": _gemma("gemma", (3072, 24576, 28, 16), key_heads=16),
    "google/gemma-3-270m": _gemma3((640, 2048, 18, 4)),
    "google/gemma-3-1b-pt": _gemma3((1152, 6912, 26, 4)),
}


def _phi3(shape: tuple[int, int, int, int], positions: int, window: int | None, **more: Any) -> Configuration:
    sizes = {"vocabulary": 32064, **more}
    return _decoder("phi3", shape, positions=positions, sliding_window=window, **sizes)


_PHI = {
    "microsoft/phi-2": _decoder("phi", (2560, 10240, 32, 32), vocabulary=51200, positions=2048),
    "microsoft/phi-1_5": _decoder("phi", (2048, 8192, 24, 32), vocabulary=51200, positions=2048),
    "microsoft/Phi-3-mini-4k-instruct": _phi3((3072, 8192, 32, 32), 4096, 2047),
    "microsoft/Phi-3-medium-4k-instruct": _phi3((5120, 17920, 40, 40), 4096, 2047, key_heads=10),
    "microsoft/Phi-3.5-mini-instruct": _phi3((3072, 8192, 32, 32), 131072, 262144),
    "microsoft/Phi-4-mini-instruct": _phi3(
        (3072, 8192, 32, 24), 131072, 262144, key_heads=8, vocabulary=200064, tied=True
    ),
    "microsoft/phi-4": _phi3((5120, 17920, 40, 40), 16384, None, key_heads=10, vocabulary=100352),
}


def _neox(hidden: int, layers: int, heads: int, vocabulary: int = 50304) -> Configuration:
    return {
        "model_type": "gpt_neox",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


_NEOX = {
    "EleutherAI/pythia-6.9b": _neox(4096, 32, 32, 50432),
    "EleutherAI/pythia-70m": _neox(512, 6, 8),
    "EleutherAI/pythia-160m": _neox(768, 12, 12),
    "EleutherAI/pythia-410m": _neox(1024, 24, 16),
    "EleutherAI/pythia-1b": _neox(2048, 16, 8),
    "EleutherAI/pythia-1.4b": _neox(2048, 24, 16),
    "EleutherAI/pythia-2.8b": _neox(2560, 32, 32),
    "EleutherAI/pythia-12b": _neox(5120, 36, 40, 50688),
    "EleutherAI/gpt-neox-20b": _neox(6144, 44, 64, 50432),
}


def _opt(hidden: int, layers: int, heads: int, **more: Any) -> Configuration:
    return {
        "model_type": "opt",
        "hidden_size": hidden,
        "ffn_dim": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": hidden,
        "do_layer_norm_before": True,
        "tie_word_embeddings": True,
        **more,
    }


_OPT = {
    "facebook/opt-6.7b": _opt(4096, 32, 32),
    "facebook/opt-125m": _opt(768, 12, 12),
    "facebook/opt-350m": _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "facebook/opt-1.3b": _opt(2048, 24, 32),
    "facebook/opt-2.7b": _opt(2560, 32, 32),
    "facebook/opt-13b": _opt(5120, 40, 40),
    "facebook/opt-30b": _opt(7168, 48, 56),
    "facebook/opt-66b": _opt(9216, 64, 72),
}


def _falcon(hidden: int, layers: int, heads: int, **more: Any) -> Configuration:
    """Attention and feed-forward side by side, the latter four times as wide as the rest; rotary positions."""
    return {
        "model_type": "falcon",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": 65024,
        "max_position_embeddings": 2048,
        "parallel_attn": True,
        "alibi": False,
        "bias": False,
        "tie_word_embeddings": True,
        **more,
    }


_FALCON = {
    # All queries share one head of keys and values.
    "tiiuae/falcon-7b": _falcon(4544, 32, 71, multi_query=True, new_decoder_architecture=False),
    "tiiuae/falcon-40b": _falcon(8192, 60, 128, num_kv_heads=8, new_decoder_architecture=True),
}

STAND_INS = MappingProxyType({"W_pack": ("q_proj", "k_proj", "v_proj")})
"""Layer of a checkpoint that something else stands in for → that one's layers."""

CONFIGURATIONS: Mapping[str, Configuration] = MappingProxyType(
    {
        **_LLAMA,
        **_BLOOM,
        **_GLM,
        **_MOSS,
        **_BAICHUAN,
        **_INTERNLM,
        **_QWEN,
        **_MISTRAL,
        **_GEMMA,
        **_PHI,
        **_NEOX,
        **_OPT,
        **_FALCON,
    }
)
"""Hub id → the fields that decide sizes. Every checkpoint of the registry but those that are directories, which have a
`config.json` of their own."""
