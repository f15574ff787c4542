"""What `--bad_rows drop` drops is counted, named and left out, wherever the row is; everything else is as without it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import faulty_files
import pytest
from conftest import finetune
from faulty_files import GOOD, HINT, build, ids, row, written

from utils import hygiene, questions, records, store
from utils.catalog import parse_mixture
from utils.formats import BadRow, faults

own_cache = faulty_files.own_cache


def test_empty_answers_are_a_counted_drop_in_both_policies(tokenizer: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", b"\n".join([*GOOD, row('""'), row('" \\u3000"')]))
    for policy in ("error", "drop"):
        data = build(path, tokenizer=tokenizer, bad_rows=policy)
        assert dict(data.ledger.total.dropped) == {hygiene.CHECKS["empty_answer"].what: 2}


def test_what_is_long_but_can_be_read_is_only_noticed(tokenizer: Any, tmp_path: Path) -> None:
    long = row(f'"{"x" * (hygiene.MAX_CHARACTERS + 1)}"')
    data = build(written(tmp_path / "a.jsonl", b"\n".join([*GOOD, long])), tokenizer=tokenizer, cutoff_len=100_000)
    assert not data.ledger.total.dropped
    assert data.ledger.total.reported[hygiene.CHECKS["over_long"].what] == 1
    assert faults.LONGEST_ROW > hygiene.MAX_CHARACTERS


def many(bad: int, good: int = 12) -> bytes:
    """Lines of which every third is bad, in turn for one reason or another, until there are `bad`."""
    lines = [row(f'"answer {i}"').replace(b'"a"', b'"question %d"' % i) for i in range(good)]
    for i in range(bad):
        lines.insert(3 * i, (b'{"cut', row("5"))[i % 2])
    return b"\n".join(lines)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_ledger_counts_all_and_names_three_of_each_reason(
    workers: int, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.jsonl", many(10, good=20))
    monkeypatch.setattr(store, "CHUNK_ROWS", 4)
    with pytest.raises(ValueError, match=r"a.jsonl line 1: broken JSON .*--bad_rows drop"):
        build(path, tokenizer=tokenizer, workers=workers)
    data = build(path, tokenizer=tokenizer, workers=workers, bad_rows="drop")
    account = data.ledger.total
    assert account.dropped == {"bad row: broken JSON": 5, "bad row: not text": 5}
    assert (account.read, account.trained) == (30, 20)
    assert len(ids(data)) == 20
    assert [re.findall(r"line \d+: \S+", note)[0] for note in data.ledger.notes] == [
        "line 1: broken", "line 7: broken", "line 13: broken", "line 4: 'output'", "line 10: 'output'", "line 16: 'output'",
    ]  # fmt: skip
    assert f"dropped 5 of {path}: bad row: not text" in data.ledger.lines()
    again = build(path, tokenizer=tokenizer, bad_rows="drop")
    assert (again.ledger.lines(), ids(again)) == (data.ledger.lines(), ids(data)), "out of the cache"
    twin = written(tmp_path / "twin.jsonl", path.read_bytes())
    assert build(twin, tokenizer=tokenizer, bad_rows="drop").ledger.notes[0].startswith(f"bad row: {twin} line 1: ")


def test_a_draw_counts_bad_rows_as_rows(tokenizer: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", many(4))
    seen = set()
    for seed in range(8):
        data = build(f"{path}:8", tokenizer=tokenizer, seed=seed, bad_rows="drop")
        account = data.ledger.total
        assert (account.read, account.left_out) == (16, 8)
        assert account.trained + account.dropped.total() == 8
        seen.add(account.dropped.total())
        (part,) = parse_mixture([f"{path}:8"])
        bad = [each for each in records.outcomes_chosen(part, seed) if isinstance(each, BadRow)]
        assert len(bad) == account.dropped.total()
    assert len(seen) > 1


def test_near_repeats_are_found_beside_bad_rows(tokenizer: Any, tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(60)]
    near = [
        json.dumps({"instruction": " ".join([*words[:30], end, *words[31:]]), "output": "ok"}).encode()
        for end in ("a", "b")
    ]
    path = written(tmp_path / "a.jsonl", b"\n".join([b"{", near[0], row("5"), *GOOD, near[1], b"{"]))
    options: dict[str, Any] = {"bad_rows": "drop", "drop": hygiene.resolve(["near_duplicate"])}
    data = build(path, tokenizer=tokenizer, **options)
    assert data.ledger.total.dropped == {
        "bad row: broken JSON": 2, "bad row: not text": 1, hygiene.CHECKS["near_duplicate"].what: 1,
    }  # fmt: skip
    assert len(data.train) == 4


def test_where_every_row_is_bad_it_is_said_why(tokenizer: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", b"\xff\n" + row("5") + b"\n" + row("6"))
    message = (
        "all 3 rows were dropped (1: bad row: not UTF-8; 2: bad row: not text): mend them; without --bad_rows drop, "
        "the first is named with its place"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        build(path, tokenizer=tokenizer, bad_rows="drop")


def test_bad_rows_of_one_part_leave_the_others_alone(tokenizer: Any, tmp_path: Path) -> None:
    good = written(tmp_path / "good.jsonl", b"\n".join(GOOD))
    bad = written(tmp_path / "bad.jsonl", many(1, good=2))
    data = build(good, f"{bad}*2", tokenizer=tokenizer, bad_rows="drop")
    assert [account.trained for account in data.ledger.sources.values()] == [3, 4]
    assert [account.dropped.total() for account in data.ledger.sources.values()] == [0, 1]


def test_the_script_refuses_or_counts(llama_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "a.jsonl", b"\n".join([*GOOD, b"\xff\xfe", row("NaN"), row('"\\udc80"')]))
    assert finetune(llama_base, path, tmp_path / "run", "--dry_run", "--val_set_size", 0) == 1
    said = capsys.readouterr().err
    assert said.endswith(
        f"error: {path} line 4: not UTF-8 (byte 0 of the line is 0xff); save the file as UTF-8{HINT}\n"
    )
    dropped = ["--dry_run", "--val_set_size", 0, "--bad_rows", "drop"]
    for _ in range(2):
        assert finetune(llama_base, path, tmp_path / "run", *dropped) == 0
        shown = capsys.readouterr().out
        for reason in ("not UTF-8", "NaN or Infinity", "half a character"):
            assert f"dropped 1 of {path}: bad row: {reason}" in shown
        assert f"bad row: {path} line 5: broken JSON (NaN is not JSON); write null, or a number as text" in shown
    with pytest.raises(SystemExit):
        finetune(llama_base, path, tmp_path / "run", "--bad_rows", "skip")
    assert "invalid choice: 'skip'" in capsys.readouterr().err


def test_questions_to_answer_are_never_dropped(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", b'{"instruction": "a"}\n{"instruction": 5}')
    with pytest.raises(BadRow, match="line 2: 'instruction' must be text, found a number$"):
        questions.given(None, "", path)
    (part,) = parse_mixture([str(path)])
    with pytest.raises(BadRow, match="line 1: 'output' is missing"):
        list(records.read_chosen(part, seed=0))
