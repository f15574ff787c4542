"""Which base, tokenizer and template an adapter belongs to, found again and checked before any weight is loaded.

Knows: runs and where they lie, that what is served must be what was trained, and what to do where an adapter does not
say what that was. Does not know flags, or how an answer is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils import adapter_files, adapters, assumptions, loading, places, runinfo
from utils.distributed import Precision
from utils.encode import stop_ids
from utils.methods import get_method
from utils.models import MOVED, SIZED_MODEL, checkpoint_of, get_model
from utils.templates import TEMPLATES, Template, fingerprint, get_template


@dataclass(frozen=True, kw_only=True)
class Identified:
    """An adapter, or a model that holds all its weights, with its base, tokenizer and template; no weights are loaded
    yet."""

    directory: Path
    place: str
    """As the user named it."""
    run: runinfo.RunInfo | None
    """None for an adapter or a model without `run.json`: then `assumed` says what was taken from elsewhere."""
    model_type: str
    """A row of `utils.models`."""
    method: str
    """A row of `utils.methods`."""
    description: str
    """In a few words, for people."""
    base: loading.Base
    """As it was trained, if a run says so: bits and precision included."""
    tokenizer: Any
    template: Template
    stop_token_ids: list[int]
    """Ids that end an answer."""
    assumed: tuple[str, ...] = ()
    """What nobody said, a sentence each."""

    @property
    def is_alone(self) -> bool:
        """Whether it is a model of which no run tells."""
        return self.run is None and get_method(self.method).trains_base

    def lines(self, name: str) -> list[str]:
        """What it is, under `name`, and what was assumed, for people."""
        return [f"{name}: {self.description}", *(f"assumed: {what}" for what in self.assumed)]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user said, all of it optional; see `identify`."""

    model_type: str | None = None
    base: str | None = None
    size: str | None = None
    template: str | None = None
    precision: Precision | None = None
    quantization_bit: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def choose(self, base: str, family: str, *, bits: int | None, revision: str | None) -> loading.Base:
        """The base, where `bits` and `revision` are what holds if the user said nothing."""
        return loading.choose(
            base,
            get_model(family),
            precision=self.precision,
            quantization_bit=self.quantization_bit or bits,
            revision=self.revision or revision,
            trust_remote_code=self.trust_remote_code,
        )


def identify(place: str | Path | None, **wishes: Any) -> Identified:
    """What the adapter in `place` was trained with, found again and checked: as `run.json` says; of an adapter without
    one, as the user says, else as its files suggest.

    Args:
        place: a directory, or an adapter on the hub (`utils.places`); None: the base that `wishes` name is asked by
            itself. One that merge.py or a run wrote is what its `run.json` says.
        wishes: the fields of `Wishes`.

            - `model_type`: the family that is expected; None takes the run's, or the one that the base is of.
            - `base`: another place of the same base, where the recorded one is gone; not for a run that holds all
              weights.
            - `size`: the family's model of this size, where the base has no place here.
            - `template`: another prompt than the trained one; None keeps it, and refuses if it has changed since.
              Without a run, None is the family's.
            - `quantization_bit`: of the base's weights; None takes the run's, for what was trained is what is served.
            - `revision`: of the base on the hub; None takes the run's.

    Raises:
        FileNotFoundError: no finished run and no adapter there.
        ValueError: the family, the base or the template is not the one that was trained with, or cannot be told.
        OSError: the adapter or its base cannot be had.
    """
    wished = Wishes(**wishes)
    if place is None:
        assert wished.base is not None, "without an adapter there must be a model"
        if not (Path(wished.base) / runinfo.NAME).is_file():
            return _of_model(wished.base, wished)
        place, wished = wished.base, replace(wished, base=None)
    directory = places.find(place)
    if (directory / runinfo.NAME).is_file():
        return _of_run(directory, str(place), wished)
    return _of_adapter(directory, str(place), wished)


