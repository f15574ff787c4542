"""What a run survives: processes that are killed, checkpoints that are damaged, disks that are full.

    python3 benchmarks/faults.py                       # all three; writes benchmarks/results/faults.json
    python3 benchmarks/faults.py --only kills --kills 20
    python3 benchmarks/faults.py --seed 1              # other moments, other damages

A tiny random Llama is trained for a few steps by `uniform_finetune.main`, in a child that is forked once everything is
imported. *Kills*: SIGKILL in a phase that is chosen in turn (encoding, loading, step, evaluation, saving, finishing),
at a moment drawn from the seed; then the same command with `--resume_from_checkpoint`, which may be killed again, until
the run ends. *Damages*: one file of a finished run's checkpoint is cut, flipped in a bit, emptied, overwritten with
zeros, or deleted. *Full disk*: the run writes to a disk of its own (a tmpfs, which needs root) that is a little larger
every time, so that each of its writes is once the one that fails; then the disk is made larger and the run goes on.

A run that goes on must end in the adapter of the run that nothing happened to, to the byte, with the same rows in every
step and the same log but for what the clock says.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import environment

PHASES = ("encoding", "loading", "step", "evaluation", "saving", "finishing")
STEPS = 8
RECORDS = [
    {"instruction": f"第{i}个数是什么？ Which number?", "input": "" if i % 3 else "数", "output": f"{i}🌏."}
    for i in range(14)
]
TIMED = "trained_tokens_per_second"
LONGEST = 60.0
"""Seconds that a tiny run may take."""


def prepare(folder: Path) -> tuple[Path, Path]:
    """A tiny random base with the bundled tokenizer, and two files of records."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    base, data = folder / "base", folder / "records.json"
    tokenizer = AutoTokenizer.from_pretrained(environment.REPOSITORY / "assets" / "tiny_base")
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "vocab_size": len(tokenizer)}
    LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=512, **ids)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    data.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    return base, data


def command(base: Path, data: Path, output: Path, *more: str) -> list[str]:
    """Dropout, a part that is repeated, several epochs, log lines that span checkpoints, validation."""
    flags = {
        "model_type": "llama",
        "model_name_or_path": base,
        "data": f"{data}*2",
        "output_dir": output,
        "learning_rate": "1e-2",
        "lora_dropout": "0.2",
        "lora_target_modules": "all-linear",
        "batch_size": "6",
        "max_tokens_per_batch": "256",
        "val_set_size": "2",
        "max_steps": STEPS,
        "save_steps": "1",
        "eval_steps": "3",
        "logging_steps": "2",
        "save_total_limit": "2",
        "keep": "duplicate",
    }
    return [*(text for name, value in flags.items() for text in (f"--{name}", str(value))), "--log_row_ids", *more]


