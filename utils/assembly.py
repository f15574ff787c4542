"""A run's trainer, put together: base, method, data and what the preflight chose.

Knows: in which order the parts need each other. Does not know flags, or what any part does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from utils import adapters, distributed, packing, preflight, progress, sharding, trainer_arguments, training
from utils.attached import Attached
from utils.best import Best
from utils.course import Course
from utils.interruption import Interruption
from utils.loading import Base
from utils.step_guard import StepGuard
from utils.training import SupervisedTrainer


def make_trainer(
    course: Course,
    *,
    identity: Mapping[str, Any] | None = None,
    interruption: Interruption | None = None,
    checkpoint: Path | None = None,
) -> tuple[Attached, SupervisedTrainer]:
    """The base with what is trained in it, fresh, and its trainer.

    Args:
        identity: of the run, for its checkpoints (`resumption.identity`).
        checkpoint: that it will go on from.
    """
    chosen, base, data, pad_id = course.chosen, course.base, course.data, course.tokenizer.pad_token_id
    chosen.output_dir.mkdir(parents=True, exist_ok=True)
    distributed.seed(chosen.seed)  # the adapter starts alike in every process

    def attach(whole: Base) -> Attached:
        return adapters.attach(whole.load(), chosen.method, total_steps=course.steps.total)

    attached = (
        sharding.load_in_turn(lambda: attach(base.on_cpu()), base.device, model_of=lambda made: made.model)
        if chosen.fsdp
        else attach(base)
    )
    if chosen.packing:
        packing.require_isolation(attached.model, data.train, pad_id)
    callbacks: list[TrainerCallback] = [progress.Progress(), progress.LogFile(chosen.output_dir)]
    trainer = training.SupervisedTrainer(
        attached.model,
        _arguments(course),
        train_rows=data.train,
        validation_rows=data.validation,
        pad_id=pad_id,
        steps=course.steps,
        batch_size=chosen.rows_a_step(distributed.world_size()),
        micro_batch=course.foreseen.micro_batch,
        needs_mask=base.needs_mask or adapters.virtual_tokens(attached.model) > 0,
        callbacks=callbacks,
        processing_class=course.tokenizer,
        attached=attached,
        sharded=chosen.fsdp,
        guard=StepGuard(data.train, most_in_a_row=chosen.max_skipped_steps, asked=interruption),
        too_large=lambda: preflight.remedies(chosen, base, data.train, course.foreseen.device),
    )
    trainer.about = {"identity": identity, "total_steps": course.steps.total}
    trainer.best = Best(patience=chosen.early_stopping_patience, wanted=chosen.keeps_best)
    if chosen.log_row_ids:
        trainer.add_callback(progress.RowLog(chosen.output_dir, lambda: trainer.members, data.train, checkpoint))
    trainer.accelerate(chosen.extras, attention=chosen.attn_implementation)
    return attached, trainer


def _arguments(course: Course) -> TrainingArguments:
    chosen = course.chosen
    return trainer_arguments.training_arguments(
        chosen.output_dir,
        course.steps,
        learning_rate=chosen.learning_rate,
        precision=chosen.precision or course.base.precision,
        seed=chosen.seed,
        validates=bool(course.data.validation),
        gradient_checkpointing=course.foreseen.checkpointing,
        save_total_limit=chosen.save_total_limit,
        report_to=chosen.report_to,
    )


def reopen(course: Course, directory: Path) -> Any:
    """The model that the run saved in `directory`, for inference; a shared-out one in all processes."""
    base, method = course.base, course.chosen.method.method
    if not course.chosen.fsdp:
        return adapters.reopen(base, method, directory)
    return sharding.load_in_turn(
        lambda: adapters.reopen(base.on_cpu(), method, directory), base.device, model_of=lambda made: made
    )
