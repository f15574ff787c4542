"""The main job on real records: LoRA on a random Llama with the real LLaMA tokenizer, then an answer from it.

    python3 benchmarks/real_input.py                 # writes benchmarks/results/real_input.json
    python3 benchmarks/real_input.py --max_steps 5   # a quick look

Needs the real data (ALPACA_COT_REAL_DATA, default ../shared/data). The base is random (hidden 320, 6 layers, 28 million
parameters), so what falls is the loss; its answers are noise. It shows that the pipeline holds on real input.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import environment

DATA = Path(os.environ.get("ALPACA_COT_REAL_DATA", environment.REPOSITORY.parent / "shared" / "data"))
SETS = {"cot_aqua_train": 2728, "cot_qasc_train": 1084, "cot_strategyqa_train": 2061}


def make_base(directory: Path) -> None:
    """A random Llama with the real tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory.mkdir()
    shutil.copy(DATA / "checkpoints" / "llama.tokenizer.model", directory / "tokenizer.model")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=320, intermediate_size=864, num_hidden_layers=6, num_attention_heads=5
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def main() -> int:
    parser = argparse.ArgumentParser(description="The main job on real records.")
    parser.add_argument("--max_steps", type=int, default=40, help="optimizer steps of 32 rows")
    steps = parser.parse_args().max_steps
    if not DATA.is_dir():
        sys.exit(f"the real data is not here ({DATA}); set ALPACA_COT_REAL_DATA")
    with tempfile.TemporaryDirectory() as folder:
        base, output = Path(folder) / "base", Path(folder) / "run"
        make_base(base)
        files = [DATA / "unified" / f"{name}.json" for name in SETS]
        start = time.perf_counter()
        environment.run(
            *["uniform_finetune.py", "--model_type", "llama", "--model_name_or_path", base, "--data", *files],
            *["--lora_target_modules", "all-linear", "--learning_rate", "5e-3", "--max_steps", steps],
            *["--per_gpu_train_batch_size", 8, "--gradient_accumulation_steps", 4, "--val_set_size", 64],
            *["--output_dir", output, "--logging_steps", 1, "--eval_steps", steps, "--save_steps", steps],
        )
        seconds = time.perf_counter() - start
        run = json.loads((output / "run.json").read_text())
        log = [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]
        losses = [entry["loss"] for entry in log if "loss" in entry]
        ledger = run["ledger"]
        assert {s["name"].rsplit("/")[-1].removesuffix(".json"): s["rows"] for s in run["sources"]} == SETS
        dropped = sum(ledger["dropped"].values())
        assert ledger["read"] == sum(SETS.values()) == ledger["trained"] + ledger["validation"] + dropped
        assert losses[-1] < losses[0] - 0.5, losses
        answer = environment.run(
            *["generate.py", "--lora_dir", output, "--greedy", "--max_new_tokens", 16],
            *["--instruction", "Could the members of The Police perform lawful arrests?"],
        )
        results = {
            "ledger": ledger | {"sources": {Path(name).name: part for name, part in ledger["sources"].items()}},
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "validation_loss": run["metrics"]["validation_loss"],
            "steps": steps,
            "trained_tokens": run["trained_tokens"],
            "training_seconds": run["seconds"],
            "trained_tokens_per_second": round(run["trained_tokens"] / run["seconds"]),
            "whole_command_seconds": round(seconds, 1),
            "verified": run["verified"],
            "answer": answer.strip(),
        }
        environment.write("real_input", ["python3 benchmarks/real_input.py", f"--max_steps {steps}"], results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
