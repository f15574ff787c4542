"""What a study says it found, from answers made by hand."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_BASE
from studies import QUESTIONS, ROWS, experiment_text, write_answers, write_rows

from utils import runinfo
from utils.studies import findings, pages, tables
from utils.studies.experiment import read
from utils.studies.findings import verdict
from utils.studies.plan import Plan, make

RIGHT = {("base", None): "0000", ("all", 1): "1110", ("all", 2): "1111", ("cn", 1): "0011", ("cn", 2): "0010"}
"""Of two English and two Chinese questions."""
MACHINE = {"processor": "P", "cores": 2, "memory_gib": 1.5, "python": "3"}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A study whose runs and answers are there."""
    data = write_rows(tmp_path / "d.jsonl", ROWS)
    questions = write_rows(tmp_path / "q.jsonl", QUESTIONS)
    (tmp_path / "e.toml").write_text(experiment_text(TINY_BASE, data, questions), encoding="utf-8")
    made = make(read(tmp_path / "e.toml"), tmp_path / "e.toml", tmp_path / "out")
    for line in made.lines:
        write_answers(line.commands[-1].directory, [each == "1" for each in RIGHT[line.variant, line.seed]])
        if line.training is not None:
            write_run(line.training.directory)
    return made


def write_run(directory: Path, **fields: Any) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "settings": {"model_type": "llama", "model_name_or_path": "b", "data": ["数据"]},
        "base_fingerprint": "",
        "template_hash": "",
        "stop_token_ids": [2],
        "sources": [{"name": "数据|表", "rows": 4, "license": None, "sha256": "0" * 64}],
        "ledger": {},
        "world_size": 1,
        "metrics": {"validation_loss": 1.25},
        "trained_tokens": 198,
        "verified": {},
        "versions": {"torch": "2"},
        "commit": "abc",
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 61.0,
    }
    runinfo.write(runinfo.RunInfo(**(values | fields)), directory)
    log = [{"step": 1, "loss": 2.0, "grad_norm": 1.0}, {"step": 2, "eval_loss": 1.25}]
    write_rows(directory / "training_log.jsonl", log)


@pytest.fixture
def found(plan: Plan) -> dict[str, Any]:
    return findings.collect(plan, MACHINE)


def cell(found: dict[str, Any], variant: str, group: str) -> dict[str, Any]:
    (only,) = [each for each in found["cells"] if (each["variant"], each["group"]) == (variant, group)]
    return only


def test_a_cell_is_the_mean_over_seeds_by_language(found: dict[str, Any]) -> None:
    assert cell(found, "all", "all")["by_seed"] == [0.75, 1.0]
    assert cell(found, "all", "en")["by_seed"] == [1.0, 1.0]
    assert cell(found, "all", "cn")["by_seed"] == [0.5, 1.0]
    assert cell(found, "cn", "en")["mean"] == 0.0
    assert cell(found, "base", "all") | {"directories": []} == {
        "variant": "base", "evaluation": "sums", "group": "all", "measure": "accuracy", "questions": 4, "by_seed": [0.0],
        "mean": 0.0, "low": None, "high": None, "answers": 4, "wilson": [0.0, pytest.approx(0.4899, abs=1e-3)],
        "unread": 0, "directories": [],
    }  # fmt: skip


def test_a_comparison_pairs_seeds_and_questions(found: dict[str, Any]) -> None:
    everything, chinese, english = found["comparisons"]
    assert (everything["group"], chinese["group"], english["group"]) == ("all", "cn", "en")
    assert everything["by_seed"] == [0.25, 0.75]
    assert everything["difference"] == 0.5
    assert [(test["only_first"], test["only_second"]) for test in everything["mcnemar"]] == [(2, 1), (3, 0)]
    assert everything["p"] == 1.0  # the weaker of 1.0 and 0.25
    assert english["by_seed"] == [1.0, 1.0]
    assert chinese["by_seed"] == [-0.5, 0.5]
    assert all(each["verdict"] == "no difference shown" for each in found["comparisons"])


def test_two_evaluations_of_the_base_are_one_pair(tmp_path: Path) -> None:
    data, questions = write_rows(tmp_path / "d.jsonl", ROWS), write_rows(tmp_path / "q.jsonl", QUESTIONS)
    asked = f'''
[evaluations.again]
title = "Once more"
task = "gsm8k"
task_file = "{questions}"
max_new_tokens = 5

[[comparisons]]
asks = "Are more tokens better?"
of = "base/again"
against = "base/sums"
'''
    (tmp_path / "e.toml").write_text(experiment_text(TINY_BASE, data, questions, tail=asked), encoding="utf-8")
    made = make(read(tmp_path / "e.toml"), tmp_path / "e.toml", tmp_path / "out")
    for line in made.lines:
        for command, right in zip(line.commands[-2:], ("0000", "1000"), strict=True):
            write_answers(command.directory, [each == "1" for each in right])
        if line.training is not None:
            write_run(line.training.directory)
    (only,) = [
        each
        for each in findings.collect(made, MACHINE)["comparisons"]
        if "more tokens" in each["asks"] and each["group"] == "all"
    ]
    assert (only["by_seed"], len(only["mcnemar"])) == ([0.25], 1)
    assert only["over_seeds"]["low"] is None


