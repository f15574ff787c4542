"""LLaMA-Factory's supervised fine-tuning with its defaults, in an environment of its own, on the same encoded rows.

Options: `micro_batch`, and `arguments`, further fields of its configuration file. Its random order is off
(`disable_shuffling`), so that every step trains the same global batch as the others' steps do.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contestants.work import Recorder, Work, contest, watch


def run(work: Work, recorder: Callable[[], Recorder]) -> Recorder:
    _without_sound()
    from datasets import Dataset, DatasetDict
    from llamafactory.train.sft import workflow  # pyright: ignore[reportMissingImports]
    from llamafactory.train.tuner import run_exp  # pyright: ignore[reportMissingImports]

    told = recorder()
    micro_batch = min(work.options["micro_batch"], work.global_batch)
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in work.all_rows()]
    encoded = Path(work.scratch) / "encoded"
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(encoded)
    made = workflow.CustomSeq2SeqTrainer

    def watched(*values: Any, **named: Any) -> Any:
        trainer = made(*values, **named)
        watch(trainer, told)
        told.facts |= {
            "attention": trainer.model.config._attn_implementation,
            "weights": str(next(trainer.model.parameters()).dtype),
            "gradient_checkpointing": trainer.model.is_gradient_checkpointing,
        }
        return trainer

    workflow.CustomSeq2SeqTrainer = watched
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "model_name_or_path": work.base,
            "template": "alpaca",
            "dataset": "cot",
            "tokenized_path": str(encoded),
            "disable_shuffling": True,
            "lora_rank": work.lora_r,
            "lora_alpha": work.lora_alpha,
            "lora_dropout": work.lora_dropout,
            "lora_target": ",".join(work.targets),
            "output_dir": str(Path(work.scratch) / "output"),
            "max_steps": work.steps,
            "per_device_train_batch_size": micro_batch,
            "gradient_accumulation_steps": work.accumulation(micro_batch),
            "learning_rate": work.learning_rate,
            "bf16": work.precision == "bf16",
            "use_cpu": True,
            "seed": work.seed,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            **work.options.get("arguments", {}),
        }
    )
    return told


def _without_sound() -> None:
    """LLaMA-Factory imports torchaudio for its audio models, and PyPI's torchaudio needs CUDA's libraries: on a machine
    without them the import alone would end the run. No text model calls it."""
    sound = types.ModuleType("torchaudio")
    sound.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = sound


if __name__ == "__main__":
    contest(run)
