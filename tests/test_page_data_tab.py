from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS
from page_around import made

from utils import catalog
from utils.page import data_tab
from utils.page.texts import say


def test_a_row_is_shown_as_it_is_trained(opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*RECORDS, {"instruction": "长" * 900, "input": "", "output": "x"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    spec = next(iter(catalog.read_catalog().values()))
    datasets = {"ours": dataclasses.replace(spec, path="rows.json")}
    monkeypatch.setattr(catalog, "DATA_DIR", tmp_path)
    around, _ = made(opened)
    browser = data_tab.Browser(around, datasets)
    tags, figures, number, told, mask = browser.about("ours", "run", "zh")
    assert spec.license in tags
    assert f"{say('data.model_output', 'zh')}</th><td>{say(f'tag.{spec.model_output}', 'zh')}</td>" in tags
    assert say("tag.MT", "zh") in tags
    assert number == 1
    assert "参与训练" in told
    assert "<mark>1+2→3. So the answer is 3.<kbd>&lt;/s&gt;</kbd></mark>" in mask
    assert f"<td>{len(rows)}</td>" in figures
    assert "不参与训练的条数</th><td>1</td>" in figures
    assert "<mark>It ends a text: &lt;/s&gt; is EOS.<kbd>" in browser.row(0)("ours", 3, "run", "en")[2]
    assert browser.row(+1)("ours", 99, "base", "en")[0] == len(rows)
    assert browser.row(-1)("ours", 1, "run", "en")[0] == 1
    _, told, shown = browser.row(0)("ours", len(rows), "run", "en")
    assert "longer than --cutoff_len" in told
    assert "长长" in shown
    with pytest.raises(ValueError, match="unknown dataset"):
        browser.about("../../etc/passwd", "run", "en")
