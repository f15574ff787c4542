"""Tokenizers and bases: a model's row and a checkpoint become a model on a device.

Knows: what transformers and bitsandbytes are asked for. Does not know records, flags, adapters or training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils import architectures, distributed, hub
from utils.architectures import Architecture
from utils.distributed import DTYPES, Precision
from utils.models import MODELS, ModelSpec, gone, require_runnable
from utils.models.configurations import configuration


def quiet_libraries() -> None:
    """Keeps the libraries from writing over our own report; their errors still come through."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft)")
    # peft drops positions that nobody gave, and says so at every token that a prompt method generates.
    warnings.filterwarnings("ignore", message="Position ids are not supported")
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
        reason = gone(name) or _first_line(error)
        raise OSError(hub.advice(name, reason)) from error
    except ValueError as error:
        if "trust_remote_code" not in str(error) and "does not recognize" not in str(error):
            raise
        first = _first_line(error)
        raise ValueError(
            f"cannot load {name!r}: {first}. transformers has no class for it; --trust_remote_code with --revision "
            "COMMIT runs the code that its repository brings, if you have read and trust it"
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
    sizes: Mapping[str, Any] | None = None
    """What stands for `config.json` where only `empty` is wanted, from `models.configurations`."""

    @property
    def needs_mask(self) -> bool:
        """The model must be told where padding is, or is not known not to need it."""
        return self.spec.attention != "causal" or self.trust_remote_code

    def on_cpu(self) -> Base:
        """The same base, to be loaded into the machine's memory."""
        return replace(self, device=torch.device("cpu"))

    def facts(self) -> dict[str, Any]:
        """`config.json` as the file has it. Raises `OSError`, with advice, where it cannot be had."""
        if self.sizes is not None:
            return dict(self.sizes)
        origin = self._origin()
        from transformers import PreTrainedConfig

        with _hub_errors(self.name):
            return PreTrainedConfig.get_config_dict(self.name, **origin)[0]

    def config(self) -> Any:
        """The configuration. Raises `OSError` (with advice) or `ValueError` where it cannot be had."""
        facts = self.facts()
        if architecture := self._architecture(facts):
            return architecture.configuration(facts)
        from transformers import AutoConfig

        if self.sizes is not None:
            return AutoConfig.for_model(**facts)
        with _hub_errors(self.name):
            return AutoConfig.from_pretrained(self.name, **self._origin())

    def _architecture(self, facts: dict[str, Any]) -> Architecture | None:
        """How to read a checkpoint that transformers has no class for; None: it has one, or remote code is meant."""
        return None if self.spec.remote_code else architectures.find(facts)

    def tokenizer(self, directory: Path | None = None) -> Any:
        """The tokenizer, with the row's control tokens where its own are missing or blank, and a pad token; the one
        that a run saved, if its directory is given."""
        name = str(directory or self.name)
        saved: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        origin = self._origin() if directory is None else saved
        architecture = self._architecture(self.facts())
        self._check_family(self.config(), architecture)
        from transformers.models.auto.tokenization_auto import get_tokenizer_config

        with _hub_errors(name):
            declared = get_tokenizer_config(name, **origin)
            blank = {role: token for role, token in self.spec.control_tokens.items() if declared.get(role) == ""}
            made = self._tokenizer_class(architecture, declared.get("tokenizer_class"))
            tokenizer = made.from_pretrained(name, **origin, **blank)
            of_base = get_tokenizer_config(self.name, **self._origin()) if directory else {}
        # transformers 5 no longer puts BOS before a LLaMA text unless the configuration says so; most do not.
        if self.spec.begins_with_bos:
            tokenizer.add_bos_token = {"add_bos_token": True, **of_base, **declared}["add_bos_token"]
        if self.spec.pad_token != "own" or tokenizer.pad_token is None:
            source = "eos" if self.spec.pad_token == "own" else self.spec.pad_token
            tokenizer.pad_token = getattr(tokenizer, f"{source}_token") or tokenizer.eos_token
        return tokenizer

    def save_tokenizer(self, tokenizer: Any, directory: Path) -> None:
        """Writes the files of `tokenizer()`'s, and what transformers leaves out of them: whether BOS comes first."""
        tokenizer.save_pretrained(directory)
        file = directory / "tokenizer_config.json"
        declared = json.loads(file.read_text(encoding="utf-8"))
        if self.spec.begins_with_bos and "add_bos_token" not in declared:
            text = json.dumps({**declared, "add_bos_token": tokenizer.add_bos_token}, indent=2, ensure_ascii=False)
            file.write_text(text + "\n", encoding="utf-8")

    def _tokenizer_class(self, architecture: Architecture | None, declared: str | None) -> Any:
        """What loads the tokenizer: ours, where transformers has none, or one that gives other ids: its
        LlamaTokenizer reads a text's leading blanks otherwise than SentencePiece, with which LLaMA was trained
        (docs/footguns.md)."""
        import transformers

        from utils import chatglm, slow_tokenizers

        own = {"chatglm": chatglm.ChatGLMTokenizer, **slow_tokenizers.SLOW_TOKENIZERS}
        if architecture and architecture.tokenizer:
            return own[architecture.tokenizer]
        # A converted checkpoint that was merged, or trained whole, is a Llama or GLM by now; its tokenizer is not.
        saved = {getattr(getattr(made, "exact", made), "__name__", ""): made for made in own.values()}
        if declared and declared in saved and not hasattr(transformers, declared):
            return saved[declared]
        is_llama = (declared or "").lower().removesuffix("fast") == "llamatokenizer"
        return own["llama"] if is_llama else _respelled(declared)

    def empty(self) -> Any:
        """The modules without memory or weights (on the meta device), to check names and count parameters."""
        from transformers import AutoModelForCausalLM

        check_bits(self.spec, self.quantization_bit)
        config, architecture = self.config(), self._architecture(self.facts())
        self._check_family(config, architecture)
        with torch.device("meta"), _hub_errors(self.name):
            if architecture:
                return architecture.empty(config)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=self.trust_remote_code)

    def class_name(self) -> str | None:
        """The class that runs it, of transformers or our own; None where only its own code has one."""
        return _class_name(self.config(), self._architecture(self.facts()))

    def _check_family(self, config: Any, architecture: Architecture | None) -> None:
        """`ValueError` for a checkpoint of another family than the row, whose targets and prompt it would get."""
        model_class = _class_name(config, architecture)
        families = [name for name, row in MODELS.items() if model_class in row.native and row.default_checkpoint]
        if self.spec.native and model_class and model_class not in self.spec.native:
            raise ValueError(
                f"{self.name} is a {model_class}, and this --model_type is {' or '.join(self.spec.native)}: give "
                f"--model_type {' or '.join([*families, 'auto'])}"
            )

    def fingerprint(self) -> str:
        """sha256 (hex) of the configuration and of the names and shapes of the tensors; not of their values."""
        # As the file has it: what a version of transformers adds by default would change the sum.
        facts = {name: value for name, value in self.facts().items() if not name.startswith("_")}
        shapes = {name: list(parameter.shape) for name, parameter in self.empty().named_parameters()}
        return hashlib.sha256(json.dumps([facts, shapes], sort_keys=True, default=str).encode()).hexdigest()

    def load(self) -> Any:
        """The model on its device, frozen: weights in `precision`, or in 8 or 4 bits with the rest in `precision`.

        Raises:
            ValueError: the family cannot be run here, or not in these bits.
            OSError: the weights cannot be had.
        """
        check_bits(self.spec, self.quantization_bit)
        origin, facts = self._origin(), self.facts()
        architecture = self._architecture(facts)
        self._check_family(self.config(), architecture)
        from transformers import AutoModelForCausalLM

        quantization = _quantization(self.quantization_bit, self.precision)
        options: dict[str, Any] = {
            "dtype": DTYPES[self.precision],
            "device_map": {"": str(self.device)} if quantization or self.device.type == "cuda" else None,
            **({"quantization_config": quantization} if quantization else {}),
        }
        model: Any
        with _hub_errors(self.name), _broken_files(self.name):
            if architecture:
                model = architectures.load(architecture, self.name, facts, origin, **options)
            else:
                load: Any = AutoModelForCausalLM.from_pretrained
                model, report = load(self.name, output_loading_info=True, **origin, **options)
                _require_complete(self.name, report)
        if not quantization:
            model.to(self.device)
        keep_4bit_unpacked(model)
        model.requires_grad_(False)
        model.config.use_cache = False
        return model

    def _origin(self) -> dict[str, Any]:
        """Where and how to look, after making sure that there is something to find."""
        with _hub_errors(self.name) if gone(self.name) else nullcontext():
            only_cached = hub.require_reachable(self.name)
        return {
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            **({"local_files_only": True} if only_cached else {}),
        }


