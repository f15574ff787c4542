"""How fast LoRA training is, side by side: this project, the original's recipe, TRL, LLaMA-Factory, and the limit.

    python3 benchmarks/training.py --model 20m                              # all contestants of that model
    python3 benchmarks/training.py --model 110m --quick --rounds 3          # TRL's defaults and its best settings
    python3 benchmarks/training.py --model bloom --contestants ours trainer-4 trl+by_length+rows_4
    python3 benchmarks/training.py --compare                                # the table of what is measured

The work is the same for all: LoRA of rank 8 on queries and values, AdamW at 3e-4, the first global batches of 128 rows
of FLAN's real chains of thought, encoded once by the project (cutoff 512) and handed to each contestant as ids and
labels; the same weights, arithmetic and threads. Each contestant is a process of its own, round after round; its first
step is not counted. TRL and LLaMA-Factory get environments of their own, made once. Where a contestant orders or packs
the rows itself its steps are not the others' steps, and its rate is that of all counted steps together.

Rates are medians over the counted steps of all rounds. Memory is the peak of resident memory above what the imports
took. `share of peak`: the operations that the limit needs for the tokens trained, against the fastest plain matrix
product of this machine. Results are merged into benchmarks/results/training.json, contestant by contestant.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment
from contestants import material

HERE = Path(__file__).resolve().parent
RESULT = environment.RESULTS / "training.json"
UNUSABLE = {"llamafactory": ("torchvision", "torchaudio")}
"""What an environment's requirements bring that cannot be imported beside a torch without CUDA; no text model wants
them, and without them the libraries do."""

TRL_QUICK = (
    "",
    "no_checkpointing",
    "no_checkpointing+by_length",
    "no_checkpointing+by_length+rows_4",
    "no_checkpointing+rebalanced",
    "no_checkpointing+rebalanced+rows_4",
)
TRL_ALONE = ("by_length", "rebalanced", "rows_4", "rows_16", "dft", "eager")
TRL_TOGETHER = (
    "rows_4",
    "by_length+rows_16",
    "by_length+rows_32",
    "by_length+dft",
    "by_length+eager",
    "rebalanced+rows_16",
    "rebalanced+dft",
)
TRL_PACKED = ("padding_free", "bfd", "bfd_split", "wrapped")
TRL_PACKED_TOGETHER = ("padding_free+rows_4", "bfd+rows_1", "bfd+rows_2", "bfd+length_512+rows_1", "wrapped+rows_2")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """How a name is run: in which environment, which module, with which options."""

    environment: str
    module: str
    options: dict[str, Any]


def contestant(name: str, model: str) -> Contestant:
    """The contestant of that name; `trl+SETTING+SETTING` is TRL with these of `contestants.trl_sft.SETTINGS`."""
    kind, *settings = name.split("+")
    if kind == "trl":
        return Contestant(environment="trl", module="trl_sft", options={"settings": settings})
    if kind == "llamafactory" and not settings:
        return Contestant(environment="llamafactory", module="llamafactory_sft", options={"micro_batch": 4})
    if kind in ("trainer-4", "trainer-128") and not settings:
        rows = int(kind.removeprefix("trainer-"))
        return Contestant(environment="project", module="plain_trainer", options={"micro_batch": rows})
    if kind == "limit" and not settings:
        return Contestant(environment="project", module="limit", options={})
    if kind == "ours":  # further flags of the script: ours+--max_tokens_per_batch=4096
        options = {"model_type": material.MODEL_TYPES[model], "cutoff_len": material.CUTOFF}
        flags = [text for setting in settings for text in setting.split("=")]
        return Contestant(environment="project", module="ours", options=options | {"flags": flags})
    raise ValueError(
        f"--contestants {name}: there is ours, trainer-4, trainer-128, trl (with settings: trl+by_length+rows_4), "
        "llamafactory and limit"
    )


def default_contestants(model: str, *, quick: bool) -> list[str]:
    """All, or the ones that decide. BLOOM's attention knows no packs: rows would see each other, so TRL's are out."""
    trl = list(TRL_QUICK)
    if not quick:
        trl += [*TRL_ALONE, *(f"no_checkpointing+{name}" for name in TRL_TOGETHER)]
        if model != "bloom":
            trl += [*TRL_PACKED, *(f"no_checkpointing+{name}" for name in (*TRL_PACKED, *TRL_PACKED_TOGETHER))]
    return [
        "ours",
        "limit",
        "trainer-4",
        "trainer-128",
        "llamafactory",
        *("+".join(["trl", n][: 1 + bool(n)]) for n in trl),
    ]


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of an environment, which is made if it is not there as its requirements say."""
    if name == "project":
        return Path(sys.executable)
    requirements = HERE / f"requirements-{name}.txt"
    mark, wanted = folder / name / "made", hashlib.sha256(requirements.read_bytes()).hexdigest()
    python = folder / name / "bin" / "python"
    if mark.is_file() and mark.read_text() == wanted:
        return python
    print(f"making the environment {folder / name}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
    (torch,) = (
        line.split("#")[0].strip() for line in requirements.read_text().splitlines() if line.startswith("torch=")
    )
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", torch], check=True)
    subprocess.run([*pip, "install", "-r", str(requirements)], check=True)
    if name in UNUSABLE:
        subprocess.run([*pip, "uninstall", "--yes", *UNUSABLE[name]], check=True)
    mark.write_text(wanted)
    return python


def work_of(flags: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What all contestants are told (`contestants.work.Work`), but for their options and scratch."""
    import psutil

    return {
        "base": str(material.base(folder, flags.model)),
        "rows": str(material.rows(folder, global_batch=flags.global_batch, steps=flags.steps)),
        "records": str(material.records(folder)),
        "targets": material.TARGETS[flags.model],
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": flags.dropout,
        "learning_rate": 3e-4,
        "seed": material.SEED,
        "steps": flags.steps,
        "global_batch": flags.global_batch,
        "precision": flags.precision,
        "threads": flags.threads,
        "memory_limit_gib": round(0.95 * psutil.virtual_memory().available / 2**30, 1),
    }


def run(who: Contestant, work: Mapping[str, Any], folder: Path, *, minutes: float) -> dict[str, Any]:
    """One run in a process of its own: what it wrote, or `{"failed": why}`."""
    python = python_of(who.environment, folder)
    threads = str(work["threads"])
    environ = os.environ | {
        "PYTHONPATH": str(HERE),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        told, out = scratch / "work.json", scratch / "result.json"
        told.write_text(json.dumps({**work, "scratch": name, "options": who.options}), encoding="utf-8")
        command = [str(python), "-m", f"contestants.{who.module}", str(told), str(out)]
        try:
            done = subprocess.run(
                command, cwd=scratch, env=environ, capture_output=True, text=True, timeout=60 * minutes, check=False
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"it was not done after {minutes:g} minutes"}
        if done.returncode or not out.is_file():
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            killed = "the system ended it, most likely for its memory" if done.returncode == -9 else ""
            return {"failed": killed or (lines[-1] if lines else f"exit code {done.returncode}")}
        return json.loads(out.read_text(encoding="utf-8"))


def figures(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A contestant's figures from all its rounds; the first step of each is not counted."""
    failed = [found["failed"] for found in rounds if "failed" in found]
    if failed:
        return {"failed": failed[0]}
    counted = [found["steps"][1:] for found in rounds]
    if not all(counted):
        return {"failed": "its rows made a single step, which is not counted: take more --steps"}
    steps = [step for each in counted for step in each]
    own_order = rounds[0].get("own_order", False)

    def rate(what: str) -> float:
        if own_order:
            return statistics.median(sum(s[what] for s in each) / sum(s["seconds"] for s in each) for each in counted)
        return statistics.median(step[what] / step["seconds"] for step in steps)

    positions, tokens = (sum(step[what] for step in steps) for what in ("positions", "non_padding_tokens"))
    return {
        "trained_tokens_per_second": round(rate("trained_tokens"), 1),
        "non_padding_tokens_per_second": round(rate("non_padding_tokens"), 1),
        "seconds_a_step": round(statistics.median(step["seconds"] for step in steps), 3),
        "padding": round(1 - tokens / positions, 4),
        "peak_mib": round(statistics.median(found["peak_mib"] for found in rounds), 1),
        "counted_steps": len(steps),
    }


def compared(contestants: Mapping[str, Any]) -> dict[str, Any]:
    """Ours against each that had the same rows and conditions: speed in trained tokens a second, memory, the losses,
    and the share of the peak."""
    same = contestants["ours"]["conditions"] if "ours" in contestants else None
    good = {
        name: each
        for name, each in contestants.items()
        if "failed" not in each["figures"] and same in (None, each["conditions"])
    }
    found: dict[str, Any] = {}
    for name, each in good.items():
        mine, line = good.get("ours"), {}
        if mine and name != "ours":
            for what, key in (("speed", "trained_tokens_per_second"), ("memory", "peak_mib")):
                line[f"ours / {name}, {what}"] = round(mine["figures"][key] / max(1e-9, each["figures"][key]), 3)
        found |= line
        if "limit" in good:
            raw = good["limit"]["rounds"][0]
            needed = sum(raw["flops"]) / sum(step["trained_tokens"] for step in raw["steps"])
            peak = max(max(one["gemm_gflops"].values()) for one in good["limit"]["rounds"])
            share = needed * each["figures"]["trained_tokens_per_second"] / 1e9 / peak
            found[f"{name}, share of peak"] = round(share, 3)
    if "ours" in good and "trainer-4" in good:
        pairs = zip(good["ours"]["rounds"][0]["losses"], good["trainer-4"]["rounds"][0]["losses"], strict=True)
        found["ours - trainer-4, largest difference of a loss"] = max(abs(a - b) for a, b in pairs)
    return found


def keep(path: Path, section: str, name: str, rounds: Sequence[dict[str, Any]], conditions: Mapping[str, Any]) -> None:
    """Puts a contestant's rounds into the result, in the place of older ones, and everything that follows from them."""
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": {}}
    place = document["results"].setdefault(section, {"contestants": {}})
    where = environment.describe()
    place["contestants"][name] = {
        "figures": figures(rounds),
        "conditions": dict(conditions),
        "measured": {key: where[key] for key in ("commit", "date")},
        "rounds": list(rounds),
    }
    place["compared"] = compared(place["contestants"])
    document = {"command": "python3 benchmarks/training.py", "environment": where, "results": document["results"]}
    document["environment"]["bf16"] = matrix_units() or "this processor multiplies no bf16 matrices: fp32 only"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def matrix_units() -> list[str]:
    """The processor's instructions for bf16 matrices."""
    cpuinfo = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").is_file() else []
    return sorted({"avx512_bf16", "amx_bf16"}.intersection(cpuinfo))


def table(path: Path, section: str) -> str:
    """What is measured of one model, the fastest first."""
    found = json.loads(path.read_text(encoding="utf-8"))["results"][section]
    lines = [
        f"{section}",
        f"{'contestant':44}{'trained/s':>11}{'tokens/s':>11}{'s/step':>9}{'padding':>9}{'MiB':>9}{'ours /':>8}",
    ]
    ranked = sorted(
        found["contestants"].items(), key=lambda item: -item[1]["figures"].get("trained_tokens_per_second", 0)
    )
    for name, each in ranked:
        of = each["figures"]
        if "failed" in of:
            lines.append(f"{name:44}  {of['failed'][:90]}")
            continue
        ratio = found["compared"].get(f"ours / {name}, speed", "")
        numbers = (of["trained_tokens_per_second"], of["non_padding_tokens_per_second"], of["seconds_a_step"])
        rates = f"{numbers[0]:11.1f}{numbers[1]:11.1f}{numbers[2]:9.2f}"
        lines.append(f"{name:44}{rates}{of['padding']:9.1%}{of['peak_mib']:9.0f}{ratio:>8}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(material.BASES), default="20m")
    parser.add_argument("--contestants", nargs="+", metavar="NAME", help="default: all of the model")
    parser.add_argument("--quick", action="store_true", help="of TRL the defaults and the best settings only")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of a run; the first is not counted")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each contestant, in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--global_batch", type=int, default=128, help="rows of a step")
    parser.add_argument("--dropout", type=float, default=0.0, help="of LoRA; 0: losses can be compared")
    parser.add_argument("--minutes", type=float, default=30.0, help="the longest that a run may take")
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "alpaca_cot_benchmarks", metavar="DIR"
    )
    parser.add_argument("--result", type=Path, default=RESULT, metavar="FILE", help="where results are merged")
    parser.add_argument("--compare", action="store_true", help="measure nothing, print what is there")
    flags = parser.parse_args()
    if flags.compare:
        sections = json.loads(flags.result.read_text(encoding="utf-8"))["results"]
        print("\n\n".join(table(flags.result, section) for section in sections))
        return 0
    if flags.steps < 2:
        parser.error(f"--steps {flags.steps}: the first is not counted, so it takes 2")
    if flags.precision == "bf16" and not matrix_units():
        parser.error("--precision bf16: this processor multiplies no bf16 matrices (avx512_bf16, amx_bf16); take fp32")
    names = flags.contestants or default_contestants(flags.model, quick=flags.quick)
    try:
        chosen = {name: contestant(name, flags.model) for name in names}
    except ValueError as error:
        parser.error(str(error))
    folder = flags.environments.resolve()
    os.environ["ALPACA_COT_CACHE"] = str(folder / "cache")  # the rows are encoded once, by this process
    work, rounds = work_of(flags, folder), {name: list[dict[str, Any]]() for name in chosen}
    section = f"{flags.model} {flags.precision}"
    conditions = {key: work[key] for key in ("steps", "global_batch", "threads", "lora_dropout")}
    conditions["rows_sha256"] = hashlib.sha256(Path(work["rows"]).read_bytes()).hexdigest()[:16]
    for number in range(flags.rounds):
        for name, who in chosen.items():
            if any("failed" in found for found in rounds[name]):
                continue
            print(f"round {number + 1}: {name}", flush=True)
            rounds[name].append(run(who, work, folder, minutes=flags.minutes))
            keep(flags.result, section, name, rounds[name], conditions)
    print(table(flags.result, section))
    return 0


if __name__ == "__main__":
    sys.exit(main())
