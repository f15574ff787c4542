"""study.py as a user runs it: stopped in the middle, gone on with, run again, and given what it cannot take."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, TINY_BASE, RunScript
from studies import QUESTIONS, ROWS, experiment_text, write_rows

import study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with its data, and the study that was made of it: stopped once, then carried out."""
    folder = tmp_path_factory.mktemp("study")
    data, questions = write_rows(folder / "d.jsonl", ROWS), write_rows(folder / "q.jsonl", QUESTIONS)
    text = experiment_text(TINY_BASE, data, questions, seeds="seeds = [1]", base_too="base_too = false")
    (folder / "e.toml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def stopped(folder: Path) -> dict[str, Any]:
    """What was there when Ctrl-C came, after the first run; and how the study ended."""
    command = [sys.executable, str(REPOSITORY / "study.py"), "e.toml", "--jobs", "1"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # What a shell has begun in the background ignores Ctrl-C, and so would what it begins.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if ": training: " in line:
            os.kill(process.pid, signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=600)
    return {"code": process.returncode, "said": said + rest, "runs": runs(folder)}


@pytest.fixture(scope="module")
def done(folder: Path, stopped: dict[str, Any]) -> str:
    """What the study printed when it was carried out to its end."""
    command = [sys.executable, str(REPOSITORY / "study.py"), "e.toml", "--jobs", "2"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=900).stdout


def runs(folder: Path) -> dict[str, bytes]:
    """The finished runs."""
    return {path.parent.name: path.read_bytes() for path in folder.glob("saved_studies/e/runs/*/run.json")}


def test_ctrl_c_ends_it_and_what_is_done_stays(stopped: dict[str, Any]) -> None:
    assert stopped["code"] == 130
    assert stopped["said"].endswith("stopped\n")
    assert len(stopped["runs"]) == 1


def test_the_same_command_goes_on_to_the_report(folder: Path, stopped: dict[str, Any], done: str) -> None:
    assert "2 runs, 2 evaluations; 1 of them done" in done or "2 runs, 2 evaluations; 2 of them done" in done
    (name, before), after = next(iter(stopped["runs"].items())), runs(folder)
    assert after[name] == before
    assert len(after) == 2
    assert "Do English data help? both languages against 中文:" in done
    for file in ("report.html", "report.md", "report.json", "accuracy.png", "learning_curves.png"):
        assert (folder / "saved_studies" / "e" / file).is_file()


def test_budgets_are_kept_and_the_figures_are_those_of_the_runs(folder: Path, done: str) -> None:
    report = json.loads((folder / "saved_studies" / "e" / "report.json").read_text(encoding="utf-8"))
    for variant, found in report["runs"].items():
        for run in found:
            kept = json.loads((folder / run["directory"] / "run.json").read_text(encoding="utf-8"))
            assert run["trained_tokens"] == kept["trained_tokens"]
            assert kept["settings"]["max_steps"] == 2
            assert kept["settings"]["batch_size"] == report["shares"][variant]["rows_a_step"]
            assert run["trained_tokens"] == pytest.approx(200, rel=0.4)  # of four rows each seed holds out another
    scores = json.loads((folder / "saved_studies/e/answers/all-1/sums/scores.json").read_text(encoding="utf-8"))
    cell = next(each for each in report["cells"] if (each["variant"], each["group"]) == ("all", "all"))
    assert cell["by_seed"][0] == pytest.approx(scores["accuracy"])


def test_once_more_trains_nothing(folder: Path, done: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    before = runs(folder)
    assert study.main(["e.toml"]) == 0
    said = capsys.readouterr().out
    assert "4 of them done" in said
    assert "training:" not in said
    assert runs(folder) == before


def test_changed_questions_are_refused(folder: Path, done: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    write_rows(folder / "q.jsonl", QUESTIONS[1:])
    try:
        assert study.main(["e.toml"]) == 1
    finally:
        write_rows(folder / "q.jsonl", QUESTIONS)
    assert "was made for another experiment; what has changed: " in capsys.readouterr().err


def test_a_dry_run_says_every_command_and_trains_nothing(tmp_path: Path, folder: Path, capsys: Any) -> None:
    assert study.main([str(folder / "e.toml"), "--output_dir", str(tmp_path / "out"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert said.count("python3 uniform_finetune.py ") == 2
    assert said.count("python3 evaluate.py ") == 2
    assert not (tmp_path / "out" / "runs").exists()


def test_a_study_that_cannot_be_leaves_nothing(tmp_path: Path, folder: Path, capsys: Any) -> None:
    (tmp_path / "e.toml").write_text((folder / "e.toml").read_text(encoding="utf-8").replace("d.jsonl", "gone.jsonl"))
    assert study.main([str(tmp_path / "e.toml"), "--output_dir", str(tmp_path / "out"), "--dry_run"]) == 1
    assert "gone.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_studies_do_not_write_to_one_place(tmp_path: Path, folder: Path, capsys: Any) -> None:
    from utils import run_lock

    with run_lock.held(tmp_path, print):
        assert study.main([str(folder / "e.toml"), "--output_dir", str(tmp_path), "--dry_run"]) == 1
    assert "is being written to by process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.toml"], 1, "there is no experiment none.toml"),
        (["e.toml", "--job", "2"], 2, "unrecognized arguments: --job 2; did you mean --jobs?"),
        (["e.toml", "--jobs", "0"], 2, "'0' is not a whole number of 1 or more"),
        ([], 2, "the following arguments are required: FILE"),
    ],
)
def test_what_it_cannot_take_is_said_in_a_line(
    run_script: RunScript, arguments: list[str], code: int, message: str
) -> None:
    done = run_script("study.py", *arguments)
    assert done.returncode == code
    assert message in done.stderr
