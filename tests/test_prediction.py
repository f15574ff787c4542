"""Jobs of prediction with a stand-in for the model: order, going on, failures, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from utils import catalog, prediction, questions, result_rows
from utils.generation import Answer, Failure
from utils.prediction import Job

TEXTS = ["1+1?", "", "你好，世界", "🌏 👩‍👩‍👧", "1+1?", "a\nb", "too long " * 9, "你好，世界"]


def echo(
    prompts: Sequence[Sequence[int]], seeds: Sequence[int], on_done: Callable[[int], object], *, with_seed: bool = False
) -> list[Any]:
    """Says the prompt backwards; thirteen tokens are a failure."""
    found: list[Any] = []
    for ids, seed in zip(prompts, seeds, strict=True):
        text = "".join(map(chr, reversed(ids)))
        text += f"/{seed % 1000}" if with_seed else ""
        given = Answer(text=text, finish_reason="stop", prompt_tokens=len(ids), new_tokens=2)
        found.append(Failure(message="thirteen") if len(ids) == 13 else given)
    on_done(len(prompts))
    return found


def drawn(prompts: Any, seeds: Any, on_done: Any) -> list[Any]:
    """An answer that depends on the seed."""
    return echo(prompts, seeds, on_done, with_seed=True)


def encode(question: questions.Question) -> tuple[list[int], int]:
    assert question.record is not None
    text = question.record["instruction"]
    if len(text) > 50:
        raise ValueError(f"the prompt has {len(text)} tokens")
    return [ord(character) for character in text], 0


def write(path: Path, texts: Sequence[str]) -> Path:
    rows = [{"instruction": text, "input": "", "id": [number, None]} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def predict(file: Path, directory: Path, *, ask: Any = echo, retry: bool = False, **options: Any) -> prediction.Tally:
    """A whole job, as predict.py does it."""
    asked = questions.survey(catalog.parse_mixture([str(file)]))
    job = Job(encode=encode, ask=ask, seed=options.pop("seed", 1), **options)
    identity = {"input_sha256": asked.sha256, "seed": job.seed, "num_samples": job.num_samples}
    found = prediction.prepare(directory, asked, identity, retry_failed=retry)
    prediction.run(directory, asked, job, found)
    return prediction.finish(directory)


def lines(directory: Path) -> list[dict[str, Any]]:
    text = (directory / result_rows.NAME).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "问题.jsonl", TEXTS)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "GROUP", 3)


def test_each_record_is_there_unchanged_with_its_answer(file: Path, tmp_path: Path) -> None:
    tally = predict(file, tmp_path / "out")
    found = lines(tmp_path / "out")
    assert [line["instruction"] for line in found] == TEXTS
    assert [line["id"] for line in found] == [[number, None] for number in range(len(TEXTS))]
    assert found[2]["generate"].startswith("界世，好你")
    assert {line["row_id"] for line in found} == {q.id for q in questions.read(catalog.parse_mixture([str(file)]))}
    assert list(found[0]) == [
        "instruction", "input", "id", "generate", "finish_reason", "prompt_tokens", "new_tokens", "row_id",
    ]  # fmt: skip
    assert (found[6]["generate"], found[6]["finish_reason"]) == (None, "error")
    assert found[6]["error"] == f"the prompt has {len(TEXTS[6])} tokens"
    assert (tally.rows, tally.failed) == (8, 1)


def test_the_same_question_is_asked_once(file: Path, tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def spy(prompts: Any, seeds: Any, on_done: Any) -> list[Any]:
        asked.extend(map(list, prompts))
        return echo(prompts, seeds, on_done)

    predict(file, tmp_path / "once", ask=spy)
    assert len(asked) == len({tuple(ids) for ids in asked}) == 5
    found = lines(tmp_path / "once")
    assert found[0]["generate"] == found[4]["generate"]
    asked.clear()
    predict(file, tmp_path / "twice", ask=spy, same_for_same=False)
    assert len(asked) == 7
    predict(file, tmp_path / "drawn", ask=drawn, same_for_same=False)
    found = lines(tmp_path / "drawn")
    assert found[0]["generate"] != found[4]["generate"], "each row has a seed of its own"


def test_several_samples_are_lists(file: Path, tmp_path: Path) -> None:
    predict(file, tmp_path / "out", ask=drawn, num_samples=4, same_for_same=False)
    found = lines(tmp_path / "out")
    assert len(set(found[0]["generate"])) == 4
    assert found[0]["finish_reason"] == ["stop"] * 4
    assert found[0]["new_tokens"] == [2] * 4
    assert found[0]["prompt_tokens"] == 4
    assert len(lines(tmp_path / "out")) == 8


def test_one_sample_that_fails_is_the_rows_failure(tmp_path: Path) -> None:
    predict(write(tmp_path / "q.jsonl", ["a" * 13, "b"]), tmp_path / "out", num_samples=2, same_for_same=False)
    found = lines(tmp_path / "out")
    assert (found[0]["error"], found[0]["generate"]) == ("thirteen", None)
    assert len(found[1]["generate"]) == 2


def test_rows_that_failed_are_asked_again_and_only_they(file: Path, tmp_path: Path) -> None:
    write(file, [*TEXTS[:4], "a" * 13, *TEXTS[5:]])
    assert predict(file, tmp_path / "out").failed == 2
    before = lines(tmp_path / "out")
    asked: list[int] = []

    def well(prompts: Any, seeds: Any, on_done: Any) -> list[Any]:
        asked.extend(map(len, prompts))
        return [Answer(text="ok", finish_reason="stop", prompt_tokens=1, new_tokens=1) for _ in prompts]

    assert predict(file, tmp_path / "out", ask=well).failed == 2, "not without --retry_failed"
    assert asked == []
    assert predict(file, tmp_path / "out", ask=well, retry=True).failed == 1, "one is too long, as before"
    assert asked == [13]
    after = lines(tmp_path / "out")
    assert after[4]["generate"] == "ok"
    assert [line for i, line in enumerate(after) if i != 4] == [line for i, line in enumerate(before) if i != 4]


def test_rows_that_cannot_be_read_are_failures(tmp_path: Path) -> None:
    bad = [
        '{"instruction": "a"}',
        "{broken",
        '{"neither": 1}',
        '{"instruction": "x", "generate": "mine"}',
        '["b"]',
        '{"instruction": 3}',
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(bad) + "\n", encoding="utf-8")
    assert predict(path, tmp_path / "out").failed == 5
    found = lines(tmp_path / "out")
    assert [line["finish_reason"] for line in found] == ["stop", *["error"] * 5]
    for line, said in zip(
        found[1:],
        ["broken JSON", "its keys are neither", "a field 'generate' of its own", "row", "must be text"],
        strict=True,
    ):
        assert said in line["error"]
        assert line["row_id"].startswith(f"{found.index(line):06d}-")


def test_an_empty_file_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("")
    with pytest.raises(ValueError, match="q.jsonl holds no records: the file is empty"):
        questions.survey(catalog.parse_mixture([str(tmp_path / "q.jsonl")]))


def test_a_file_of_which_no_row_can_be_read_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "问题.csv"
    path.write_bytes("instruction\n你好\n为什么？\n".encode("gb18030"))
    with pytest.raises(
        ValueError, match=r"no row of .*问题\.csv can be asked: .* row 1: not UTF-8 .* save the file as UTF-8"
    ):
        questions.survey(catalog.parse_mixture([str(path)]))
    path.write_bytes(b"instruction\nHi\n" + "你好\n".encode("gb18030"))
    found = questions.survey(catalog.parse_mixture([str(path)]))
    assert (found.rows, found.unreadable) == (2, 1)
    assert "row 2: not UTF-8" in found.fault


def test_a_line_of_a_text_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_bytes(b"Hi\n" + "你好\n".encode("gb18030"))
    with pytest.raises(ValueError, match=r"q\.txt line 2: not UTF-8 \(.*\); save the file as UTF-8"):
        questions.given(None, "", tmp_path / "q.txt")


def test_a_torn_file_becomes_the_uninterrupted_one(file: Path, tmp_path: Path) -> None:
    predict(file, tmp_path / "whole")
    expected = (tmp_path / "whole" / result_rows.NAME).read_bytes()
    for end in range(0, len(expected), 17):
        torn = tmp_path / f"torn-{end}"
        torn.mkdir()
        (torn / prediction.IDENTITY).write_bytes((tmp_path / "whole" / prediction.IDENTITY).read_bytes())
        (torn / result_rows.NAME).write_bytes(expected[:end])
        predict(file, torn)
        assert (torn / result_rows.NAME).read_bytes() == expected


def test_a_group_that_is_not_whole_is_asked_whole_again(file: Path, tmp_path: Path) -> None:
    predict(file, tmp_path / "out")
    path = tmp_path / "out" / result_rows.NAME
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    asked: list[int] = []

    def spy(prompts: Any, seeds: Any, on_done: Any) -> list[Any]:
        asked.append(len(prompts))
        return echo(prompts, seeds, on_done)

    predict(file, tmp_path / "out", ask=spy)
    assert asked == [2, 1][: len(asked)], "rows 4 to 6, one of them known; then the rest"
    assert len(lines(tmp_path / "out")) == 8


def test_other_input_or_settings_are_refused_with_what_differs(file: Path, tmp_path: Path) -> None:
    predict(file, tmp_path / "out")
    before = (tmp_path / "out" / result_rows.NAME).read_bytes()
    with pytest.raises(
        ValueError,
        match=r"holds predictions of another job: seed was 1 and is 2\. Go on as it was, or choose another --result_dir",
    ):
        predict(file, tmp_path / "out", seed=2)
    write(file, [*TEXTS[:2], "other", *TEXTS[3:]])
    with pytest.raises(ValueError, match="the input is not the same: row 3 is another than it was"):
        predict(file, tmp_path / "out")
    write(file, [*TEXTS, "more"])
    with pytest.raises(ValueError, match="the input is not the same: its rows have changed"):
        predict(file, tmp_path / "out")
    assert (tmp_path / "out" / result_rows.NAME).read_bytes() == before


def test_a_foreign_file_is_not_written_over(file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    kept = tmp_path / "out" / result_rows.NAME
    kept.write_text('{"mine": 1}\n')
    with pytest.raises(ValueError, match="line 1 is no prediction of this program: delete the file, or choose another"):
        predict(file, tmp_path / "out")
    kept.write_text('{"generate": "x", "row_id": "000000-abc"}\n')
    with pytest.raises(ValueError, match="holds predictions without their predict.json: choose another --result_dir"):
        predict(file, tmp_path / "out")
    assert kept.read_text() == '{"generate": "x", "row_id": "000000-abc"}\n'


def test_what_several_processes_wrote_is_put_together(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(file, tmp_path / "one")
    expected = (tmp_path / "one" / result_rows.NAME).read_bytes()
    asked = questions.survey(catalog.parse_mixture([str(file)]))
    job = Job(encode=encode, ask=echo, seed=1)
    identity = {"input_sha256": asked.sha256, "seed": 1, "num_samples": 1}
    for killed in (None, 0, 1):
        out = tmp_path / f"two-{killed}"
        found = prediction.prepare(out, asked, identity, retry_failed=False)
        for rank in (1, 0):
            if rank != killed:
                monkeypatch.setattr("utils.distributed.world_size", lambda: 2)
                monkeypatch.setattr("utils.distributed.rank", lambda rank=rank: rank)
                prediction.run(out, asked, job, found)
        monkeypatch.undo()
        monkeypatch.setattr(prediction, "GROUP", 3)
        if killed is not None:  # then one process goes on where two were
            predict(file, out)
        prediction.finish(out)
        assert (out / result_rows.NAME).read_bytes() == expected
        assert not list(out.glob(result_rows.PARTS))


KILLED = """
import os, sys, signal, random
sys.path[:0] = [{tests!r}, {repository!r}]
from pathlib import Path
import test_prediction as t
from utils import prediction
prediction.GROUP = 3
count = [0]
def ask(prompts, seeds, on_done):
    count[0] += 1
    return t.echo(prompts, seeds, on_done)
real, left = os.fsync, [int(sys.argv[3])]
def fsync(descriptor):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
t.predict(Path(sys.argv[1]), Path(sys.argv[2]), ask=ask)
"""


def test_killed_between_any_two_writes_it_goes_on(file: Path, tmp_path: Path) -> None:
    """Before each flush to the disk in turn; benchmarks/predict_kills.py does it at any time, with a model."""
    predict(file, tmp_path / "whole")
    expected = (tmp_path / "whole" / result_rows.NAME).read_bytes()
    program = KILLED.format(tests=str(REPOSITORY / "tests"), repository=str(REPOSITORY))
    for flush in (1, 3, 5):
        out = tmp_path / str(flush)
        done = subprocess.run([sys.executable, "-c", program, file, out, str(flush)], timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL
        predict(file, out)
        assert (out / result_rows.NAME).read_bytes() == expected
        assert sorted(os.listdir(out)) == sorted([result_rows.NAME, prediction.IDENTITY])
