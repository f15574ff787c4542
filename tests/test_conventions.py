"""What docs/conventions.md says of all scripts is so."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest
from conftest import REPOSITORY
from test_docs import PARSERS

TEXT = (REPOSITORY / "docs" / "conventions.md").read_text(encoding="utf-8")
SOURCES = [*REPOSITORY.glob("*.py"), *(REPOSITORY / "utils").rglob("*.py")]
SILENT = {"TERM", "TOKENIZERS_PARALLELISM"}
"""Read or set for a library's sake, and nothing that a person would set for ours."""


def test_every_variable_of_the_environment_that_is_read_is_told_of() -> None:
    read = {
        name
        for path in SOURCES
        for name in re.findall(r"environ(?:\.get\(|\.setdefault\(|\[)?\s*\"([A-Z_]+)\"", path.read_text("utf-8"))
    } | {
        name
        for path in SOURCES
        for name in re.findall(r"\"([A-Z_]+)\" (?:not )?in os\.environ", path.read_text("utf-8"))
    }
    assert read - SILENT <= set(re.findall(r"`([A-Z_]{4,})`", TEXT))


def test_a_flag_is_of_one_kind_wherever_it_stands() -> None:
    kinds: dict[str, dict[str, object]] = defaultdict(dict)
    for script, make in PARSERS.items():
        for action in make()._actions:
            for flag in action.option_strings:
                kinds[flag][script] = (action.type, action.choices and tuple(action.choices), type(action).__name__)
    differing = {flag: found for flag, found in kinds.items() if len({str(kind) for kind in found.values()}) > 1}
    assert not differing


@pytest.mark.parametrize("script", PARSERS)
def test_help_has_groups_and_no_default_of_none(script: str) -> None:
    text = PARSERS[script]().format_help()
    assert "default: None" not in text
    assert len(re.findall(r"^[a-z][\w ]*:$", text, flags=re.MULTILINE)) >= 2, "groups"


@pytest.mark.parametrize("script", PARSERS)
def test_an_unknown_flag_is_2_and_names_the_nearest(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = PARSERS[script]()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--hellp"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip()
