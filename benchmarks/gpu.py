"""What fine-tuning LLaMA takes of a GPU, on a machine that needs no network and no data: memory, speed, the preflight's
error, and which extras compute what the plain model does.

    python3 benchmarks/gpu.py                        # every slice, smallest first, each in a process of its own
    python3 benchmarks/gpu.py --only 7b --bits 8     # one
    python3 benchmarks/gpu.py --only tiny            # a model of two layers: does the code run? A CPU will do

The settings are the original project's: LoRA of rank 8 on queries and values, cutoff 512, 128 rows a step; 8 bits, and
4 and 16 beside it. Weights and rows are random (`random_base`). Training goes through the project's own trainer.
Results are written after every slice, to benchmarks/results/gpu.json or --output.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import environment
import torch
from random_base import LONGEST, MEAN, ROWS, RandomBase, random_rows
from transformers import TrainerCallback

from utils import loading
from utils.distributed import DTYPES
from utils.proof import IGNORED, Encoded

TINY = "tiny"
CHECKPOINTS = {"7b": "huggyllama/llama-7b", "13b": "huggyllama/llama-13b", "30b": "huggyllama/llama-30b"}
TINY_SIZES = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 512,
}
BITS = (8, 4, 16)
EXTRAS = ("--attn_implementation", "flash_attention_2", "--liger_kernel", "--torch_compile")
SLICE_SECONDS = 530
"""Of a whole slice; the machines that it is meant for end a command after ten minutes."""

PEAK_TFLOPS = {
    "H200": 989.4,
    "H100 PCIe": 756.5,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "A10": 125.0,
    "L4": 121.0,
}
"""Dense bf16 products, TFLOP/s, by part of the device's name: NVIDIA's data sheets, and half of what they give with
sparsity."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One process's work."""

    size: str
    bits: int
    variant: str
    """`plain`, `extras` or `trl`."""

    def __str__(self) -> str:
        return f"{self.size}-{self.bits}" + ("" if self.variant == "plain" else f"-{self.variant}")


