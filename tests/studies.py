"""Small experiments, and answers made by hand, for the tests of studies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS = [
    {"instruction": "1+1? 👋", "input": "", "output": "1 and 1. The answer is 2."},
    {"instruction": "What is 2+2?", "input": "now", "output": "The answer is 4."},
    {"instruction": "三加三等于几？", "input": "", "output": "3+3。答案是6。"},
    {"instruction": "四加五等于几？", "input": "", "output": "答案是9。"},
]
QUESTIONS = [
    {"question": "Three and five make what in all?", "answer": "#### 8"},
    {"question": "Seven less two make what in the end?", "answer": "#### 5"},
    {"question": "八减三等于几？🍎", "answer": "#### 5"},
    {"question": "九减一等于几？", "answer": "#### 8"},
]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def experiment_text(base: Path, data: Path, questions: Path, **fields: str) -> str:
    """Two variants, two seeds, one evaluation and a comparison; `fields` are lines in the place of ours."""
    lines = {
        "title": 'title = "Do answers help? 试验 <b>"',
        "about": 'about = "A | small one."',
        "seeds": "seeds = [1, 2]",
        "steps": "steps = 2",
        "trained_tokens": "trained_tokens = 200",
        "base_too": "base_too = true",
    } | {name: line for name, line in fields.items() if name not in ("tail", "flags")}
    return (
        "\n".join(lines.values())
        + f"""

[flags]
model_type = "llama"
model_name_or_path = "{base}"
lora_target_modules = ["q_proj", "v_proj"]
val_set_size = 1
{fields.get("flags", "")}

[variants.all]
title = "both languages"
data = ["{data}*96"]

[variants.cn]
title = "中文"
data = [{{ mixture = "{data}*96", language = "cn", style = "cot", kind = "number" }}]

[evaluations.sums]
title = "Sums"
task = "gsm8k"
task_file = "{questions}"
max_new_tokens = 4

[[comparisons]]
asks = "Do English data help?"
of = "all"
against = "cn"

{fields.get("tail", "")}
"""
    )


def write_answers(directory: Path, right: Sequence[bool], said: Sequence[str] | None = None) -> Path:
    """A directory as evaluate.py leaves it, with these answers to `QUESTIONS`."""
    directory.mkdir(parents=True, exist_ok=True)
    scored, predicted = [], []
    for number, (question, is_right) in enumerate(zip(QUESTIONS, right, strict=True)):
        language = "en" if question["question"].isascii() else "cn"
        text = said[number] if said else f"So {number}."
        row = f"{number:06d}-x"
        answer = "1" if text else None
        scored.append(
            {
                "row_id": row,
                "group": "",
                "language": language,
                "reference": question["answer"],
                "answers": [{"answer": answer, "how": "bare" if text else "unread"}],
                "answer": answer,
                "right": is_right,
            }
        )
        predicted.append(
            {"instruction": question["question"], "generate": text, "finish_reason": "stop", "row_id": row}
        )
    write_rows(directory / "scored.jsonl", scored)
    write_rows(directory / "predictions.jsonl", predicted)
    (directory / "scores.json").write_text("{}", encoding="utf-8")
    return directory
