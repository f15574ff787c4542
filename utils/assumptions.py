"""What an adapter without `run.json` belongs to, as far as its configuration and its base tell; each answer comes with
the sentence that says what was assumed, empty where the user said it.

Knows: the fields of peft's configurations, and which rows of the registries they fit. Does not know how a base is
loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils import hub
from utils.methods import DEFAULT_METHOD, METHODS
from utils.models import MODELS, MOVED, SIZED_MODEL, checkpoint_of, get_model


def method_of(facts: Mapping[str, Any], directory: Path) -> tuple[str, str]:
    """The row of `utils.methods` for the adapter in `directory` with the configuration `facts`, and its kind for
    people. A kind without a row, which peft loads into layers like any other, gets the usual one: nothing else depends
    on it.

    Raises:
        ValueError: a kind that needs more than being loaded: prompts or tasks of its own.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftType
    from peft.tuners.tuners_utils import BaseTuner

    kind = PeftType(facts["peft_type"])
    config: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    rows = [name for name, row in METHODS.items() if row.config == config.__name__]
    if rows:
        # LoRA's row has nothing fixed; DoRA's has, and fits an adapter that says the same.
        name = max(rows, key=lambda name: _agreement(METHODS[name].fixed, facts))
        return name, METHODS[name].label
    if kind in (PeftType.XLORA, PeftType.POLY) or not issubclass(PEFT_TYPE_TO_TUNER_MAPPING[kind], BaseTuner):
        kinds = ", ".join(sorted({row.config.removesuffix("Config") for row in METHODS.values() if row.config}))
        raise ValueError(
            f"{directory} is an adapter of the kind {kind.value}, which cannot be served here: {kinds} can, and others "
            "that change layers alone"
        )
    return DEFAULT_METHOD, kind.value


def _agreement(fixed: Mapping[str, Any], facts: Mapping[str, Any]) -> int:
    return sum(1 if facts.get(name) == value else -1 for name, value in fixed.items())


def base_of(
    facts: Mapping[str, Any], directory: Path, *, base: str | None, size: str | None, model_type: str | None
) -> tuple[str, str | None, str]:
    """(hub id or path, revision, what was assumed) of the base of the adapter in `directory`.

    Args:
        base, size, model_type: what the user said.

    Raises:
        FileNotFoundError: its configuration names a path, and nothing is there.
        ValueError: no such size; or neither the user nor the configuration names a base.
    """
    if base:
        return base, None, ""
    if size:
        family = model_type or SIZED_MODEL
        name = checkpoint_of(family, get_model(family), size)
        return name, None, "" if model_type else f"base {name} (what --size {size} means without --model_type)"
    named = facts.get("base_model_name_or_path")
    if isinstance(named, str) and named:
        if hub.is_path(named) and not Path(named).expanduser().is_dir():
            own = get_model(model_type).default_checkpoint if model_type else None
            if own and Path(own).is_dir():
                return own, None, f"base {own} (the family's; {named}, which adapter_config.json names, is not here)"
            raise FileNotFoundError(
                f"the base of {directory}, {named}, is not on this machine: name its place here with "
                "--model_name_or_path"
            )
        moved = f", and {named} has moved there" if named in MOVED else ""
        name = MOVED.get(named, named)
        return name, facts.get("revision"), f"base {name} (adapter_config.json names it{moved})"
    if model_type is None:
        raise ValueError(
            f"the adapter_config.json of {directory} names no base: name one with --model_name_or_path, or with "
            "--model_type and --size"
        )
    name = checkpoint_of(model_type, get_model(model_type), None)
    return name, None, f"base {name} (the family's; adapter_config.json names none)"


def family_of(base: str, model_class: str | None) -> tuple[str, str]:
    """The row of `utils.models` for a base, and what was assumed: the family that has it, else the only one of its
    class, else `auto`.

    Raises:
        ValueError: several families have that class, and their prompts and tokenizers may differ.
    """
    place = str(Path(base).resolve()) if Path(base).is_dir() else base  # the bundled base has an absolute one
    owners = [name for name, row in MODELS.items() if {base, place} & set(row.checkpoints.values())]
    if owners:
        return owners[0], f"model type {owners[0]} ({base} is one of its models)"
    families = [name for name, row in MODELS.items() if model_class in row.native]
    if len(families) > 1:
        raise ValueError(
            f"{base} is a {model_class}, as are the models of several families: say which with --model_type "
            f"{', '.join(families)} or auto"
        )
    if families:
        return families[0], f"model type {families[0]} (the base is a {model_class})"
    return "auto", f"model type auto (no family has a {model_class or 'model of this class'})"
