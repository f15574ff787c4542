"""How well the memory of a run is foretold: predicted against measured peaks, each in a process of its own.

    python3 benchmarks/preflight.py                 # every configuration
    python3 benchmarks/preflight.py --only llama    # those whose name has this in it

Bases have random weights; the project's own trainer does two optimizer steps of two micro-batches with each,
all of the same shape. Measured is the process's largest resident memory over that before the base was loaded, on a CPU:
a first run on a base of a few thousand parameters has everything imported by then, and glibc's allocator is told to
give back what is freed. Predicted is `Footprint.total`, of an empty model.

Written to benchmarks/results/preflight.json. On a GPU: benchmarks/gpu.py.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import environment

# Large blocks from the system and straight back to it; else freed memory stays in the process and counts.
HONEST = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
GOAL = 0.10


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What is trained, and how."""

    family: str
    shape: dict[str, int]
    method: str = "lora"
    precision: str = "fp32"
    bits: int = 16
    rows: int = 4
    length: int = 512
    checkpointing: bool = False


def llama(hidden: int, intermediate: int, layers: int, heads: int, vocabulary: int = 32000) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
    }


SMALL, LARGE = llama(256, 688, 6, 4), llama(640, 1728, 12, 10)
CONFIGURATIONS = {
    "llama 21M": Configuration(family="llama", shape=SMALL),
    "llama 100M": Configuration(family="llama", shape=LARGE),
    "llama 21M, bf16": Configuration(family="llama", shape=SMALL, precision="bf16"),
    "llama 100M, checkpointing": Configuration(family="llama", shape=LARGE, checkpointing=True),
    "llama 45M, 8 bits": Configuration(family="llama", shape=llama(640, 1728, 6, 10, 12000), bits=8),
    "llama 21M, all weights": Configuration(family="llama", shape=SMALL, method="full"),
    "bloom 38M": Configuration(
        family="bloom",
        shape={"hidden_size": 144, "n_layer": 8, "n_head": 8, "vocab_size": 250_880},
        rows=8,
        length=256,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted against measured peaks of memory.")
    parser.add_argument("--only", default="", help="configurations whose name has this in it")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        print(json.dumps(measure(CONFIGURATIONS[flags.measure], flags.base)))
        return
    results: dict[str, Any] = {}
    for name, configuration in CONFIGURATIONS.items():
        if flags.only in name:
            results[name] = compare(name, configuration)
            print(f"{name:<28}{json.dumps(results[name])}", flush=True)
    worst = max(abs(result["error"]) for result in results.values())
    print(f"largest error {worst:.1%}; the goal is {GOAL:.0%}")
    if not flags.only:
        environment.write("preflight", sys.argv, {"goal": GOAL, "largest_error": worst, "configurations": results})


def compare(name: str, configuration: Configuration) -> dict[str, Any]:
    """Both figures, in MB (10^6 bytes), and by how much the prediction is off."""
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(configuration, Path(folder))
        command = [sys.executable, __file__, "--measure", name, "--base", str(base)]
        done = subprocess.run(command, env={**os.environ, **HONEST}, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr[-2000:]}")
        measured = json.loads(done.stdout.splitlines()[-1])
        footprint = predict(configuration, base)
    parts = {part: round(size / 1e6, 1) for part, size in vars(footprint).items()}
    return {
        "configuration": asdict(configuration),
        "measured_mb": round(measured["peak"] / 1e6, 1),
        "predicted_mb": round(footprint.total / 1e6, 1),
        "error": round(footprint.total / measured["peak"] - 1, 4),
        "parts_mb": parts,
    }


def make_base(configuration: Configuration, folder: Path) -> Path:
    """A base of random weights on disk."""
    import torch
    import transformers

    config = {"llama": transformers.LlamaConfig, "bloom": transformers.BloomConfig}[configuration.family]
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config(**configuration.shape)).save_pretrained(folder)
    return folder


def predict(configuration: Configuration, folder: Path) -> Any:
    """The footprint, from the base's configuration alone."""
    from utils import adapters
    from utils.memory import MemoryModel

    base, choice = _base(configuration, folder)
    memory = MemoryModel(
        adapters.attach(base.empty(), choice, total_steps=2).model,
        precision=base.precision,
        quantization_bit=configuration.bits,
        device="cpu",
    )
    return memory.footprint(
        rows=configuration.rows,
        length=configuration.length,
        targets=configuration.rows * (configuration.length // 2),
        checkpointing=configuration.checkpointing,
    )


def measure(configuration: Configuration, folder: Path) -> dict[str, int]:
    """Bytes by which this process grows, at most."""
    import transformers

    with tempfile.TemporaryDirectory() as first:
        tiny = Configuration(
            family="llama",
            shape=llama(32, 64, 2, 2, 100),
            precision=configuration.precision,
            bits=configuration.bits,
            rows=1,
            length=16,
        )
        transformers.logging.set_verbosity_error()
        train(tiny, make_base(tiny, Path(first)))
    gc.collect()
    before = status("VmRSS")
    train(configuration, folder)
    return {"before": before, "peak": status("VmHWM") - before}


def train(configuration: Configuration, folder: Path) -> None:
    """Two steps of the project's trainer. The peak counts from its first step on."""
    from utils import adapters, trainer_arguments, training
    from utils.batching import MicroBatchSize
    from utils.proof import IGNORED, Encoded
    from utils.schedule import Steps

    base, choice = _base(configuration, folder)
    attached = adapters.attach(base.load(), choice, total_steps=2)
    steps = Steps(total=2, warmup=1, logging=1, saving=1000, evaluating=1000)
    length = configuration.length
    # The first half is a prompt; its last position predicts the answer's first token.
    labels = [IGNORED] * (length - length // 2) + [7] * (length // 2)
    row = Encoded(input_ids=[7] * length, labels=labels, origin="made up", source="")
    arguments = trainer_arguments.training_arguments(
        folder / "run",
        steps,
        learning_rate=1e-4,
        precision=base.precision,
        seed=0,
        validates=False,
        gradient_checkpointing=configuration.checkpointing,
        save_total_limit=1,
        report_to=["none"],
    )
    arguments.save_strategy = "no"  # pyright: ignore[reportAttributeAccessIssue]
    trainer = training.SupervisedTrainer(
        attached.model,
        arguments,
        train_rows=[row] * (4 * configuration.rows),
        validation_rows=[],
        pad_id=0,
        steps=steps,
        batch_size=2 * configuration.rows,
        micro_batch=MicroBatchSize(rows=configuration.rows),
        needs_mask=False,
        attached=attached,
    )
    # Weights that are read in place would count by the pages touched, and so would those they were quantised from.
    for parameter in attached.model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident memory counts from here
    trainer.train()


def _base(configuration: Configuration, folder: Path) -> tuple[Any, Any]:
    from utils import loading
    from utils.methods import choose
    from utils.models import get_model

    spec = get_model(configuration.family)
    family = {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lora_target_modules": spec.lora_target_modules}
    base = loading.choose(
        str(folder),
        spec,
        precision=configuration.precision,  # pyright: ignore[reportArgumentType]
        quantization_bit=configuration.bits,
    )
    return base, choose(configuration.method, {}, family)


def status(field: str) -> int:
    """A figure of this process's memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: this is measured on Linux")


if __name__ == "__main__":
    main()