def _of_run(directory: Path, place: str, wished: Wishes) -> Identified:
    run = runinfo.read(directory)
    if wished.model_type not in (None, run.model_type):
        raise ValueError(
            f"{place} was trained with --model_type {run.model_type}, not {wished.model_type}: leave it out"
        )
    whole, base = get_method(run.method).trains_base, wished.base
    if whole and (base or wished.size):
        raise ValueError(f"{place} holds all weights of its model: leave --model_name_or_path and --size out")
    sized = checkpoint_of(run.model_type, get_model(run.model_type), wished.size) if wished.size else None
    if not Path(run.base).is_dir():
        base = base or sized
    source = wished.choose(
        str(directory) if whole else base or place_of(run),
        run.model_type,
        bits=run.settings["quantization_bit"],
        revision=None if base or whole else run.settings["revision"],
    )
    tokenizer = _tokenizer(source, directory, place)
    row = get_template(wished.template or run.settings["template"])
    if wished.template is None and fingerprint(row, tokenizer.chat_template) != run.template_hash:
        raise ValueError(
            f"the template {run.settings['template']!r} is no longer the one that {place} was trained with (its "
            "sha256 differs): train again, go back to that version, or accept another prompt with --template"
        )
    if not whole and source.fingerprint() != run.base_fingerprint:
        raise ValueError(
            f"{source.name} is not the base that {place} was trained on: its configuration or its tensors differ. "
            f"It was trained on {run.base}"
        )
    return Identified(
        directory=directory,
        place=place,
        run=run,
        model_type=run.model_type,
        method=run.method,
        description=f"{run.model_type} on {' '.join(run.data) or 'data that its adapter does not name'}",
        base=source,
        tokenizer=tokenizer,
        template=row,
        stop_token_ids=run.stop_token_ids,
    )


def _of_adapter(directory: Path, place: str, wished: Wishes) -> Identified:
    facts = adapter_files.facts(directory)
    adapter_files.tensor_names(directory)  # what cannot be read is said before a base is looked for
    method, kind = assumptions.method_of(facts, directory)
    base, revision, of_base = assumptions.base_of(
        facts, directory, base=wished.base, size=wished.size, model_type=wished.model_type
    )
    family, of_family = wished.model_type, ""
    if family is None and wished.size and not wished.base:
        family = SIZED_MODEL
    if family is None:
        family, of_family = _family(base, wished, revision)
    source = wished.choose(base, family, bits=None, revision=revision)
    has_tokenizer = any(next(directory.glob(name), None) for name in places.VOCABULARIES)
    tokenizer = _tokenizer(source, directory if has_tokenizer else None, place)
    name = wished.template or get_model(family).template
    row = get_template(name)
    adapters.load_adapter(source.empty(), directory)  # an adapter of another base is found before weights are read
    bits, fields = source.quantization_bit, ", ".join(adapter_files.unknown_fields(directory))
    sentences = {
        of_family: bool(of_family),
        of_base: bool(of_base),
        f"template {name} (the family's)": not wished.template,
        "the base's tokenizer (the adapter has none)": not has_tokenizer,
        f"weights of {bits} bits (the family's)": bits != 16 and not wished.quantization_bit,
        f"nothing lost without {fields} of adapter_config.json, which this peft does not know": bool(fields),
        "its training done (a run left it without a run.json, so it was not checked)": runinfo.is_ours(directory),
    }
    return Identified(
        directory=directory,
        place=place,
        run=None,
        model_type=family,
        method=method,
        description=f"{family}, {kind}, without a run.json",
        base=source,
        tokenizer=tokenizer,
        template=row,
        stop_token_ids=stop_ids(row, tokenizer),
        assumed=tuple(sentence for sentence, is_assumed in sentences.items() if is_assumed),
    )


