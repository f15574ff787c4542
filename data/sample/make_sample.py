"""Makes the bundled sample: ring puzzles in English and Chinese, with the reasoning and without it.

    python3 data/sample/make_sample.py               # writes the files beside this script
    python3 data/sample/make_sample.py --out /tmp/x  # or elsewhere

cot_sample.json and answer_sample.json ask the same questions in the same order; cot_sample_test.json asks others, and
for_dict_data.json the first of those without their answers, for predict.py.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from utils.puzzles import LANGUAGES, Puzzle, make_puzzle

STEPS = (2, 3, 4)
TO_PREDICT = 60


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the bundled sample data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--train", type=int, default=4000, help="training questions")
    parser.add_argument("--test", type=int, default=200, help="held-out questions")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args(argv)


def make_questions(rng: random.Random, count: int, taken: set[str]) -> list[Puzzle]:
    """`count` different puzzles, English and Chinese in turn, none of whose questions is in `taken` (which grows)."""
    chosen: list[Puzzle] = []
    while len(chosen) < count:
        puzzle = make_puzzle(rng, LANGUAGES[len(chosen) % 2], rng.choice(STEPS))
        if puzzle.question not in taken:
            taken.add(puzzle.question)
            chosen.append(puzzle)
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    rng, taken = random.Random(args.seed), set()
    test, train = make_questions(rng, args.test, taken), make_questions(rng, args.train, taken)
    files: dict[str, list[tuple[str, ...]]] = {
        "cot_sample": [(p.question, p.reasoned_answer()) for p in train],
        "answer_sample": [(p.question, p.plain_answer()) for p in train],
        "cot_sample_test": [(p.question, p.reasoned_answer()) for p in test],
        "for_dict_data": [(p.question,) for p in test[:TO_PREDICT]],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for name, texts in files.items():
        records = [{"instruction": q, "input": "", **({"output": a[0]} if a else {})} for q, *a in texts]
        rows = [json.dumps(record, ensure_ascii=False) for record in records]
        (args.out / f"{name}.json").write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
        print(f"{args.out / name}.json: {len(rows)} records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