def compared(by_seed: list[float], low: float, high: float, p: float | None, **fields: Any) -> dict[str, Any]:
    return {
        "by_seed": by_seed, "over_questions": {"low": low, "high": high}, "p_holm": p, "expects": "any", "by": 0.0,
    } | fields  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (compared([0.5, 0.6], 0.4, 0.7, 0.001), "better"),
        (compared([-0.5, -0.6], -0.7, -0.4, 0.001), "worse"),
        (compared([0.5, 0.6], 0.4, 0.7, 0.05), "no difference shown"),
        (compared([0.5, -0.01], 0.1, 0.7, 0.001), "no difference shown"),
        (compared([0.5, 0.0], 0.1, 0.7, 0.001), "no difference shown"),
        (compared([0.5, 0.6], -0.1, 0.7, 0.001), "no difference shown"),
        (compared([0.5, 0.6], 0.4, 0.7, None), "better"),
        (compared([0.5, 0.6], 0.4, 0.7, 0.001, expects="better", by=0.4), "as claimed"),
        (compared([0.5, 0.6], 0.3, 0.7, 0.001, expects="better", by=0.4), "smaller than claimed"),
        (compared([0.5, 0.6], 0.4, 0.7, 0.001, expects="worse"), "the opposite"),
        (compared([-0.5, -0.6], -0.7, -0.4, 0.001, expects="worse", by=0.4), "as claimed"),
        (compared([0.5, 0.6], 0.4, 0.7, 0.2, expects="better"), "not shown"),
    ],
)
def test_a_verdict_needs_all_seeds_the_interval_and_the_corrected_p(given: dict[str, Any], said: str) -> None:
    assert verdict(given) == said


def test_transcripts_are_the_first_of_each_kind(found: dict[str, Any]) -> None:
    kinds = {(each["language"], each["kind"]): each["row_id"] for each in found["transcripts"]}
    assert kinds == {
        ("en", "only {of} is right"): "000000-x",
        ("en", "only {against} is right"): None,
        ("en", "both are right"): None,
        ("en", "both are wrong"): None,
        ("cn", "only {of} is right"): None,
        ("cn", "only {against} is right"): "000003-x",
        ("cn", "both are right"): "000002-x",
        ("cn", "both are wrong"): None,
    }
    shown = next(each for each in found["transcripts"] if each["row_id"] == "000002-x")
    assert shown["question"] == "八减三等于几？🍎"
    assert shown["answers"] == ["So 2.", "So 2."]


def test_a_model_that_answers_nothing_scores_0_and_its_answers_are_counted_as_unread(plan: Plan) -> None:
    write_answers(plan.line_of("cn", 1).commands[-1].directory, [False] * 4, ["", "", "", ""])
    found = findings.collect(plan, MACHINE)
    assert cell(found, "cn", "all")["unread"] == 4
    assert cell(found, "cn", "all")["by_seed"][0] == 0.0
    table = tables.cell_table(found, "sums")
    assert table["rows"][-1][-1] == "4 of 8"


def test_every_figure_leads_to_its_run(found: dict[str, Any], plan: Plan) -> None:
    from utils import cache

    for variant, runs in found["runs"].items():
        for run in runs:
            assert cache.content_hash(Path(run["directory"]) / "run.json") == run["run_sha256"]
            assert run["command"].startswith("python3 uniform_finetune.py --data ")
            assert f"{variant}-{run['seed']}" in run["directory"]
    for each in found["cells"]:
        assert all((Path(directory) / "scored.jsonl").is_file() for directory in each["directories"])


def test_answers_to_other_questions_are_not_compared(plan: Plan) -> None:
    directory = plan.line_of("cn", 1).commands[-1].directory
    lines = (directory / "scored.jsonl").read_text(encoding="utf-8").splitlines()
    (directory / "scored.jsonl").write_text("\n".join(lines[:3]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="hold answers to other questions: the task's file has changed between them"):
        findings.collect(plan, MACHINE)


def test_runs_of_several_versions_are_said(plan: Plan) -> None:
    write_run(plan.line_of("cn", 1).commands[0].directory, versions={"torch": "3"})
    (note,) = findings.collect(plan, MACHINE)["notes"]
    assert note.startswith("The runs were not all made by the same versions: ")


class Page(html.parser.HTMLParser):
    """The tags of a page, what they refer to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_that_needs_no_other_and_escapes_what_it_shows(plan: Plan, tmp_path: Path) -> None:
    answers = ["<script>alert(1)</script>", "|a|\nb", "", "🙂"]
    write_answers(plan.line_of("all", 1).commands[-1].directory, [True, True, True, False], answers)
    found = findings.collect(plan, MACHINE)
    written = pages.publish(found, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {path.name for path in written} == {"report.html", "report.md", "report.json"}
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "Do answers help? 试验 <b>" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| 中文 |" in markdown
    for block in markdown.split("\n\n"):
        table = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in table}) <= 1, table
    for picture in ("accuracy.png", "learning_curves.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert f"]({picture})" in markdown


def test_the_pages_come_from_the_json_alone(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    pages.publish(found, tmp_path / "a")
    pages.publish(json.loads((tmp_path / "a" / "report.json").read_text(encoding="utf-8")), tmp_path / "b")
    for name in ("report.html", "report.md", "accuracy.png", "learning_curves.png", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
