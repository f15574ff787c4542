"""The model registry: a family's row by its name, and a checkpoint by its size.

Knows: what to say of a name, a size or a checkpoint that cannot be had; the rows are in `rows`. Does not know how to
load any of them; that is `utils.loading`. Adding a family is one row, and one line in `tests/test_models.py`
(`docs/adding-a-model.md`); `docs/models.md` is made of the rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from utils import lookup
from utils.models.rows import MODELS, REPOSITORY
from utils.models.spec import ModelSpec, TrainingDefaults

__all__ = [
    "COMMIT",
    "DEFAULT_MODEL",
    "MODELS",
    "MOVED",
    "REPOSITORY",
    "SIZED_MODEL",
    "ModelSpec",
    "TrainingDefaults",
    "checkpoint_of",
    "get_model",
    "gone",
    "require_runnable",
]

DEFAULT_MODEL = "tiny"
SIZED_MODEL = "llama"
"""What `--size` means where no family is named: the original project's first commands knew only this one."""
COMMIT = re.compile(r"[0-9a-f]{40}")

MOVED: Mapping[str, str] = MappingProxyType(
    {f"decapoda-research/llama-{size}-hf": f"huggyllama/llama-{size}" for size in ("7b", "13b", "30b", "65b")}
)
"""A hub id that is gone → the id that holds the same weights today."""


def get_model(name: str) -> ModelSpec:
    """The row called `name`; `ValueError` with the nearest names."""
    return lookup.find("model type", name, MODELS, "--model_type")


def checkpoint_of(name: str, spec: ModelSpec, size: str | None) -> str:
    """The hub id or path of family `name` in `size` (`7b`, or `7` for short; None: the default size).

    Raises:
        ValueError: no such size, with the sizes there are and the families of the same stem that have it; a row
            without a default model.
    """
    if spec.default_checkpoint is None:
        raise ValueError(f"--model_type {name} has no default model: name one with --model_name_or_path")
    if size is None:
        return spec.default_checkpoint
    key = f"{size}b" if re.fullmatch(r"[\d.]+", size) else size.lower()
    if key not in spec.checkpoints:
        message = lookup.unknown_name("size", key, spec.checkpoints, f"--size of --model_type {name}")
        kin = [other for other, row in MODELS.items() if key in row.checkpoints and _stem(other) == _stem(name)]
        raise ValueError(message + (f" --model_type {' or '.join(kin)} has it." if kin else ""))
    return spec.checkpoints[key]


def gone(checkpoint: str) -> str:
    """Why a hub id is no longer there and what to name instead, as a clause; empty for all that are not known to be."""
    if checkpoint not in MOVED:
        return ""
    return f"this id has left the hub, and {MOVED[checkpoint]} holds the same weights under the same licence"


def require_runnable(name: str, checkpoint: str, *, trust_remote_code: bool, revision: str | None) -> None:
    """Returns if no code of the checkpoint's repository will run, or if the user has agreed to run just this code.

    The code of a hub repository can change under its name, so it takes a commit; a directory's lies there to be read.

    Args:
        checkpoint: hub id or local directory.

    Raises:
        ValueError: its own code is needed, and was not agreed to, or is not pinned to a commit of 40 hex digits.
    """
    reason = get_model(name).remote_code
    needs = f"--model_type {name} runs only with the code that its repository brings ({reason})" if reason else ""
    if reason and not trust_remote_code:
        raise ValueError(f"{needs}: read that code, and if you trust it give --trust_remote_code and --revision COMMIT")
    if trust_remote_code and not Path(checkpoint).is_dir() and not COMMIT.fullmatch(revision or ""):
        what = needs or "--trust_remote_code runs code that can change under its name"
        raise ValueError(
            f"{what}, and --revision {revision or '(not given)'} pins none: give the 40 hex digits of the commit of "
            f"{checkpoint} that you have read"
        )


def _stem(name: str) -> str:
    """`baichuan_13b` and `baichuan2` → `baichuan`."""
    return re.sub(r"[\d_].*", "", name)
