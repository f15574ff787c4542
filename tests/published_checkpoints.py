"""Tiny checkpoints as other people publish them, and what their code computes from them, written a second time.

Nothing of `utils.architectures` is used: tensors are packed head by head, and the logits come token by token in float64
from the stored tensors, by the equations of the published code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
VOCABULARY, HIDDEN, HEADS, LAYERS, FFN, WIDTH = 96, 64, 4, 2, 48, 16
IDS = [5, 17, 3, 3, 80, 41, 9, 77, 1, 30, 12]
LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
FACTS: dict[str, dict[str, Any]] = {
    "chatglm2": {
        "_name_or_path": "THUDM/chatglm2-6b",
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_residual_connection_post_layernorm": False,
        "ffn_hidden_size": FFN,
        "hidden_size": HIDDEN,
        "kv_channels": WIDTH,
        "layernorm_epsilon": 1e-5,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": HEADS,
        "num_layers": LAYERS,
        "original_rope": True,
        "padded_vocab_size": VOCABULARY,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 64,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "baichuan": {**LLAMA, "model_type": "baichuan", "architectures": ["BaiChuanForCausalLM"]},
    "baichuan2": {**LLAMA, "model_type": "baichuan", "model_max_length": 64, "z_loss_weight": 0},
    "internlm": {**LLAMA, "model_type": "internlm", "bias": True, "rotary": {"base": 10000, "type": "dynamic"}},
    "internlm2": {
        **LLAMA,
        "model_type": "internlm2",
        "bias": True,
        "num_key_value_heads": 2,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "moss": {
        "model_type": "moss",
        "activation_function": "gelu_new",
        "vocab_size": VOCABULARY,
        "n_ctx": 64,
        "n_positions": 64,
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_inner": None,
        "rotary_dim": 8,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "wbits": 32,
    },
    "qwen": {
        "model_type": "qwen",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * FFN,
        "kv_channels": WIDTH,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 128,
        "no_bias": True,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": 64,
        "tie_word_embeddings": False,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "eos_token_id": 2,
    },
}
FACTS["chatglm3"] = {**FACTS["chatglm2"], "_name_or_path": "THUDM/chatglm3-6b"}


def native_config(kind: str) -> Any:
    """The native configuration, written by hand from the facts."""
    from transformers import CodeGenConfig, GlmConfig, LlamaConfig, Qwen2Config

    ids: dict[str, Any] = {"eos_token_id": 2, "pad_token_id": 0}
    sizes = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": HEADS, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    turned: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if kind in ("chatglm2", "chatglm3"):
        turned["partial_rotary_factor"] = 0.5
        return GlmConfig(**sizes, num_key_value_heads=2, head_dim=WIDTH, rope_parameters=turned, **ids)
    if kind == "moss":
        return CodeGenConfig(vocab_size=VOCABULARY, n_positions=64, n_ctx=64, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, rotary_dim=8, bos_token_id=1, eos_token_id=2)  # fmt: skip
    if kind == "qwen":
        return Qwen2Config(**{**sizes, "rms_norm_eps": 1e-6}, num_key_value_heads=HEADS, rope_parameters=turned, **ids)
    more: dict[str, Any] = {"attention_bias": kind.startswith("internlm")}
    if kind == "internlm2":
        more |= {"num_key_value_heads": 2}
        turned |= {"rope_theta": 1e6}
    return LlamaConfig(**sizes, **more, rope_parameters=turned, bos_token_id=1, **ids)


def native_model(kind: str) -> Any:
    """A native model whose every parameter is random, biases and norms too."""
    import transformers

    classes = {"chatglm2": "Glm", "chatglm3": "Glm", "moss": "CodeGen", "qwen": "Qwen2"}
    torch.manual_seed(len(kind))
    model = getattr(transformers, f"{classes.get(kind, 'Llama')}ForCausalLM")(native_config(kind)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    return model


def publish(kind: str, native: Any, *, permuted: bool = False) -> Tensors:
    """The tensors under their published names; `permuted`: with v before k, which no code writes."""
    own = {key: value.detach().clone() for key, value in native.state_dict().items()}
    if kind == "moss":
        masks = {f"transformer.h.{n}.attn.causal_mask": torch.ones(1, 1, 64, 64).bool() for n in range(LAYERS)}
        return own | masks
    names = {"model.embed_tokens": {"chatglm": "transformer.embedding.word_embeddings", "internlm2": "model.tok_embeddings", "qwen": "transformer.wte"}, "model.norm": {"chatglm": "transformer.encoder.final_layernorm", "qwen": "transformer.ln_f"}, "lm_head": {"chatglm": "transformer.output_layer", "internlm2": "output"}}  # fmt: skip
    family = "chatglm" if kind.startswith("chatglm") else kind
    made = {f"{new.get(family, old)}.weight": own[f"{old}.weight"] for old, new in names.items()}
    for number in range(LAYERS):
        made |= publish_layer(family, number, own, permuted=permuted)
    if family in ("baichuan", "baichuan2", "internlm"):
        made["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(WIDTH // 2)
    if family == "chatglm":
        made["transformer.rotary_pos_emb.inv_freq"] = torch.ones(WIDTH // 4)
    return made


LAYER_NAMES: dict[str, dict[str, str]] = {
    "chatglm": {"": "transformer.encoder.layers.{}.", "self_attn.o_proj": "self_attention.dense", "mlp.gate_up_proj": "mlp.dense_h_to_4h", "mlp.down_proj": "mlp.dense_4h_to_h", "packed": "self_attention.query_key_value"},
    "baichuan": {"": "model.layers.{}.", "packed": "self_attn.W_pack"},
    "baichuan2": {"": "model.layers.{}.", "packed": "self_attn.W_pack"},
    "internlm": {"": "model.layers.{}."},
    "internlm2": {"": "model.layers.{}.", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2", "packed": "attention.wqkv"},
    "qwen": {"": "transformer.h.{}.", "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "self_attn.o_proj": "attn.c_proj", "mlp.gate_proj": "mlp.w2", "mlp.up_proj": "mlp.w1", "mlp.down_proj": "mlp.c_proj", "packed": "attn.c_attn"},
}  # fmt: skip


def publish_layer(family: str, number: int, own: Tensors, *, permuted: bool) -> Tensors:
    names, made = LAYER_NAMES[family], {}
    start, prefix = f"model.layers.{number}.", names[""].format(number)
    heads: dict[str, dict[str, list[Tensor]]] = {"weight": {}, "bias": {}}
    for key, value in own.items():
        if not key.startswith(start):
            continue
        module, _, kind = key.removeprefix(start).rpartition(".")
        if "packed" in names and module[-6:] in ("q_proj", "k_proj", "v_proj"):
            heads[kind][module[-6]] = [value[at : at + WIDTH] for at in range(0, len(value), WIDTH)]
        else:
            made[f"{prefix}{names.get(module, module)}.{kind}"] = value
    for kind, parts in heads.items():
        if parts:
            made[f"{prefix}{names['packed']}.{kind}"] = torch.cat(pack(family, parts, permuted=permuted))
    return made


def pack(family: str, heads: dict[str, list[Tensor]], *, permuted: bool) -> list[Tensor]:
    """The heads in the order in which the published file stores them."""
    first, second = ("v", "k") if permuted else ("k", "v")
    if family != "internlm2":
        return heads["q"] + heads[first] + heads[second]
    order: list[Tensor] = []
    for group in range(len(heads["k"])):
        shared = len(heads["q"]) // len(heads["k"])
        for query in range(shared):
            order.append(heads["q"][group * shared + query])
        order += [heads[first][group], heads[second][group]]
    return order


def write(directory: Path, facts: dict[str, Any], tensors: Tensors, storage: str) -> Path:
    """`config.json` and the weights: "safetensors", "bin", or "shards" (two .bin files and an index)."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    if storage == "safetensors":
        save_file(tensors, directory / "model.safetensors")
    elif storage == "bin":
        torch.save(tensors, directory / "pytorch_model.bin")
    else:
        keys = sorted(tensors)
        index: dict[str, str] = {}
        for shard in (0, 1):
            file = f"pytorch_model-0000{shard + 1}-of-00002.bin"
            torch.save({key: tensors[key] for key in keys[shard::2]}, directory / file)
            index |= dict.fromkeys(keys[shard::2], file)
        text = json.dumps({"metadata": {}, "weight_map": index})
        (directory / "pytorch_model.bin.index.json").write_text(text, encoding="utf-8")
    return directory


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / math.sqrt(float((x * x).sum()) / len(x) + eps)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def turn_pairs(x: Tensor, position: int, pairs: list[tuple[int, int]], base: float) -> Tensor:
    """`x` with pair number i of its coordinates turned by position · base^(−i / number of pairs)."""
    turned = x.clone()
    for number, (one, other) in enumerate(pairs):
        angle = position * base ** (-number / len(pairs))
        turned[one] = x[one] * math.cos(angle) - x[other] * math.sin(angle)
        turned[other] = x[other] * math.cos(angle) + x[one] * math.sin(angle)
    return turned


