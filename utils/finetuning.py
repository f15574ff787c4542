"""A fine-tuning run, from all that decides it (`utils.course`) to an adapter that is proved to be what was trained.

Knows: the order of a run: lock, resume, train, keep, save, read back, report. Does not know flags, or how any of it is
done.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils import (
    adapter_files,
    assembly,
    batching,
    checkpoints,
    distributed,
    interruption,
    outputs,
    report,
    resumable,
    resumption,
    run_lock,
    runinfo,
    settings,
    verification,
)
from utils.batching import Batch
from utils.course import Course
from utils.encode import stop_ids
from utils.interruption import Interruption
from utils.models import REPOSITORY
from utils.preflight import Preflight
from utils.schedule import Steps
from utils.settings import Settings
from utils.templates import fingerprint, get_template
from utils.training import SupervisedTrainer


class Trained(NamedTuple):
    """What is left of a training once its model is gone: the saved files are held against it."""

    metrics: dict[str, float]
    kept: str
    trained_tokens: int
    moved: int
    probe: Batch
    logits: torch.Tensor
    seconds: float


def finetune(course: Course, *, overwrite: bool, started: float) -> int:
    """Trains, saves and verifies; returns the exit code: 0, or what `interruption` says of an early end.

    Args:
        overwrite: delete the run that the directory holds, once all that can go wrong before has not.
        started: when the program began, in seconds since the epoch.

    Raises:
        ValueError: another process writes to the directory; a checkpoint that cannot be gone on with; numbers that do
            not mend.
        OSError: a full disk, lost processes, memory too small for a single row.
    """
    chosen, steps = course.chosen, course.steps
    if chosen.keeps_best and not len(course.data.validation):
        raise ValueError(
            "the best state is found on rows held out, and there are none: give --val_set_size, or leave out "
            "--early_stopping_patience and --load_best_model_at_end"
        )
    deadline = started + chosen.max_hours * 3600 if chosen.max_hours else None
    asked = Interruption(deadline, aloud=distributed.is_main())
    with _lock(chosen.output_dir):
        if distributed.is_main():  # again: another process may have been here since
            kept = {"overwrite": overwrite, "resume": chosen.resume_from_checkpoint}
            settings.check_output(chosen.output_dir, chosen.model_name_or_path, **kept)
        identity = _identity(course)
        checkpoint = _checkpoint(chosen, identity)
        if checkpoint is not None:
            if distributed.decided_by_main(lambda: _is_finished(chosen.output_dir, checkpoint, steps)):
                distributed.say(
                    f"the run in {chosen.output_dir} is finished ({steps.total:,} steps): nothing to do. More "
                    "--epochs, or a larger --max_steps, go on with it; --overwrite starts anew"
                )
                return 0
            course = replace(course, foreseen=_as_before(checkpoint, course.foreseen, identity))
        trained = _train(course, identity, checkpoint, asked, overwrite=overwrite)
        if trained is None:
            return asked.code
        if not chosen.fsdp:
            distributed.leave()
        if distributed.is_main() or chosen.fsdp:
            _finish(course, trained, started)
    return 0


def _lock(directory: Path) -> AbstractContextManager[None]:
    return run_lock.held(directory, distributed.say) if distributed.is_main() else nullcontext()


def _identity(course: Course) -> dict[str, Any]:
    return resumption.identity(
        course.chosen,
        course.data,
        base=course.base.fingerprint(),
        prompt=fingerprint(get_template(course.chosen.template), course.tokenizer.chat_template),
        world_size=distributed.world_size(),
        precision=course.base.precision,
    )


def _checkpoint(chosen: Settings, identity: Mapping[str, Any]) -> Path | None:
    """What to go on from, the same in all processes."""
    if chosen.resume_from_checkpoint is None:
        return None
    wish, anyway = chosen.resume_from_checkpoint, chosen.resume_anyway
    return distributed.decided_by_main(
        lambda: resumption.to_resume(chosen.output_dir, wish, identity, anyway=anyway, say=distributed.say)
    )


def _is_finished(directory: Path, checkpoint: Path, steps: Steps) -> bool:
    """Whether the run was verified, and not asked for more than it has done."""
    done = checkpoints.about_of(checkpoint)["total_steps"]
    return checkpoint.parent.samefile(directory) and (directory / runinfo.NAME).is_file() and done >= steps.total


def _as_before(checkpoint: Path, foreseen: Preflight, identity: Mapping[str, Any]) -> Preflight:
    """With the micro-batches that the run had come to, unless others are asked for now: free memory is not always the
    same, and other micro-batches would round otherwise."""
    kept = checkpoints.about_of(checkpoint)["identity"] if distributed.is_main() else None
    kept = distributed.gather(kept)[0]
    flags = ("max_tokens_per_batch", "per_gpu_train_batch_size", "packing", "gradient_checkpointing")
    if any(kept[flag] != identity[flag] for flag in flags):
        return foreseen
    found = resumable.micro_batch_of(checkpoint) if distributed.is_main() else None
    size, checkpointing = distributed.gather(found)[0]
    return replace(foreseen, micro_batch=size, checkpointing=checkpointing)


def _at_hand(checkpoint: Path) -> AbstractContextManager[Path]:
    """`checkpoint` in every process, whose machines need not share a disk."""
    if all(distributed.gather((checkpoint / checkpoints.MANIFEST).is_file())):
        return nullcontext(checkpoint)
    names = [path.name for path in checkpoint.iterdir()] if distributed.is_main() else []
    return distributed.everywhere(checkpoint, names)


def _train(
    course: Course, identity: Mapping[str, Any], checkpoint: Path | None, asked: Interruption, *, overwrite: bool
) -> Trained | None:
    """Trains and saves; None where the run was asked to end, and did."""
    began, chosen, tokenizer = time.time(), course.chosen, course.tokenizer
    attached, trainer = assembly.make_trainer(course, identity=identity, interruption=asked, checkpoint=checkpoint)
    before = verification.marks(attached.model)
    if distributed.is_main():
        checkpoints.begin(chosen.output_dir, overwrite=overwrite)
    distributed.barrier()
    at_hand = nullcontext() if checkpoint is None else _at_hand(checkpoint)
    with distributed.waits_at_most(distributed.LONGEST_STEP), at_hand as here, asked.listening():
        trainer.run(here)
    step = trainer.state.global_step
    if asked.code:
        saved = checkpoints.path_of(chosen.output_dir, step)
        distributed.say(
            f"{interruption.described(asked.code)} after step {step:,} of {course.steps.total:,}; saved: {saved}. The "
            "same command with --resume_from_checkpoint goes on from there"
        )
        distributed.leave()
        return None
    metrics = trainer.final_metrics()
    if chosen.keeps_best and trainer.best.step not in (None, step):
        metrics |= _take_best(trainer, chosen.output_dir)
    kept = trainer.best.verdict(step)
    seconds = round(time.time() - began, 1)
    trainer.release()
    probe = batching.shortest(course.data.train, tokenizer.pad_token_id, most_tokens=2**24 // len(tokenizer))
    moved = verification.require_moved(attached.model, before, chosen.method.method)
    logits = verification.probe_logits(attached.model, probe)
    if distributed.is_main():
        with outputs.into(chosen.output_dir) as folder:
            attached.save(folder)
            course.base.save_tokenizer(tokenizer, folder)
    return Trained(metrics, kept, trainer.trained_tokens, moved, probe, logits, seconds)


def _take_best(trainer: SupervisedTrainer, directory: Path) -> dict[str, float]:
    """Puts the state of the best validation in the place of the last; returns the metrics that change."""
    step, loss = trainer.best.step or 0, trainer.best.loss
    path = checkpoints.path_of(directory, step)
    why = distributed.decided_by_main(lambda: checkpoints.fault(path))
    if why is not None:  # it went on from a run that did not keep its best
        distributed.say(f"{path}, the best, cannot be taken: {why}")
        trainer.best.wanted = False
        return {}
    with _at_hand(path) as best:
        trainer.take(best)
    return {"validation_loss": loss, "kept_step": step}


def _finish(course: Course, trained: Trained, started: float) -> None:
    """Reads what was saved back into a fresh base, which must answer alike, and reports."""
    gc.collect()  # the second base takes the place of the first
    chosen, base, tokenizer, data = course.chosen, course.base, course.tokenizer, course.data
    method, template = chosen.method.method, get_template(chosen.template)
    facts: dict[str, Any] = {"precision": base.precision, "method": method, "moved": trained.moved}
    with distributed.everywhere(chosen.output_dir, adapter_files.NAMES if chosen.fsdp else ()) as saved:
        reloaded = assembly.reopen(course, saved)
        verified = verification.verify_adapter(saved, reloaded, trained.probe, trained.logits, **facts)
    distributed.leave()
    if not distributed.is_main():
        return
    run = runinfo.RunInfo(
        settings=chosen.as_dict(),
        base_fingerprint=base.fingerprint(),
        template_hash=fingerprint(template, tokenizer.chat_template),
        stop_token_ids=stop_ids(template, tokenizer),
        sources=data.sources,
        ledger=data.ledger.as_dict(),
        world_size=distributed.world_size(),
        metrics=trained.metrics,
        kept=trained.kept,
        trained_tokens=trained.trained_tokens,
        verified=verified.as_dict(),
        versions=runinfo.versions(),
        commit=runinfo.commit(REPOSITORY),
        started=datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        seconds=trained.seconds,
    )
    for line in report.publish(run, chosen.output_dir):
        distributed.say(line)
