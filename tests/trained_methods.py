"""Methods on tiny bases: attached, trained for a few steps, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECORDS

from utils.adapters import attach
from utils.attached import Attached
from utils.batching import MicroBatchSize
from utils.encode import encode_rows
from utils.loading import choose
from utils.methods import METHODS, schedule
from utils.methods import choose as choose_method
from utils.models import get_model
from utils.readers import Row
from utils.schedule import Steps
from utils.templates import TEMPLATES
from utils.trainer_arguments import training_arguments
from utils.training import SupervisedTrainer

FAMILY = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_modules": ["all-linear"]}
IDS = torch.arange(10, 30).view(2, 10)
PROBE = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
RATES = {"full": 1e-3, "adalora": 0.1, "prompt": 0.3, "p_tuning": 3e-2, "prefix": 0.3, "ia3": 0.1}
VIRTUAL = [name for name, row in METHODS.items() if "num_virtual_tokens" in row.options]


@pytest.fixture(scope="module")
def encoded(tokenizer: Any) -> Any:
    rows = [Row(record=record, origin=f"row {i}") for i, record in enumerate(RECORDS, start=1)]
    return encode_rows(rows, TEMPLATES["alpaca"], tokenizer, cutoff_len=512, truncation="drop")[0]


def base_of(path: Path, family: str = "llama", **options: Any) -> Any:
    return choose(str(path), get_model(family), precision="fp32", **options)


def attached(base: Any, name: str, *, total: int = 8, empty: bool = False, **given: Any) -> Attached:
    torch.manual_seed(0)
    choice = schedule(choose_method(name, given, FAMILY), total)
    return attach(base.empty() if empty else base.load(), choice, total_steps=total)


def trainer_of(made: Attached, rows: Any, output: Path, *, total: int = 8, saving: int = 8, **options: Any) -> Any:
    steps = Steps(total=total, warmup=0, logging=1, saving=saving, evaluating=total)
    per_device = options.pop("per_device", 8)
    arguments = training_arguments(
        output, steps, learning_rate=options.pop("rate", RATES.get(made.choice.name, 1e-2)), precision="fp32", seed=0, validates=False,
        gradient_checkpointing=False, save_total_limit=3, report_to=["none"],
    )  # fmt: skip
    return SupervisedTrainer(
        made.model, arguments, train_rows=rows, validation_rows=[], pad_id=3, steps=steps, attached=made,
        batch_size=per_device * options.pop("accumulation", 1), micro_batch=MicroBatchSize(rows=per_device),
    )  # fmt: skip


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def values(model: Any, *, trained: bool) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad == trained}