def _of_model(name: str, wished: Wishes) -> Identified:
    """A base by itself: all it can say of a prompt is its family."""
    family, of_family = (wished.model_type, "") if wished.model_type else _family(name, wished, None)
    source = wished.choose(name, family, bits=None, revision=None)
    tokenizer = source.tokenizer()
    template = wished.template or get_model(family).template
    row, bits = get_template(template), source.quantization_bit
    sentences = {
        of_family: bool(of_family),
        f"template {template} (the family's)": not wished.template,
        f"weights of {bits} bits (the family's)": bits != 16 and not wished.quantization_bit,
    }
    return Identified(
        directory=Path(name),
        place=name,
        run=None,
        model_type=family,
        method="full",
        description=f"{family}, a model by itself",
        base=source,
        tokenizer=tokenizer,
        template=row,
        stop_token_ids=stop_ids(row, tokenizer),
        assumed=tuple(sentence for sentence, is_assumed in sentences.items() if is_assumed),
    )


def _family(base: str, wished: Wishes, revision: str | None) -> tuple[str, str]:
    """The family of a base that nobody named one for, and what was assumed."""
    unnamed = wished.choose(base, "auto", bits=16, revision=revision)
    return assumptions.family_of(base, unnamed.class_name())


def _tokenizer(source: loading.Base, directory: Path | None, place: str) -> Any:
    """The one in `directory`, else the base's. Consent to remote code is to that of the base's repository."""
    is_trusted = not source.trust_remote_code or places.on_hub(place) is None
    return source.tokenizer(directory if is_trusted else None)


def as_run(found: Identified) -> runinfo.RunInfo:
    """`found.run`; of an adapter without one, what is known in that form, so that what is made of the adapter can be
    served as a run is. Nothing is known of its training."""
    if found.run is not None:
        return found.run
    base = found.base
    settings = {
        "model_type": found.model_type,
        "model_name_or_path": base.name,
        "revision": base.revision,
        "template": next(name for name, row in TEMPLATES.items() if row is found.template),
        "peft_type": found.method,
        "quantization_bit": base.quantization_bit,
        "precision": base.precision,
        "data": [],
    }
    return runinfo.RunInfo(
        settings=settings,
        base_fingerprint=base.fingerprint(),
        template_hash=fingerprint(found.template, found.tokenizer.chat_template),
        stop_token_ids=found.stop_token_ids,
        sources=[],
        ledger={},
        world_size=1,
        metrics={},
        trained_tokens=0,
        verified={},
        versions={},
        commit=None,
        started="",
        seconds=0.0,
        kept=f"The adapter came without a run.json; assumed were {'; '.join(found.assumed) or 'nothing'}",
    )


def base_place(found: Identified) -> dict[str, str | None]:
    """`name` and `revision` of the base beside a run that holds all weights of its model, for `replace`."""
    assert found.run is not None
    return {"name": place_of(found.run), "revision": found.run.settings["revision"]}


def require_same_base(first: Identified, other: Identified) -> None:
    """`ValueError` if both cannot be switched over one loaded base. Their prompts may differ: each is asked in its own.

    A fingerprint does not know a base from one that was fine-tuned further, so both must name one place.
    """
    for found in (first, other):
        if get_method(found.method).trains_base:
            raise ValueError(
                f"{found.place} holds all weights of its model, and no adapter to switch on and off: open it alone"
            )
    if _address(first.base) != _address(other.base):
        raise ValueError(
            f"{other.place} is an adapter of {_said(other.base)}, and {first.place} of {_said(first.base)}: "
            "open each by itself, or, if they are the same, name its place with --model_name_or_path"
        )
    bits = first.base.quantization_bit, other.base.quantization_bit
    if bits[0] != bits[1]:
        raise ValueError(
            f"{other.place} was trained on weights of {bits[1]} bits, and {first.place} on {bits[0]}: open "
            "each by itself, or choose for both with --quantization_bit"
        )
    kinds = [adapter_files.facts(found.directory)["peft_type"] for found in (first, other)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{other.place} is an adapter of the kind {kinds[1]}, and {first.place} of {kinds[0]}: peft "
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
