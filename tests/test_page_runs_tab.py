from __future__ import annotations

import json
from pathlib import Path

from utils.page import runs_tab
from utils.page.texts import say


def test_a_run_s_loss_and_evaluation_come_from_its_directory(finished: Path, tmp_path: Path) -> None:
    assert "data:image/png;base64,iVBOR" in runs_tab.loss_of(finished, "en")
    assert runs_tab.loss_of(tmp_path, "zh") == say("runs.no_loss", "zh")
    (tmp_path / "training_log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    assert "data:image/png;base64,iVBOR" in runs_tab.loss_of(tmp_path, "zh")
    assert runs_tab.evaluation_of(tmp_path, "en") == say("runs.no_evaluation", "en")
    row = {"instruction": "1+2?", "input": "", "output": "The answer is 3."}
    answers = [{**row, "origin": "x", "adapter": {"text": f"所以答案是{n}。", "answer": str(n)}} for n in (3, 4)]
    lines = "\n".join(json.dumps(each, ensure_ascii=False) for each in answers)
    (tmp_path / "eval.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n[]\n')
    shown = runs_tab.evaluation_of(tmp_path, "zh")
    assert "eval.jsonl" in shown
    assert "50" in shown
    assert "other" not in shown