class Child:
    """`uniform_finetune.main` in a process of its own, which says in which phase it is."""

    def __init__(self, argv: list[str], *, cache: Path, out: Path) -> None:
        self._place = mmap.mmap(-1, 16)
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            with out.open("ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.environ["ALPACA_COT_CACHE"] = str(cache)
            self._mark_phases()
            import uniform_finetune
            from utils import disk

            disk.require_space = lambda *_, **__: None  # a small disk would be refused before it is full
            code = uniform_finetune.main(argv)
            sys.stdout.flush()
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def phase(self) -> tuple[str, int]:
        """(phase, how many have begun)."""
        return (*PHASES, "")[self._place[0] - 1], int.from_bytes(self._place[1:5], "little")

    def wait(self) -> int:
        """Its exit code; minus the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _mark_phases(self) -> None:
        from utils import assembly, dataset, finetuning
        from utils.resumable import ResumableTrainer
        from utils.training import SupervisedTrainer

        def marked(phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
            def run(*values: Any, **named: Any) -> Any:
                self._place[0] = PHASES.index(phase) + 1
                begun = int.from_bytes(self._place[1:5], "little") + 1
                self._place[1:5] = begun.to_bytes(4, "little")
                return work(*values, **named)

            return run

        wrapped: list[tuple[Any, str, str]] = [
            (dataset, "build", "encoding"),
            (assembly, "make_trainer", "loading"),
            (SupervisedTrainer, "training_step", "step"),
            (SupervisedTrainer, "evaluate", "evaluation"),
            (ResumableTrainer, "_save_checkpoint", "saving"),
            (finetuning, "_finish", "finishing"),
        ]
        for owner, name, phase in wrapped:
            setattr(owner, name, marked(phase, getattr(owner, name)))


def killed(child: Child, phase: str, draw: random.Random) -> str | None:
    """Kills `child` some moment after it has come to `phase` for the n-th time, n drawn; the phase it died in, or None
    where it ended before."""
    wanted, delay, deadline = draw.randint(1, 3), draw.expovariate(1 / 0.004), time.monotonic() + LONGEST
    seen, last = 0, 0
    while not child.ended():
        if time.monotonic() > deadline:
            raise TimeoutError(f"a tiny run took more than {LONGEST:.0f} s")
        now, begun = child.phase()
        if now == phase and begun != last:
            seen, last = seen + 1, begun
        if seen >= wanted or (seen and phase in ("encoding", "loading", "finishing")):
            time.sleep(delay if phase != "loading" else 20 * delay)
            at = child.phase()[0]
            os.kill(child.pid, signal.SIGKILL)
            return at if child.wait() == -signal.SIGKILL else None
        time.sleep(0.0005)
    child.wait()
    return None


def outcome(run: Path) -> dict[str, Any]:
    """What two runs must have alike."""
    log = [json.loads(line) for line in (run / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "adapter": (run / "adapter_model.safetensors").read_bytes(),
        "rows": (run / "row_ids.jsonl").read_bytes(),
        "log": [{key: value for key, value in entry.items() if key != TIMED} for entry in log],
    }


def differences(run: Path, expected: dict[str, Any]) -> list[str]:
    """What of a run is not as expected; also that it has not ended."""
    if not (run / "run.json").is_file():
        return ["no run.json"]
    found = outcome(run)
    return [name for name in expected if found[name] != expected[name]]


def damaged_folders(run: Path) -> list[str]:
    """Checkpoints in their places that are not whole."""
    from utils import checkpoints

    return [f"{path.name}: {why}" for path in checkpoints.found(run) if (why := checkpoints.fault(path))]


def last_step(run: Path) -> int:
    """Of the newest whole checkpoint; 0: there is none."""
    from utils import checkpoints

    newest = checkpoints.newest(run)
    return checkpoints.step_of(newest) if newest else 0


def run_whole(argv: list[str], cache: Path, out: Path) -> int:
    return Child(argv, cache=cache, out=out).wait()


def kills(number: int, seed: int, folder: Path) -> dict[str, Any]:
    """`number` kills in all phases; what was lost."""
    base, data = prepare(folder)
    reference = folder / "reference"
    out = folder / "out.txt"
    if run_whole(command(base, data, reference), folder / "cache-reference", out):
        sys.exit(out.read_text())
    expected = outcome(reference)
    draw, counted, found = random.Random(seed), Counter[str](), Counter[str]()
    turn, trials = 0, 0
    while sum(counted.values()) < number:
        trials += 1
        run, cache, out = folder / f"run{trials}", folder / f"cache{trials}", folder / f"out{trials}.txt"
        before = 0
        for attempt in range(6):  # up to five kills a run, then it is left alone
            going_on = last_step(run) if run.is_dir() else 0
            found["lost steps"] += max(0, before - going_on)
            before = going_on
            more = ["--resume_from_checkpoint"] if going_on else (["--overwrite"] if has_traces(run) else [])
            child = Child(command(base, data, run, *more), cache=cache, out=out)
            if attempt == 5:
                code = child.wait()
                break
            phase, turn = PHASES[turn % len(PHASES)], turn + 1
            died = killed(child, phase, draw)
            if died is None:
                code = 0 if (run / "run.json").is_file() else 1
                if code == 0:
                    break
            else:
                counted[died or "start"] += 1
            found["corrupt directories"] += len(damaged_folders(run)) if run.is_dir() else 0
            before = max(before, last_step(run) if run.is_dir() else 0)
        same = not (why := differences(run, expected))
        found["runs that ended otherwise"] += not same
        found["leftovers"] += len([p for p in run.iterdir() if p.name.startswith(".")])
        if not same:
            print(f"{out.read_text()[-3000:]}\nit differs in {why}", flush=True)
        shutil.rmtree(run)
        shutil.rmtree(cache, ignore_errors=True)
        print(f"{sum(counted.values())} kills, {trials} runs", end="\r", flush=True)
    print()
    wrong = ("lost steps", "corrupt directories", "runs that ended otherwise", "leftovers")
    return {
        "kills": sum(counted.values()),
        "by phase": dict(counted),
        "runs": trials,
        **{name: found[name] for name in wrong},
    }


def has_traces(run: Path) -> bool:
    from utils import runinfo

    return run.is_dir() and runinfo.has_run(run)


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "a bit flipped": lambda path, draw: _flip(path, draw),
    "cut": lambda path, draw: os.truncate(path, draw.randrange(path.stat().st_size)),
    "emptied": lambda path, draw: path.write_bytes(b""),
    "64 bytes of zeros": lambda path, draw: _zero(path, draw),
    "deleted": lambda path, draw: path.unlink(),
}


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))


def _zero(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    at = draw.choice([i for i, byte in enumerate(content) if byte])  # there, at least one byte changes
    content[at : at + 64] = bytes(len(content[at : at + 64]))
    path.write_bytes(bytes(content))


def damages(number: int, seed: int, folder: Path) -> dict[str, Any]:
    """`number` damaged checkpoints; whether each was found out, and the one before taken."""
    from utils import checkpoints

    base, data = prepare(folder)
    whole, out = folder / "whole", folder / "out.txt"
    if run_whole(command(base, data, whole), folder / "cache", out):
        sys.exit(out.read_text())
    draw, counted, found = random.Random(seed), Counter[str](), Counter[str]()
    for i in range(number):
        run = shutil.copytree(whole, folder / "copy")
        before, newest = checkpoints.found(run)[-2:]
        file = draw.choice(sorted(newest.iterdir()))
        kind = list(DAMAGES)[i % len(DAMAGES)]
        DAMAGES[kind](file, draw)
        counted[kind] += 1
        found["detected"] += checkpoints.fault(newest) is not None
        found["the one before was taken"] += checkpoints.newest(run) == before
        shutil.rmtree(run)
    return {"damages": number, "by kind": dict(counted), **found}


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of `size` bytes."""
    place = folder / "disk"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def full_disks(step: int, folder: Path) -> dict[str, Any]:
    """Disks from one page on, `step` bytes larger every time, until the run fits."""
    if os.geteuid() != 0 or sys.platform != "linux":
        return {"skipped": "a disk of a chosen size needs root on Linux"}
    base, data = prepare(folder)
    reference, out = folder / "reference", folder / "out.txt"
    if run_whole(command(base, data, reference), folder / "cache", out):
        sys.exit(out.read_text())
    expected, found = outcome(reference), Counter[str]()
    sizes: list[int] = []
    size = step
    while True:
        with small_disk(folder, size) as disk:
            run, out = disk / "run", folder / f"out{size}.txt"
            code = run_whole(command(base, data, run), folder / "cache", out)
            if code == 0:
                break
            sizes.append(size)
            said = out.read_text()
            found["corrupt directories"] += len(damaged_folders(run)) if run.is_dir() else 0
            found["said what is missing"] += "is full (" in said and "Traceback" not in said
            last = last_step(run) if run.is_dir() else 0
            found["with a checkpoint"] += last > 0
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            more = ["--resume_from_checkpoint"] if last else (["--overwrite"] if has_traces(run) else [])
            again = run_whole(command(base, data, run, *more), folder / "cache", out)
            same = again == 0 and not differences(run, expected)
            found["went on to the same end"] += same
            if not same or "Traceback" in said:
                print(out.read_text()[-3000:], flush=True)
        print(f"{len(sizes)} disks, the last of {size:,} bytes", end="\r", flush=True)
        size += step
    print()
    return {"disks that were too small": len(sizes), "bytes": [sizes[0], sizes[-1]], "step in bytes": step, **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("kills", "damages", "full_disks"))
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--damages", type=int, default=250, metavar="N")
    parser.add_argument("--disk_step", type=int, default=16384, metavar="BYTES", help="the disks grow by so much")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    # Before anything starts threads or measures how many cores are free: children are forked.
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    import uniform_finetune  # noqa: F401
    from utils import finetuning  # noqa: F401 — the children need not import it

    work: dict[str, Callable[[Path], dict[str, Any]]] = {
        "kills": lambda folder: kills(flags.kills, flags.seed, folder),
        "damages": lambda folder: damages(flags.damages, flags.seed, folder),
        "full_disks": lambda folder: full_disks(flags.disk_step, folder),
    }
    results: dict[str, Any] = {"seed": flags.seed}
    for name in flags.only or work:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            results[name] = work[name](Path(folder)) | {"seconds": round(time.monotonic() - started)}
    environment.write("faults", sys.argv, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
