"""How fast records become encoded rows, held against the tokenizer alone, and how much memory it takes.

    python3 benchmarks/encode.py                         # 1 M rows made from the real ones, and 100 k for the memory
    python3 benchmarks/encode.py --rows 100000 10000     # a shorter look

The rows are FLAN's real chains of thought, each copy with a number of its own, so that none repeats. Every figure
comes from a process of its own:

- `tokenizer`: transformers' own call on the same texts (prompt and answer of each row), in batches of 2,048, from
  memory: what any program that uses this tokenizer has to spend. It is taken before and after `encode`, for a machine
  that others use drifts by a quarter within minutes. `rust`: the Rust tokenizer under it, asked directly.
- `encode`: read, validate, examine (hygiene and overlap with the evaluation sets), render, tokenise, prove, write.
- `again`: the same command a second time, which finds its rows in the cache.

Written to benchmarks/results/encode.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import environment

REAL_DATA = Path(os.environ.get("ALPACA_COT_REAL_DATA", environment.REPOSITORY.parent / "shared" / "data"))
BATCH = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast records become encoded rows.")
    parser.add_argument("--rows", nargs=2, type=int, default=[1_000_000, 100_000], metavar="N")
    parser.add_argument("--rounds", type=int, default=1, help="each figure's repeats; the median is kept")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.only:
        print(json.dumps(MEASURES[flags.only](flags.file, flags.tokenizer, flags.processes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), flags.rows, flags.rounds)
    environment.write("encode", sys.argv, {"rows": flags.rows, "rounds": flags.rounds, **figures})


def measure(folder: Path, counts: list[int], rounds: int) -> dict[str, Any]:
    """All figures, by the number of rows and processes."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.model").write_bytes((REAL_DATA / "checkpoints" / "llama.tokenizer.model").read_bytes())
    (tokenizer / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}'
    )
    found: dict[str, Any] = {}
    for count in counts:
        file = folder / f"{count}.jsonl"
        write_rows(file, count)
        for processes in (1, 2):
            name = f"{count} rows, {processes} process{'es' * (processes > 1)}"
            found[name] = {"megabytes": round(file.stat().st_size / 1e6, 1)}
            for label in ("rust", "tokenizer", "encode", "tokenizer after", "again"):
                found[name][label] = repeated(label.split()[0], file, tokenizer, processes, rounds, folder)
            speed = {what: figure["rows_per_second"] for what, figure in found[name].items() if what != "megabytes"}
            limit = statistics.mean([speed["tokenizer"], speed["tokenizer after"]])
            found[name]["encode / tokenizer"] = round(speed["encode"] / limit, 3)
            found[name]["encode / rust"] = round(speed["encode"] / speed["rust"], 3)
            print(name, json.dumps(found[name], indent=2), flush=True)
        file.unlink()
    first, second = (found[f"{count} rows, 1 process"]["encode"]["peak_megabytes"] for count in counts)
    found["memory, more rows / fewer"] = round(first / second, 3)
    return found


def repeated(what: str, file: Path, tokenizer: Path, processes: int, rounds: int, folder: Path) -> dict[str, Any]:
    """One figure, each time in a new process and (but for `again`) with an empty cache; medians."""
    runs = []
    for number in range(rounds):
        name = f"cache-{file.stem}-{processes}-{number}"
        environ = os.environ | {"ALPACA_COT_CACHE": str(folder / name)}
        command = [sys.executable, __file__, "--only", what, "--file", str(file), "--tokenizer", str(tokenizer)]
        output = subprocess.run(
            [*command, "--processes", str(processes)], env=environ, check=True, capture_output=True, text=True
        ).stdout
        runs.append(json.loads(output.splitlines()[-1]))
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def write_rows(path: Path, count: int) -> None:
    """`count` different records, made from the real ones."""
    from utils import formats

    real = []
    for file in sorted((REAL_DATA / "raw").glob("flan_cot_*.tsv")):
        for _, line in formats.lines(file):
            question, answer, rationale = (cell.replace("\\n", "\n") for cell in line.split("\t"))
            real.append((question, f"{rationale} So the answer is {answer}."))
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            question, answer = real[i * 7919 % len(real)]  # a prime: neighbours come from all sets
            row = {"instruction": f"{question} (No. {i})", "input": "", "output": answer}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def encode(file: Path, tokenizer_path: Path, processes: int) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from utils import hygiene
    from utils.catalog import parse_mixture
    from utils.encoding import Recipe, encode_part
    from utils.templates import get_template

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    recipe = Recipe(
        template=get_template("alpaca"),
        tokenizer=tokenizer,
        cutoff_len=512,
        truncation="drop",
        overlap=hygiene.local_evaluation_sets(REAL_DATA) if processes else None,
        languages=("EN",),
    )
    (part,) = parse_mixture([str(file)])
    started = time.perf_counter()
    found = encode_part(part, recipe, seed=0, workers=processes)
    return figures(len(found.rows), time.perf_counter() - started)


def again(file: Path, tokenizer_path: Path, processes: int) -> dict[str, Any]:
    return encode(file, tokenizer_path, processes)


def tokenizer(file: Path, tokenizer_path: Path, processes: int) -> dict[str, Any]:
    return _alone(file, tokenizer_path, processes, "call")


def rust(file: Path, tokenizer_path: Path, processes: int) -> dict[str, Any]:
    return _alone(file, tokenizer_path, processes, "rust")


def _alone(file: Path, tokenizer_path: Path, processes: int, way: str) -> dict[str, Any]:
    """The tokenizer on the texts of 100,000 rows at most, from memory: in one process with its threads, or several."""
    import multiprocessing

    from utils.templates import TEMPLATES

    texts = []
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            texts.append((TEMPLATES["alpaca"].without_input.format(instruction=row["instruction"]), row["output"]))
            if len(texts) == 100_000:
                break
    batches = [[text for row in texts[i : i + BATCH] for text in row] for i in range(0, len(texts), BATCH)]
    if processes == 1:
        _start(tokenizer_path, way, "true")
        started = time.perf_counter()
        for batch in batches:
            _tokenise(batch)
        return figures(len(texts), time.perf_counter() - started)
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _start, (tokenizer_path, way, "false")) as pool:
        pool.map(_tokenise, batches[:processes], chunksize=1)
        started = time.perf_counter()
        for _ in pool.imap(_tokenise, batches):
            pass
        return figures(len(texts), time.perf_counter() - started)


def _start(tokenizer_path: Path, way: str, threads: str) -> None:
    from transformers import AutoTokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = threads
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    tokenizer(["a"], add_special_tokens=False, split_special_tokens=True)
    backend = tokenizer.backend_tokenizer
    _STATE["tokenise"] = {
        "call": lambda texts: tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"],
        "rust": lambda texts: [each.ids for each in backend.encode_batch_fast(texts, add_special_tokens=False)],
    }[way]


def _tokenise(texts: list[str]) -> int:
    return sum(map(len, _STATE["tokenise"](texts)))


_STATE: dict[str, Any] = {}


def figures(rows: int, seconds: float) -> dict[str, Any]:
    """Rows a second, and the peak memory of this process and of its largest child."""
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds),
        "peak_megabytes": round(own / 1024, 1),
        "peak_megabytes_of_a_worker": round(children / 1024, 1),
    }


MEASURES = {"tokenizer": tokenizer, "rust": rust, "encode": encode, "again": again}

if __name__ == "__main__":
    main()
