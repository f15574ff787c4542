"""The settings of a fine-tuning run: what its flags (`utils.flags`) resolve to where they are not given.

Knows: the model rows that answer for a flag left out, and which flags contradict each other. Does not know how any
value is used.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from utils import catalog, methods, run_lock, runinfo
from utils.models import checkpoint_of, get_model
from utils.schedule import Steps, plan_steps


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
    bad_rows: Literal["error", "drop"]
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
    resume_anyway: bool
    max_hours: float | None
    max_skipped_steps: int
    early_stopping_patience: int | None
    load_best_model_at_end: bool
    log_row_ids: bool
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

    @property
    def keeps_best(self) -> bool:
        """Whether the state with the lowest validation loss is kept, and not the last."""
        return self.load_best_model_at_end or self.early_stopping_patience is not None

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`: every flag under its name."""
        values = asdict(self)
        options: dict[str, Any] = values.pop("peft_options")
        return values | options | {"output_dir": str(self.output_dir)}


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
    _check_endurance(values)
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


def _check_endurance(values: argparse.Namespace) -> None:
    if values.resume_anyway and values.resume_from_checkpoint is None:
        raise ValueError("--resume_anyway belongs to --resume_from_checkpoint: give that, too, or leave it out")
    if values.val_set_size != 0:
        return
    for flag in ("early_stopping_patience", "load_best_model_at_end"):
        if getattr(values, flag):
            raise ValueError(f"--{flag} goes by the loss on rows held out, and --val_set_size 0 holds out none")


def check_output(directory: Path, base: str, *, overwrite: bool, resume: str | None) -> None:
    """`ValueError` if `directory` holds something that must not be lost (the base, for one), or nothing to resume.

    Args:
        resume: `--resume_from_checkpoint`: None, a checkpoint, or empty for the newest of `directory`.
    """
    if overwrite and directory.resolve() in (Path(base).resolve(), *Path(base).resolve().parents):
        raise ValueError(f"--overwrite would delete the base {base}, which is in {directory}: choose another directory")
    if overwrite and resume is not None:
        raise ValueError("--overwrite deletes what --resume_from_checkpoint would go on with: choose one of them")
    if not directory.exists() or all(path.name in run_lock.NAMES for path in directory.iterdir()):
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
