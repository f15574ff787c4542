"""What the hygiene of a row costs: microseconds a row of each check, on the rows of the seven FLAN CoT sets.

    python3 benchmarks/hygiene.py    # writes benchmarks/results/hygiene.json

Needs the real data (ALPACA_COT_REAL_DATA, default ../shared/data). Each figure is the fastest of several passes over
all rows in one process; `rows_by_check` counts what the checks found.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environment

from utils import hygiene
from utils.near_duplicates import NearDuplicates

DATA = Path(os.environ.get("ALPACA_COT_REAL_DATA", environment.REPOSITORY.parent / "shared" / "data"))
PASSES = 5

Record = dict[str, str]


def flan_records() -> list[Record]:
    """Question, answer and rationale of each row as instruction and output."""
    records = []
    for path in sorted((DATA / "raw").glob("flan_cot_*_train.tsv")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                question, answer, rationale = (cell.replace("\\n", "\n") for cell in line.split("\t"))
                output = f"{rationale}\nSo the answer is {answer}."
                records.append({"instruction": question, "input": "", "output": output})
    return records


def microseconds(work: Callable[[Record], object], records: list[Record], passes: int = PASSES) -> float:
    """Of `work` on one record: the fastest of `passes`, less the loop itself."""

    def fastest(call: Callable[[Record], object]) -> float:
        seconds = []
        for _ in range(passes):
            start = time.perf_counter()
            for record in records:
                call(record)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    return round((fastest(work) - fastest(lambda _: None)) / len(records) * 1e6, 2)


def timings(records: list[Record], overlap: hygiene.EvaluationSets) -> dict[str, float]:
    """Each check by itself, and what a row costs with all of them."""
    whole = hygiene.text_of
    with_overlap = hygiene.Examiner(overlap, ("EN",))
    without = hygiene.Examiner(None, ("EN",))
    ascii_rows = [record for record in records if whole(record).isascii()]
    other_rows = [record for record in records if not whole(record).isascii()]
    near = NearDuplicates()
    checks: dict[str, Callable[[Record], Any]] = {
        "evaluation_overlap": lambda r: overlap.match(r["instruction"], r["output"]),
        "echo": lambda r: hygiene.is_echo(r["output"], (r["instruction"],)),
        "refusal": lambda r: hygiene.is_refusal(r["output"]),
        "language of the answer": lambda r: hygiene.language_of(r["output"]),
        "duplicate (record_hash)": hygiene.record_hash,
        "prompt_hash": hygiene.prompt_hash,
    }
    found = {name: microseconds(check, records) for name, check in checks.items()}
    found["mojibake, rows that are not ASCII"] = microseconds(lambda r: hygiene.is_mojibake(r["output"]), other_rows)
    found["near_duplicate (add)"] = microseconds(lambda r: near.add(whole(r)), records, passes=1)
    start = time.perf_counter()
    near.duplicates()
    found["near_duplicate (duplicates)"] = round((time.perf_counter() - start) / len(records) * 1e6, 2)
    found["examine, all rows"] = microseconds(with_overlap.examine, records)
    found["examine, ASCII rows"] = microseconds(with_overlap.examine, ascii_rows)
    found["examine, ASCII rows, without evaluation sets"] = microseconds(without.examine, ascii_rows)
    found["examine, other rows"] = microseconds(with_overlap.examine, other_rows)
    return found


def main() -> int:
    if not DATA.is_dir():
        sys.exit(f"the real data is not here ({DATA}); set ALPACA_COT_REAL_DATA")
    records = flan_records()
    overlap = hygiene.local_evaluation_sets(DATA)
    examiner = hygiene.Examiner(overlap, ("EN",))
    counts = Counter(name for record in records for name in hygiene.names(examiner.examine(record)))
    results = {
        "rows": len(records),
        "characters_a_row": round(sum(len(hygiene.text_of(record)) for record in records) / len(records), 1),
        "evaluation_sets": overlap.checked,
        "microseconds_a_row": timings(records, overlap),
        "rows_by_check": {name: counts[name] for name in hygiene.CHECKS if counts[name]},
    }
    environment.write("hygiene", ["python3 benchmarks/hygiene.py"], results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
