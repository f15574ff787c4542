from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils import runinfo
from utils.page import runs_tab
from utils.page.markup import harmless
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


def test_a_log_whose_last_line_was_torn_still_has_a_curve(tmp_path: Path) -> None:
    (tmp_path / "training_log.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n[]\n\n{"step": 2, "lo\xff')
    assert "data:image/png;base64,iVBOR" in runs_tab.loss_of(tmp_path, "en")


def test_a_run_says_what_it_is_and_where_its_rows_went(finished: Path) -> None:
    run = runinfo.read(finished)
    about, loss, ledger, settings, evaluation = runs_tab.shown("run", finished, None, "zh")
    assert run.base in about
    assert f"{run.trained_tokens:,}" in about
    assert f"<th>{say('runs.kept', 'zh')}</th><td>{run.kept.removeprefix('kept: ')}</td>" in about
    assert run.kept.startswith("kept: ")
    assert "<img" in loss
    assert f"<td>{run.ledger['trained']:,}</td>" in ledger
    assert "learning_rate" in settings
    assert evaluation == say("runs.no_evaluation", "zh")


def test_an_adapter_without_a_run_and_a_run_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    origin = SimpleNamespace(description="llama, LoRA <b>")
    about, *others = runs_tab.shown("模型 <i>", tmp_path, origin, "en")
    assert about == say("runs.plain", "en", name=harmless("模型 <i>"), description=harmless("llama, LoRA <b>"))
    assert others == [say("runs.no_loss", "en"), "", "", say("runs.no_evaluation", "en")]
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    about, *others = runs_tab.shown("run", tmp_path, None, "en")
    assert "run.json" in about
    assert others == ["", "", "", ""]


def test_runs_are_the_loaded_ones_and_those_below_saved_models(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("甲", "乙"):
        (tmp_path / name).mkdir()
    (tmp_path / "甲" / "run.json").write_text("{}")
    (tmp_path / "loaded").symlink_to(finished)
    monkeypatch.setattr(runinfo, "SAVED_MODELS", tmp_path)
    origins = {"run": SimpleNamespace(directory=finished)}
    found = runs_tab.listed(SimpleNamespace(opened=SimpleNamespace(names=("run",), origins=origins)))  # pyright: ignore[reportArgumentType]
    assert found == {"run": finished.resolve(), str(tmp_path / "甲"): (tmp_path / "甲").resolve()}
