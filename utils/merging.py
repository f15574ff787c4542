"""Merging: a base and an adapter become one checkpoint, proved by what is read back from disk.

Knows: which weights an adapter goes into, how a checkpoint is written, and what its proof is. Does not know flags, or
how a run is found.

The proof compares three things with base + adapter, unmerged. Every adapted layer of the checkpoint answers single
inputs as the layer with its adapter did, up to the rounding of its weights. The logits on `equivalence.QUESTIONS` lie
within `TOLERANCE`. Every tensor on disk has the bytes that it had in memory.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from utils import adapter_files, adapters, chat_templates, disk, distributed, equivalence, folding, outputs, runinfo
from utils.conversation import asks_instructions
from utils.distributed import DTYPES, Precision
from utils.encode import encode_prompt
from utils.equivalence import Divergence
from utils.loading import Base
from utils.merged_card import card
from utils.methods import get_method
from utils.templates import Template

NAME = runinfo.MERGED
FORMAT = 1
Into = Literal["base", "trained"]

# Largest logit difference as a share of the largest logit, with everything computed in fp32. In fp32 the sums are only
# taken in another order; in 16 bits each merged weight is rounded once (docs/merging.md has what was measured).
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
PRECISIONS: dict[str, Precision] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
HEADERS: dict[str, Precision] = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}  # as safetensors spells them


class MergeError(ValueError):
    """A merged checkpoint that is not base + adapter."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What is merged: a run, and what it was trained with."""

    directory: Path
    run: runinfo.RunInfo
    base: Base
    """As it was trained: in its bits and precision."""
    tokenizer: Any
    template: Template

    @property
    def is_quantised(self) -> bool:
        """Whether the adapter was trained on weights of 8 or 4 bits."""
        return self.base.quantization_bit != 16


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A model with its adapter merged into it, in memory, and what base + adapter answered before."""

    model: Any
    prompts: list[list[int]]
    logits: torch.Tensor
    """Of base + adapter (`equivalence.probe_logits`)."""
    responses: dict[str, torch.Tensor]
    """Adapted layer → its `equivalence.response` with the adapter."""
    effect: Divergence
    """What the adapter changes: base + adapter against the base."""
    from_trained: dict[str, Divergence]
    """Where the base was quantised: into which weights → how far base + adapter is then from what was trained."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What reading a merged checkpoint back has shown."""

    logits: Divergence
    """The merged checkpoint against base + adapter."""
    tolerance: float
    """Allowed share of the largest logit."""
    layers: int
    """Adapted layers, each compared by itself."""
    worst_layer: float
    """Difference as a multiple of what rounding explains, at most 1."""
    tensors: int
    """All of them read back to the byte."""


def require_mergeable(directory: Path, trained: str) -> None:
    """`ValueError` if the run in `directory`, with the method `trained`, has nothing that fits into a base's weights;
    says how to serve it."""
    if get_method(trained).trains_base:
        raise ValueError(
            f"{directory} holds no adapter, so there is nothing to merge: a run that trained all weights is a whole "
            f"checkpoint already: python3 generate.py --lora_dir {directory}"
        )
    if not (directory / "adapter_config.json").is_file():
        raise ValueError(f"{directory} has no adapter_config.json, and was trained with {trained}: copy the run whole")
    adapter_files.tensor_names(directory)
    if adapter_files.config(directory).is_prompt_learning:
        raise ValueError(
            f"{directory} was trained with {trained}: its virtual tokens stand before a prompt and are in no layer's "
            f"weights, so they cannot be merged. Serve it unmerged: python3 generate.py --lora_dir {directory}"
        )


def require_room(destination: Path, *, overwrite: bool) -> None:
    """`ValueError` if something is at `destination` that must not be replaced, or was, when a merge was killed."""
    outputs.recover(destination)
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    is_trained = any(next(destination.glob(trace), None) for trace in runinfo.TRACES if trace != runinfo.NAME)
    if is_trained or not (destination / NAME).is_file():
        raise ValueError(f"--merged_dir {destination} exists and is not a merged checkpoint: choose another")
    if not overwrite:
        raise ValueError(f"--merged_dir {destination} already holds a merged checkpoint: --overwrite replaces it")


def storage(base: Base, precision: Precision | None) -> Base:
    """`base` as its merged checkpoint will be stored: unquantised, in `precision` (None: `own_precision`, or bf16), on
    CUDA where that has room and on the CPU elsewhere."""
    chosen = precision or own_precision(base) or "bf16"
    free = distributed.free_memory()
    fits = free is not None and 1.2 * checkpoint_bytes(base, chosen) < free
    return replace(base, precision=chosen, quantization_bit=16, device=base.device if fits else torch.device("cpu"))


