"""A file becomes encoded rows once; what they depend on makes them anew; nothing is lost on the way."""

from __future__ import annotations

import ast
import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS, REPOSITORY

from utils import cache, encoding, store
from utils.catalog import Part
from utils.encode import encode_rows
from utils.encoding import Recipe, encode_part
from utils.overlap import EvaluationSets, QuestionSet
from utils.proof import Encoded
from utils.readers import read_rows
from utils.templates import TEMPLATES

DIALOGUE = {
    "conversation": [
        {"role": "user", "content": "Hi 👋"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "再说一次"},
        {"role": "assistant", "content": "你好。"},
    ]
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPACA_COT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def part(tmp_path: Path) -> Part:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in [*RECORDS, DIALOGUE]), encoding="utf-8")
    return Part(name="a", path=path)


@pytest.fixture
def recipe(tokenizer: Any) -> Recipe:
    return Recipe(template=TEMPLATES["alpaca"], tokenizer=tokenizer, cutoff_len=512, truncation="drop")


def encoded(part: Part, recipe: Recipe, **options: Any) -> list[Encoded]:
    found = encode_part(part, recipe, **{"seed": 0, **options})
    return [replace(found.rows.row(i), source="") for i in range(len(found.rows))]


def test_rows_come_back_as_they_were_encoded(part: Part, recipe: Recipe, tokenizer: Any) -> None:
    expected, dropped, _ = encode_rows(
        list(read_rows(part.path)), recipe.template, tokenizer, cutoff_len=512, truncation="drop"
    )
    assert not dropped
    assert encoded(part, recipe) == expected
    assert expected[-1].origin == f"{part.path} line {len(expected)}"


def test_several_processes_and_small_chunks_make_the_same(
    part: Part, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = encoded(part, recipe)
    monkeypatch.setattr(store, "CHUNK_ROWS", 2)
    told: list[int] = []
    for workers in (1, 2):
        monkeypatch.setenv("ALPACA_COT_CACHE", str(tmp_path / f"cache{workers}"))
        assert encoded(part, recipe, workers=workers, on_rows=told.append) == expected
    assert told == [2, 2, 2, 2, 1] * 2


def test_the_second_time_nothing_is_encoded(part: Part, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode_part(part, recipe, seed=0)
    monkeypatch.setattr(encoding, "_write", lambda *_, **__: pytest.fail("encoded again"))
    second = encode_part(part, recipe, seed=1)
    assert second.cached
    assert (second.read, second.sha256, second.shape) == (first.read, first.sha256, first.shape)


def test_whatever_the_rows_depend_on_makes_them_anew(
    part: Part, recipe: Recipe, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_part(part, recipe, seed=0)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["dial"])
    sets = EvaluationSets([QuestionSet(name="t", questions=("Name a colour.",), ngram=13)])
    changed: dict[str, Any] = {
        "template": replace(recipe.template, without_input="Q: {instruction}\nA:"),
        "tokenizer": other,
        "cutoff_len": 511,
        "truncation": "answer",
        "overlap": sets,
        "languages": ("CN",),
        "bad_rows": "drop",
    }
    for name, value in changed.items():
        assert not encode_part(part, replace(recipe, **{name: value}), seed=0).cached, name
    assert not encode_part(replace(part, max_rows=3), recipe, seed=0).cached
    assert not encode_part(replace(part, max_rows=3), recipe, seed=1).cached
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "CODE", ("encode",))
        assert not encode_part(part, recipe, seed=0).cached
    part.path.write_text(part.path.read_text(encoding="utf-8").replace("colour", "color"), encoding="utf-8")
    assert not encode_part(part, recipe, seed=0).cached


def test_the_same_content_elsewhere_is_known_and_named_by_its_own_path(
    part: Part, recipe: Recipe, tmp_path: Path
) -> None:
    encode_part(part, recipe, seed=0)
    twin = tmp_path / "b.jsonl"
    twin.write_bytes(part.path.read_bytes())
    found = encode_part(Part(name="b", path=twin), recipe, seed=0)
    assert found.cached
    assert (found.rows.row(0).origin, found.rows.row(0).source) == (f"{twin} line 1", "b")


def test_a_cut_part_knows_what_it_left_out(part: Part, recipe: Recipe) -> None:
    found = encode_part(replace(part, max_rows=3), recipe, seed=0)
    assert (len(found.rows), found.read, found.left_out) == (3, 9, 6)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_row_is_named_and_nothing_is_kept(part: Part, recipe: Recipe, workers: int) -> None:
    with part.path.open("a", encoding="utf-8") as file:
        file.write('\n{"instruction": "a"}\n')
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a.jsonl line 10: 'output' is missing"):
            encode_part(part, recipe, seed=0, workers=workers)


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    part: Part, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = part.path.read_bytes()

    def change(count: int) -> None:
        part.path.write_bytes(before + b"\n")

    for _ in range(2):
        with pytest.raises(ValueError, match="changed while it was read: run the command again"):
            encode_part(part, recipe, seed=0, on_rows=change)
        part.path.write_bytes(before)


@pytest.mark.parametrize("name", ["about.json", "rows.arrow"])
def test_a_damaged_entry_is_made_anew(part: Part, recipe: Recipe, name: str) -> None:
    expected = encoded(part, recipe)
    for entry in cache.directory().glob(f"*/{name}"):
        entry.write_bytes(b"damaged")
    assert encoded(part, recipe) == expected


def test_a_tokenizer_without_eos_is_refused_before_any_process_starts(part: Part, recipe: Recipe) -> None:
    without = copy.deepcopy(recipe.tokenizer)
    without.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        encode_part(part, replace(recipe, tokenizer=without), seed=0, workers=2)


def test_a_process_that_dies_is_explained(part: Part, recipe: Recipe) -> None:
    with pytest.raises(OSError, match="a process that encodes has died.*--preprocessing_num_workers"):
        encode_part(part, replace(recipe, languages=Deadly()), seed=0, workers=2)  # type: ignore[arg-type]


class Deadly(tuple[str, ...]):
    """Languages at whose sight a worker dies, as it does where memory runs out."""

    def __reduce__(self) -> Any:
        return os._exit, (9,)


def test_an_empty_row_is_kept_as_dropped(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "e.json"
    path.write_text(json.dumps([{"instruction": "a", "output": " "}, RECORDS[0]]))
    found = encode_part(Part(name="e", path=path), recipe, seed=0)
    assert found.rows.column("kept").tolist() == [False, True]
    assert found.rows.row(0).input_ids == []


def test_large_files_get_a_process_for_each_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("[]")
    assert encoding.workers_for(path, cores=16) == 1
    monkeypatch.setattr(encoding, "WORTH_WORKERS", 1)
    assert encoding.workers_for(path, cores=16) == encoding.MOST_WORKERS
    assert encoding.workers_for(path, cores=4) == 4
    assert encoding.workers_for(path, cores=2) == 1


def test_the_key_covers_all_code_that_a_row_passes_through() -> None:
    def imported(name: str) -> set[str]:
        files = sorted((REPOSITORY / "utils" / name).glob("*.py")) or [REPOSITORY / "utils" / f"{name}.py"]
        trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
        found: set[str] = set()
        for node in (node for tree in trees for node in ast.walk(tree)):
            if isinstance(node, ast.ImportFrom) and node.module == "utils":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("utils."):
                found.add(str(node.module).split(".")[1])
        return found

    reached, todo = set(), {"encoding"}
    while todo:
        reached |= todo
        todo = {name for module in todo for name in imported(module)} - reached
    # What is kept and where does not change a row.
    assert reached - {"cache", "distributed"} == set(encoding.CODE)
