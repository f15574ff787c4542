"""TRL's SFTTrainer, in an environment of its own: its defaults, and each of its settings that can save work.

Options: `settings`, names of `SETTINGS`. What TRL would choose (order of the rows, micro-batch, length of a pack) is
left to it; the first global batch comes first where rows keep their own place, since its step is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from contestants.work import Recorder, Work, contest, trained, watch

SETTINGS: dict[str, dict[str, Any]] = {
    "no_checkpointing": {"gradient_checkpointing": False},
    "by_length": {"train_sampling_strategy": "group_by_length"},
    "rebalanced": {"train_sampling_strategy": "batch_rebalance"},
    "padding_free": {"padding_free": True, "max_length": None},
    "bfd": {"packing": True, "packing_strategy": "bfd"},
    "bfd_split": {"packing": True, "packing_strategy": "bfd_split"},
    "wrapped": {"packing": True, "packing_strategy": "wrapped"},
    "length_512": {"max_length": 512},
    "dft": {"loss_type": "dft"},
    "eager": {"attn_implementation": "eager"},
    "rows_1": {"per_device_train_batch_size": 1},
    "rows_2": {"per_device_train_batch_size": 2},
    "rows_4": {"per_device_train_batch_size": 4},
    "rows_16": {"per_device_train_batch_size": 16},
    "rows_32": {"per_device_train_batch_size": 32},
}
"""Fields of SFTConfig; of a row's loss types TRL 1.16 has `nll` (its default, in chunks), `chunked_nll` (the same) and
`dft`."""


def run(work: Work, recorder: Callable[[], Recorder]) -> Recorder:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    class FirstBatchFirst(SFTTrainer):
        """The rows of the first global batch, then the rest in the order of TRL's own sampler."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            rows, first = self.train_dataset, work.global_batch
            if self.args.packing or self.args.train_sampling_strategy == "batch_rebalance":  # batches of random rows
                return super()._get_train_sampler(rows)
            if self.args.train_sampling_strategy == "random":  # a random order was drawn already
                return torch.utils.data.SequentialSampler(rows)
            rest = super()._get_train_sampler(rows.select(range(first, len(rows))))
            return [*range(first), *(first + i for i in rest)]

    told = recorder()
    chosen: dict[str, Any] = {}
    for name in work.options["settings"]:
        chosen |= SETTINGS[name]
    attention = chosen.pop("attn_implementation", None)
    rows = work.all_rows()
    shape = _shape(work, chosen, tokens=sum(len(row["input_ids"]) for row in rows))
    config = SFTConfig(
        output_dir=work.scratch,
        learning_rate=work.learning_rate,
        bf16=work.precision == "bf16",
        use_cpu=True,
        seed=work.seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **(chosen | shape),
    )
    trainer = FirstBatchFirst(
        model=AutoModelForCausalLM.from_pretrained(work.base, attn_implementation=attention),
        args=config,
        train_dataset=Dataset.from_list([{name: row[name] for name in ("input_ids", "labels")} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(work.base),
        peft_config=LoraConfig(
            r=work.lora_r,
            lora_alpha=work.lora_alpha,
            lora_dropout=work.lora_dropout,
            target_modules=work.targets,
            task_type="CAUSAL_LM",
        ),
    )
    watch(trainer, told)
    trainer.train()
    told.facts |= {
        "own_order": config.packing or config.train_sampling_strategy != "random",
        "resolved": {name: getattr(config, name) for name in RESOLVED},
        "attention": trainer.model.config._attn_implementation,
        "lost_trained_tokens": _lost(rows, trainer.train_dataset, packed=config.packing),
    }
    return told


RESOLVED = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_steps",
    "max_length",
    "gradient_checkpointing",
    "train_sampling_strategy",
    "packing",
    "packing_strategy",
    "padding_free",
    "loss_type",
    "bf16",
)


def _shape(work: Work, chosen: dict[str, Any], *, tokens: int) -> dict[str, int]:
    """Micro-batches and steps: a global batch of rows, or of as many packs as hold about as many tokens."""
    rows = min(chosen.get("per_device_train_batch_size", 8), work.global_batch)
    if not chosen.get("packing"):
        accumulation, steps = work.accumulation(rows), work.steps
    else:
        packs = math.ceil(tokens / chosen.get("max_length", 1024))
        accumulation = max(1, round(packs / work.steps / rows))
        steps = max(1, packs // (accumulation * rows))
    return {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
    }


def _lost(rows: list[Any], prepared: Any, *, packed: bool) -> int:
    """Trained tokens that the preparation cut off; in a pack the first label of a row is counted though never used."""
    if packed:
        before = sum(label != -100 for row in rows for label in row["labels"])
        return before - sum(label != -100 for labels in prepared["labels"] for label in labels)
    return sum(map(trained, rows)) - sum(trained({"labels": labels}) for labels in prepared["labels"])


if __name__ == "__main__":
    contest(run)
