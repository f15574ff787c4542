"""evaluate.py --task as a user runs it, on a tiny random model: asked, scored, killed, gone on with, wrongly given."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from openai_server import ModelServer, serving

import evaluate
import merge
from utils import assistant, evaluation, exam, prediction, result_rows
from utils.catalog import DATA_DIR
from utils.encode import encode_answer
from utils.generation import Answer
from utils.readings import read

ROWS = [
    {"question": "1+1? 👋", "answer": "#### 2", "class": "sums"},
    {"question": "二加二等于几？", "answer": "答案是4。", "class": "算术"},
    {"question": "3+3?", "answer": 6, "class": "sums"},
]
FEW = ["--max_new_tokens", 4]


def run(*arguments: object) -> int:
    return evaluate.main([str(argument) for argument in arguments])


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    file = tmp_path / "任务.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_task_is_asked_scored_and_gone_on_with(
    finished: Path, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "out"
    asked = ["--lora_dir", finished, "--task", "gsm8k", "--task_file", task_file, "--result_dir", place, *FEW]
    more = ["--style", "cot", "--shots", 1, "--compare_base", "--show", 1]
    assert run(*asked, *more) == 0
    printed = capsys.readouterr().out
    assert "1+1? 👋" in printed
    assert "wrong, it is 2" in printed
    assert "  all     base: " in printed
    assert "could not be read" in printed
    asked_rows = lines(place / exam.QUESTIONS)
    assert [row["reference"] for row in asked_rows] == ["2", "4", "6"]
    assert asked_rows[0]["instruction"].startswith("Mia has 4 boxes")
    assert "先推理，再给出数字" in asked_rows[1]["instruction"] or "Reason first" in asked_rows[1]["instruction"]
    answers = (place / result_rows.NAME).read_bytes()
    for directory in (place, place / "base"):
        scores = json.loads((directory / evaluation.SCORES).read_text(encoding="utf-8"))
        assert scores["total"] == 3
        assert (scores["task"], scores["style"], scores["failed"]) == ("gsm8k", "cot", 0)
        again = [read(line["generate"], "number").answer for line in lines(directory / result_rows.NAME)]
        assert [line["answer"] for line in lines(directory / evaluation.SCORED)] == again
        assert [line["language"] for line in lines(directory / evaluation.SCORED)] == ["en", "cn", "en"]
        assert scores["unread"] == again.count(None)
    (place / result_rows.NAME).write_bytes(answers[: len(answers) // 2])  # its writer was killed
    assert run(*asked, *more) == 0
    assert (place / result_rows.NAME).read_bytes() == answers
    assert "0 of 3 rows are done" in capsys.readouterr().out
    assert run(*asked, "--style", "direct") == 1
    assert "holds other questions than these: go on with the task file that it was made from" in capsys.readouterr().err
    assert run(*asked, *more, "--num_samples", 2) == 1
    assert "num_samples was 1 and is 2" in capsys.readouterr().err
    assert (place / result_rows.NAME).read_bytes() == answers


def test_self_consistency_draws_and_votes(
    finished: Path, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--lora_dir", finished, "--task", "gsm8k", "--task_file", task_file, *FEW, "--num_samples", 3]
    assert run(*asked, "--output_dir", tmp_path / "a") == 0
    printed = capsys.readouterr().out
    assert all(f"maj@{k}" in printed for k in (1, 2, 3))
    found = lines(tmp_path / "a" / result_rows.NAME)
    assert all(len(line["generate"]) == 3 for line in found)
    assert any(len(set(line["generate"])) > 1 for line in found)
    assert run(*asked, "--output_dir", tmp_path / "b") == 0
    assert (tmp_path / "b" / evaluation.SCORED).read_bytes() == (tmp_path / "a" / evaluation.SCORED).read_bytes()
    assert all(len(line["answers"]) == 3 for line in lines(tmp_path / "a" / evaluation.SCORED))


def test_a_server_answers_a_task(
    finished: Path, task_file: Path, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "--lora_dir",
        finished,
        "--task",
        "gsm8k",
        "--task_file",
        task_file,
        "--result_dir",
        tmp_path / "out",
        *FEW,
    ]
    with serving(ModelServer(tokenizer=tokenizer)) as server:
        assert run(*asked, "--api_base", server.url) == 0
    assert "server: " in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / evaluation.SCORES).read_text(encoding="utf-8"))["total"] == 3


def test_rows_without_a_reference_are_left_out_and_counted(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "belle.json"
    rows = [{"question": "你好？", "std_answer": "你好", "class": "open qa"}, {"question": "写诗", "std_answer": ""}]
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    place = tmp_path / "out"
    assert run("--lora_dir", finished, "--task", "belle_eval", "--task_file", file, "--result_dir", place, *FEW) == 0
    printed = capsys.readouterr().out
    assert "1 rows without a reference were left out" in printed
    assert "ROUGE-L" in printed
    assert "chrF" in printed


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "say what is asked: either --data or --task"),
        (["--task", "gsm8k", "--lora_dir", ""], 2, "say who answers: a run with --lora_dir, or a model by itself with"),
        (["--task", "gsm8k", "--lora_dir", "", "--model_name_or_path", "x", "--compare_base"], 2, "--compare_base needs a --lora_dir"),
        (["--task", "gsm8k", "--style", "cott", "--result_dir", "OUT"], 2, "invalid choice: 'cott'"),
        (["--data", "cot_sample_test", "--task", "gsm8k"], 2, "either --data or --task"),
        (["--task", "gsm8q", "--result_dir", "OUT"], 2, "unknown task 'gsm8q' in --task. Did you mean gsm8k"),
        (["--task", "gsm8k"], 2, "--task writes into a directory: --result_dir DIR"),
        (["--task", "gsm8k", "--result_dir", "OUT", "--shots", 99], 2, "'GSM8K, test' has 4 worked examples, not 99"),
        (["--task", "gsm8k", "--result_dir", "OUT", "--task_file", "nothing.jsonl"], 1, "'GSM8K, test' is not on this machine: nothing.jsonl is missing; it is at https://github.com/openai"),
        (["--task", "gsm8k", "--result_dir", "OUT", "--api_base", "http://x", "--compare_base"], 2, "--compare_base needs a --lora_dir, and its base here"),
        (["--task", "gsm8k", "--result_dir", "OUT", "--choice_by", "cloze"], 2, "--choice_by cloze: task 'GSM8K, test' has answers of the type 'number': leave --choice_by out"),
        (["--task", "gaokao", "--result_dir", "OUT", "--choice_by", "loglikelihood"], 2, "has answers of options that stand in its questions' words"),
        (["--task", "aqua", "--result_dir", "OUT", "--choice_by", "cloze", "--style", "cot"], 2, "--choice_by cloze lists no options that --style cot could ask for"),
        (["--task", "aqua", "--result_dir", "OUT", "--choice_by", "cloze", "--num_samples", 2], 2, "options are weighed here, without --api_base and --num_samples"),
        (["--data", "cot_sample_test", "--style", "cot", "--shots", 1], 2, "--style, --shots: for --task alone"),
        (["--data", "cot_sample_test", "--api_base", "http://x"], 2, "--api_base: for --task alone"),
    ],
)  # fmt: skip
def test_bad_flags(finished: Path, tmp_path: Path, flags: list[Any], code: int, message: str, capsys: Any) -> None:
    given = [str(tmp_path / "out") if flag == "OUT" else str(flag) for flag in flags]
    try:
        found = evaluate.main(["--lora_dir", str(finished), *given])
    except SystemExit as stopped:
        found = stopped.code
    assert found == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_bundled_task_is_told_apart_by_language(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--lora_dir", finished, "--task", "cot_sample_test", "--result_dir", tmp_path, "--max_new_tokens", 1]
    assert run(*asked) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ +cn  adapter: ", printed, re.MULTILINE)
    assert re.search(r"^ +en  adapter: ", printed, re.MULTILINE)
    found = lines(tmp_path / evaluation.SCORED)
    assert {(line["group"], line["language"]) for line in found} == {("cn", "cn"), ("en", "en")}
    bundled = json.loads((DATA_DIR / "sample" / "cot_sample_test.json").read_text(encoding="utf-8"))
    asked_rows = lines(tmp_path / exam.QUESTIONS)
    assert [row["instruction"] for row in asked_rows] == [row["instruction"] for row in bundled], "plain: as they are"
    assert [line["row_id"] for line in found] == [line["row_id"] for line in lines(tmp_path / result_rows.NAME)]


def test_a_base_by_itself_and_a_merged_model_by_itself(
    finished: Path, llama_base: Path, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--task", "gsm8k", "--task_file", task_file, *FEW]
    alone = ["--model_name_or_path", llama_base, *asked, "--result_dir", tmp_path / "base"]
    assert run(*alone) == 1
    assert "say which with --model_type" in capsys.readouterr().err
    assert run(*alone, "--model_type", "llama") == 0
    printed = capsys.readouterr().out
    assert "llama, a model by itself" in printed
    assert "assumed: template alpaca" in printed
    assert "  all    model: " in printed
    assert merge.main(["--lora_dir", str(finished), "--merged_dir", str(tmp_path / "merged")]) == 0
    assert run("--model_name_or_path", tmp_path / "merged", *asked, "--result_dir", tmp_path / "out") == 0
    assert "assumed" not in capsys.readouterr().out
    assert run("--lora_dir", finished, *asked, "--compare_base", "--result_dir", tmp_path / "adapter") == 0
    said = {
        name: [line["generate"] for line in lines(tmp_path / name / result_rows.NAME)]
        for name in ("base", "out", "adapter", "adapter/base")
    }
    assert said["out"] == said["adapter"]
    assert said["base"] == said["adapter/base"], "the run was trained in its family's prompt"
    (tmp_path / "other").mkdir()
    for file in llama_base.iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "other" / "generation_config.json").write_text("{}", encoding="utf-8")
    alone[1] = tmp_path / "other"
    assert run(*alone, "--model_type", "llama") == 1
    assert "base_sha256 was" in capsys.readouterr().err


def test_rows_that_were_trained_on_are_said_loudly(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "seen.jsonl"
    rows = [
        {"question": "Add one and two.", "answer": "#### 3"},
        {"question": "Add one and two and three, and say what came of it.", "answer": "#### 6"},
        {"question": "蓝色有几个字？", "answer": "#### 2"},
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    asked = ["--lora_dir", finished, "--task", "gsm8k", "--task_file", file, *FEW, "--result_dir"]
    assert run(*asked, tmp_path / "out") == 0
    assert "WARNING: 1 rows of its training data repeat questions of gsm8k" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / evaluation.SCORES).read_text(encoding="utf-8"))["rows_trained_on"] == 1
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[1:]), encoding="utf-8")
    assert run(*asked, tmp_path / "out") == 1
    assert "holds other questions than these" in capsys.readouterr().err
    assert run(*asked, tmp_path / "other") == 0
    printed = capsys.readouterr().out
    assert "WARNING" not in printed
    assert "was not looked at" not in printed


@pytest.mark.parametrize(("said", "read_as"), [("", "unread"), ("🤷 no idea", "unread")])
def test_a_model_that_answers_nothing_or_nothing_that_can_be_read(
    said: str, read_as: str, finished: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(self: Any, prompts: Any, *given: Any, **options: Any) -> list[Answer]:
        return [Answer(text=said, finish_reason="stop", prompt_tokens=1, new_tokens=1) for _ in prompts]

    monkeypatch.setattr(assistant.Assistant, "answer_ids", answers)
    asked = ["--lora_dir", finished, "--task", "cot_sample_test", "--result_dir", tmp_path, "--show", 1]
    assert run(*asked, "--num_samples", 2) == 0
    printed = capsys.readouterr().out
    assert "0.0%  (0/200, 95 % interval 0.0% to 1.9%, 200 without a readable answer)" in printed
    assert "0 announced, 0 bare, 0 by fallback, 400 could not be read" in printed
    found = lines(tmp_path / evaluation.SCORED)
    assert all(line["answer"] is None and line["right"] is False for line in found)
    assert {answer["how"] for line in found for answer in line["answers"]} == {read_as}


def test_a_row_that_fails_counts_as_wrong_and_can_be_asked_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "long.jsonl"
    rows = [{"question": "1+1? 🎈", "answer": "#### 2"}, {"question": "long " * 600, "answer": "#### 3"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = ["--lora_dir", finished, "--task", "gsm8k", "--task_file", file, *FEW, "--result_dir", tmp_path / "out"]
    for more in ([], ["--retry_failed"]):
        assert run(*asked, *more) == 0
        printed = capsys.readouterr().out
        assert "1 rows failed, and count as wrong; --retry_failed asks them again. The first: 000001-" in printed
        scores = json.loads((tmp_path / "out" / evaluation.SCORES).read_text(encoding="utf-8"))
        assert (scores["failed"], scores["total"], scores["unread"] >= 1) == (1, 2, True)
    assert lines(tmp_path / "out" / evaluation.SCORED)[1]["right"] is False


KILLED = """
import os, signal, sys
sys.path.insert(0, {repository!r})
import evaluate
from utils import prediction, result_rows
prediction.GROUP, done, real = 1, [], result_rows.Writer.write
def write(writer, lines):
    real(writer, lines)
    done.append(lines)
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
result_rows.Writer.write = write
sys.exit(evaluate.main(sys.argv[1:]))
"""


def test_killed_in_the_middle_it_goes_on(
    finished: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "GROUP", 1)
    asked = ["--lora_dir", str(finished), "--task", "gsm8k", "--task_file", str(task_file), "--max_new_tokens", "4"]
    assert run(*asked, "--result_dir", tmp_path / "whole") == 0
    place, program = tmp_path / "out", KILLED.format(repository=str(REPOSITORY))
    command = [sys.executable, "-c", program, *asked, "--result_dir", str(place)]
    assert subprocess.run(command, timeout=300, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert 0 < len((place / result_rows.NAME).read_bytes()) < len((tmp_path / "whole" / result_rows.NAME).read_bytes())
    assert not (place / evaluation.SCORES).exists(), "scores come last"
    assert run(*asked, "--result_dir", place) == 0
    for name in (exam.QUESTIONS, result_rows.NAME, evaluation.SCORED):
        assert (place / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


OPTIONS = [
    {"question": "Which floats? 🎈", "options": ["A)iron", "B)cork", "C)cork"], "correct": "B", "rationale": ""},
    {"question": "哪个会浮？", "options": ["A)铁", "B)软木，因为很轻"], "correct": "A", "rationale": ""},
]


@pytest.fixture
def options_file(tmp_path: Path) -> Path:
    file = tmp_path / "选项.json"
    file.write_text(json.dumps(OPTIONS, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.mark.parametrize("by", ["loglikelihood", "cloze"])
def test_options_are_weighed_in_the_trained_prompt(
    by: str, finished: Path, options_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "out"
    asked = ["--lora_dir", finished, "--task", "aqua", "--task_file", options_file, "--choice_by", by, "--shots", 1]
    assert run(*asked, "--result_dir", place, "--compare_base", "--show", 2) == 0
    printed = capsys.readouterr().out
    for name in evaluation.WEIGHTS:
        assert re.search(rf"^ +all  adapter +{name}: ", printed, re.MULTILINE)
        assert re.search(rf"^ +all     base +{name}: ", printed, re.MULTILINE)
    opened = assistant.open_run(finished)
    found = lines(place / result_rows.NAME)
    first = found[0]
    if by == "cloze":
        assert (
            first["instruction"]
            == "A shirt of $40 is sold for 25% less. What does it cost now?\n$30\n\nWhich floats? 🎈"
        )
        assert first["continuations"] == ["iron", "cork", "cork"]
        assert first["loglikelihoods"][1] == pytest.approx(first["loglikelihoods"][2], abs=1e-5)
    else:
        assert first["instruction"].endswith("Which floats? 🎈\n(A) iron\n(B) cork\n(C) cork")
        assert found[1]["continuations"] == ["答案是(A)。", "答案是(B)。"]
    for line, base_line in zip(found, lines(place / "base" / result_rows.NAME), strict=True):
        record = {"instruction": line["instruction"], "input": ""}
        prompt = opened.prompt_ids(record)
        for text, total in zip(line["continuations"], line["loglikelihoods"], strict=True):
            more = encode_answer(record, text, opened.origin(None).template, opened.tokenizer)
            logits = opened.model(input_ids=torch.tensor([[*prompt, *more]])).logits[0].log_softmax(-1)
            by_hand = sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(more))
            assert total == pytest.approx(by_hand, abs=1e-3)
        assert line["loglikelihoods"] != base_line["loglikelihoods"]
        assert (
            line["generate"]
            == max(zip(line["loglikelihoods"], line["continuations"], strict=True), key=lambda each: each[0])[1]
        )
    scores = json.loads((place / evaluation.SCORES).read_text(encoding="utf-8"))
    assert scores["measure"] == "acc"
    scored_rows = lines(place / evaluation.SCORED)
    for name in ("acc_norm", "acc_bytes"):
        right = sum(line["best"][name] == line["reference"] for line in scored_rows)
        assert scores[name]["correct"] == right
    assert scores["correct"] == sum(line["right"] for line in scored_rows)
    answers = (place / result_rows.NAME).read_bytes()
    (place / result_rows.NAME).write_bytes(answers[:100])
    assert run(*asked, "--result_dir", place) == 0
    assert (place / result_rows.NAME).read_bytes() == answers
