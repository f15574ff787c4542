"""Where what we use comes from, under which licence, and that the lists of it agree; the release says one version."""

from __future__ import annotations

import re

import pytest
import yaml
from conftest import REPOSITORY
from test_docs import PARSERS

from utils import VERSION


@pytest.mark.parametrize("script", PARSERS)
def test_every_script_says_its_version(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        PARSERS[script]().parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"Alpaca-CoT {VERSION}\n"


def test_the_citation_has_what_its_format_requires_and_says_this_version() -> None:
    """https://github.com/citation-file-format/citation-file-format, 1.2.0."""
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert all(author["family-names"] and author["given-names"] for author in citation["authors"])
    assert citation["version"] == VERSION
    assert citation["type"] == "software"
    assert citation["license"] == "Apache-2.0"
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text(encoding="utf-8")


def test_the_changelog_begins_with_this_version_or_what_will_be_in_it() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)[0]
    assert first == "Unreleased" or first.startswith(VERSION)
