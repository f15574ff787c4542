"""What a checkpoint is of, and whether a run can go on from it.

Knows: which settings and data decide a run's every step, what may be changed on the way, and what the change does.
Does not know how a checkpoint is written (`utils.checkpoints`) or loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from utils import checkpoints

if TYPE_CHECKING:
    from utils.dataset import TrainingData
    from utils.settings import Settings

_ROUNDING = "every step trains the same rows, and its sums are rounded otherwise"
CHANGEABLE: Mapping[str, str] = MappingProxyType(
    {
        "world_size": "every step trains the same rows, with other dropout and other rounding",
        "max_tokens_per_batch": _ROUNDING,
        "per_gpu_train_batch_size": _ROUNDING,
        "packing": _ROUNDING,
        "precision": "every step trains the same rows, in other arithmetic",
        "quantization_bit": "the adapter goes on beside other weights of its base",
        "attn_implementation": _ROUNDING,
        "liger_kernel": _ROUNDING,
        "torch_compile": _ROUNDING,
        "fsdp": _ROUNDING,
        "gradient_checkpointing": _ROUNDING,
    }
)
"""What `--resume_anyway` may change → what the change does. All else that is compared must be as it was."""

OF_ROWS = ("cutoff_len", "truncation", "val_set_size", "drop", "keep", "bad_rows")
"""Flags that decide the rows; named where these differ."""
HASHES: Mapping[str, str] = MappingProxyType({"base": "another base", "prompt": "another prompt"})
"""Hashes that are compared → how their difference is called."""


def identity(
    chosen: Settings, data: TrainingData, *, base: str, prompt: str, world_size: int, precision: str
) -> dict[str, Any]:
    """What a run's checkpoints are of, as JSON.

    Args:
        base: fingerprint of the base's configuration and tensors.
        prompt: hash of the template.
        precision: that the run computes in.
    """
    # AdaLoRA's steps follow from the length of the run, which may grow.
    options = {name: value for name, value in chosen.peft_options.items() if not name.startswith("adalora_t")}
    options.pop("adalora_delta_t", None)
    settings = chosen.as_dict()
    return {
        "peft_type": chosen.peft_type,
        **options,
        "base": base,
        "prompt": prompt,
        "batch_size": chosen.rows_a_step(world_size),
        "seed": chosen.seed,
        "rows": digest(data),
        "world_size": world_size,
        **{name: settings[name] for name in CHANGEABLE if name in settings},
        "precision": precision,
        "of rows": {
            "data": [
                f"{Path(each['name']).name} ({each['rows']:,} rows, sha256 {each['sha256'][:12]}…)"
                for each in data.sources
            ],
            **{name: settings[name] for name in OF_ROWS},
        },
    }


def digest(data: TrainingData) -> str:
    """sha256 of which rows are trained on and held out, in their order, and of how long they are encoded."""
    made = hashlib.sha256()
    for source in data.sources:
        made.update(source["sha256"].encode())
    for selection in (data.train, data.validation):
        for column in (selection.parts, selection.rows, selection.lengths, selection.targets):
            made.update(column.tobytes())
    return made.hexdigest()


def to_resume(
    directory: Path,
    wish: str | None,
    now: Mapping[str, Any],
    *,
    anyway: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> Path | None:
    """The checkpoint to go on from: None for no `wish`, the newest whole one of `directory` for an empty one, else the
    one named.

    Args:
        now: `identity` of the run that is to go on.
        anyway: differences in `CHANGEABLE` are said, and not refused.

    Raises:
        ValueError: there is none, it is damaged, or it is of another run.
    """
    if wish is None:
        return None
    checkpoint = Path(wish) if wish else checkpoints.newest(directory, say)
    if checkpoint is None:
        raise ValueError(f"--resume_from_checkpoint: {directory} holds no whole checkpoint; --overwrite starts anew")
    why = checkpoints.fault(checkpoint) if wish else None
    if why is not None:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: {why}; without a value, the newest whole one is taken"
        )
    kept = checkpoints.about_of(checkpoint)["identity"]
    fixed, changeable = differences(kept, now)
    if fixed or (changeable and not anyway):
        advice = "give the same, or another --output_dir"
        if not fixed:
            advice = "give the same, or --resume_anyway to go on all the same"
        raise ValueError(f"--resume_from_checkpoint {checkpoint}: {'; '.join([*fixed, *changeable])}: {advice}")
    for line in changeable:
        say(f"--resume_anyway: {line}")
    return checkpoint


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(what must be as it was and is not, what may be changed), a sentence each."""
    fixed, changeable = [], []
    names = [*kept, *(name for name in now if name not in kept)]
    told = {"of rows"}  # with the rows
    if kept.get("seed") != now.get("seed"):
        told.add("rows")  # another seed splits them otherwise, and is named itself
    for name in names:
        if name in told or kept.get(name) == now.get(name):
            continue
        said = _said(name, kept, now)
        if name in CHANGEABLE:
            changeable.append(f"{said} ({CHANGEABLE[name]})")
        else:
            fixed.append(said)
    return fixed, changeable


def _said(name: str, kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name == "rows":
        return f"it was trained on other rows{_why_other_rows(kept.get('of rows', {}), now.get('of rows', {}))}"
    before, after = kept.get(name), now.get(name)
    if name in HASHES:
        return f"it was trained with {HASHES[name]} ({str(before)[:12]}…, now {str(after)[:12]}…)"
    if name == "world_size":
        return f"it was trained with {before} processes, now there are {after}"
    return f"it was trained with --{name} {_shown(before)}, now it is {_shown(after)}"


def _why_other_rows(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    found = [
        f"--{name} {_shown(kept.get(name))}, now {_shown(now.get(name))}"
        for name in now
        if kept.get(name) != now.get(name)
    ]
    if found:
        return f": {', '.join(found)}"
    return ": the files are the same, so they were split, repeated or encoded otherwise (:N, *W, or another version)"


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value)) or "(none)"
    return str(value)
