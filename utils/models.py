"""Model families, one row each: everything that differs between one family and the next.

Knows: names, as strings, so that listing models imports nothing. Does not know how to load any of them; that is
`utils.loading`. Adding a family is one row here and one line in `tests/test_models.py` (`docs/adding-a-model.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from utils import lookup

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class TrainingDefaults:
    """What a training flag means when it is not given: the original project's value, or the row's own."""

    data: str = "alpaca"
    val_set_size: float | None = None
    per_gpu_train_batch_size: int = 4
    gradient_accumulation_steps: int = 32
    epochs: float = 3.0
    learning_rate: float = 3e-4
    cutoff_len: int = 512
    lora_r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One family. Class names are attributes of `transformers`, looked up when the model is loaded."""

    checkpoints: Mapping[str, str]
    """`--size` → hub id or path; the first is the default. Empty where the user must name the model."""
    lora_target_modules: tuple[str, ...]
    """Names of the linear layers that get an adapter; `all-linear` is peft's word for every one but the head."""
    template: str = "alpaca"
    """A row of `utils.templates`."""
    model_class: str = "AutoModelForCausalLM"
    tokenizer_class: str = "AutoTokenizer"
    attention: Literal["causal", "prefix"] = "causal"
    """`prefix`: the prompt sees itself in both directions."""
    pad_token: Literal["own", "unk", "eos"] = "own"
    """What pads a batch; padding is masked, so the choice only has to exist and never be a target."""
    control_tokens: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Role → token, for a tokenizer whose own is blank."""
    begins_with_bos: bool = False
    """The family was pretrained with BOS first, whatever a tokenizer's configuration leaves unsaid."""
    quantization_bits: tuple[int, ...] = (8, 4, 16)
    """What the weights can be loaded in; the first is the default on CUDA."""
    license: str = ""
    training: TrainingDefaults = TrainingDefaults()

    @property
    def default_checkpoint(self) -> str | None:
        """The hub id or path of the default size, if the row has one."""
        return next(iter(self.checkpoints.values()), None)


MODELS: Mapping[str, ModelSpec] = MappingProxyType(
    {
        # Ours, from the first byte (assets/make_tiny_base.py); the embedded default of every script. Its training
        # defaults are the demo's: the settings that were tried are in docs/log.md.
        "tiny": ModelSpec(
            checkpoints={"1m": str(REPOSITORY / "assets" / "tiny_base")},
            lora_target_modules=("all-linear",),
            quantization_bits=(16, 8, 4),
            license="Apache-2.0",
            training=TrainingDefaults(
                data="cot_sample",
                val_set_size=100,
                per_gpu_train_batch_size=24,
                gradient_accumulation_steps=1,
                epochs=3.0,
                learning_rate=9e-3,
                lora_r=16,
                lora_alpha=32,
                lora_dropout=0.0,
            ),
        ),
        # The original project's ids; decapoda-research has since left the hub, so give a local path or a mirror.
        "llama": ModelSpec(
            checkpoints={
                "7b": "decapoda-research/llama-7b-hf",
                "13b": "decapoda-research/llama-13b-hf",
                "30b": "decapoda-research/llama-30b-hf",
                "65b": "decapoda-research/llama-65b-hf",
            },
            lora_target_modules=("q_proj", "v_proj"),
            model_class="LlamaForCausalLM",
            # Some conversions of LLaMA came with blank control tokens, and models trained with them never stop.
            control_tokens=MappingProxyType({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
            begins_with_bos=True,
            pad_token="unk",  # LLaMA has no pad token; unk never occurs, for its tokenizer falls back to bytes
            license="LLaMA non-commercial",
        ),
        "bloom": ModelSpec(
            checkpoints={
                "7b": "bigscience/bloomz-7b1-mt",
                "3b": "bigscience/bloomz-3b",
                "560m": "bigscience/bloomz-560m",
            },
            lora_target_modules=("query_key_value",),
            model_class="BloomForCausalLM",
            license="BigScience RAIL 1.0",
        ),
        "chatglm": ModelSpec(
            checkpoints={"6b": "THUDM/chatglm-6b"},
            lora_target_modules=("query_key_value",),
            attention="prefix",
            license="ChatGLM-6B model licence",
        ),
        # Any causal LM that transformers knows, named by --model_name_or_path.
        "auto": ModelSpec(checkpoints={}, lora_target_modules=("all-linear",), pad_token="eos"),
    }
)

DEFAULT_MODEL = "tiny"
SIZED_MODEL = "llama"
"""What `--size` means where no family is named: the original project's first commands knew only this one."""


def get_model(name: str) -> ModelSpec:
    """The row called `name`; `ValueError` with the nearest names."""
    return lookup.find("model type", name, MODELS, "--model_type")


def checkpoint_of(name: str, spec: ModelSpec, size: str | None) -> str:
    """The hub id or path of family `name` in `size` (`7b`, or `7` for short; None: the default size)."""
    if spec.default_checkpoint is None:
        raise ValueError(f"--model_type {name} has no default model: name one with --model_name_or_path")
    if size is None:
        return spec.default_checkpoint
    key = f"{size}b" if size.isdigit() else size.lower()
    return lookup.find("size", key, spec.checkpoints, f"--size of --model_type {name}")
