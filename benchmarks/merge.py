"""What merging costs: peak memory above the base itself, and time, for a random Llama of about 130 M parameters in bf16
with LoRA on every linear layer.

python3 benchmarks/merge.py    # writes benchmarks/results/merge.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import environment

SHARD_MB = 50
SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}


def make_run(folder: Path) -> None:
    """A base with the bundled tokenizer, and an adapter of rank 8 whose B matrices are not zero."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from utils.adapters import attach_lora
    from utils.models import get_model

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model("tiny").default_checkpoint)
    config = LlamaConfig(**SHAPE, vocab_size=32000, bos_token_id=1, eos_token_id=2)  # pyright: ignore[reportArgumentType]
    model = LlamaForCausalLM(config).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    adapted = attach_lora(model, ["all-linear"], r=8, alpha=16, dropout=0.0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / "run")


def stage(folder: Path, what: str) -> dict[str, float]:
    """One stage in this process: its peak resident memory in MiB, and seconds. `load` is what every stage needs: the
    libraries, the base with its adapter, and the answers to the probe prompts."""
    import resource

    from utils import adapters, equivalence, loading, merging, runinfo
    from utils.models import get_model
    from utils.templates import get_template

    loading.quiet_libraries()
    base = loading.choose(str(folder / "base"), get_model("llama"), precision="bf16", quantization_bit=16)
    tokenizer, template = base.tokenizer(), get_template("alpaca")
    started, figures = time.perf_counter(), {}
    if what == "load":
        model = adapters.load_adapter(base.load(), folder / "run")
        equivalence.probe_logits(model, equivalence.probe_prompts(template, tokenizer))
    else:
        run = runinfo.RunInfo(
            settings={"model_name_or_path": base.name, "data": ["none"], "template": "alpaca"},
            **dict.fromkeys(("base_fingerprint", "template_hash", "started"), ""),
            **{name: {} for name in ("ledger", "metrics", "verified", "versions")},
            **{
                "stop_token_ids": [2],
                "sources": [],
                "world_size": 1,
                "trained_tokens": 0,
                "commit": None,
                "seconds": 0.0,
            },
        )  # pyright: ignore[reportArgumentType]
        origin = merging.Origin(directory=folder / "run", run=run, base=base, tokenizer=tokenizer, template=template)
        facts = merging.merge(origin, folder / "merged", max_shard_size=f"{SHARD_MB}MB", overwrite=True)
        logits = facts["proof"]["logits"]
        figures = {f"logits_{name}": value for name, value in logits.items()} | {
            "effect_mean_kl": facts["effect"]["mean_kl"],
            "worst_layer_of_rounding": facts["proof"]["worst_layer"],
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mib": round(peak, 1), "seconds": round(time.perf_counter() - started, 1), **figures}


def main() -> int:
    if len(sys.argv) == 3:
        print(json.dumps(stage(Path(sys.argv[1]), sys.argv[2])))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_run(folder)
        weights = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors")) / 2**20
        results: dict[str, Any] = {"base_mib": round(weights, 1), "shard_mib": SHARD_MB}
        for what in ("load", "merge"):
            command = [sys.executable, __file__, name, what]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=environment.REPOSITORY)
            results[what] = json.loads(done.stdout.splitlines()[-1])
        results["shards"] = len(list((folder / "merged").glob("*.safetensors")))
    results["peak_above_load_mib"] = round(results["merge"]["peak_mib"] - results["load"]["peak_mib"], 1)
    environment.write("merge", ["python3 benchmarks/merge.py"], results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
