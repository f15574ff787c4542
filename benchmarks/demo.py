"""The demo's figures: base, answer-only and chain-of-thought training on the same questions, and how long each takes.

    python3 benchmarks/demo.py    # writes benchmarks/results/demo.json and docs/demo_loss.png

Both adapters have the tiny row's training defaults; only the data differ. Evaluated on the 200 held-out questions.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import environment

from utils.scoring import Accuracy, language


def main() -> int:
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for arm in ("answer_sample", "cot_sample"):
            run, answers = Path(folder) / arm, Path(folder) / f"{arm}.jsonl"
            start = time.perf_counter()
            environment.run("uniform_finetune.py", "--data", arm, "--output_dir", run)
            trained = time.perf_counter()
            command = ["evaluate.py", "--lora_dir", run, "--data", "cot_sample_test", "--compare_base"]
            environment.run(*command, "--output", answers)
            entries = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
            figures: dict[str, object] = {
                who: {chosen: str(accuracy(entries, who, chosen)).strip() for chosen in ("all", "en", "cn")}
                for who in ("base", "adapter")
            }
            information = json.loads((run / "run.json").read_text())
            figures |= {
                "finetune_command_seconds": round(trained - start, 1),
                "training_seconds": information["seconds"],
                "evaluate_command_seconds": round(time.perf_counter() - trained, 1),
                "trained_tokens": information["trained_tokens"],
                "validation_loss": information["metrics"]["validation_loss"],
            }
            results[arm] = figures
        shutil.copy(Path(folder) / "cot_sample" / "loss.png", environment.REPOSITORY / "docs" / "demo_loss.png")
    environment.write("demo", ["python3 benchmarks/demo.py"], results)
    return 0


def accuracy(entries: list[dict[str, Any]], who: str, chosen: str) -> Accuracy:
    """Of one model on one language."""
    rows = [entry for entry in entries if chosen in ("all", language(str(entry["instruction"])))]
    answers = [entry[who] for entry in rows]
    return Accuracy(
        correct=sum(answer["right"] for answer in answers),
        total=len(answers),
        unread=sum(answer["answer"] is None for answer in answers),
    )


if __name__ == "__main__":
    sys.exit(main())