HALVES = [(i, i + WIDTH // 2) for i in range(WIDTH // 2)]
NEIGHBOURS = [(2 * i, 2 * i + 1) for i in range(WIDTH // 4)]


def attend(queries: list[Tensor], keys: list[list[Tensor]], values: list[list[Tensor]]) -> Tensor:
    """One token's heads, joined: each over the keys so far; keys[position][head]."""
    out = []
    for number, query in enumerate(queries):
        shared = number * len(keys[0]) // len(queries)
        scores = [math.exp(float(query @ key[shared]) / math.sqrt(len(query))) for key in keys]
        out.append(sum((s * v[shared] for s, v in zip(scores, values, strict=True)), torch.zeros_like(query)) / sum(scores))  # fmt: skip
    return torch.cat(out)


def split(family: str, mixed: Tensor, kv_heads: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The heads of a token's packed q, k, v, as the published forward passes cut them."""
    if family == "internlm2":
        cut = mixed.reshape(kv_heads, HEADS // kv_heads + 2, WIDTH)
        return [h for group in cut for h in group[:-2]], [g[-2] for g in cut], [g[-1] for g in cut]
    q, k, v = mixed.split([HEADS * WIDTH, kv_heads * WIDTH, kv_heads * WIDTH])
    return list(q.reshape(-1, WIDTH)), list(k.reshape(-1, WIDTH)), list(v.reshape(-1, WIDTH))


def published_logits(kind: str, tensors: Tensors, ids: list[int]) -> Tensor:
    """(length, vocabulary) float64, of the families with RMSNorm and a gated MLP."""
    family = "chatglm" if kind.startswith("chatglm") else kind
    names, kv_heads = LAYER_NAMES[family], 2 if family in ("chatglm", "internlm2") else HEADS
    pairs = NEIGHBOURS if family == "chatglm" else HALVES
    base, eps = (1e6 if family == "internlm2" else 1e4), (1e-6 if family == "qwen" else 1e-5)
    get = {key: value.double() for key, value in tensors.items()}

    def layer_name(number: int, module: str) -> str:
        return names[""].format(number) + names.get(module, module)

    def linear(name: str, x: Tensor) -> Tensor:
        return get[f"{name}.weight"] @ x + get.get(f"{name}.bias", torch.zeros(1).double())

    def gated(number: int, x: Tensor) -> Tensor:
        if family == "chatglm":
            both = linear(layer_name(number, "mlp.gate_up_proj"), x)
            return silu(both[:FFN]) * both[FFN:]
        return silu(linear(layer_name(number, "mlp.gate_proj"), x)) * linear(layer_name(number, "mlp.up_proj"), x)

    head, norm, embed = {"chatglm": ("transformer.output_layer", "transformer.encoder.final_layernorm", "transformer.embedding.word_embeddings"), "internlm2": ("output", "model.norm", "model.tok_embeddings"), "qwen": ("lm_head", "transformer.ln_f", "transformer.wte")}.get(family, ("lm_head", "model.norm", "model.embed_tokens"))  # fmt: skip
    weight = get[f"{head}.weight"]
    if kind == "baichuan2":
        weight = torch.stack([row / math.sqrt(float(row @ row)) for row in weight])
    seen: list[tuple[list[list[Tensor]], list[list[Tensor]]]] = [([], []) for _ in range(LAYERS)]
    logits = []
    for position, token in enumerate(ids):
        x = get[f"{embed}.weight"][token]
        for number, (keys, values) in enumerate(seen):
            normed = rms(x, get[f"{layer_name(number, 'input_layernorm')}.weight"], eps)
            if "packed" in names:
                q, k, v = split(family, linear(layer_name(number, "packed"), normed), kv_heads)
            else:
                q, k, v = (list(linear(layer_name(number, f"self_attn.{part}_proj"), normed).reshape(-1, WIDTH)) for part in "qkv")  # fmt: skip
            keys.append([turn_pairs(head_, position, pairs, base) for head_ in k])
            values.append(v)
            mixed = attend([turn_pairs(head_, position, pairs, base) for head_ in q], keys, values)
            x = x + linear(layer_name(number, "self_attn.o_proj"), mixed)
            normed = rms(x, get[f"{layer_name(number, 'post_attention_layernorm')}.weight"], eps)
            x = x + linear(layer_name(number, "mlp.down_proj"), gated(number, normed))
        logits.append(weight @ rms(x, get[f"{norm}.weight"], eps))
    return torch.stack(logits)


def moss_logits(tensors: Tensors, ids: list[int]) -> Tensor:
    """(length, vocabulary) float64: LayerNorm, attention and MLP side by side, and q, v, k in four blocks, as the
    weights were once spread over four devices."""
    get: dict[str, Tensor] = {key: value.double() for key, value in tensors.items()}

    def normed(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean()
        return get[f"{name}.weight"] * centred / torch.sqrt((centred**2).mean() + 1e-5) + get[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    neighbours = [(2 * i, 2 * i + 1) for i in range(4)]
    seen: list[tuple[list[list[Tensor]], list[list[Tensor]]]] = [([], []) for _ in range(LAYERS)]
    logits = []
    for position, token in enumerate(ids):
        x = get["transformer.wte.weight"][token]
        for number, (keys, values) in enumerate(seen):
            name = f"transformer.h.{number}"
            y = normed(f"{name}.ln_1", x)
            blocks = (get[f"{name}.attn.qkv_proj.weight"] @ y).reshape(4, 3, -1, WIDTH)
            q, v, k = ([head for block in blocks for head in block[part]] for part in range(3))
            keys.append([turn_pairs(head, position, neighbours, 1e4) for head in k])
            values.append(v)
            mixed = attend([turn_pairs(head, position, neighbours, 1e4) for head in q], keys, values)
            inner = gelu(get[f"{name}.mlp.fc_in.weight"] @ y + get[f"{name}.mlp.fc_in.bias"])
            outer = get[f"{name}.mlp.fc_out.weight"] @ inner + get[f"{name}.mlp.fc_out.bias"]
            x = x + get[f"{name}.attn.out_proj.weight"] @ mixed + outer
        logits.append(get["lm_head.weight"] @ normed("transformer.ln_f", x) + get["lm_head.bias"])
    return torch.stack(logits)


def reference(kind: str) -> Callable[[Tensors, list[int]], Tensor]:
    return moss_logits if kind == "moss" else lambda tensors, ids: published_logits(kind, tensors, ids)
