import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS

from utils import dataset
from utils.catalog import parse_mixture
from utils.templates import TEMPLATES


def build(*expressions: object, tokenizer: Any, **options: Any) -> dataset.TrainingData:
    settings = {"cutoff_len": 512, "truncation": "drop", "val_set_size": 0.25, "seed": 0, **options}
    return dataset.build(parse_mixture(map(str, expressions)), TEMPLATES["alpaca"], tokenizer, **settings)


def test_every_row_is_somewhere(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    long = {"instruction": "x", "input": "", "output": "wheel " * 600}
    path.write_text(json.dumps([*RECORDS, {"instruction": "a", "output": ""}, long]))
    data = build(f"{path}*2", tokenizer=tokenizer, val_set_size=0)
    ledger = data.ledger
    assert (ledger.read, ledger.repeated, ledger.trained) == (10, 9, 2 * len(RECORDS))
    assert dict(ledger.dropped) == {"empty answer": 1, "longer than --cutoff_len 512": 2}
    assert len(data.train) == ledger.trained
    assert data.sources[0] | {"sha256": "", "path": ""} == {
        "name": str(path), "path": "", "rows": 10, "shape": "instruction/input/output", "sha256": "", "license": None,
    }  # fmt: skip


def test_the_catalogues_licence_comes_along(tokenizer: Any) -> None:
    data = build("cot_sample:40", tokenizer=tokenizer)
    assert (data.sources[0]["name"], data.sources[0]["license"]) == ("cot_sample", "Apache-2.0")
    assert (len(data.train), len(data.validation)) == (30, 10)


def test_nothing_that_fits_is_an_error(tokenizer: Any, records_file: Path) -> None:
    with pytest.raises(
        ValueError, match=r"all 8 rows were dropped \(8: longer than --cutoff_len 8\): raise --cutoff_len"
    ):
        build(records_file, tokenizer=tokenizer, cutoff_len=8, val_set_size=0)
