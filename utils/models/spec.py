"""What a row of the model registry says: everything that may differ between one family and the next.

Knows: the fields, and the original project's training defaults. Does not know any family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainingDefaults:
    """What a training flag means when it is not given: the original project's value, or the row's own."""

    data: str = "alpaca"
    val_set_size: float | None = None
    batch_size: int = 128
    """Rows of an optimizer step: the original's 4 rows 32 times on its one GPU."""
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
    """`--size` → hub id or path; the first is the default. Empty where the user must name the model. A size without a
    generation is of the row's main one; others begin with theirs: `2-7b`."""
    native: tuple[str, ...] = ()
    """The classes that run it, for people: of `transformers`, or our own; `utils.architectures` picks by a checkpoint's
    configuration. Empty: only the checkpoint's own code does, or any class."""
    remote_code: str = ""
    """Why only the code in the checkpoint's repository runs it; empty for all that run natively."""
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
    """The name its authors give it, or the SPDX name where it has one."""
    gated: bool = False
    """The hub gives it only to those who have accepted its licence there."""
    note: str = ""
    """What else a user should mind, in a sentence."""
    training: TrainingDefaults = TrainingDefaults()

    @property
    def default_checkpoint(self) -> str | None:
        """The hub id or path of the default size, if the row has one."""
        return next(iter(self.checkpoints.values()), None)
