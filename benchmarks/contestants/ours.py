"""This project: `uniform_finetune.py`'s own path from the file of records to the trainer, on the same global batches.

Options: `flags`, further flags of the script. The rows come out of the project's own cache and order, and each step
must train as many tokens as the file of rows says: else the contestants would not have done the same work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environment  # noqa: F401 — it puts the project on the path

from contestants.work import Recorder, Work, contest, trained, watch


def flags(work: Work) -> list[str]:
    """The command's flags."""
    given = {
        "model_type": work.options["model_type"],
        "model_name_or_path": work.base,
        "data": work.records,
        "template": "alpaca",
        "val_set_size": 0,
        "cutoff_len": work.options["cutoff_len"],
        "lora_r": work.lora_r,
        "lora_alpha": work.lora_alpha,
        "lora_dropout": work.lora_dropout,
        "batch_size": work.global_batch,
        "max_steps": work.steps,
        "learning_rate": work.learning_rate,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_steps": work.steps,
        "keep": "evaluation_overlap",
        "seed": work.seed,
        "precision": work.precision,
        "output_dir": Path(work.scratch) / "run",
    }
    spelled = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return [*spelled, "--lora_target_modules", *work.targets, *map(str, work.options.get("flags", []))]


def run(work: Work, recorder: Callable[[], Recorder]) -> Recorder:
    import psutil

    import uniform_finetune
    from utils import training

    told = recorder()
    train = training.SupervisedTrainer.train

    def watched(trainer: training.SupervisedTrainer, *values: Any, **named: Any) -> Any:
        watch(trainer, told)
        return train(trainer, *values, **named)

    training.SupervisedTrainer.train = watched  # pyright: ignore[reportAttributeAccessIssue]
    code = uniform_finetune.main(flags(work))
    if code:
        raise SystemExit(code)
    expected = [sum(map(trained, batch)) for batch in work.batches()]
    told.facts["whole_command_seconds"] = round(time.time() - psutil.Process().create_time(), 1)
    found = [step["trained_tokens"] for step in told.steps]
    if found != expected:
        raise ValueError(f"the steps trained {found} tokens, the file of rows has {expected}: the batches differ")
    return told


if __name__ == "__main__":
    contest(run)
