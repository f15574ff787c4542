"""Which base, tokenizer and template an adapter belongs to, found again and checked before any weight is loaded.

Knows: runs and where they lie, and that what is served must be what was trained. Does not know flags, or how an answer
is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import adapter_files, loading, runinfo
from utils.distributed import Precision
from utils.methods import get_method
from utils.models import MOVED, checkpoint_of, get_model
from utils.templates import Template, fingerprint, get_template


@dataclass(frozen=True, kw_only=True)
class Identified:
    """A run whose base, tokenizer and template are those that it was trained with; no weights are loaded yet."""

    directory: Path
    run: runinfo.RunInfo
    base: loading.Base
    """As it was trained: bits and precision included."""
    tokenizer: Any
    template: Template

    @property
    def method(self) -> str:
        """What was trained, a row of `utils.methods`."""
        return self.run.method

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end an answer."""
        return self.run.stop_token_ids


def identify(
    directory: Path,
    *,
    model_type: str | None = None,
    base: str | None = None,
    template: str | None = None,
    precision: Precision | None = None,
    quantization_bit: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Identified:
    """What the run in `directory` was trained with, found again and checked.

    Args:
        model_type: the family that is expected; None takes the run's.
        base: another place of the same base, where the recorded one is gone; not for a run that holds all weights.
        quantization_bit: of the base's weights; None takes the run's, for what was trained is what is served.
        revision: of the base on the hub; None takes the run's.
        template: another prompt than the trained one; None keeps it, and refuses if it has changed since.

    Raises:
        FileNotFoundError: no finished run there.
        ValueError: the family, the base or the template is not the one that was trained with.
        OSError: the base cannot be had.
    """
    run = runinfo.read(directory)
    if model_type not in (None, run.model_type):
        raise ValueError(f"{directory} was trained with --model_type {run.model_type}, not {model_type}: leave it out")
    whole = get_method(run.method).trains_base
    if whole and base is not None:
        raise ValueError(f"{directory} holds all weights of its model: leave --model_name_or_path and --size out")
    source = loading.choose(
        str(directory) if whole else base or place_of(run),
        get_model(run.model_type),
        precision=precision,
        quantization_bit=quantization_bit or run.settings["quantization_bit"],
        revision=revision or (None if base or whole else run.settings["revision"]),
        trust_remote_code=trust_remote_code,
    )
    tokenizer = source.tokenizer(directory)
    row = get_template(template or run.settings["template"])
    if template is None and fingerprint(row, tokenizer.chat_template) != run.template_hash:
        raise ValueError(
            f"the template {run.settings['template']!r} is no longer the one that {directory} was trained with (its "
            "sha256 differs): train again, go back to that version, or accept another prompt with --template"
        )
    if not whole and source.fingerprint() != run.base_fingerprint:
        raise ValueError(
            f"{source.name} is not the base that {directory} was trained on: its configuration or its tensors differ. "
            f"It was trained on {run.base}"
        )
    return Identified(directory=directory, run=run, base=source, tokenizer=tokenizer, template=row)


def base_place(found: Identified) -> dict[str, str | None]:
    """`name` and `revision` of the base beside a run that holds all weights of its model, for `replace`."""
    return {"name": place_of(found.run), "revision": found.run.settings["revision"]}


def require_same_base(first: Identified, other: Identified) -> None:
    """`ValueError` if both cannot be switched over one loaded base. Their prompts may differ: each is asked in its own.

    A fingerprint does not know a base from one that was fine-tuned further, so both must name one place.
    """
    for found in (first, other):
        if get_method(found.method).trains_base:
            raise ValueError(
                f"{found.directory} holds all weights of its model, and no adapter to switch on and off: open it alone"
            )
    if _address(first.base) != _address(other.base):
        raise ValueError(
            f"{other.directory} is an adapter of {_said(other.base)}, and {first.directory} of {_said(first.base)}: "
            "open each by itself, or, if they are the same, name its place with --model_name_or_path"
        )
    bits = first.base.quantization_bit, other.base.quantization_bit
    if bits[0] != bits[1]:
        raise ValueError(
            f"{other.directory} was trained on weights of {bits[1]} bits, and {first.directory} on {bits[0]}: open "
            "each by itself, or choose for both with --quantization_bit"
        )
    kinds = [adapter_files.facts(found.directory)["peft_type"] for found in (first, other)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{other.directory} is an adapter of the kind {kinds[1]}, and {first.directory} of {kinds[0]}: peft "
            "switches between adapters of one kind, so open each by itself"
        )


def _address(base: loading.Base) -> tuple[str, str | None]:
    place = Path(base.name).expanduser()
    if place.is_dir():
        return str(place.resolve()), None
    return MOVED.get(base.name, base.name), base.revision


def _said(base: loading.Base) -> str:
    return f"{base.name} at {base.revision}" if base.revision else base.name


def place_of(run: runinfo.RunInfo) -> str:
    """Where the run's base is. A run may come from another machine: a directory that is gone is looked for where the
    family has its own; the fingerprint then tells whether it is the same base."""
    if not Path(run.base).is_absolute() or Path(run.base).is_dir():
        return run.base
    own = get_model(run.model_type).default_checkpoint
    if own and Path(own).is_dir():
        return own
    raise FileNotFoundError(
        f"the base of this run, {run.base}, is not on this machine: name its place here with --model_name_or_path"
    )


def find_run(model_type: str, data: Sequence[str], checkpoint: str | None) -> Path:
    """The newest finished run of this family on this data, below `saved_models/`; of this base, if one is given.

    Raises:
        ValueError: there is none.
        OSError: there is none, and its base (`checkpoint`, or the family's default) cannot be had either; says both.
    """
    found = [directory for directory in runinfo.find(model_type, data) if _fits(runinfo.read(directory), checkpoint)]
    if found:
        return found[0]
    wish = f"--model_type {model_type} --data {' '.join(data)}"
    missing = (
        f"no run of {model_type} on {' '.join(data)} lies below {runinfo.SAVED_MODELS}/: name one with --lora_dir, or "
        f"train it: python3 uniform_finetune.py {wish}"
    )
    spec = get_model(model_type)
    try:
        loading.choose(checkpoint or checkpoint_of(model_type, spec, None), spec).tokenizer()
    except OSError as error:
        raise OSError(f"{missing}\nIts base is not here either: {error}") from error
    raise ValueError(missing)


def _fits(run: runinfo.RunInfo, checkpoint: str | None) -> bool:
    if checkpoint is None:
        return True
    # An id that has moved is the same base under both names.
    return MOVED.get(checkpoint, checkpoint) == MOVED.get(run.base, run.base) or (
        str(Path(checkpoint).resolve()) == run.base
    )
