"""An adapter's two files: whole, and with the tensors that a model takes.

Knows: their names, what of them peft needs, that nothing in them runs, and what to say where something is not there.
Does not know how an adapter is loaded.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils import runinfo

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
NAMES = (CONFIG, WEIGHTS)
PICKLED = "adapter_model.bin"
"""What peft wrote before 0.7: a pickle, which could run code while it is read."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Ways to begin a LoRA that take the base's weights apart. A run's own PiSSA is saved as a plain LoRA."""
_ANY_TARGETS = ("Target modules", "No modules were targeted")
"""How peft's messages begin where a base has no layer that the adapter is on."""


def weights_file(directory: Path) -> Path:
    """The file of tensors that peft reads: safetensors if it is there."""
    path = directory / PICKLED
    return path if path.is_file() and not (directory / WEIGHTS).is_file() else directory / WEIGHTS


def facts(directory: Path) -> dict[str, Any]:
    """The configuration of the adapter in `directory`, as the file has it; its `peft_type` is one that peft knows.

    Raises:
        ValueError: it is missing or broken (peft would look for the directory's name on the hub), or of a peft that
            split packed layers, which later ones cannot, or for a base that cannot be made again.
    """
    from peft import PeftType

    path = directory / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not the JSON of an adapter: {error}: {_remedy(directory)}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}: {_remedy(directory)}") from error
    if not isinstance(found, dict) or found.get("peft_type") not in list(PeftType):
        raise ValueError(f"{path} names no method of peft: {_remedy(directory)}")
    if found.get("enable_lora"):
        raise ValueError(
            f"{path}: this adapter is on some of the matrices of a packed layer (enable_lora {found['enable_lora']}), "
            "which peft gave up in 0.3: merge it with the peft that made it, and give the result as the model"
        )
    start = found.get("init_lora_weights", True)
    if str(start).startswith(_CHANGES_BASE):
        raise ValueError(
            f"{path}: this LoRA changed its base as it began (init_lora_weights {start}), and fits no base that is "
            "here: convert it to a plain one where it was trained (peft's path_initial_model_for_weight_conversion)"
        )
    return found


def config(directory: Path) -> Any:
    """The same as peft reads it, without its warning of fields that it leaves out (`unknown_fields`)."""
    from peft import PeftConfig

    facts(directory)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unexpected keyword arguments")
        return PeftConfig.from_pretrained(str(directory))


def unknown_fields(directory: Path) -> list[str]:
    """The fields of its configuration that this peft does not know and would leave out, and that say something."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    found = facts(directory)
    known: Any = PEFT_TYPE_TO_CONFIG_MAPPING[found["peft_type"]]
    # Of peft before 0.3: whether weights were merged in evaluation.
    left_out = found.keys() - known.__dataclass_fields__.keys() - {"merge_weights", "runtime_config"}
    return sorted(name for name in left_out if found[name])


def tensor_names(directory: Path) -> set[str]:
    """The names of the tensors of the adapter in `directory`.

    Raises:
        ValueError: one of its two files is missing or broken; peft would look for the directory's name on the hub.
            Or its weights are a pickle of more than tensors.
    """
    from safetensors import SafetensorError, safe_open

    facts(directory)
    path = weights_file(directory)
    if path.name == PICKLED:
        return _pickled_names(path)
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}: {_remedy(directory)}") from error


def _pickled_names(path: Path) -> set[str]:
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of a pickle's protocol, and then it is refused
            found = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # of a dozen kinds: torch's unpickler reads whatever bytes it is given
        if "unsupported global" in str(error).lower():
            raise ValueError(
                f"{path} is refused: it is a pickle of more than tensors, and what it asks for can run code. If you "
                f"trust it, convert it to {WEIGHTS}: docs/adapters.md says how"
            ) from error
        with path.open("rb") as file:
            begins = file.read(16)
        raise ValueError(
            f"{path} is not a whole file of tensors (it begins with {begins!r}): {_remedy(path.parent)}"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise ValueError(f"{path} is no mapping of names to tensors: {_remedy(path.parent)}")
    return set(found)


@contextmanager
def reading(directory: Path, names: set[str]) -> Iterator[None]:
    """Around peft's reading of a file with the tensors `names`: what it raises for one that does not fit its base, as a
    `ValueError` of one line. It only warns of tensors that are missing: see `require_tensors`."""
    path, remedy = weights_file(directory), _remedy(directory, misfit=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")
            warnings.filterwarnings("ignore", "Unexpected keyword arguments")  # `unknown_fields` has those that matter
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")  # into an empty model, to compare
            yield
    except KeyError as error:  # virtual tokens that are not there
        if error.args[0] in names:
            raise
        raise ValueError(f"{path} lacks the tensor {error.args[0]}: {remedy}") from error
    except ValueError as error:
        if not str(error).startswith(_ANY_TARGETS):
            raise
        raise ValueError(f"{directory} does not fit its base: {_first_sentence(error)}: {remedy}") from error
    except RuntimeError as error:
        wrong = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), None)
        if wrong is None:
            raise
        raise ValueError(f"{path} does not fit its base: {wrong.rstrip('.')}: {remedy}") from error


def require_tensors(directory: Path, names: set[str], expected: set[str], allowed: set[str]) -> None:
    """`ValueError` where the tensors `names` of the file are not all `expected` ones, or others than `allowed` ones
    beside them."""
    for found, what in (
        (expected - names, f"lacks {{}} of the adapter's {len(expected)} tensors"),
        (names - expected - allowed, "has {} tensors that no part of the adapter takes"),
    ):
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            said = f"{weights_file(directory)} {what.format(len(found))}, {min(found)}{more}"
            raise ValueError(f"{said}: {_remedy(directory, misfit=True)}")


def _first_sentence(error: BaseException) -> str:
    return str(error).partition(". ")[0].splitlines()[0].rstrip(".")


def _remedy(directory: Path, *, misfit: bool = False) -> str:
    if runinfo.is_ours(directory):
        return "copy the run's directory again, or train again"
    other_base = "name the base that it was trained on with --model_name_or_path, or " if misfit else ""
    return f"{other_base}copy the adapter again"
