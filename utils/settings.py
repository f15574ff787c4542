"""The settings of a fine-tuning run: its flags, and what they resolve to where they are not given.

Knows: argparse and the model rows that answer for a flag left out. Does not know how any value is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from utils import catalog, cli, hygiene, methods, runinfo
from utils.models import checkpoint_of, get_model
from utils.schedule import Steps, plan_steps

FROM_ROW = "(default: the family's)"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run, resolved; each field is the flag of its name. None: decided from the data or the device."""

    model_type: str
    model_name_or_path: str
    revision: str | None
    template: str
    quantization_bit: int | None
    precision: Literal["bf16", "fp16", "fp32"] | None
    trust_remote_code: bool
    data: list[str]
    val_set_size: float | None
    cutoff_len: int
    truncation: Literal["drop", "prompt", "answer"]
    drop: list[str]
    keep: list[str]
    preprocessing_num_workers: int | None
    peft_type: str
    peft_options: dict[str, Any]
    """The method's own flags; no other's are in it."""
    batch_size: int
    """Rows of an optimizer step, unless `gradient_accumulation_steps` says it; see `rows_a_step`."""
    per_gpu_train_batch_size: int | None
    gradient_accumulation_steps: int | None
    max_tokens_per_batch: int | None
    packing: bool
    epochs: float
    max_steps: int | None
    learning_rate: float
    warmup_steps: int | None
    gradient_checkpointing: Literal["auto", "on", "off"]
    attn_implementation: str | None
    liger_kernel: bool
    torch_compile: bool
    fsdp: bool
    seed: int
    output_dir: Path
    resume_from_checkpoint: str | None
    logging_steps: int | None
    eval_steps: int | None
    save_steps: int | None
    save_total_limit: int
    report_to: list[str]

    @property
    def method(self) -> methods.Choice:
        """What is trained, and how."""
        return methods.Choice(name=self.peft_type, options=self.peft_options)

    def rows_a_step(self, world_size: int) -> int:
        """Rows of an optimizer step in all of `world_size` processes: as many for any number of them, unless
        `gradient_accumulation_steps` says how often each is to go through the model."""
        rows, times = self.per_gpu_train_batch_size, self.gradient_accumulation_steps
        if rows is None:
            return self.batch_size
        return rows * times * world_size if times else max(self.batch_size, rows * world_size)

    def steps(self, rows: int, *, rows_a_step: int) -> Steps:
        """When things happen, in optimizer steps, for a training part of `rows`."""
        return plan_steps(
            rows,
            global_batch_size=rows_a_step,
            epochs=self.epochs,
            max_steps=self.max_steps,
            warmup=self.warmup_steps,
            logging=self.logging_steps,
            saving=self.save_steps,
            evaluating=self.eval_steps,
        )

    @property
    def extras(self) -> list[str]:
        """Rows of `utils.extras` that were asked for, attention aside."""
        return [name for name in ("liger_kernel", "torch_compile") if getattr(self, name)]

    def plan(self) -> dict[str, Any]:
        """What a checkpoint can only be gone on with; AdaLoRA's steps follow from the length of the run."""
        options = {name: value for name, value in self.peft_options.items() if not name.startswith("adalora_t")}
        options.pop("adalora_delta_t", None)
        return {"peft_type": self.peft_type, **options}

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`: every flag under its name."""
        values = asdict(self)
        options: dict[str, Any] = values.pop("peft_options")
        return values | options | {"output_dir": str(self.output_dir)}


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Which rows, and how many of their tokens."""
    add = parser.add_argument_group("data").add_argument
    add(
        "--data",
        nargs="+",
        metavar="D",
        help=f"keys of data/datasets.toml joined by -, or files; each may carry :N (rows) and *W (repeats) {FROM_ROW}",
    )
    add(
        "--val_set_size",
        type=cli.rows_or_share,
        help="rows, or a share below 1, held out for validation; 0: none; lowered to a tenth where it would take "
        "more than half (default: the family's, or a tenth, at most 2,000)",
    )
    add("--cutoff_len", type=cli.positive_int, help=f"the most tokens of a row {FROM_ROW}")
    add(
        "--truncation",
        choices=("drop", "prompt", "answer"),
        default="drop",
        help="what happens to longer rows; counted in any case (default: drop)",
    )
    add_hygiene_flags(add)
    add(
        "--preprocessing_num_workers",
        type=cli.positive_int,
        metavar="N",
        help="processes that encode (default: one; for a large file and from 4 cores on, one a core, at most 8)",
    )
    add("--preview", type=cli.positive_int, metavar="N", help="print N rows with the trained tokens marked, and exit")


def add_hygiene_flags(add: Callable[..., Any]) -> None:
    """Which findings cost a row its place; `add` is a parser's or a group's `add_argument`."""
    default = ", ".join(sorted(hygiene.resolve()))
    checks = ", ".join(hygiene.CHECKS)
    add("--drop", nargs="+", default=[], metavar="CHECK", help=f"drop rows for these, too, of: {checks}")
    add("--keep", nargs="+", default=[], metavar="CHECK", help=f"do not drop rows for these, of: {default}")


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """What is trained in the base."""
    group = parser.add_argument_group("method", "an option of another method than the chosen one is an error")
    group.add_argument(
        "--peft_type",
        type=methods.method_name,
        choices=methods.METHODS,
        default=methods.DEFAULT_METHOD,
        metavar="METHOD",
        help=f"what is trained: {', '.join(methods.METHODS)} (default: {methods.DEFAULT_METHOD})",
    )
    for name, option in methods.OPTIONS.items():
        owners = [method for method, row in methods.METHODS.items() if name in row.options]
        others = [f"{m}: {methods.METHODS[m].defaults[name]}" for m in owners if name in methods.METHODS[m].defaults]
        default = "; ".join([str(option.unless_given or option.default), *others])
        group.add_argument(
            f"--{name}",
            type=option.kind,
            nargs=option.nargs,
            metavar="NAME" if option.nargs else None,
            help=f"{option.help} [{', '.join(owners)}] (default: {default})",
        )


def add_optimizer_flags(parser: argparse.ArgumentParser) -> None:
    """Batches, steps and the learning rate."""
    add = parser.add_argument_group("training").add_argument
    add(
        "--batch_size",
        type=cli.positive_int,
        help=f"rows of an optimizer step, the same for any number of devices {FROM_ROW}",
    )
    add(
        "--max_tokens_per_batch",
        type=cli.positive_int,
        metavar="T",
        help="positions that go through the model at once on each device, padding included: rows of like length share "
        "a micro-batch (default: what fits into memory)",
    )
    add(
        "--per_gpu_train_batch_size",
        type=cli.positive_int,
        metavar="N",
        help="rows that go through the model at once on each device, instead of --max_tokens_per_batch",
    )
    add(
        "--gradient_accumulation_steps",
        type=cli.positive_int,
        metavar="A",
        help="with --per_gpu_train_batch_size N: an optimizer step has N rows, A times, on each device, instead of "
        "--batch_size",
    )
    add(
        "--packing",
        action="store_true",
        help="several rows behind each other in one line of a batch, blind to each other; refused where they would not "
        "be (default: rows of like length share a batch)",
    )
    add("--epochs", type=cli.positive_float, help=f"passes over the data {FROM_ROW}")
    add("--max_steps", type=cli.positive_int, help="optimizer steps, instead of --epochs")
    add(
        "--learning_rate",
        type=cli.positive_float,
        help="peak learning rate (default: the family's, times what the method needs; for lora 1)",
    )
    add("--warmup_steps", type=cli.natural_int, help="optimizer steps to the peak (default: a tenth, at most 100)")
    add(
        "--gradient_checkpointing",
        choices=("auto", "on", "off"),
        default="auto",
        help="compute activations twice to save memory; auto: where they would not fit (default: auto)",
    )
    add("--seed", type=int, default=42, help="of the split, the order, the adapter and the dropout (default: 42)")


def add_speed_flags(parser: argparse.ArgumentParser) -> None:
    """Faster kernels, each of which must first give the plain model's loss and gradients; and several devices."""
    add = parser.add_argument_group("speed", "see docs/gpu.md and docs/several-gpus.md").add_argument
    add(
        "--attn_implementation",
        choices=("sdpa", "eager", "flash_attention_2", "flash_attention_3"),
        help="how attention is computed (default: transformers' choice, sdpa where the family has it)",
    )
    add("--liger_kernel", action="store_true", help="Liger's fused kernels (pip install -r requirements-gpu.txt)")
    add("--torch_compile", action="store_true", help="compile each layer; worth it for long runs")
    add(
        "--fsdp",
        action="store_true",
        help="share the frozen base out among the processes, for one that is larger than a device",
    )
    add(
        "--device_memory",
        type=cli.memory_size,
        metavar="SIZE",
        help="with --dry_run: whether it fits on a CUDA device with this much memory, such as 80GB, which need not be "
        "here; nor need the model",
    )
    add("--world_size", type=cli.positive_int, metavar="N", help="with --device_memory: on so many of them")


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Where the run goes, and what it tells on its way."""
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, help="the run's directory (default: saved_models/<model>_<data>)")
    add("--overwrite", action="store_true", help="delete the run that the directory holds")
    add(
        "--resume_from_checkpoint",
        nargs="?",
        const="",
        metavar="DIR",
        help="go on from this checkpoint, or from the newest of the run",
    )
    add(
        "--logging_steps",
        type=cli.positive_int,
        help="optimizer steps between log lines (default: a fiftieth of the run, at most 20)",
    )
    add("--eval_steps", type=cli.positive_int, help="optimizer steps between validations (default: a tenth of the run)")
    add("--save_steps", type=cli.positive_int, help="optimizer steps between checkpoints (default: a tenth of the run)")
    add("--save_total_limit", type=cli.positive_int, default=3, help="checkpoints kept (default: 3)")
    add(
        "--report_to",
        nargs="+",
        default=["none"],
        metavar="TO",
        help="trackers such as tensorboard or wandb, which you install yourself (default: none)",
    )
    add("--dry_run", action="store_true", help="do everything but train: settings, ledger, lengths, parameters, steps")


def resolve(values: argparse.Namespace) -> Settings:
    """The settings that parsed flags mean; a None is answered by the model's row where it has an answer.

    Raises:
        ValueError: a size that does not exist; a family that has no default model; an option of another method than
            the chosen one; a base, or a way of training it, that the method cannot have.
    """
    spec = get_model(values.model_type)
    family = asdict(spec.training) | {"lora_target_modules": list(spec.lora_target_modules)}
    chosen = methods.choose(values.peft_type, vars(values), family)
    methods.check_base(
        chosen.method,
        quantization_bit=values.quantization_bit,
        gradient_checkpointing=values.gradient_checkpointing,
    )
    _check_batches(values)
    if values.device_memory and not values.dry_run:
        raise ValueError("--device_memory asks about a device that need not be here: give --dry_run, too")
    if values.world_size and not values.device_memory:
        raise ValueError(
            "--world_size belongs to --dry_run --device_memory SIZE; a run has as many processes as torchrun starts"
        )
    row = family | {"template": spec.template, "data": [spec.training.data]}
    # To eight digits: a fifteenth of a rate is then written as a person would.
    row["learning_rate"] = float(f"{spec.training.learning_rate * chosen.method.learning_rate:.8g}")
    # On CUDA the family's bits are fewer than some methods can take.
    row["quantization_bit"] = 16 if chosen.method.quantization_bits == (16,) else None
    resolved: dict[str, Any] = {
        name: row[name] if value is None and name in row else value for name, value in vars(values).items()
    }
    resolved["peft_options"] = dict(chosen.options)
    model = values.model_name_or_path or checkpoint_of(values.model_type, spec, values.size)
    # The run may be opened from another folder, so a directory is kept by its full path.
    resolved["model_name_or_path"] = str(Path(model).resolve()) if Path(model).is_dir() else model
    resolved["output_dir"] = values.output_dir or runinfo.default_directory(
        resolved["model_name_or_path"], catalog.mixture_name(resolved["data"]), values.peft_type
    )
    return Settings(**{field.name: resolved[field.name] for field in fields(Settings)})


def _check_batches(values: argparse.Namespace) -> None:
    rows, times = values.per_gpu_train_batch_size, values.gradient_accumulation_steps
    if times and not rows:
        raise ValueError(
            "--gradient_accumulation_steps says how often --per_gpu_train_batch_size N rows make a step: give that, "
            "too, or --batch_size alone"
        )
    if times and values.batch_size:
        raise ValueError("--batch_size and --gradient_accumulation_steps both say how many rows a step has: give one")
    if rows and values.max_tokens_per_batch:
        raise ValueError(
            "--per_gpu_train_batch_size and --max_tokens_per_batch both say how large a micro-batch is: give one"
        )
    if rows and values.packing:
        raise ValueError("--packing fills --max_tokens_per_batch, and --per_gpu_train_batch_size counts rows: give one")


def check_output(directory: Path, base: str, *, overwrite: bool, resume: str | None) -> None:
    """`ValueError` if `directory` holds something that must not be lost (the base, for one), or nothing to resume.

    Args:
        resume: `--resume_from_checkpoint`: None, a checkpoint, or empty for the newest of `directory`.
    """
    if overwrite and directory.resolve() in (Path(base).resolve(), *Path(base).resolve().parents):
        raise ValueError(f"--overwrite would delete the base {base}, which is in {directory}: choose another directory")
    if overwrite and resume is not None:
        raise ValueError("--overwrite deletes what --resume_from_checkpoint would go on with: choose one of them")
    if not directory.exists() or not any(directory.iterdir()):
        if resume == "":
            raise ValueError(f"--resume_from_checkpoint: {directory} holds no run to go on with")
        return
    if not runinfo.has_run(directory):
        raise ValueError(f"--output_dir {directory} is not empty and holds no run: choose another")
    if not (overwrite or resume is not None):
        raise ValueError(
            f"{directory} already holds a run: --overwrite deletes it, --resume_from_checkpoint goes on with it, "
            "--output_dir names another"
        )
