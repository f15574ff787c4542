"""Runs without training: a tiny base, an adapter of any method with random weights, and what a script would know of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from utils import identity, loading
from utils.identity import Identified
from utils.merging import Origin
from utils.models import get_model
from utils.templates import get_template

METHODS = ("lora", "rslora", "dora", "adalora", "ia3")
PROMPT_METHODS = ("prompt", "p_tuning", "prefix")


def peft_config(method: str, targets: Any, virtual: int = 3) -> Any:
    """peft's configuration of a method on these layers."""
    import peft

    lora: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM"}
    prompt: dict[str, Any] = {"num_virtual_tokens": virtual, "task_type": "CAUSAL_LM"}
    feedforward = (
        [name for name in targets if name in ("down_proj", "dense_4h_to_h")] if targets != "all-linear" else []
    )
    make = {
        "lora": lambda: peft.LoraConfig(**lora),
        "rslora": lambda: peft.LoraConfig(**lora, use_rslora=True),
        "dora": lambda: peft.LoraConfig(**lora, use_dora=True),
        "adalora": lambda: peft.AdaLoraConfig(
            init_r=4, target_r=2, total_step=10, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"
        ),
        "ia3": lambda: peft.IA3Config(target_modules=targets, feedforward_modules=feedforward, task_type="CAUSAL_LM"),
        "prompt": lambda: peft.PromptTuningConfig(**prompt),
        "p_tuning": lambda: peft.PromptEncoderConfig(**prompt, encoder_hidden_size=8),
        "prefix": lambda: peft.PrefixTuningConfig(**prompt),
    }
    return make[method]()


def make_origin(
    base: Path,
    folder: Path,
    *,
    method: str = "lora",
    targets: Any = "all-linear",
    family: str = "llama",
    bits: int = 16,
    seed: int = 1,
    virtual: int = 3,
) -> Origin:
    """A run in `folder` on `base` whose adapter changes every layer that it is on; no `run.json` is written."""
    import peft

    torch.manual_seed(seed)
    chosen = loading.choose(str(base), get_model(family), precision="fp32", quantization_bit=bits)
    plain = loading.choose(str(base), get_model(family), precision="fp32", quantization_bit=16)
    model: Any = peft.get_peft_model(plain.load(), peft_config(method, targets, virtual))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn_like(parameter))
            elif "lora_E" in name or "ranknum" in name:
                parameter.copy_(torch.ones_like(parameter))
    model.save_pretrained(folder, save_embedding_layers=False)
    tokenizer, template = chosen.tokenizer(), get_template("alpaca")
    tokenizer.save_pretrained(folder)
    found = Identified(
        directory=folder,
        place=str(folder),
        run=None,
        model_type=family,
        method=method,
        description="",
        stop_token_ids=[2, 5],
        base=chosen,
        tokenizer=tokenizer,
        template=template,
    )
    run = identity.as_run(found)
    trained = {
        "settings": {**run.settings, "data": ["数据"]},
        "sources": [{"name": "数据", "rows": 8, "license": "CC0-1.0", "sha256": "0" * 64}],
        "started": "2026-01-01T00:00:00+00:00",
        "kept": "",
    }
    return Origin(directory=folder, run=replace(run, **trained), base=chosen, tokenizer=tokenizer, template=template)
