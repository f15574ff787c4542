from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from utils import collection, hygiene
from utils.catalog import parse_mixture, read_catalog
from utils.survey import survey

ROWS = read_catalog()


@pytest.mark.parametrize(
    ("filters", "holds"),
    [
        ({"lang": ["CN"]}, lambda s: "CN" in s.lang),
        ({"lang": ["CN", "ML"], "gen": ["HG"]}, lambda s: {"CN", "ML"} & set(s.lang) and "HG" in s.gen),
        ({"license": "apache"}, lambda s: "Apache" in s.license),
        ({"min_size": 1_000_000}, lambda s: (s.size or 0) >= 1_000_000),
        ({"max_size": 5000}, lambda s: s.size is not None and s.size <= 5000),
        ({"status": ["ours"], "task": ["TS"]}, lambda s: s.status == "ours"),
    ],
)
def test_filters_choose_exactly_the_rows_that_hold(filters: dict[str, Any], holds: Any) -> None:
    chosen = collection.chosen(ROWS, **filters)
    assert chosen == {key: spec for key, spec in ROWS.items() if holds(spec)}
    assert 0 < len(chosen) < len(ROWS)


def test_no_filter_is_everything_and_the_list_says_what_is_here() -> None:
    assert collection.chosen(ROWS) == dict(ROWS)
    lines = collection.list_lines(ROWS)
    assert len(lines) == len(ROWS) + 2
    assert "yes" in next(line for line in lines if line.startswith("cot_sample "))
    assert "yes" not in next(line for line in lines if line.startswith("xp3 "))


@pytest.mark.parametrize("key", sorted(ROWS))
def test_every_row_can_be_shown(key: str) -> None:
    text = "\n".join(collection.show_lines(key, ROWS[key], ["a_part"]))
    assert text.startswith(f"{key}: {ROWS[key].title}\n")
    assert ROWS[key].license.split()[0] in text
    assert "a_part" in text
    assert ("its file is here" in text) is collection.is_here(ROWS[key])


def test_what_is_long_goes_on_in_the_column_where_it_began() -> None:
    spec = replace(
        ROWS["alpaca"], note=" ".join(["many words 很多"] * 40), raw=("https://a.example", "https://b.example")
    )
    lines = collection.show_lines("x", spec, [])
    at = next(number for number, line in enumerate(lines) if line.startswith("  note "))
    column = lines[at].index("many")
    for line in lines[at + 1 : at + 4]:
        assert len(line) - len(line.lstrip()) == column
    first = next(number for number, line in enumerate(lines) if "https://a.example" in line)
    assert lines[first + 1] == " " * lines[first].index("https") + "https://b.example"


def test_a_long_row_is_shortened(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"instruction": "' + "你" * 9000 + '", "output": "b"}]', encoding="utf-8")
    (line,) = collection.sample_lines(path)
    assert len(line) == collection.SAMPLE_CHARACTERS + 1
    assert line.endswith("…")


def test_statistics_speak_of_a_file_without_answers_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"instruction": "a", "output": "7"}, {"instruction": "a", "output": "8"}]')
    (part,) = parse_mixture([str(path)])
    lines = collection.survey_lines("a", survey(part))
    assert lines[0] == "a: 2 rows (2 instruction/input/output; 0 dialogues), 0 left out by :N"
    assert "2 not told" in lines[1]
    assert lines[2].startswith("  characters: ")
    assert lines[3] == "  different prompts: 1"


def test_findings_name_rows_and_what_happens_to_them() -> None:
    counts = hygiene_counts(refusal=9, duplicate=2)
    lines = collection.finding_lines(counts, {"refusal": ["row 1", "row 2"]}, hygiene.resolve())
    assert lines == [
        "  duplicate: 2 rows: repeats an earlier row exactly; dropped in training",
        "  refusal: 9 rows: refuses, or speaks as an AI language model; reported (row 1, row 2, …)",
    ]
    assert collection.finding_lines(hygiene_counts(), {}, frozenset()) == ["  nothing was found"]


def hygiene_counts(**counts: int) -> Any:
    return Counter(counts)


def test_a_row_without_size_passes_only_without_bounds() -> None:
    rows = {"a": replace(ROWS["alpaca"], size=None)}
    assert collection.chosen(rows)
    assert not collection.chosen(rows, min_size=1)
    assert not collection.chosen(rows, max_size=10)
