"""Answers to a file of questions: in order, once each, whatever stops it on the way.

Knows: groups of rows, what is done already, rows that fail, and how a job shows itself. Does not know models, servers
or flags: who answers is a function.

The same command goes on where it was stopped: what a directory holds is of one input and one set of settings
(`IDENTITY`), and a group of rows is there whole or not at all (`utils.result_rows`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from utils import distributed, outputs
from utils.generation import Answer, Failure
from utils.questions import Input, Question
from utils.result_rows import FAILED, ROW, Results, appending, number_of
from utils.sampling import row_seeds
from utils.schedule import duration

IDENTITY, ABOUT = "predict.json", "about"
GROUP = 256
"""Answers that are written at once: enough that prompts of like length can share a batch."""


class Ask(Protocol):
    """Who answers: prompts (mostly ids) and their seeds in, answers out, in order; `on_done` is told how many are
    done."""

    def __call__(
        self, prompts: Sequence[Any], seeds: Sequence[int], on_done: Callable[[int], object]
    ) -> list[Answer | Failure]: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """How the questions are answered."""

    encode: Callable[[Question], tuple[Any, int]]
    """A question → what `ask` takes of it, mostly its prompt's ids, and how many tokens were cut from it; raises
    `ValueError` where it cannot be asked."""
    ask: Ask
    seed: int
    num_samples: int = 1
    """Answers to each question; one is a value in the result, more are a list."""
    same_for_same: bool = True
    """Whether the same prompt always gets the same answer, so that it need not be computed twice."""


@dataclass(kw_only=True)
class Tally:
    """What was done."""

    rows: int = 0
    failed: int = 0
    cut: int = 0
    """Rows whose prompt was cut."""
    repeated: int = 0
    """Rows that were answered as an earlier one was."""
    new_tokens: int = 0
    errors: list[str] = field(default_factory=list)
    """Of the first rows that failed."""


def prepare(
    directory: Path,
    questions: Input,
    identity: Mapping[str, Any],
    *,
    about: Mapping[str, Any] | None = None,
    retry_failed: bool,
) -> Results:
    """What of the job is done already in `directory`, ready to be gone on with; for the main process.

    Args:
        identity: what makes it this job and no other.
        about: what is written down with it, for people.

    Raises:
        ValueError: what is there was made of another input or with other settings; it says which.
        OSError: the directory cannot be written to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / IDENTITY
    results = Results.found(directory)
    for written in (path, results.path):
        outputs.clear_leftovers(written)
    if path.exists():
        _require_same(json.loads(path.read_text(encoding="utf-8")), identity, directory, questions, results)
    elif results.places:
        raise ValueError(f"{directory} holds predictions without their {IDENTITY}: choose another --result_dir")
    else:
        with outputs.atomic(path) as file:
            file.write(json.dumps({**identity, ABOUT: about or {}}, indent=2, ensure_ascii=False) + "\n")
    size = group_size(identity["num_samples"])
    done = set(results.places)
    whole = {row for row in done if all(other in done for other in _group_of(row, size, questions.rows))}
    if retry_failed:
        whole -= {number_of(line[ROW]) for line in results.lines() if line["finish_reason"] == FAILED}
    results.keep(whole)
    results.rewrite()
    return results


