"""Where what we use comes from, under which licence, and that the lists of it agree; the release says one version."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.version import Version
from test_docs import PARSERS

from utils import VERSION

sys.path.insert(0, str(REPOSITORY / "docs"))
import make_dependencies


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


FORMS = sorted(path for path in (REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_as_github_takes_them(path: Path) -> None:
    """https://docs.github.com/en/communities/using-templates-to-encourage-useful-issues-and-pull-requests"""
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "labels", "body"} == form.keys()
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert {part["type"] for part in asked} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert all(part["attributes"]["label"] for part in asked)
    assert len({part["id"] for part in asked}) == len(asked) == len({part["attributes"]["label"] for part in asked})
    assert any(part.get("validations", {}).get("required") for part in asked)


def test_the_forms_ask_for_what_we_need() -> None:
    ids = {path.stem: {part.get("id") for part in yaml.safe_load(path.read_text("utf-8"))["body"]} for path in FORMS}
    assert ids.keys() == {"bug", "data_set", "model_family"}
    assert {"command", "run", "last_lines", "version"} <= ids["bug"]
    assert {"source", "license", "rows"} <= ids["data_set"]
    assert {"checkpoint", "license", "config", "prompt"} <= ids["model_family"]


def test_commands_and_places_that_the_forms_name_are_there() -> None:
    template = (REPOSITORY / ".github" / "pull_request_template.md").read_text(encoding="utf-8")
    assert "`make check`" in template
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)`", template)) <= targets
    text = template + "".join(path.read_text(encoding="utf-8") for path in FORMS)
    for place in re.findall(r"\b(?:\w+/)+\w+\.(?:py|toml)\b", text):
        assert (REPOSITORY / place).is_file(), place
    for command in re.findall(r"`python3 (\S+\.py [^`]+)`", text):
        script, *flags = command.split()
        known = PARSERS[script]().format_help()
        assert all(flag in known for flag in flags if flag.startswith("--")), command


def constraints(name: str = "constraints.txt") -> dict[str, str]:
    return make_dependencies.pins(REPOSITORY / name)


def requirements(name: str = "requirements.txt") -> list[Requirement]:
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line.partition("#")[0].strip()) for line in lines if line.partition("#")[0].strip()]


def test_what_is_installed_goes_together() -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    oldest = constraints("constraints-oldest.txt")
    bounds = {
        requirement.name: next(bound.version for bound in requirement.specifier if bound.operator == ">=")
        for requirement in requirements()
    }
    assert oldest.pop("torch") == constraints()["torch"]  # one CPU build
    assert Version(bounds.pop("torch")) <= Version(constraints()["torch"])
    assert oldest == bounds


def test_a_range_is_the_same_in_every_file() -> None:
    ranges = {requirement.name: requirement.specifier for requirement in requirements()}
    for name in ("requirements-dev.txt", "requirements-gpu.txt"):
        for requirement in requirements(name):
            assert requirement.specifier == ranges.get(requirement.name, requirement.specifier), (name, requirement)


def test_the_files_that_test_oldest_names_are_there() -> None:
    text = re.sub(r"\\\n\s*", " ", (REPOSITORY / "Makefile").read_text(encoding="utf-8"))
    (names,) = re.findall(r"^AT_OLDEST := (.+)$", text, flags=re.MULTILINE)
    assert len(names.split()) > 10
    assert all((REPOSITORY / "tests" / f"test_{name}.py").is_file() for name in names.split())


def licenses_on_the_page() -> dict[str, str]:
    """Licences by package, as docs/dependencies.md has them."""
    tables = make_dependencies.PAGE.read_text("utf-8").partition(make_dependencies.MARK)[2]
    rows = [line.strip("| ").split(" | ") for line in tables.splitlines() if line.startswith("| `")]
    return {row[0].strip("`").partition("[")[0]: row[3 if len(row) == 5 else 2] for row in rows}


def test_the_page_is_what_the_files_and_the_packages_say() -> None:
    written = licenses_on_the_page()
    asked_for: list[str] = []

    def license_of(name: str) -> str:
        """That of the installed package where it is the pinned one; another version may have another."""
        pin = constraints().get(name)
        try:
            if name not in make_dependencies.APART and metadata.version(name) != pin:
                return written[name]
        except metadata.PackageNotFoundError:  # for another system or Python
            return written[name]
        asked_for.append(name)
        return make_dependencies.license_of(name)

    page = make_dependencies.page(REPOSITORY, license_of)
    text = make_dependencies.PAGE.read_text(encoding="utf-8")
    assert text.partition(make_dependencies.MARK)[2].strip() == page.strip(), "run make dependencies"
    assert len(asked_for) > 50


PERMISSIVE = {
    *("0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "MIT"),
    *("MIT-CMU", "PSF-2.0", "Zlib", "LLVM-exception"),
}


def test_licences_are_permissive_or_ask_only_for_changed_files() -> None:
    for name, license_ in licenses_on_the_page().items():
        parts = set(re.split(r" (?:AND|OR|WITH) ", license_.replace("(", "").replace(")", "")))
        allowed = PERMISSIVE | {"MPL-2.0"} | ({"LGPL-3.0-only"} if name == "pyte" else set())
        assert parts <= allowed, f"{name}: {license_}: is it one that users can live with?"
    assert "pyte" not in {requirement.name for requirement in requirements()}


def test_the_script_writes_the_page(tmp_path: Path) -> None:
    """Beside the words that people wrote; the tables are held against the packages above."""
    assert make_dependencies.main(["--out", str(tmp_path / "新 x")]) == 0
    made = (tmp_path / "新 x" / "dependencies.md").read_text(encoding="utf-8")
    words, mark, tables = made.partition(make_dependencies.MARK)
    assert (words, mark) == make_dependencies.PAGE.read_text(encoding="utf-8").partition(make_dependencies.MARK)[:2]
    assert all(f"`{requirement.name}" in tables for requirement in requirements())


@pytest.mark.parametrize(
    ("metadata_lines", "license_"),
    [
        (["License-Expression: MIT OR Apache-2.0", "License: other"], "MIT OR Apache-2.0"),
        (["Classifier: License :: OSI Approved :: BSD License", "License: BSD-3-Clause"], "BSD-3-Clause"),
        (["Classifier: License :: OSI Approved :: BSD License", "License: UNKNOWN"], "BSD"),
        (["License: Apache 2.0 License"], "Apache-2.0"),
        (["License: 许可证 🦙"], "许可证 🦙"),
    ],
)
def test_a_licence_is_read_where_the_package_states_it(
    metadata_lines: list[str], license_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_package(tmp_path, monkeypatch, metadata_lines)
    assert make_dependencies.license_of("stated") == license_


def test_a_package_that_states_no_licence_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place_package(tmp_path, monkeypatch, [])
    with pytest.raises(ValueError, match=r"stated 1\.0 states no licence in its metadata; look in its files"):
        make_dependencies.license_of("stated")


def place_package(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    """Installs a package `stated` with these lines of metadata."""
    (folder / "stated-1.0.dist-info").mkdir()
    text = "\n".join(["Metadata-Version: 2.4", "Name: stated", "Version: 1.0", *lines, ""])
    (folder / "stated-1.0.dist-info" / "METADATA").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