class Stopwatch(TrainerCallback):
    """Notes when steps end, and ends a run that takes too long."""

    def __init__(self, seconds: float) -> None:
        self.ends: list[float] = []
        self._seconds = seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        synchronise()
        self.ends.append(time.perf_counter())
        control.should_training_stop |= len(self.ends) > 2 and self.ends[-1] - self.ends[0] > self._seconds

    def seconds(self) -> list[float]:
        """Of every step but the first."""
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def product_tflops(precision: str) -> float:
    """The fastest of some large matrix products here, in TFLOP/s."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    best = 0.0
    for size in (4096, 8192, 16384) if device == "cuda" else (256,):
        left = torch.randn(size, size, device=device, dtype=DTYPES[precision])
        right = torch.randn_like(left)
        for _ in range(3):  # the first picks its kernel
            synchronise()
            started = time.perf_counter()
            for _ in range(5):
                torch.mm(left, right)
            synchronise()
            best = max(best, 5 * 2 * size**3 / (time.perf_counter() - started) / 1e12)
    return best


def settings_of(work: Slice, precision: str, steps: int, batch_size: int, output: Path) -> Any:
    """What uniform_finetune.py makes of the flags that a person would give."""
    import uniform_finetune
    from utils import settings

    flags = ["--model_type", "llama", "--model_name_or_path", CHECKPOINTS.get(work.size, TINY), "--data", "alpaca-cot"]
    flags += ["--quantization_bit", work.bits, "--precision", precision, "--lora_target_modules", "q_proj", "v_proj"]
    flags += ["--lora_r", 8, "--cutoff_len", LONGEST, "--batch_size", batch_size, "--max_steps", steps]
    flags += ["--save_steps", steps, "--logging_steps", 1, "--output_dir", output]
    # Compiling for a CPU takes minutes.
    extras = EXTRAS if torch.cuda.is_available() else EXTRAS[:-1]
    flags += extras if work.variant == "extras" else ()
    return settings.resolve(uniform_finetune.make_parser().parse_args([str(flag) for flag in flags]))


def make_base(work: Slice, precision: Any) -> RandomBase:
    from utils import distributed
    from utils.models import get_model
    from utils.models.configurations import configuration

    return RandomBase(
        name=CHECKPOINTS.get(work.size, TINY),
        spec=get_model("llama"),
        precision=precision,
        quantization_bit=work.bits,
        device=distributed.device(),
        sizes=configuration(CHECKPOINTS[work.size]) if work.size in CHECKPOINTS else TINY_SIZES,
    )


def train(work: Slice, precision: Any, *, steps: int, seconds: float, batch_size: int) -> dict[str, Any]:
    """A slice, in this process: the figures of its steps after the first."""
    from transformers import AutoTokenizer

    from utils import distributed, methods
    from utils.models import get_model

    loading.quiet_libraries()
    distributed.start()
    base = make_base(work, precision)
    rows = random_rows(steps * batch_size, vocabulary=base.config().vocab_size)
    figures: dict[str, Any] = {"precision": precision, "product_tflops": product_tflops(precision)}
    tokenizer = AutoTokenizer.from_pretrained(get_model("tiny").default_checkpoint)
    watch = Stopwatch(seconds)
    with tempfile.TemporaryDirectory() as folder:
        chosen = settings_of(work, precision, steps, batch_size, Path(folder))
        if work.variant == "trl":
            figures |= _by_trl(base, rows, tokenizer, watch, chosen, Path(folder))
        else:
            figures |= _by_us(base, rows, tokenizer, watch, chosen)
    figures |= _memory()
    if watch.seconds():
        _rates(figures, base, methods.schedule(chosen.method, steps), rows)
    if "predicted_gb" in figures and "used_gb" in figures:
        figures["prediction_error"] = figures["predicted_gb"] / figures["used_gb"] - 1
    return {name: _rounded(value) for name, value in figures.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def _by_us(base: RandomBase, rows: Sequence[Encoded], tokenizer: Any, watch: Stopwatch, chosen: Any) -> dict[str, Any]:
    from utils import assembly, preflight
    from utils.course import Course

    steps = chosen.steps(len(rows), rows_a_step=chosen.batch_size)
    here = preflight.Device.here(base.precision)
    foreseen = preflight.foresee(chosen, base, rows, here, steps.total)
    data: Any = SimpleNamespace(train=rows, validation=[])
    started = time.perf_counter()
    course = Course(chosen=chosen, base=base, tokenizer=tokenizer, data=data, steps=steps, foreseen=foreseen)
    _, trainer = assembly.make_trainer(course)
    figures: dict[str, Any] = {
        "predicted_gb": foreseen.footprint.total / 1e9,
        "predicted_fits": foreseen.fits,
        "predicted_step_seconds": foreseen.seconds_a_step,
        "micro_batch_tokens": foreseen.micro_batch.tokens,
        "gradient_checkpointing": foreseen.checkpointing,
        "start_seconds": time.perf_counter() - started,
    }
    if chosen.extras or chosen.attn_implementation:
        figures |= {"extras_on": list(trainer._extras.on), "extras": list(trainer._extras.notes)}
    trainer.add_callback(watch)
    _forget_peak()
    trainer.train()
    shares = [trainer.train_dataset[i]["micro_batches"] for i in range(1, len(watch.ends))]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
    tokens = [sum(int(batch["attention_mask"].sum()) for batch in share) for share in shares]
    positions = sum(batch["input_ids"].numel() for share in shares for batch in share)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return figures | {
        "step_seconds": watch.seconds(),
        "step_tokens": tokens,
        "padding": 1 - sum(tokens) / max(1, positions),
        "losses": losses,
    }


def _by_trl(
    base: RandomBase, rows: Sequence[Encoded], tokenizer: Any, watch: Stopwatch, chosen: Any, output: Path
) -> dict[str, Any]:
    """TRL's SFTTrainer with its defaults and the same LoRA, rows and step. Its order is its own, so a step's tokens are
    taken as the mean."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    columns = {"input_ids": [row.input_ids for row in rows]}
    masks = [[int(label != IGNORED) for label in row.labels] for row in rows]
    micro = min(8, chosen.batch_size)
    arguments = SFTConfig(
        output_dir=str(output),
        max_steps=chosen.max_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=chosen.batch_size // micro,
        learning_rate=chosen.learning_rate,
        bf16=base.precision == "bf16",
        use_cpu=base.device.type == "cpu",
        max_length=LONGEST,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    adapter = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    trainer = SFTTrainer(
        model=base.load(),
        args=arguments,
        train_dataset=Dataset.from_dict(columns | {"completion_mask": masks}),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[watch],
    )
    _forget_peak()
    trainer.train()
    mean = sum(len(row.input_ids) for row in rows) / len(rows) * chosen.batch_size
    return {"step_seconds": watch.seconds(), "step_tokens": [round(mean)] * len(watch.seconds())}


def _rates(figures: dict[str, Any], base: RandomBase, method: Any, rows: Sequence[Encoded]) -> None:
    """Tokens a second, median over the steps, and the share of the peak that useful products take: of tokens, not of
    padding, and computed once, however often gradient checkpointing does it."""
    from utils import adapters
    from utils.memory import MemoryModel

    share = sum(row.num_targets for row in rows) / sum(len(row.input_ids) for row in rows)
    pairs = list(zip(figures["step_tokens"], figures["step_seconds"], strict=True))
    rate = statistics.median(tokens / seconds for tokens, seconds in pairs)
    model = adapters.attach(base.empty(), method, total_steps=1).model
    memory = MemoryModel(
        model, precision=base.precision, quantization_bit=base.quantization_bit, device=base.device.type
    )
    tokens = round(statistics.mean(figures["step_tokens"]))
    useful = memory.flops(tokens=tokens, targets=round(tokens * share), length=MEAN, checkpointing=False) / tokens
    figures |= {
        "tokens_per_second": rate,
        "trained_tokens_per_second": rate * share,
        "useful_tflops": rate * useful / 1e12,
        "share_of_measured_products": rate * useful / 1e12 / figures["product_tflops"],
    }
    if peak := peak_tflops(device_name()):
        figures["share_of_peak"] = rate * useful / 1e12 / peak


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _memory() -> dict[str, Any]:
    """GB of the device: the largest sum of tensors, what torch reserved for them, and all that is gone, with CUDA's own
    part. Nothing on a CPU, for which benchmarks/preflight.py measures."""
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    own = total - free - torch.cuda.memory_reserved()
    sizes = {"allocated_gb": allocated, "reserved_gb": reserved, "used_gb": reserved + own, "device_gb": total}
    return {name: size / 1e9 for name, size in sizes.items()} | {"below_80_gb": reserved + own < 80e9}


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def peak_tflops(name: str) -> float | None:
    """The data sheet's, of a device with this name; None: not in the table."""
    return next((value for part, value in PEAK_TFLOPS.items() if part in name), None)


def slices(values: argparse.Namespace) -> Iterator[Slice]:
    """What to do, in order: plain ones first, extras and TRL in 16 bits, where neither quantisation stands between."""
    for size in values.only:
        for bits in values.bits:
            yield Slice(size=size, bits=bits, variant="plain")
        if 16 in values.bits:
            yield Slice(size=size, bits=16, variant="extras")
            if importlib.util.find_spec("trl"):
                yield Slice(size=size, bits=16, variant="trl")


def in_own_process(work: Slice, values: argparse.Namespace) -> dict[str, Any]:
    """The figures of a slice; of one that fails, the last line of what it said."""
    command = [sys.executable, __file__, "--slice", work.size, str(work.bits), work.variant]
    command += [f"--{name}={getattr(values, name)}" for name in ("precision", "steps", "seconds", "batch_size")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SLICE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {SLICE_SECONDS} s"}
    lines = [line for line in (done.stderr if done.returncode else done.stdout).splitlines() if line.strip()]
    return {"failed": lines[-1][:500] if lines else "no output"} if done.returncode else json.loads(lines[-1])


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Adds `results` to what `path` has of this device."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"devices": {}}
    here = known["devices"].get(device_name(), {"results": {}})
    here = {"environment": environment.describe(), "rows": ROWS, "results": {**here["results"], **results}}
    content = {"command": "python3 benchmarks/gpu.py", "devices": {**known["devices"], device_name(): here}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


SHOWN = {
    "used_gb": "{:.1f} GB used",
    "predicted_gb": "{:.1f} GB predicted",
    "tokens_per_second": "{:,.0f} tokens/s",
    "trained_tokens_per_second": "{:,.0f} trained/s",
    "share_of_peak": "{:.0%} of the data sheet's peak",
    "share_of_measured_products": "{:.0%} of the products measured here",
    "failed": "FAILED: {}",
}


def main(argv: Sequence[str] | None = None) -> int:
    from utils import distributed

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[TINY, *CHECKPOINTS], default=list(CHECKPOINTS))
    parser.add_argument("--bits", nargs="+", type=int, choices=BITS, default=list(BITS))
    parser.add_argument("--precision", choices=list(DTYPES), default=distributed.best_precision())
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of a slice, the first not measured")
    parser.add_argument(
        "--seconds", type=float, default=240, help="measured steps take no longer, but are two at least"
    )
    parser.add_argument("--batch_size", type=int, default=128, help="rows of an optimizer step")
    results = environment.RESULTS / "gpu.json" if torch.cuda.is_available() else None
    parser.add_argument(
        "--output", type=Path, default=results, help="JSON (default: benchmarks/results/gpu.json on CUDA)"
    )
    parser.add_argument("--slice", nargs=3, metavar=("SIZE", "BITS", "VARIANT"), help=argparse.SUPPRESS)
    values = parser.parse_args(argv)
    if values.slice:
        size, bits, variant = values.slice
        work = Slice(size=size, bits=int(bits), variant=variant)
        sizes = {name: getattr(values, name) for name in ("steps", "seconds", "batch_size")}
        print(json.dumps(train(work, values.precision, **sizes)))
        return 0
    if TINY not in values.only and not torch.cuda.is_available():
        parser.error("no CUDA device is here: run it on one, or give --only tiny to see whether the code runs")
    failed = 0
    for work in slices(values):
        print(f"{work} ...", flush=True)
        figures = in_own_process(work, values)
        if values.output:
            write(values.output, {str(work): figures})
        failed += "failed" in figures
        print("  " + "; ".join(text.format(figures[name]) for name, text in SHOWN.items() if name in figures))
        print("".join(f"  {note}\n" for note in figures.get("extras", [])), end="", flush=True)
    print(f"written to {values.output}" if values.output else "nothing was written: give --output")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