def group_size(num_samples: int) -> int:
    """Rows of a group."""
    return max(1, GROUP // num_samples)


def run(directory: Path, questions: Input, job: Job, results: Results) -> None:
    """Answers what is not done yet: this process's share of the groups. Every process has the same `results`."""
    size = group_size(job.num_samples)
    missing = [number for number in range(questions.rows) if number not in results.places]
    groups = sorted({number // size for number in missing})
    world_size, rank = distributed.world_size(), distributed.rank()
    mine = set(groups[rank::world_size])
    known = _known(questions, results, job) if job.same_for_same else {}
    todo = sum(1 for number in missing if number // size in mine)
    show = _Show(todo)
    with appending(directory, rank=rank, world_size=world_size) as writer, show:
        for number, group in groupby(questions, key=lambda question: question.number // size):
            if number in mine:
                rows = [question for question in group if question.number not in results.places]
                writer.write(answer(rows, questions, job, known, show.told))
                show.group(len(rows))


def finish(directory: Path) -> Tally:
    """Puts all rows in their order into one file, and counts; for the main process, once all are done."""
    results = Results.found(directory)
    results.rewrite()
    tally = Tally()
    for line in results.lines():
        tally.rows += 1
        if line["finish_reason"] == FAILED:
            tally.failed += 1
            if len(tally.errors) < 3:
                tally.errors.append(f"{line[ROW]}: {line['error']}")
            continue
        tally.cut += bool(line.get("cut_tokens"))
        counts = line["new_tokens"]
        tally.new_tokens += sum(counts) if isinstance(counts, list) else counts
    return tally


def answer(
    group: Sequence[Question],
    questions: Input,
    job: Job,
    known: dict[int, list[Answer]],
    told: Callable[[int, int], object],
) -> list[dict[str, Any]]:
    """The lines of a group, in order.

    Args:
        known: answers to questions that were asked before, by `Question.asks`; gains those of this group that will be
            asked again.
        told: called with (rows, tokens) that are done.
    """
    prompts: dict[int, tuple[Any, int]] = {}
    errors: dict[int, str] = {}
    asked_by: dict[int, int] = {}
    for question in group:
        number = question.number
        if question.record is None:
            errors[number] = question.error
            continue
        if job.same_for_same and (question.asks in known or question.asks in asked_by):
            continue
        try:
            prompts[number] = job.encode(question)
            asked_by[question.asks] = number
        except ValueError as error:
            errors[number] = str(error)
    found = _asked(prompts, job, told)
    lines = []
    for question in group:
        first = asked_by.get(question.asks, question.number) if job.same_for_same else question.number
        answers = known.get(question.asks) if question.record is not None else None
        answers = answers or found.get(first, [])
        error = errors.get(question.number, errors.get(first, ""))
        failure = next((each for each in answers if isinstance(each, Failure)), None)
        if error or failure:
            lines.append(_failed(question, error or (failure.message if failure else "")))
            continue
        given = [each for each in answers if isinstance(each, Answer)]
        lines.append(_line(question, given, prompts.get(first, ([], 0))[1], job.num_samples))
        if job.same_for_same and question.asks in questions.repeated:
            known[question.asks] = given
    return lines


def _asked(
    prompts: Mapping[int, tuple[Any, int]], job: Job, told: Callable[[int, int], object]
) -> dict[int, list[Answer | Failure]]:
    """`num_samples` answers to each prompt, by row number."""
    numbers = [number for number in prompts for _ in range(job.num_samples)]
    seeds = [
        seed for number in prompts for seed in row_seeds(job.seed, job.num_samples, first=number * job.num_samples)
    ]
    before = 0

    def on_done(done: int) -> None:
        nonlocal before
        told((done - before) // job.num_samples, 0)
        before = done

    answers = job.ask([prompts[number][0] for number in numbers], seeds, on_done) if numbers else []
    told(0, sum(each.new_tokens for each in answers if isinstance(each, Answer)))
    found: dict[int, list[Answer | Failure]] = {number: [] for number in prompts}
    for number, each in zip(numbers, answers, strict=True):
        found[number].append(each)
    return found


def _line(question: Question, answers: Sequence[Answer], cut: int, num_samples: int) -> dict[str, Any]:
    def value(of: Callable[[Answer], Any]) -> Any:
        values = [of(each) for each in answers]
        return values if num_samples > 1 else values[0]

    return {
        **question.raw,
        "generate": value(lambda each: each.text),
        "finish_reason": value(lambda each: each.finish_reason),
        "prompt_tokens": answers[0].prompt_tokens,
        "new_tokens": value(lambda each: each.new_tokens),
        **answers[0].beside,
        **({"cut_tokens": cut} if cut else {}),
        ROW: question.id,
    }


def _failed(question: Question, error: str) -> dict[str, Any]:
    return {**question.raw, "generate": None, "finish_reason": FAILED, "error": error, ROW: question.id}


def _group_of(row: int, size: int, rows: int) -> range:
    first = row // size * size
    return range(first, min(first + size, rows))


def _known(questions: Input, results: Results, job: Job) -> dict[int, list[Answer]]:
    """What the rows that are done say to questions that come again."""
    if not questions.repeated or not results.places:
        return {}
    done = {number_of(line[ROW]): line for line in results.lines() if line["finish_reason"] != FAILED}
    known: dict[int, list[Answer]] = {}
    for question in questions:
        line = done.get(question.number)
        if line is None or question.asks not in questions.repeated or question.asks in known:
            continue
        fields = ("generate", "finish_reason", "new_tokens")
        values = [line[name] if job.num_samples > 1 else [line[name]] for name in fields]
        known[question.asks] = [
            Answer(text=text, finish_reason=reason, prompt_tokens=line["prompt_tokens"], new_tokens=count)
            for text, reason, count in zip(*values, strict=True)
        ]
    return known


def _require_same(
    before: Mapping[str, Any], now: Mapping[str, Any], directory: Path, questions: Input, results: Results
) -> None:
    differing = [name for name in {**before, **now} if name != ABOUT and before.get(name) != now.get(name)]
    if not differing:
        return
    what = [f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in differing if name != "input_sha256"]
    if "input_sha256" in differing:
        named = {number_of(line[ROW]): line[ROW] for line in results.lines()}
        changed = next((q.number for q in questions if named.get(q.number, q.id) != q.id), None)
        row = "its rows have changed" if changed is None else f"row {changed + 1} is another than it was"
        what.insert(0, f"the input is not the same: {row}")
    raise ValueError(
        f"{directory} holds predictions of another job: {'; '.join(what)}. Go on as it was, or choose another "
        "--result_dir"
    )


class _Show:
    """How far a job is: a bar on the main process's terminal, a line for every group elsewhere."""

    def __init__(self, todo: int) -> None:
        self._todo = todo
        self._tokens = self._rows = self._said = 0
        self._started = time.perf_counter()
        self._bar: tqdm[Any] | None = None
        if distributed.is_main() and sys.stderr.isatty():
            self._bar = tqdm(total=todo, unit="row", dynamic_ncols=True)

    def told(self, rows: int, tokens: int) -> None:
        """More of this process is done."""
        self._tokens += tokens
        self._rows += rows
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._rate():,.0f} tokens/s", refresh=False)
            self._bar.update(min(rows, self._todo - self._bar.n))

    def group(self, rows: int) -> None:
        """A group is written."""
        self._said += rows
        if self._bar is not None:
            self._bar.update(self._said - self._bar.n)
            return
        seconds = max(1e-9, time.perf_counter() - self._started)
        left = seconds / self._said * (self._todo - self._said)
        whole = "" if distributed.world_size() == 1 else f" on each of {distributed.world_size()} processes"
        distributed.say(
            f"{self._said:,} of {self._todo:,} rows{whole}  {self._said / seconds:,.1f} rows/s  "
            f"{self._rate():,.0f} tokens/s  {duration(left)} left"
        )

    def _rate(self) -> float:
        return self._tokens / max(1e-9, time.perf_counter() - self._started)

    def __enter__(self) -> _Show:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
