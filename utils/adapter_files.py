"""An adapter's two files: whole, and with the tensors that a model takes.

Knows: their names, what of them peft needs, and what to say where that is not there. Does not know how an adapter is
loaded.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
NAMES = (CONFIG, WEIGHTS)
_REMEDY = "copy the run's directory again, or train again"


def facts(directory: Path) -> dict[str, Any]:
    """The configuration of the adapter in `directory`, as the file has it; its `peft_type` is one that peft knows.

    Raises:
        ValueError: it is missing or broken; peft would look for the directory's name on the hub.
    """
    from peft import PeftType

    path = directory / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not the JSON of an adapter: {error}: {_REMEDY}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}: {_REMEDY}") from error
    if not isinstance(found, dict) or found.get("peft_type") not in list(PeftType):
        raise ValueError(f"{path} names no method of peft: {_REMEDY}")
    return found


def tensor_names(directory: Path) -> set[str]:
    """The names of the tensors of the adapter in `directory`.

    Raises:
        ValueError: one of its two files is missing or broken; peft would look for the directory's name on the hub.
    """
    from safetensors import SafetensorError, safe_open

    facts(directory)
    path = directory / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}: {_REMEDY}") from error


@contextmanager
def reading(directory: Path, names: set[str]) -> Iterator[None]:
    """Around peft's reading of a file with the tensors `names`: what it raises for one that does not fit its base, as a
    `ValueError` of one line. It only warns of tensors that are missing: see `require_tensors`."""
    path = directory / WEIGHTS
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")
            yield
    except KeyError as error:  # virtual tokens that are not there
        if error.args[0] in names:
            raise
        raise ValueError(f"{path} lacks the tensor {error.args[0]}: {_REMEDY}") from error
    except RuntimeError as error:
        wrong = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), None)
        if wrong is None:
            raise
        raise ValueError(f"{path} does not fit its base: {wrong.rstrip('.')}: {_REMEDY}") from error


def require_tensors(directory: Path, names: set[str], expected: set[str], allowed: set[str]) -> None:
    """`ValueError` where the tensors `names` of the file are not all `expected` ones, or others than `allowed` ones
    beside them."""
    for found, what in (
        (expected - names, f"lacks {{}} of the adapter's {len(expected)} tensors"),
        (names - expected - allowed, "has {} tensors that no part of the adapter takes"),
    ):
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise ValueError(f"{directory / WEIGHTS} {what.format(len(found))}, {min(found)}{more}: {_REMEDY}")
