"""Tokenizers, bases and adapters: a model's row becomes a model on a device.

Knows: what transformers, peft and bitsandbytes are asked for. Does not know records, flags or training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils import distributed, hub
from utils.distributed import DTYPES, Precision
from utils.models import ModelSpec


def quiet_libraries() -> None:
    """Keeps the libraries from writing over our own report; their errors still come through."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft)")
    # bitsandbytes warns once a layer and call on CPU (feasibility: thousands of lines), and once at import.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # what transformers raises for a missing, private or gated model, and for a broken one
        reason = str(error).split("\n")[0].strip().rstrip(".")
        raise OSError(hub.advice(name, reason)) from error
    except ValueError as error:
        if "trust_remote_code" not in str(error) and "does not recognize" not in str(error):
            raise
        first = str(error).split("\n")[0].strip().rstrip(".")
        raise ValueError(
            f"cannot load {name!r}: {first}. transformers has no class for it; --trust_remote_code runs the code that "
            "its repository brings, if you trust it"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Base:
    """Which base, and how it is to be loaded; each method loads anew."""

    name: str
    """Hub id or local directory."""
    spec: ModelSpec
    precision: Precision
    quantization_bit: int
    device: torch.device
    revision: str | None = None
    trust_remote_code: bool = False

    def config(self) -> Any:
        """The configuration. Raises `OSError` (with advice) or `ValueError` where it cannot be had."""
        origin = self._origin()
        from transformers import AutoConfig

        with _hub_errors(self.name):
            return AutoConfig.from_pretrained(self.name, **origin)

    def tokenizer(self, directory: Path | None = None) -> Any:
        """The tokenizer, with the row's control tokens where its own are missing or blank, and a pad token; the one
        that a run saved, if its directory is given."""
        name = str(directory or self.name)
        saved: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        origin = self._origin() if directory is None else saved
        from transformers.models.auto.tokenization_auto import get_tokenizer_config

        with _hub_errors(name):
            declared = get_tokenizer_config(name, **origin)
            blank = {role: token for role, token in self.spec.control_tokens.items() if declared.get(role) == ""}
            made = _tokenizer_class(declared.get("tokenizer_class"), self.spec.tokenizer_class)
            tokenizer = made.from_pretrained(name, **origin, **blank)
        # transformers 5 no longer puts BOS before a LLaMA text unless the configuration says so; most do not.
        if self.spec.begins_with_bos and "add_bos_token" not in declared:
            tokenizer.add_bos_token = True
        if self.spec.pad_token != "own" or tokenizer.pad_token is None:
            source = "eos" if self.spec.pad_token == "own" else self.spec.pad_token
            tokenizer.pad_token = getattr(tokenizer, f"{source}_token") or tokenizer.eos_token
        return tokenizer

    def empty(self) -> Any:
        """The modules without memory or weights (on the meta device), to check names and count parameters."""
        import transformers

        check_supported(self.spec, self.quantization_bit)
        config, model_class = self.config(), getattr(transformers, self.spec.model_class)
        with torch.device("meta"):
            return model_class.from_config(config) if self.spec.model_class.startswith("Auto") else model_class(config)

    def fingerprint(self) -> str:
        """sha256 (hex) of the configuration and of the names and shapes of the tensors; not of their values."""
        from transformers import PreTrainedConfig

        # As the file has it: what a version of transformers adds by default would change the sum.
        facts, _ = PreTrainedConfig.get_config_dict(self.name, **self._origin())
        facts = {name: value for name, value in facts.items() if not name.startswith("_")}
        shapes = {name: list(parameter.shape) for name, parameter in self.empty().named_parameters()}
        return hashlib.sha256(json.dumps([facts, shapes], sort_keys=True, default=str).encode()).hexdigest()

    def load(self) -> Any:
        """The model on its device, frozen: weights in `precision`, or in 8 or 4 bits with the rest in `precision`.

        Raises:
            ValueError: the family cannot be run here, or not in these bits.
            OSError: the weights cannot be had.
        """
        check_supported(self.spec, self.quantization_bit)
        origin = self._origin()
        import transformers

        quantization = _quantization(self.quantization_bit, self.precision)
        with _hub_errors(self.name):
            model = getattr(transformers, self.spec.model_class).from_pretrained(
                self.name,
                dtype=DTYPES[self.precision],
                device_map={"": str(self.device)} if quantization or self.device.type == "cuda" else None,
                **origin,
                **({"quantization_config": quantization} if quantization else {}),
            )
        if not quantization:
            model.to(self.device)
        _keep_4bit_unpacked(model)
        model.requires_grad_(False)
        model.config.use_cache = False
        return model

    def _origin(self) -> dict[str, Any]:
        """Where and how to look, after making sure that there is something to find."""
        only_cached = hub.require_reachable(self.name)
        return {
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            **({"local_files_only": True} if only_cached else {}),
        }


def _tokenizer_class(declared: str | None, default: str) -> Any:
    """The class that a tokenizer's configuration declares in another spelling (`LLaMATokenizer`), else `default`. An
    unknown spelling would be loaded as a plain tokenizer, which gives LLaMA other ids without a word."""
    import transformers

    if declared and not hasattr(transformers, declared):
        respelled = next((name for name in dir(transformers) if name.lower() == declared.lower()), default)
        return getattr(transformers, respelled)
    return getattr(transformers, default)


def choose(
    name: str,
    spec: ModelSpec,
    *,
    precision: Precision | None = None,
    quantization_bit: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Base:
    """The base on this process's device; None is what the device and the family do best: the family's first choice of
    bits on CUDA, and 16 elsewhere, where fewer bits are no faster."""
    device = distributed.device()
    return Base(
        name=name,
        spec=spec,
        precision=precision or distributed.best_precision(),
        quantization_bit=quantization_bit or (spec.quantization_bits[0] if device.type == "cuda" else 16),
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


def check_supported(spec: ModelSpec, quantization_bit: int) -> None:
    """`ValueError` for a family, or bits of it, that this version cannot run."""
    if spec.attention != "causal":
        raise ValueError(
            "this family's prompt is read in both directions (prefix attention), which this version cannot train or "
            "run yet: use --model_type llama, bloom or auto"
        )
    if quantization_bit not in spec.quantization_bits:
        allowed = ", ".join(map(str, sorted(spec.quantization_bits)))
        raise ValueError(f"--quantization_bit {quantization_bit}: this family's weights load in {allowed} bits")


def _quantization(bits: int, precision: Precision) -> Any:
    if bits == 16:
        return None
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    # NF4 with double quantisation: Dettmers et al. 2023, QLoRA, arXiv 2305.14314.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[precision],
    )


def _keep_4bit_unpacked(model: nn.Module) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight at its first forward in eval mode, and
    adapters on it then get no gradient, without an error (measured; `docs/footguns.md`)."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 — not an attribute that Module declares


def attach_lora(model: Any, target_modules: Sequence[str], *, r: int, alpha: int, dropout: float) -> Any:
    """The model with a fresh LoRA adapter (Hu et al. 2021, arXiv 2106.09685); only the adapter trains.

    Raises:
        ValueError: a name in `target_modules` that no linear layer has, with the names that exist.
    """
    from peft import LoraConfig, get_peft_model

    check_targets(model, target_modules)
    targets: Any = "all-linear" if list(target_modules) == ["all-linear"] else list(target_modules)
    return get_peft_model(
        model,
        LoraConfig(
            r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none", task_type="CAUSAL_LM"
        ),
    )


def linear_names(model: nn.Module) -> list[str]:
    """The last parts of the names of all linear layers but the head, sorted."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # pyright: ignore[reportCallIssue]
    return sorted({name.rpartition(".")[2] for name, layer in _linear_layers(model) if layer is not head})


def check_targets(model: nn.Module, target_modules: Sequence[str]) -> None:
    """`ValueError` for a target that names no linear layer."""
    if list(target_modules) == ["all-linear"]:
        return
    names = [name for name, _ in _linear_layers(model)]
    for target in target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ValueError(
                f"--lora_target_modules {target}: no linear layer of this model has that name. "
                f"It has: {', '.join(linear_names(model))} (or all-linear)"
            )


def _linear_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """GPT-2's `Conv1D` is a linear layer with its weight transposed."""
    from transformers.pytorch_utils import Conv1D

    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)]


def load_adapter(model: Any, directory: Path) -> Any:
    """`model` with the adapter in `directory`, for inference."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(directory)).eval()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; a 4-bit weight counts its elements, not its bytes."""
    sizes = [(p.requires_grad, getattr(p, "quant_state", None), p) for p in model.parameters()]
    counts = [(trains, state.shape.numel() if state is not None else p.numel()) for trains, state, p in sizes]
    return sum(n for trains, n in counts if trains), sum(n for _, n in counts)


def shape(model: Any) -> dict[str, int]:
    """What `preflight.activation_bytes` asks of a model."""
    config = model.config.get_text_config()
    return {
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "vocabulary": config.vocab_size,
        "bytes_per_value": next(model.parameters()).dtype.itemsize
        if not getattr(config, "quantization_config", None)
        else 2,
    }