def own_precision(base: Base) -> Precision | None:
    """Of the base's checkpoint: as its `config.json` says, else as its safetensors are; None where neither tells."""
    facts = base.facts()
    # A checkpoint that is read as another class has a new configuration, without it.
    declared = facts.get("dtype") or facts.get("torch_dtype") or getattr(base.config().get_text_config(), "dtype", None)
    if found := PRECISIONS.get(str(declared).removeprefix("torch.")):
        return found
    from transformers.utils.hub import cached_file

    def local(name: str) -> str:
        return cached_file(base.name, name, revision=base.revision, _raise_exceptions_for_missing_entries=False) or ""

    try:
        if not (path := local("model.safetensors")):
            shards = json.loads(Path(local("model.safetensors.index.json")).read_text(encoding="utf-8"))["weight_map"]
            path = local(min(shards.values()))
        with safe_open(path, framework="pt") as file:
            return HEADERS.get(file.get_slice(min(file.keys())).get_dtype())
    except (OSError, ValueError, LookupError, TypeError, SafetensorError):
        return None  # what is wrong with it is said where it is loaded


def checkpoint_bytes(base: Base, precision: Precision) -> int:
    """Disk of all weights of `base` in `precision`."""
    elements = sum(parameter.numel() for parameter in replace(base, quantization_bit=16).empty().parameters())
    return elements * DTYPES[precision].itemsize


