"""The quickstart runs from its first cell to its last, and what is stored in it is what it shows."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import REPOSITORY
from test_docs import PARSERS, script_and_arguments

from utils import catalog
from utils.settings import resolve

EXAMPLES = REPOSITORY / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def cells(notebook: Any, kind: str) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def commands() -> Iterator[str]:
    """What the cells run and what the text recommends, continued lines joined and the cells' variables empty."""
    blocks = [cell.source for cell in cells(read(), "code") if cell.source.startswith("%%bash\n")]
    for cell in cells(read(), "markdown"):
        blocks += re.findall(r"```bash\n(.*?)```", cell.source, flags=re.DOTALL)
    for block in blocks:
        text = re.sub(r"\$[A-Z_]+", "", re.sub(r"\\\n\s*", " ", block))
        yield from (line for line in text.splitlines() if line.startswith("python3 "))


def shown(cell: Any) -> str:
    """All that a cell shows as text."""
    return "".join(output.get("text", "") for output in cell.outputs)


def labels(text: str) -> set[str]:
    """The words before the colons of a text: what is said, without the numbers that it is said with."""
    return set(re.findall(r"^ *([a-z][a-z_ ]*):", text, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after a run on few rows, in a copy of the checkout: a run of the user's stays as it is."""
    spec = importlib.util.spec_from_file_location("execute_quickstart", EXAMPLES / "execute_quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path_factory.mktemp("快速 start")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, root / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAIN_ROWS", ":64")
        patch.setenv("TEST_ROWS", ":8")
        patch.setenv("PIP_NO_INDEX", "1")  # what is missing here must not be fetched by a test
        patch.setenv("IPYTHONDIR", str(root / ".ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(root / ".jupyter"))
        return module.executed(root / "examples" / NOTEBOOK.name, root / "examples")


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_parses(command: str) -> None:
    found = script_and_arguments(command)
    if found is None:
        (file,) = re.findall(r"^python3 -m pip install .*--requirement (\S+) && echo installed$", command)
        assert (REPOSITORY / file).is_file()
        return
    values = PARSERS[found[0]]().parse_args(found[1])
    mine = [expression for expression in getattr(values, "data", None) or [] if expression != "my_data.json"]
    catalog.parse_mixture(mine) if mine else None
    if found[0] == "uniform_finetune.py":
        resolve(values)


def test_it_asks_for_each_step_of_the_journey_in_order() -> None:
    scripts = [found[0] for command in commands() if (found := script_and_arguments(command))]
    journey = ["uniform_finetune.py", "uniform_finetune.py", "generate.py", "generate.py", "evaluate.py"]
    assert scripts[: len(journey)] == journey


def test_every_link_to_a_file_leads_somewhere() -> None:
    links = [
        target for cell in cells(read(), "markdown") for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", cell.source)
    ]
    files = [target for target in links if "://" not in target]
    assert len(files) >= 3
    assert all((EXAMPLES / target).exists() for target in files)


def test_its_addresses_are_the_citations() -> None:
    text = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    (repository,) = re.findall(r'^repository-code: "?(\S+?)"?$', text, flags=re.MULTILINE)
    assert f'SOURCE = "{repository}"' in cells(read(), "code")[0].source
    place = repository.removeprefix("https://github.com/")
    badge = f"https://colab.research.google.com/github/{place}/blob/main/{NOTEBOOK.relative_to(REPOSITORY)}"
    assert f"({badge})" in read().cells[0].source


def first_cell(folder: Path, **environment: str) -> Path:
    """Where the first cell goes when the notebook is opened in `folder`."""
    code = cells(read(), "code")[0].source + "\nprint(Path.cwd())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | environment,
    )
    return Path(done.stdout.splitlines()[-1])


def test_in_a_checkout_nothing_is_cloned() -> None:
    assert first_cell(EXAMPLES, PATH="/nowhere") == REPOSITORY
    assert first_cell(REPOSITORY, PATH="/nowhere") == REPOSITORY


def test_elsewhere_the_repository_is_cloned_once(tmp_path: Path) -> None:
    source = re.findall(r'SOURCE = "(.+)"', cells(read(), "code")[0].source)[0]
    instead = {
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": f"url.{REPOSITORY.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": source,
        "GIT_CONFIG_KEY_1": "safe.directory",
        "GIT_CONFIG_VALUE_1": "*",
    }
    folder = tmp_path / "空 folder"
    folder.mkdir()
    assert first_cell(folder, **instead) == folder / "Alpaca-CoT"
    assert (folder / "Alpaca-CoT" / "uniform_finetune.py").is_file()


def test_no_cell_hides_a_failure() -> None:
    """After `!command` a notebook goes on; a `%%bash` cell fails as its last command does, so it holds one."""
    for cell in cells(read(), "code"):
        assert not re.search(r"^\s*!", cell.source, flags=re.MULTILINE)
        if cell.source.startswith("%%bash\n"):
            (line,) = re.sub(r"\\\n\s*", " ", cell.source).splitlines()[1:]
            assert not re.search(r"[;|](?!\|)", re.sub(r'"[^"]*"', "", line))


def test_it_trains_proves_asks_compares_and_evaluates(ran: Any) -> None:
    code = cells(ran, "code")
    texts = [shown(cell) for cell in code]
    assert sum("⟦" in text for text in texts) == 1
    (trained,) = [text for text in texts if "adapter verified:" in text]
    assert "data: cot_sample:64" in trained
    assert [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert any(re.search(r"\| base +\| quickstart +\|", text) for text in texts)
    for who in ("base", "adapter"):
        assert re.search(rf"all +{who}: +[\d.]+%  \(\d/8, 95 % interval [\d.]+% to [\d.]+%", texts[-1])


def test_what_is_stored_is_what_it_shows(ran: Any) -> None:
    stored, fresh = cells(read(), "code"), cells(ran, "code")
    assert [cell.execution_count for cell in stored] == list(range(1, len(stored) + 1))
    for before, now in zip(stored, fresh, strict=True):
        assert before.outputs or not now.outputs, f"run make notebook: {now.source}"
        assert {output.output_type for output in before.outputs} == {output.output_type for output in now.outputs}
        assert labels(shown(before)) == labels(shown(now)), f"run make notebook: {now.source}"
    adapter, chance = (
        float(re.findall(rf"all +{who}: +([\d.]+)%", shown(stored[-1]))[0]) for who in ("adapter", "base")
    )
    assert adapter > 90 > 30 > chance


def test_the_places_in_it_are_those_of_a_colab() -> None:
    text = "".join(shown(cell) for cell in cells(read(), "code"))
    places = re.findall(r"(?<![\w./:-])/[\w.-]+/[\w./-]+", text)
    assert places
    assert all(place.startswith("/content/Alpaca-CoT/") for place in places), places
