"""EleutherAI's harness on a model of ours: the trained prompt, its own decoding, and the same accuracy as ours."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_BASE
from tiny_runs import PROMPT_METHODS, make_origin

import evaluate
from utils import answerers, assistant, cli, evaluation, harness, result_rows
from utils.exam import Exam
from utils.generation import Answer
from utils.questions import Question
from utils.tasks import Item, read_tasks

INSTALLED = pytest.mark.skipif(
    harness.missing(), reason=f"lm_eval is not installed: pip install -r {harness.REQUIREMENTS}"
)
SPECS = read_tasks()
OPTIONS = [
    {"question": "Which floats? 🎈", "options": ["A)iron", "B)cork", "C)cork and more"], "correct": "B"},
    {"question": "哪个会浮？", "options": ["A)铁", "B)软木，因为很轻"], "correct": "A"},
    {"question": "1 + 1 = ?", "options": ["A)2", "B)3", "C)11", "D)it depends"], "correct": "A"},
]


def run(*arguments: object) -> int:
    return evaluate.main([str(argument) for argument in arguments])


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def options_file(tmp_path: Path) -> Path:
    file = tmp_path / "选项.json"
    file.write_text(json.dumps(OPTIONS, ensure_ascii=False), encoding="utf-8")
    return file


@INSTALLED
@pytest.mark.parametrize("who", ["run", "base"])
def test_accuracy_and_answers_are_the_same_as_ours(
    who: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--lora_dir", finished] if who == "run" else ["--model_name_or_path", TINY_BASE]
    longest = ["--max_new_tokens", 8 if who == "run" else 32]
    asked = [*model, "--task", "cot_sample_test", *longest, "--result_dir", tmp_path]
    assert run(*asked) == 0
    assert run(*asked, "--lm_eval") == 0
    printed = capsys.readouterr().out
    assert "as scored here: 200 of 200 rows; as answered here, to the letter: 200" in printed
    found = json.loads((tmp_path / harness.RESULTS).read_text(encoding="utf-8"))
    ours = json.loads((tmp_path / evaluation.SCORES).read_text(encoding="utf-8"))
    assert found["results"]["rows_of_cot_sample_test"]["acc,none"] == pytest.approx(ours["accuracy"])
    assert who == "run" or ours["accuracy"] > 0
    samples = sorted(lines(tmp_path / harness.SAMPLES), key=lambda sample: sample["doc_id"])
    answers = lines(tmp_path / result_rows.NAME)
    assert [sample["resps"][0][0] for sample in samples] == [line["generate"] for line in answers]
    assert len({line["generate"] for line in answers}) > 1, "a model that says one thing proves nothing"
    assert run(*asked, "--lm_eval") == 1
    assert "lm_eval.json is there already: choose another --result_dir" in capsys.readouterr().err


@INSTALLED
@pytest.mark.parametrize("by", ["loglikelihood", "cloze"])
def test_options_weigh_the_same(
    by: str, finished: Path, options_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ["--task", "aqua", "--task_file", options_file, "--choice_by", by, "--shots", 1]
    asked = ["--lora_dir", finished, *task, "--result_dir", tmp_path / "out"]
    assert run(*asked) == 0
    assert run(*asked, "--lm_eval") == 0
    assert "as scored here: 3 of 3 rows\n" in capsys.readouterr().out
    ours = json.loads((tmp_path / "out" / evaluation.SCORES).read_text(encoding="utf-8"))
    theirs = json.loads((tmp_path / "out" / harness.RESULTS).read_text(encoding="utf-8"))["results"]["rows_of_aqua"]
    assert theirs["acc,none"] == pytest.approx(ours["accuracy"])
    for name in ("acc_norm", "acc_bytes"):
        assert theirs[f"{name},none"] == pytest.approx(ours[name]["accuracy"])
    samples = sorted(lines(tmp_path / "out" / harness.SAMPLES), key=lambda sample: sample["doc_id"])
    for sample, line in zip(samples, lines(tmp_path / "out" / result_rows.NAME), strict=True):
        totals = [float(each[0][0]) for each in sample["resps"]]
        assert totals == pytest.approx(line["loglikelihoods"], abs=1e-3)


@INSTALLED
def test_a_task_of_the_harness_is_asked_in_the_trained_prompt(finished: Path, tmp_path: Path) -> None:
    rows = [{"q": f"{i} + {i}? 🎈", "a": str(2 * i)} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(
        "task: 小sums\ndataset_path: json\noutput_type: generate_until\ntest_split: test\nfewshot_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}, cache_dir: {tmp_path / 'cache'}}}\n"
        "doc_to_text: 'Q: {{q}} A:'\ndoc_to_target: '{{a}}'\ngeneration_kwargs: {until: ['Q:'], max_gen_toks: 4}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
        encoding="utf-8",
    )
    opened = assistant.open_run(finished, merge=True)
    model = harness.wrapped(opened, batch_size=2)
    found = harness.run(model, "小sums", shots=1, include=tmp_path)
    assert "exact_match,none" in found["results"]["小sums"]
    assert harness.lines(found, 0) == ["lm_eval 小sums: exact_match 0.0000"]
    for sample in found["samples"]["小sums"]:
        text = (
            sample["arguments"]["gen_args_0"]["arg_0"]
            if isinstance(sample["arguments"], dict)
            else sample["arguments"][0][0]
        )
        (asked,) = [key for key in model.known if key == text]
        assert "### Instruction:\nQ: " in asked
        instruction = asked.split("### Instruction:\n")[1].split("\n\n### Response:")[0]
        assert instruction.count("A:") == 2, "one worked example"
        ids = opened.prompt_ids({"instruction": instruction, "input": ""})
        assert model.tok_encode(asked) == ids
        expected = opened.answers([{"instruction": instruction, "input": ""}], cli.greedy_settings(4))[0].text
        assert sample["resps"][0][0] == expected.split("Q:")[0]
    with pytest.raises(ValueError, match="this version of lm_eval has no task 'nothing'"):
        harness.run(model, "nothing", include=tmp_path)


@INSTALLED
@pytest.mark.parametrize("method", PROMPT_METHODS)
def test_behind_virtual_tokens(method: str, llama_base: Path, tmp_path: Path) -> None:
    make_origin(llama_base, tmp_path, method=method)
    opened = assistant.open_run(tmp_path, base=str(llama_base), model_type="llama")
    items = tuple(
        Item(origin="here", question=each, choices=(), reference="2", group="")
        for each in ("1+1? 🎈", "一加一等于几？")
    )
    exam = Exam(spec=SPECS["gsm8k"], items=items, style="plain", shots=0)
    model = harness.wrapped(opened, batch_size=8)
    found = harness.run(model, harness.rows_task("ours", exam, max_new_tokens=6))
    expected = opened.answers([dict(row) for row in exam.rows()], cli.greedy_settings(6))
    assert harness.answers(found, "ours") == [answer.text for answer in expected]
    weighed = Exam(
        spec=SPECS["aqua"],
        items=(Item(origin="", question="哪个会浮？", choices=("铁", "软木"), reference="a", group=""),),
        style="plain",
        shots=0,
        choice_by="cloze",
    )
    found = harness.run(model, harness.rows_task("weighed", weighed, max_new_tokens=6))
    answerer = answerers.weighing(
        str(tmp_path), batch_size=2, merge=False, wishes={"base": str(llama_base), "model_type": "llama"}
    )
    (row,) = weighed.rows()
    question = Question(number=0, id="", raw=row, record={"instruction": row["instruction"], "input": ""})
    (ours,) = answerer.ask([answerer.encode(question)[0]], [0], lambda done: None)
    assert isinstance(ours, Answer)
    totals = [each[0][0] for each in found["samples"]["weighed"][0]["resps"]]
    assert totals == pytest.approx(ours.beside["loglikelihoods"], abs=1e-3)


@INSTALLED
def test_what_is_begun_for_the_model_and_what_does_not_fit(finished: Path) -> None:
    opened = assistant.open_run(finished)
    model = harness.wrapped(opened, batch_size=2)
    begun = model.apply_chat_template(
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "因为"}], add_generation_prompt=False
    )
    prompt = opened.prompt_ids({"instruction": "Why?", "input": ""})
    assert model.tok_encode(begun)[: len(prompt)] == prompt
    assert opened.tokenizer.decode(model.tok_encode(begun)[len(prompt) :]) == "因为"
    spoken = model.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    )
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert model.tok_encode(spoken) == opened.prompt_ids({"conversation": turns})
    ids, mask = model.tok_batch_encode([begun, spoken], left_truncate_len=20)
    assert ids.shape == mask.shape == (2, 20)
    assert model.cut == 2
    assert harness.lines({"results": {}}, model.cut) == ["2 prompts were cut from the left to fit"]


FOLDERS = (
    "gsm8k",
    "agieval",
    "commonsense_qa",
    "mmlu/default",
    "ceval",
    "cmmlu",
    "bigbench/multiple_choice",
    "bbh/cot_fewshot",
)


@INSTALLED
def test_the_harness_has_the_tasks_that_are_named() -> None:
    home = Path(str(importlib.import_module("lm_eval.tasks").__file__)).parent
    manager = importlib.import_module("lm_eval.tasks").TaskManager(
        include_defaults=False, include_path=[str(home / folder) for folder in FOLDERS]
    )
    assert {spec.harness for spec in SPECS.values() if spec.harness} <= set(manager.all_tasks)


def test_what_cannot_be_asked_by_the_harness(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--lora_dir", finished, "--result_dir", tmp_path / "out", "--lm_eval"]
    with pytest.raises(SystemExit):
        run(*asked, "--task", "gsm8k", "--style", "cot")
    assert "--lm_eval asks its own task in its own way: leave --style and --choice_by out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(*asked, "--task", "gsm8k", "--num_samples", 2)
    assert "--lm_eval takes a --task, without --api_base, --num_samples" in capsys.readouterr().err
    monkeypatch.setattr(harness, "missing", lambda: True)
    assert run(*asked, "--task", "cot_sample_test") == 1
    assert "--lm_eval needs EleutherAI's harness: pip install -r requirements-lm-eval.txt" in capsys.readouterr().err
    monkeypatch.setattr(harness, "missing", lambda: False)
    file = tmp_path / "belle.json"
    file.write_text(json.dumps([{"question": "你好？", "std_answer": "你好"}]), encoding="utf-8")
    assert run(*asked, "--task", "belle_eval", "--task_file", file) == 1
    assert "has open answers, which are not right or wrong" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
