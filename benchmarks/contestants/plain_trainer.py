"""The original project's recipe: transformers' Trainer and peft, every micro-batch padded to its longest row.

Options: `micro_batch`, the rows of a micro-batch (the original project has 4, and 128 in its English script).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from contestants.work import IGNORED, Recorder, Row, Work, contest, watch


def run(work: Work, recorder: Callable[[], Recorder]) -> Recorder:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

    class InOrder(Trainer):
        """The given global batches, each in the order drawn for it: Trainer would shuffle across them."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)  # pyright: ignore[reportArgumentType]

    def collate(rows: Sequence[Row]) -> dict[str, Any]:
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(column: str, fill: int) -> Any:
            return torch.tensor([[*row[column], *[fill] * (longest - len(row[column]))] for row in rows])

        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        labels = padded("labels", IGNORED)
        return {"input_ids": padded("input_ids", 0), "attention_mask": torch.tensor(mask), "labels": labels}

    told = recorder()
    micro_batch = min(work.options["micro_batch"], work.global_batch)
    model = AutoModelForCausalLM.from_pretrained(work.base)
    set_seed(work.seed)
    lora = LoraConfig(
        r=work.lora_r,
        lora_alpha=work.lora_alpha,
        lora_dropout=work.lora_dropout,
        target_modules=work.targets,
        task_type="CAUSAL_LM",
    )
    trainer = InOrder(
        model=get_peft_model(model, lora),
        args=TrainingArguments(
            output_dir=work.scratch,
            max_steps=work.steps,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=work.accumulation(micro_batch),
            learning_rate=work.learning_rate,
            bf16=work.precision == "bf16",
            use_cpu=True,
            seed=work.seed,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=work.all_rows(),  # pyright: ignore[reportArgumentType]
        data_collator=collate,
    )
    watch(trainer, told)
    trainer.train()
    return told


if __name__ == "__main__":
    contest(run)
