"""The structure that docs/design.md describes is the structure of the code."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

MODULES = sorted((REPOSITORY / "utils").rglob("*.py"))
SCRIPTS = {
    "uniform_finetune": 220,
    "generate": 130,
    "evaluate": 150,
    "merge": 110,
    "predict": 150,
    "web": 150,
    "prepare_data": 170,
    "server": 130,
    "study": 170,
}
HARD_LINES, HARD_FUNCTION = 400, 60
HEAVY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "pyarrow", "matplotlib", "tqdm"} | {
    "numpy",
    "ftfy",
    "datasketch",
    "huggingface_hub",
    "httpx2",
    "filelock",
    "prompt_toolkit",
    "scipy",
    "jinja2",
    "pydantic",
}


def layers() -> dict[str, int]:
    """Module → layer, from the table of docs/design.md."""
    text = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8")
    return {name: int(layer) for layer, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", text, flags=re.MULTILINE)}


def imports(tree: ast.AST, *, top_level_only: bool = False) -> Iterator[str]:
    """Dotted names that a module imports; `if TYPE_CHECKING` is not an import that runs."""
    nodes = tree.body if top_level_only and isinstance(tree, ast.Module) else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def package(path: Path) -> str:
    """The module or package of utils that a file is, or is in."""
    return path.relative_to(REPOSITORY / "utils").parts[0].removesuffix(".py")


def ours(path: Path) -> set[str]:
    """The modules of utils that `path` imports."""
    found = {name.split(".")[1] for name in imports(parsed(path)) if name.startswith("utils.")}
    return found & layers().keys()


def test_every_module_has_a_layer_and_every_layer_a_module() -> None:
    assert {package(path) for path in MODULES} - {"__init__"} == set(layers())


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=lambda p: p.stem)
def test_a_module_imports_only_from_layers_above_its_own(path: Path) -> None:
    name = package(path)
    own = layers()[name]
    wrong = {other: layers()[other] for other in ours(path) if layers()[other] >= own and other != name}
    assert not wrong, f"layer {own} imports {wrong}"


def test_no_two_modules_of_a_package_need_each_other() -> None:
    """Not even for a type. A package's face takes from its modules, and they from one another."""
    inside = [path for path in MODULES if path.name != "__init__.py"]
    dotted = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in inside}
    needs = {name: set(imports(parsed(path))) & dotted.keys() - {name} for name, path in dotted.items()}
    left = dict(needs)
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left, f"these wait for each other: {sorted(left)}"


def test_below_layer_3_nothing_imports_torch() -> None:
    for path in MODULES:
        if layers().get(package(path), 0) < 3:
            roots = {name.partition(".")[0] for name in imports(parsed(path))}
            assert not roots & {"torch", "transformers", "peft", "accelerate"}, path.name


def test_what_a_script_imports_before_parsing_is_light() -> None:
    for script in SCRIPTS:
        path = REPOSITORY / f"{script}.py"
        roots = {name.partition(".")[0] for name in imports(parsed(path), top_level_only=True)}
        assert roots - {"utils"} <= set(sys.stdlib_module_names) | {"__future__"}, script
        todo, seen = [path], set()
        while todo:  # and what those modules import, in turn
            tree = parsed(todo.pop())
            names = set(imports(tree, top_level_only=True))
            assert not {name.partition(".")[0] for name in names} & HEAVY, script
            for module in {name.split(".")[1] for name in names if name.startswith("utils.")} & layers().keys():
                if module not in seen:
                    seen.add(module)
                    todo += [path for path in MODULES if package(path) == module]


def test_scripts_do_not_import_each_other_and_stay_a_page() -> None:
    for script, limit in SCRIPTS.items():
        path = REPOSITORY / f"{script}.py"
        assert not {name.partition(".")[0] for name in imports(parsed(path))} & set(SCRIPTS), script
        assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, script


@pytest.mark.parametrize("path", [*MODULES, *(REPOSITORY / f"{s}.py" for s in SCRIPTS)], ids=lambda p: p.stem)
def test_modules_and_functions_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= HARD_LINES
    assert ast.get_docstring(tree), "a module opens with what it knows"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < HARD_FUNCTION, node.name
            assert "args" not in [a.arg for a in node.args.args[:1]] or path.stem == "progress", node.name


def test_no_branch_on_a_family_name_outside_the_registry() -> None:
    branch = re.compile(r"(model_type|family) *(==|!=|in) *[\[(\"']")
    for path in [*MODULES, *(REPOSITORY / f"{s}.py" for s in SCRIPTS)]:
        assert not branch.search(path.read_text(encoding="utf-8")), path.name


def test_forbidden_names_do_not_return() -> None:
    assert not {"tools", "misc", "helpers", "common"} & {path.stem for path in MODULES}


def test_what_the_walks_name_is_there() -> None:
    text = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8").split(" walks\n", 1)[1]
    for name in re.findall(r"`([\w.]+)`", text):
        if name.endswith(".py"):
            assert (REPOSITORY / name).is_file(), name
        elif "." in name:
            *modules, last = name.split(".")
            at = REPOSITORY / "utils"
            while modules and (at / modules[0]).is_dir():
                at /= modules.pop(0)
            file = at / f"{modules.pop(0)}.py" if modules else at / "__init__.py"
            defined = {
                node.name for node in ast.walk(parsed(file)) if isinstance(node, ast.ClassDef | ast.FunctionDef)
            } | {node.name for node in ast.walk(parsed(file)) if isinstance(node, ast.AsyncFunctionDef)}
            assert {last, *modules} <= defined, name