def _class_name(config: Any, architecture: Architecture | None) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    own = architecture.model_class if architecture else None
    return own or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)


@contextmanager
def _broken_files(name: str) -> Iterator[None]:
    """Turns what the readers of weights raise into a sentence; of memory that ran out they say enough themselves."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"cannot load {name!r}: its weights cannot be read, or not as its config.json says "
            f"({_first_line(error)}): download it again, and whole"
        ) from error


# Buffers of older versions, which are computed today.
_DERIVED = ("inv_freq", "masked_bias", "attn.bias", "attention.bias")


def _require_complete(name: str, report: dict[str, Any]) -> None:
    """`ValueError` for a checkpoint with tensors too few or too many for its configuration: transformers would fill the
    former with random numbers, and leave out the latter, with a warning."""
    spare = [key for key in report["unexpected_keys"] if not key.endswith(_DERIVED)]
    for keys, what in ((report["missing_keys"], "has no"), (spare, "has, and its config.json has no place for,")):
        if keys:
            shown = ", ".join(sorted(map(str, keys))[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise ValueError(
                f"{name} {what} {shown}: weights and config.json are not of one checkpoint, or a file is missing"
            )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].strip().rstrip(".:")


def _respelled(declared: str | None) -> Any:
    """The tokenizer's class that a configuration declares in another spelling (`LLaMATokenizer`), else the automatic
    one. An unknown spelling would be loaded as a plain tokenizer, which gives LLaMA other ids without a word."""
    import transformers

    if declared and not hasattr(transformers, declared):
        known = {name.lower(): name for name in dir(transformers)}
        return getattr(transformers, known.get(declared.lower(), "AutoTokenizer"))
    return transformers.AutoTokenizer


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
    bits on CUDA, and 16 elsewhere, where fewer bits are no faster.

    Raises:
        ValueError: code of the checkpoint's repository would run, without consent to one commit of it.
    """
    family = next((family for family, row in MODELS.items() if row is spec), "auto")
    require_runnable(family, name, trust_remote_code=trust_remote_code, revision=revision)
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


def imagine(
    name: str, spec: ModelSpec, *, precision: Precision | None = None, quantization_bit: int | None = None
) -> Base:
    """The base on a CUDA device that is not here, for `empty` alone: of a checkpoint of the registry nothing is read,
    and the hub is not asked."""
    return Base(
        name=name,
        spec=spec,
        precision=precision or "bf16",
        quantization_bit=quantization_bit or spec.quantization_bits[0],
        device=torch.device("cuda"),
        sizes=configuration(name),
    )


def check_bits(spec: ModelSpec, quantization_bit: int) -> None:
    """`ValueError` for bits that a family's weights do not load in."""
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


def keep_4bit_unpacked(model: nn.Module) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit weight at its first forward in eval mode, and
    adapters on it then get no gradient, without an error; a layer of fewer inputs than a block has (64) cannot be
    repacked at all, and raises (measured; `docs/footguns.md`)."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 — not an attribute that Module declares
