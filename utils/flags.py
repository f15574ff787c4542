"""The flags of a fine-tuning run.

Knows: argparse, and the values that flags may have. Does not know what they resolve to (`utils.settings`), or how any
value is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils import cli, hygiene, methods
from utils.models import DEFAULT_MODEL

FROM_ROW = "(default: the family's)"
SKIPPED_STEPS = 3
"""Steps that may be skipped one after the other: one is an accident, three are a rule."""


def add_finetuning_flags(parser: argparse.ArgumentParser) -> None:
    """All of a run."""
    cli.add_model_flags(parser, model_type=DEFAULT_MODEL)
    add_data_flags(parser)
    add_method_flags(parser)
    add_optimizer_flags(parser)
    add_speed_flags(parser)
    add_output_flags(parser)
    add_endurance_flags(parser)


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
    add(
        "--bad_rows",
        choices=("error", "drop"),
        default="error",
        help="what happens to a row that cannot be read: broken JSON, bytes that are not UTF-8, a number in the place "
        "of text, …; drop counts it by reason (default: error)",
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
        "--logging_steps",
        type=cli.positive_int,
        help="optimizer steps between log lines (default: a fiftieth of the run, at most 20)",
    )
    add("--eval_steps", type=cli.positive_int, help="optimizer steps between validations (default: a tenth of the run)")
    add("--save_steps", type=cli.positive_int, help="optimizer steps between checkpoints (default: a tenth of the run)")
    add(
        "--save_total_limit",
        type=cli.positive_int,
        default=3,
        help="checkpoints kept, the best among them (default: 3)",
    )
    add("--log_row_ids", action="store_true", help="write the rows of every step to row_ids.jsonl")
    add(
        "--report_to",
        nargs="+",
        default=["none"],
        metavar="TO",
        help="trackers such as tensorboard or wandb, which you install yourself (default: none)",
    )
    add("--dry_run", action="store_true", help="do everything but train: settings, ledger, lengths, parameters, steps")


def add_endurance_flags(parser: argparse.ArgumentParser) -> None:
    """How a run goes on, when it ends, and which of its states is kept."""
    add = parser.add_argument_group("going on and ending", "see docs/footguns.md").add_argument
    add(
        "--resume_from_checkpoint",
        nargs="?",
        const="",
        metavar="DIR",
        help="go on from this checkpoint, or from the newest whole one of the run",
    )
    add(
        "--resume_anyway",
        action="store_true",
        help="go on although what may be changed on the way (processes, micro-batches, precision) is not as it was",
    )
    add(
        "--max_hours",
        type=cli.positive_float,
        metavar="H",
        help="after so many hours finish the step, save, and end with exit code 124",
    )
    add(
        "--max_skipped_steps",
        type=cli.positive_int,
        default=SKIPPED_STEPS,
        metavar="N",
        help="steps running whose loss or gradient may be no number before the run stops; each is skipped and counted "
        f"(default: {SKIPPED_STEPS})",
    )
    add(
        "--early_stopping_patience",
        type=cli.positive_int,
        metavar="N",
        help="stop after N validations running that are no better than the best; needs rows held out, and keeps the "
        "best",
    )
    add(
        "--load_best_model_at_end",
        action="store_true",
        help="keep the state with the lowest validation loss instead of the last (default: the last)",
    )