def merge(
    origin: Origin,
    destination: Path,
    *,
    precision: Precision | None = None,
    into: Into = "base",
    max_shard_size: str = "4GB",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Merges `origin` into a checkpoint at `destination`, which appears whole and proved or not at all.

    Args:
        precision: of the stored weights; None: that of the base's checkpoint.
        into: `trained`: into the weights that the adapter was trained on, where those were quantised.
        max_shard_size: of one file, such as "4GB".

    Returns:
        What is in `merge.json`.

    Raises:
        MergeError: the checkpoint is not base + adapter.
        ValueError: the run cannot be merged, or `destination` must not be replaced.
        OSError: too little room, or the base cannot be had.
    """
    require_mergeable(origin.directory, origin.run.method)
    require_room(destination, overwrite=overwrite)
    plain = storage(origin.base, precision)
    needed = checkpoint_bytes(plain, plain.precision) + disk.SMALL_FILES
    disk.require_space(destination, needed, remedy="or choose another --merged_dir")
    with outputs.atomic_directory(destination) as folder:
        merged = merge_in_memory(origin, plain, into)
        sums, model_class = save(merged, origin, plain, folder, max_shard_size), type(merged.model)
        merged = replace(merged, model=None)  # the one that is read back takes its place
        gc.collect()
        proof = prove(folder, merged, plain, model_class, sums)
        require_same_prompts(folder, origin, merged.prompts)
        facts = _facts(origin, plain, into, merged, proof) | {"class": model_class.__name__}
        asks = asks_instructions(origin.run.sources)
        exported = chat_templates.export(folder, origin.template, origin.tokenizer, asks_instructions=asks)
        facts["chat_template"] = exported.as_dict()
        # To every script it is a run that trained all weights.
        whole = origin.run.settings | {"peft_type": "full", "quantization_bit": 16}
        runinfo.write(replace(origin.run, settings=whole), folder)
        (folder / NAME).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(facts), encoding="utf-8")
    return facts


def merge_in_memory(origin: Origin, plain: Base, into: Into) -> Merged:
    """The base as `plain` stores it with the adapter merged in, layer by layer in place, after measuring what base and
    adapter answer."""
    prompts = equivalence.probe_prompts(origin.template, origin.tokenizer)
    trained, from_trained = None, {}
    if origin.is_quantised:
        trained = equivalence.probe_logits(adapters.load_adapter(origin.base.load(), origin.directory), prompts)
        other: Into = "trained" if into == "base" else "base"
        from_trained[other] = equivalence.divergence(trained, _logits(_adapted(origin, plain, other), prompts))
        gc.collect()
    model = _adapted(origin, plain, into)
    logits = _logits(model, prompts)
    if trained is not None:
        from_trained[into] = equivalence.divergence(trained, logits)
    with model.disable_adapter():
        effect = equivalence.divergence(_logits(model, prompts), logits)
    if effect.max_logit_difference == 0:
        raise ValueError(f"the adapter in {origin.directory} changes nothing: train it longer, or serve the base")
    with equivalence.computing_in_fp32(model):
        layers = folding.adapted_layers(model)
        responses = {name: equivalence.response(layer, layer.get_base_layer()) for name, layer in layers.items()}
    model = folding.merge_layers(model)
    return Merged(
        model=model, prompts=prompts, logits=logits, responses=responses, effect=effect, from_trained=from_trained
    )


def _adapted(origin: Origin, plain: Base, into: Into) -> Any:
    """The unquantised base with its adapter, unmerged."""
    model = plain.load()
    if into == "trained" and origin.is_quantised:
        folding.copy_dequantised(origin.base.load(), model)
    return adapters.load_adapter(model, origin.directory)


def _logits(model: Any, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    with equivalence.computing_in_fp32(model):
        return equivalence.probe_logits(model, prompts)


def save(merged: Merged, origin: Origin, plain: Base, folder: Path, max_shard_size: str) -> dict[str, int]:
    """Writes model, generation configuration and tokenizer; returns the checksums of the tensors in memory."""
    model, tokenizer = merged.model, origin.tokenizer
    model.config.use_cache = getattr(plain.config(), "use_cache", True)  # off while loaded for training
    decoding = model.generation_config
    decoding.eos_token_id, decoding.pad_token_id = list(origin.run.stop_token_ids), tokenizer.pad_token_id
    try:
        decoding.validate(strict=True)
    except ValueError:  # LLaMA 2 came with a temperature but without sampling, which transformers refuses to write
        decoding.do_sample = True
    sums = equivalence.checksums(model)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return sums


def prove(folder: Path, merged: Merged, plain: Base, model_class: Any, sums: dict[str, int]) -> Proof:
    """Reads the checkpoint in `folder` into a fresh model and compares it with base + adapter.

    Raises:
        MergeError: it cannot be read, lacks tensors or has others, or answers otherwise.
    """
    fresh = _read_back(folder, plain, model_class)
    worst, name = _worst_layer(fresh, merged.responses, DTYPES[plain.precision])
    if not worst <= 1:
        raise MergeError(
            f"the merged layer {name} is not layer + adapter: it differs by {worst:.3g} times what rounding to "
            f"{plain.precision} explains. Nothing was kept"
        )
    found = equivalence.checksums(fresh)
    for tensor in sums.keys() | found.keys():
        if sums.get(tensor) != found.get(tensor):
            raise MergeError(f"the tensor {tensor} on disk is not the one that was written. Nothing was kept")
    logits = equivalence.divergence(merged.logits, _logits(fresh, merged.prompts))
    tolerance = TOLERANCE[plain.precision]
    if not logits.max_logit_difference <= tolerance * max(logits.max_logit, 1.0):
        raise MergeError(
            f"the merged checkpoint does not answer as base + adapter: {logits}; allowed are {tolerance:.0e} of the "
            "largest logit. Nothing was kept"
        )
    return Proof(logits=logits, tolerance=tolerance, layers=len(merged.responses), worst_layer=worst, tensors=len(sums))


def _read_back(folder: Path, plain: Base, model_class: Any) -> Any:
    try:
        model, report = model_class.from_pretrained(folder, dtype=DTYPES[plain.precision], output_loading_info=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise MergeError(f"the merged checkpoint cannot be read back ({reason}). Nothing was kept") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[what]:
            names = ", ".join(sorted(map(str, report[what]))[:3])
            raise MergeError(f"the merged checkpoint has {what.replace('_', ' ')}: {names}. Nothing was kept")
    return model.to(plain.device).eval()


def _worst_layer(model: nn.Module, responses: dict[str, torch.Tensor], dtype: torch.dtype) -> tuple[float, str]:
    with equivalence.computing_in_fp32(model):
        layers = {name: model.get_submodule(name) for name in responses}
        measured = [
            (equivalence.beyond_rounding(expected, equivalence.response(layers[name], layers[name]), dtype), name)
            for name, expected in responses.items()
        ]
    # NaN compares as false with everything: it must not hide behind max().
    return next(((worst, name) for worst, name in measured if worst != worst), max(measured))


def require_same_prompts(folder: Path, origin: Origin, prompts: Sequence[Sequence[int]]) -> None:
    """`MergeError` if the tokenizer in `folder` does not encode the probes as the run's does."""
    reread = replace(origin.base, name=str(folder), revision=None).tokenizer()
    for question, ids in zip(equivalence.QUESTIONS, prompts, strict=True):
        if list(encode_prompt(question, origin.template, reread)) != list(ids):
            raise MergeError(f"the saved tokenizer encodes {question['instruction']!r} otherwise. Nothing was kept")


def _facts(origin: Origin, plain: Base, into: Into, merged: Merged, proof: Proof) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "adapter": str(origin.directory.resolve()),
        "into": into,
        "precision": plain.precision,
        "own_precision": own_precision(origin.base),
        "proof": asdict(proof),
        "effect": merged.effect.as_dict(),
        "from_trained": {kind: figures.as_dict() for kind, figures in sorted(merged.from_trained.items())},
        "versions": runinfo.versions(),
        "run": asdict(origin.run),
    }
