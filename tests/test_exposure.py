"""A run's own data, held against what it is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import make_origin

from utils import cache, exposure, overlap, runinfo
from utils.exam import Exam
from utils.exposure import Exposure
from utils.tasks import Item, read_tasks

ASKED = "一个篮子里有十二个苹果，拿走五个，还剩几个？🍎"
ROWS = [
    {"instruction": "Why?", "input": "", "output": "Because."},
    {"instruction": "Solve it.", "input": ASKED, "output": "7"},
    {"conversation": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Asked: {ASKED}"}]},
    {"instruction": "", "input": "", "output": 3},
]


def exam() -> Exam:
    items = (Item(origin="", question=ASKED, choices=(), reference="7", group=""),)
    return Exam(spec=read_tasks()["gsm8k"], items=items, style="plain", shots=0)


@pytest.fixture
def run(llama_base: Path, tmp_path: Path) -> Path:
    """A run that says of its data what a run says."""
    data = tmp_path / "数据.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "run").mkdir()
    origin = make_origin(llama_base, tmp_path / "run")
    source = {"name": "数据", "path": str(data), "rows": 4, "sha256": cache.content_hash(data)}
    runinfo.write(replace(origin.run, sources=[source]), tmp_path / "run")
    return tmp_path / "run"


def changed(run: Path, **values: Any) -> None:
    runinfo.write(replace(runinfo.read(run), **values), run)


def test_rows_that_repeat_a_question_are_counted(run: Path) -> None:
    found = exposure.exposure(run, "gsm8k", exam(), own_file=False)
    assert found == Exposure(rows=2)
    assert found.lines("gsm8k") == ["WARNING: 2 rows of its training data repeat questions of gsm8k: no held-out score"]


def test_rows_that_training_dropped_are_not(run: Path) -> None:
    sets = overlap.EvaluationSets([overlap.QuestionSet(name="gsm8k", questions=(ASKED,))], absent=["aqua"])
    changed(run, ledger={"notes": ["something else", sets.described()]})
    assert exposure.exposure(run, "gsm8k", exam(), own_file=True) == Exposure(rows=0)
    assert exposure.exposure(run, "gsm8k", exam(), own_file=False).rows == 2, "another file's rows were not looked for"
    assert exposure.exposure(run, "aqua", exam(), own_file=True).rows == 2, "its questions were not here"
    changed(run, settings=runinfo.read(run).settings | {"keep": ["evaluation_overlap"]})
    assert exposure.exposure(run, "gsm8k", exam(), own_file=True).rows == 2


def test_what_cannot_be_looked_at_is_said(run: Path, tmp_path: Path) -> None:
    nothing = exposure.exposure(tmp_path, "gsm8k", exam(), own_file=False)
    assert (nothing.rows, nothing.lines("gsm8k")) == (None, [])
    data = Path(runinfo.read(run).sources[0]["path"])
    data.write_text("{}\n", encoding="utf-8")
    found = exposure.exposure(run, "gsm8k", exam(), own_file=False)
    assert found.rows is None
    assert found.lines("gsm8k") == [
        f"whether it was trained on questions of gsm8k was not looked at: {data} is not here, or is another than it was"
    ]
    changed(run, sources=[{"name": "x", "path": str(data), "rows": 10**6, "sha256": ""}])
    found = exposure.exposure(run, "gsm8k", exam(), own_file=False)
    assert found.reason == "its data have 1,000,000 rows, more than 100,000"


def test_which_tasks_a_note_names() -> None:
    assert overlap.held_against(
        "held against the questions of a, b; the files of 1 other tasks are not on this machine"
    ) == {"a", "b"}
    assert overlap.held_against("3 rows were cut") == set()
