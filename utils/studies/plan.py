"""The commands of a study: which runs are trained, which questions each is asked, and what shows that each is done.

Knows: a study's folder, and the scripts' flags. Does not know how commands are run (`carrying_out`), or what came out.

    STUDY/data/        what variants are trained on, where it is not a mixture as it stands
    STUDY/runs/        a directory a variant and seed, as uniform_finetune.py writes it
    STUDY/answers/     a directory a run and evaluation, as evaluate.py writes it
    STUDY/report.*     the pages and what they are made from

Beside each directory lies, in `….study.json`, what it was made by and from; a command that is not the same any more is
refused, so that no figure is of two experiments.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import cache, catalog, checkpoints, cli, flags, outputs, runinfo, settings
from utils.settings import Settings
from utils.studies import training_rows
from utils.studies.experiment import BASE, Experiment, Flag
from utils.studies.training_rows import Share

SCORES = "scores.json"
MODEL_FLAGS = (
    "model_type",
    "model_name_or_path",
    "size",
    "revision",
    "template",
    "quantization_bit",
    "precision",
    "trust_remote_code",
)
"""Those by which evaluate.py finds a base without a run."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One of a study."""

    title: str
    argv: tuple[str, ...]
    """The script's name first."""
    directory: Path
    """That it writes to."""
    inputs: Mapping[str, str]
    """What it rests on, beside its flags: a name and a sha256 each."""

    @property
    def record(self) -> Path:
        """Where what the directory was made by and from is kept."""
        return self.directory.with_name(f"{self.directory.name}.study.json")

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.directory.with_name(f"{self.directory.name}.log")

    @property
    def trains(self) -> bool:
        """Whether it makes a run, and does not ask one."""
        return self.argv[0] == "uniform_finetune.py"

    @property
    def is_done(self) -> bool:
        """Whether its directory holds all it is to hold."""
        return (self.directory / (runinfo.NAME if self.trains else SCORES)).is_file()

    def going_on(self) -> tuple[str, ...]:
        """The command that goes on with what is there."""
        if not self.trains or not runinfo.has_run(self.directory):
            return self.argv
        return (*self.argv, "--resume_from_checkpoint" if checkpoints.newest(self.directory) else "--overwrite")

    def require_same(self) -> None:
        """`ValueError` if the directory was made by another command or from other files; it says what differs."""
        if not self.record.is_file():
            return
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
            before = {"argv": tuple(found["argv"]), "inputs": dict(found["inputs"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.record} is broken ({error}): delete it and {self.directory}") from error
        differing = sorted(set(before["argv"]) ^ set(self.argv))
        names = {**before["inputs"], **self.inputs}
        changed = [name for name in names if before["inputs"].get(name) != self.inputs.get(name)]
        if not differing and not changed:
            return
        what = [*(["the command: " + " ".join(differing)] if differing else []), *changed]
        raise ValueError(
            f"{self.directory} was made for another experiment; what has changed: {'; '.join(what)}. Choose another "
            f"--output_dir, or delete {self.directory} and {self.record}, and it is made anew"
        )

    def note(self) -> None:
        """Writes down what the directory is being made by and from."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with outputs.atomic(self.record) as file:
            file.write(
                json.dumps({"argv": self.argv, "inputs": dict(self.inputs)}, indent=2, ensure_ascii=False) + "\n"
            )


@dataclass(frozen=True, kw_only=True)
class Line:
    """A variant with a seed: its training, and after it what it is asked."""

    variant: str
    seed: int | None
    """None: the base alone, which has none."""
    commands: tuple[Command, ...]
    positions: float
    """Tokens that go through the model in training: its cost, roughly."""

    @property
    def training(self) -> Command | None:
        """None for the base."""
        return self.commands[0] if self.commands[0].trains else None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a study does."""

    experiment: Experiment
    file: Path
    directory: Path
    shares: Mapping[str, Share]
    """By variant."""
    unseen: Mapping[str, int]
    """By variant: rows that were looked through for questions of the evaluations."""
    lines: tuple[Line, ...]
    """The most costly first."""
    base_bytes: int
    """Of the weights of the largest base that lies in a folder here."""

    def line_of(self, variant: str, seed: int | None) -> Line:
        """One of them."""
        return next(line for line in self.lines if (line.variant, line.seed) == (variant, seed))

    def lines_for_people(self) -> list[str]:
        """What will be done."""
        experiment, said = self.experiment, []
        width = max(map(len, self.shares))
        for name, share in self.shares.items():
            epochs = share.rows_seen(experiment.steps) / share.rows
            said.append(
                f"  {name:{width}}  {share.rows_a_step:,} rows a step, {share.trained_tokens(experiment.steps):,} "
                f"trained tokens, {epochs:.1f} epochs of {share.rows:,} rows: "
                f"{experiment.variants[name].title}"
            )
        commands = [command for line in self.lines for command in line.commands]
        runs = sum(command.trains for command in commands)
        said.append(
            f"{len(experiment.variants)} variants, {len(experiment.seeds)} seeds, {experiment.steps:,} steps: {runs} "
            f"runs, {len(commands) - runs} evaluations; {sum(command.is_done for command in commands)} of them done"
        )
        looked = sum(self.unseen.values())
        said.append(f"none of {looked:,} training rows repeats a question that is asked")
        return said

    def commands_for_people(self) -> list[str]:
        """What would be run, in order."""
        commands = [command for line in self.lines for command in line.commands if not command.is_done]
        return [shlex.join(["python3", *command.going_on()]) for command in commands]


class _Flags(cli.Parser):
    """The flags of uniform_finetune.py, whose errors are a study's."""

    def error(self, message: str) -> Any:
        raise ValueError(self.explained(message))


def words(given: Mapping[str, Flag]) -> list[str]:
    """Flags of a file as a command has them: true is the flag alone, false is none."""
    said: list[str] = []
    for name, value in given.items():
        if isinstance(value, bool):
            said += [f"--{name}"] if value else []
        else:
            said += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return said


def resolved(experiment: Experiment, variant: str, data: Sequence[str]) -> Settings:
    """What a variant's flags resolve to; `ValueError` for one that uniform_finetune.py would not take."""
    parser = _Flags()
    flags.add_finetuning_flags(parser)
    given = ["--data", *data, *words(experiment.flags_of(variant)), "--seed", str(experiment.seeds[0])]
    try:
        return settings.resolve(parser.parse_args(given))
    except ValueError as error:
        raise ValueError(f"variants.{variant}: {error}") from error


def make(experiment: Experiment, file: Path, directory: Path) -> Plan:
    """The plan of an experiment; writes what variants are trained on to `directory`, and nothing else.

    Raises:
        FileNotFoundError, ValueError: data, a task's file or a base that is not here; a flag that is wrong; a training
            row that repeats a question; what is there was made for another experiment.
    """
    from utils import loading
    from utils.models import get_model

    asked = training_rows.asked_questions(experiment)
    shares, unseen, lines, base_bytes = {}, {}, [], 0
    for name, variant in experiment.variants.items():
        data = training_rows.mixtures(name, variant, directory / "data")
        chosen = resolved(experiment, name, data)
        training_rows.write(name, variant, directory / "data", seed=experiment.seeds[0])
        unseen[name] = training_rows.require_unseen(name, data, asked, seed=experiment.seeds[0])
        base = loading.choose(
            chosen.model_name_or_path,
            get_model(chosen.model_type),
            precision=chosen.precision,
            quantization_bit=chosen.quantization_bit,
            revision=chosen.revision,
            trust_remote_code=chosen.trust_remote_code,
        )
        weights = sorted(Path(chosen.model_name_or_path).glob("*.safetensors"))
        base_bytes = max(base_bytes, sum(file.stat().st_size for file in weights))
        shares[name] = training_rows.share(experiment, variant, chosen, base.tokenizer())
        files = [part.path for part in catalog.parse_mixture(data)]
        rests_on = {"the base": base.fingerprint(), **_hashes(weights), **_hashes(files)}
        lines += [_line(experiment, directory, name, seed, data, shares[name], rests_on) for seed in experiment.seeds]
    if experiment.base_too:
        asks = _evaluations(experiment, directory, BASE, words(_model_flags(experiment)), {})
        lines.append(Line(variant=BASE, seed=None, commands=asks, positions=0))
    plan = Plan(
        experiment=experiment,
        file=file,
        directory=directory,
        shares=shares,
        unseen=unseen,
        lines=tuple(sorted(lines, key=lambda line: -line.positions)),
        base_bytes=base_bytes,
    )
    for line in plan.lines:
        for command in line.commands:
            command.require_same()
    return plan


def _model_flags(experiment: Experiment) -> dict[str, Flag]:
    """As evaluate.py needs them for a base without a run."""
    chosen = resolved(experiment, next(iter(experiment.variants)), ["cot_sample"])
    given = {name: value for name, value in experiment.flags.items() if name in MODEL_FLAGS}
    return given | {"model_type": chosen.model_type, "model_name_or_path": chosen.model_name_or_path}


def _line(
    experiment: Experiment,
    directory: Path,
    variant: str,
    seed: int,
    data: Sequence[str],
    share: Share,
    rests_on: Mapping[str, str],
) -> Line:
    name = f"{variant}-{seed}"
    run = directory / "runs" / name
    argv = ["uniform_finetune.py", "--data", *data, *words(experiment.flags_of(variant))]
    argv += ["--max_steps", str(experiment.steps), "--batch_size", str(share.rows_a_step), "--seed", str(seed)]
    train = Command(
        title=f"{name}: training", argv=(*argv, "--output_dir", str(run)), directory=run, inputs=dict(rests_on)
    )
    asks = _evaluations(experiment, directory, name, ["--lora_dir", str(run)], rests_on)
    return Line(variant=variant, seed=seed, commands=(train, *asks), positions=share.positions(experiment.steps))


def _evaluations(
    experiment: Experiment, directory: Path, name: str, who: Sequence[str], rests_on: Mapping[str, str]
) -> tuple[Command, ...]:
    commands = []
    for key, evaluation in experiment.evaluations.items():
        _, file = training_rows.file_of(evaluation)
        place = directory / "answers" / name / key
        given: dict[str, Flag] = {"task": evaluation.task, "style": evaluation.style, "shots": evaluation.shots}
        given |= {"task_file": evaluation.task_file} if evaluation.task_file else {}
        given |= {"num_samples": evaluation.num_samples, "max_new_tokens": evaluation.max_new_tokens}
        commands.append(
            Command(
                title=f"{name}: {key}",
                argv=("evaluate.py", *who, *words(given), "--result_dir", str(place)),
                directory=place,
                inputs={**rests_on, str(file): cache.content_hash(file)},
            )
        )
    return tuple(commands)


def _hashes(files: Iterable[Path]) -> dict[str, str]:
    return {str(file): cache.content_hash(file) for file in files}
