"""What variants are trained on: chosen, asked in a style, unseen, and as many rows a step as the budget has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_BASE
from studies import QUESTIONS, ROWS, experiment_text, write_rows

from utils import catalog
from utils.studies import plan, training_rows
from utils.studies.experiment import Experiment, Rows, Variant, read


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "数据.jsonl", ROWS)


@pytest.fixture
def experiment(tmp_path: Path, data: Path) -> Experiment:
    questions = write_rows(tmp_path / "q.jsonl", QUESTIONS)
    (tmp_path / "e.toml").write_text(experiment_text(TINY_BASE, data, questions), encoding="utf-8")
    return read(tmp_path / "e.toml")


def chosen(data: Path, **fields: Any) -> list[dict[str, Any]]:
    (part,) = catalog.parse_mixture([str(data)])
    return list(training_rows.chosen(Rows(mixture="", **fields), part, seed=1))


def test_rows_of_a_language_are_those_whose_question_is_in_it(data: Path) -> None:
    assert chosen(data) == ROWS
    assert chosen(data, language="en") == ROWS[:2]
    assert chosen(data, language="cn") == ROWS[2:]


def test_a_style_adds_the_words_that_an_evaluation_of_it_adds(data: Path) -> None:
    english, chinese = chosen(data, style="cot", kind="number")[1:3]
    assert english == {
        "instruction": 'What is 2+2?\nnow\nReason first, then give the number in the form "The answer is …".',
        "input": "",
        "output": ROWS[1]["output"],
    }
    assert chinese["instruction"] == "三加三等于几？\n先推理，再给出数字，格式为“答案是…”。"


def test_repeats_and_amounts_of_a_mixture_hold(tmp_path: Path, data: Path) -> None:
    both = Variant.model_validate({"title": "v", "data": [{"mixture": f"{data}:3*2", "style": "direct"}, f"{data}*5"]})
    assert training_rows.mixtures("v", both, tmp_path / "out") == [f"{tmp_path}/out/v-1-1.jsonl*2", f"{data}*5"]
    (written,) = training_rows.write("v", both, tmp_path / "out", seed=1)
    few = written.read_text(encoding="utf-8")
    assert len(few.splitlines()) == 3
    written.unlink()
    training_rows.write("v", both, tmp_path / "out", seed=1)
    assert written.read_text(encoding="utf-8") == few


def test_a_dialogue_takes_no_words_and_stays_as_it_is_without_a_style(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "你好 👋"}, {"role": "assistant", "content": "hi"}]
    talk = write_rows(tmp_path / "talk.jsonl", [{"conversation": turns}])
    assert chosen(talk, language="cn") == [{"conversation": turns}]
    with pytest.raises(ValueError, match="style 'cot' adds words to a question, and this is a dialogue"):
        chosen(talk, style="cot")


def test_files_are_written_once_and_mixtures_that_stand_are_not(tmp_path: Path, data: Path) -> None:
    variant = Variant.model_validate({"title": "v", "data": [str(data), {"mixture": str(data), "language": "cn"}]})
    names = training_rows.mixtures("v", variant, tmp_path / "out")
    (written,) = training_rows.write("v", variant, tmp_path / "out", seed=1)
    assert names == [str(data), str(written)]
    assert [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()] == ROWS[2:]
    before = written.stat().st_mtime_ns
    training_rows.write("v", variant, tmp_path / "out", seed=1)
    assert written.stat().st_mtime_ns == before
    write_rows(data, ROWS[:3])
    training_rows.write("v", variant, tmp_path / "out", seed=1)
    assert len(written.read_text(encoding="utf-8").splitlines()) == 1


def test_no_row_in_the_language_is_an_error(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", ROWS[:2])
    variant = Variant.model_validate({"title": "v", "data": [{"mixture": str(data), "language": "cn"}]})
    with pytest.raises(ValueError, match=r"variants\.v: no row of .*d\.jsonl has a question in 'cn'"):
        training_rows.write("v", variant, tmp_path, seed=1)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": QUESTIONS[0]["question"], "input": "", "output": "8"},
        {"instruction": "Again:", "input": "seven LESS two make what, in the end", "output": "5"},
        {"instruction": "Tell.", "input": "", "output": f"You ask: {QUESTIONS[1]['question']} 5."},
        {"conversation": [{"role": "user", "content": "八减三等于几"}, {"role": "assistant", "content": "5"}]},
    ],
)
def test_a_row_that_repeats_a_question_ends_the_study(tmp_path: Path, experiment: Experiment, row: Any) -> None:
    asked = training_rows.asked_questions(experiment)
    data = write_rows(tmp_path / "d.jsonl", [row])
    with pytest.raises(ValueError, match=r"variants\.v: .*d\.jsonl.* repeats a question of .*q\.jsonl.*proves nothing"):
        training_rows.require_unseen("v", [str(data)], asked, seed=1)


def test_other_rows_are_counted(experiment: Experiment, data: Path) -> None:
    asked = training_rows.asked_questions(experiment)
    assert training_rows.require_unseen("v", [str(data), f"{data}:3"], asked, seed=1) == 7


def test_a_missing_tasks_file_says_where_it_is_to_be_had(experiment: Experiment) -> None:
    evaluation = experiment.evaluations["sums"].model_copy(update={"task_file": None})
    absent = experiment.model_copy(update={"evaluations": {"sums": evaluation}})
    with pytest.raises(
        FileNotFoundError, match=r"is not on this machine: .*gsm8k_test\.jsonl is missing; it is at http"
    ):
        training_rows.asked_questions(absent)


@pytest.mark.parametrize("budget", [1.0, 0.5])
@pytest.mark.parametrize("tokens", [2400, 4800])
def test_steps_have_the_budget(experiment: Experiment, data: Path, tokenizer: Any, budget: float, tokens: int) -> None:
    wished = experiment.model_copy(update={"trained_tokens": tokens, "steps": 9})
    variant = wished.variants["all"].model_copy(update={"budget": budget})
    share = training_rows.share(wished, variant, plan.resolved(wished, "all", [f"{data}*96"]), tokenizer)
    assert share.trained_tokens(9) == pytest.approx(tokens * budget, rel=training_rows.TOLERANCE)
    assert share.tokens_a_row > share.trained_tokens_a_row
    assert share.rows == 96 * (len(ROWS) - 1)  # one is held out


@pytest.mark.parametrize("rows_a_step", [1, 3, 4, 7, 10])
def test_rows_seen_are_those_of_the_batches(rows_a_step: int) -> None:
    share = training_rows.Share(rows_a_step=rows_a_step, rows=10, trained_tokens_a_row=1, tokens_a_row=2)
    batches = [min(rows_a_step, 10 - first) for first in range(0, 10, rows_a_step)] * 30
    assert [share.rows_seen(steps) for steps in range(30)] == [sum(batches[:steps]) for steps in range(30)]


def test_epochs_that_do_not_add_up_to_the_budget_are_refused(
    experiment: Experiment, data: Path, tokenizer: Any
) -> None:
    wished = experiment.model_copy(update={"trained_tokens": 300, "steps": 20})
    with pytest.raises(ValueError, match=r"both languages: the nearest to its 300 trained tokens .* repeat the data"):
        training_rows.share(wished, wished.variants["all"], plan.resolved(wished, "all", [str(data)]), tokenizer)


def test_a_step_that_has_more_than_all_rows_is_refused(experiment: Experiment, data: Path, tokenizer: Any) -> None:
    wished = experiment.model_copy(update={"trained_tokens": 10_000})
    with pytest.raises(
        ValueError, match=r"a step of 5000 trained tokens has more rows than there are \(3\): give more"
    ):
        training_rows.share(wished, wished.variants["all"], plan.resolved(wished, "all", [str(data)]), tokenizer)


def test_a_step_that_has_less_than_a_row_is_refused(experiment: Experiment, data: Path, tokenizer: Any) -> None:
    wished = experiment.model_copy(update={"trained_tokens": 2})
    with pytest.raises(ValueError, match=r"both languages: a row has \d+ trained tokens, and a step only 1 \(2 in 2"):
        training_rows.share(wished, wished.variants["all"], plan.resolved(wished, "all", [str(data)]), tokenizer)
