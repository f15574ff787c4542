"""Files with faults, and what must come of them: a clear error, or with `--bad_rows drop` a row that is counted, and the
other rows as they are without it. Nothing is changed in silence.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS

from utils import dataset
from utils.catalog import parse_mixture
from utils.templates import TEMPLATES

HINT = ". Mend it, or drop and count such rows with --bad_rows drop"
GOOD = [json.dumps(record, ensure_ascii=False).encode() for record in RECORDS[:3]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPACA_COT_CACHE", str(tmp_path / "cache"))


def build(*expressions: object, tokenizer: Any, **options: Any) -> dataset.TrainingData:
    settings = {"cutoff_len": 512, "truncation": "drop", "val_set_size": 0, "seed": 0, "workers": 1, **options}
    return dataset.build(parse_mixture(map(str, expressions)), TEMPLATES["alpaca"], tokenizer, **settings)


def ids(data: dataset.TrainingData) -> list[list[int]]:
    return [row.input_ids for row in data.train]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def is_bad(path: Path, place: str, reason: str, message: str, tokenizer: Any) -> None:
    """The row at `place` is an error, or dropped under `reason`; `GOOD`, the other rows, are as in a file of their own."""
    said = f"{path} {place}: {message}"
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        build(path, tokenizer=tokenizer)
    assert str(caught.value).endswith(HINT)
    alone = build(written(path.with_name("good.jsonl"), b"\n".join(GOOD)), tokenizer=tokenizer)
    data = build(path, tokenizer=tokenizer, bad_rows="drop")
    assert ids(data) == ids(alone)
    account = data.ledger.total
    assert (account.read, account.trained, dict(account.dropped)) == (
        len(GOOD) + 1,
        len(GOOD),
        {f"bad row: {reason}": 1},
    )
    (note,) = data.ledger.notes
    assert note.startswith(f"bad row: {said}")


def broken_either_way(path: Path, message: str, tokenizer: Any) -> None:
    """A fault of the file: the rows behind it cannot be told, so no policy goes on."""
    for policy in ("error", "drop"):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            build(path, tokenizer=tokenizer, bad_rows=policy)
        assert str(path) in str(caught.value)
        assert "--bad_rows" not in str(caught.value)


def row(value: str) -> bytes:
    return f'{{"instruction": "a", "output": {value}}}'.encode()
