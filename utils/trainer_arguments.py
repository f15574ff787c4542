"""Trainer's own arguments, and what is switched off in them because this project does it itself.

Knows: transformers' TrainingArguments. Does not know models or rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import TrainingArguments

from utils import distributed
from utils.schedule import Steps


def training_arguments(
    output_dir: Path,
    steps: Steps,
    *,
    learning_rate: float,
    precision: distributed.Precision,
    seed: int,
    validates: bool,
    gradient_checkpointing: bool,
    save_total_limit: int,
    report_to: Sequence[str],
) -> TrainingArguments:
    """For `training.SupervisedTrainer`."""
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps.total,
        # An item of our loader is a whole step: how many micro-batches that is, only we know.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=learning_rate,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=distributed.device().type == "cpu",
        seed=seed,
        logging_steps=steps.logging,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validates else "no",
        eval_steps=steps.evaluating,
        save_strategy="steps",
        save_steps=steps.saving,
        save_total_limit=save_total_limit,
        gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        report_to=list(report_to),
        disable_tqdm=True,
    )
    # One process uses one device. On a box with several GPUs Trainer would wrap the model in DataParallel, which splits
    # batches behind our back; several GPUs are what torchrun is for.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
