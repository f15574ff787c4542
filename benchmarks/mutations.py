"""Do the tests notice when the code is wrong? Lines of utils, changed one at a time, and the tests that should fail.

    python3 benchmarks/mutations.py                       # 40 lines, drawn by the seed
    python3 benchmarks/mutations.py --count 10 --seed 7   # others
    python3 benchmarks/mutations.py --only sieve          # those of modules whose name has this in it
    python3 benchmarks/mutations.py --lines utils/sieve.py:41  # this one of those drawn, again: after mending
    python3 benchmarks/mutations.py --coverage .coverage  # knows which tests ran a line; `make coverage` writes it

A line is drawn at random among all that compare, calculate, decide or hold a number, and changed as a slip would change
it: < for <=, and for or, + for -, one more, not. It is caught when a test fails with it that passes without it. Tried
in turn until one does: the tests that ran the line, where a coverage file says so; those of its module, which are
tests/test_<module>.py and other test files that import the module, the shortest first; those of the modules that import
it. Works on a copy.

Written to benchmarks/results/mutations.json; survivors are listed, and are to be looked at by a person: some change
nothing that can be seen.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import environment
import pytest

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
}  # fmt: skip
LONGEST, WAITING = 240, 1800
"""Seconds of processor time for the tests of one change, and of a clock; what takes longer hangs, and is caught."""
FILES, FURTHER, RAN = 6, 12, 80
"""Test files that are run for a module at most, and of those that import it; tests of those that ran a line."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One change."""

    file: str
    line: int
    before: str
    after: str


def mutations(path: Path) -> Iterator[tuple[Mutation, str]]:
    """All of a file, each with the file's text as it would be."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        changed = _changed(node)
        if changed is None or not isinstance(node, ast.expr) or node.lineno != node.end_lineno:
            continue
        # Offsets are in bytes, and lines here have Chinese characters.
        line = lines[node.lineno - 1].encode()
        new = (line[: node.col_offset] + f"({ast.unparse(changed)})".encode() + line[node.end_col_offset :]).decode()
        whole = "".join([*lines[: node.lineno - 1], new, *lines[node.lineno :]])
        yield (
            Mutation(
                file=str(path.relative_to(environment.REPOSITORY)),
                line=node.lineno,
                before=lines[node.lineno - 1].strip(),
                after=new.strip(),
            ),
            whole,
        )


def _changed(node: ast.AST) -> ast.expr | None:
    """What a slip would make of an expression; None where none is made."""
    match node:
        case ast.Compare(left=left, ops=[operation], comparators=rest) if type(operation) in SWAPS:
            return ast.Compare(left, [SWAPS[type(operation)]()], rest)  # type: ignore[list-item]
        case ast.BoolOp(op=operation, values=values):
            return ast.BoolOp(SWAPS[type(operation)](), values)  # type: ignore[arg-type]
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in SWAPS:
            if isinstance(left, ast.Constant | ast.JoinedStr) and not isinstance(getattr(left, "value", 0), int):
                return None  # texts
            return ast.BinOp(left, SWAPS[type(operation)](), right)  # type: ignore[arg-type]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return operand
        case ast.Constant(value=bool(value)):
            return ast.Constant(not value)
        case ast.Constant(value=int(value)):
            return ast.Constant(value + 1)
    return None


def tests_of(file: str) -> list[str]:
    """The test files of a module: its own, then those that import it, the shortest first."""
    parts = Path(file).with_suffix("").parts[1:]
    names = {f"test_{'_'.join(parts)}.py", f"test_{parts[-1]}.py", f"test_{parts[0]}.py"}
    files = sorted((environment.REPOSITORY / "tests").glob("test_*.py"), key=lambda path: path.stat().st_size)
    package = f"test_{parts[0]}_" if len(parts) > 1 else None
    own = [path.name for path in files if path.name in names]
    own += [path.name for path in files if package and path.name.startswith(package) and path.name not in own]
    others = [path.name for path in files if path.name not in own and imports(path, file)]
    return [f"tests/{name}" for name in (own + others)[:FILES]]


def further_tests_of(file: str) -> list[str]:
    """The test files of the scripts and modules that import it, without its own."""
    scripts = [path.stem for path in environment.REPOSITORY.glob("*.py") if imports(path, file)]
    tests = sorted((environment.REPOSITORY / "tests").glob("test_*.py"))
    pattern = re.compile("|".join(rf"^ *import {name}\b|\"{name}\.py\"" for name in scripts), re.MULTILINE)
    found = [f"tests/{test.name}" for test in tests if scripts and pattern.search(test.read_text(encoding="utf-8"))]
    modules = [path for path in (environment.REPOSITORY / "utils").rglob("*.py") if imports(path, file)]
    found += [test for path in modules for test in tests_of(str(path.relative_to(environment.REPOSITORY)))]
    return [test for test in dict.fromkeys(found) if test not in tests_of(file)][:FURTHER]


def imports(path: Path, file: str) -> bool:
    """Whether a file imports a module of utils."""
    parts = [part for part in Path(file).with_suffix("").parts if part != "__init__"]
    whole, above, last = re.escape(".".join(parts)), re.escape(".".join(parts[:-1])), parts[-1]
    pattern = rf"(?:import|from) {whole}\b|from {above} import (?:[^\n(]*|\([^)]*)\b{last}\b"
    return re.search(pattern, path.read_text(encoding="utf-8")) is not None


def ran_by(path: Path | None) -> Callable[[Mutation], list[str]]:
    """Which tests ran a line, by a coverage file with contexts: those of the module's own files first.

    Empty for a line that runs at import, or in a program that a test starts: there no test is told from another.
    """
    if path is None:
        return lambda mutation: []
    import coverage

    data = coverage.CoverageData(str(path))
    data.read()
    measured = {name[name.rindex("/utils/") + 1 :]: name for name in data.measured_files() if "/utils/" in name}

    def found(mutation: Mutation) -> list[str]:
        contexts = data.contexts_by_lineno(measured.get(mutation.file, "")).get(mutation.line, [])
        tests = sorted({context.partition("|")[0] for context in contexts if context})
        own = tests_of(mutation.file)
        return sorted(tests, key=lambda test: test.partition("::")[0] not in own)[:RAN]

    return found


def caught(copy: Path, mutation: Mutation, text: str, tests: Iterable[list[str]]) -> tuple[bool, str]:
    """Whether one of these lists of tests has one that fails once the file has this text, and which.

    Each list is one run of pytest. A test that fails with the file as it was catches nothing.
    """
    target = copy / mutation.file
    before = target.read_text(encoding="utf-8")
    for each in filter(None, tests):
        target.write_text(text, encoding="utf-8")
        try:
            by = first_failure(copy, each)
        finally:
            target.write_text(before, encoding="utf-8")
        if by and (without := first_failure(copy, [by] if "::" in by else each)):
            print(f"    {without} fails without a change too")
        elif by:
            return True, by
    return False, ""


def first_failure(copy: Path, tests: list[str]) -> str:
    """The first test that fails, or how the tests ended; empty if they passed."""
    told = copy.parent / "told.txt"
    child = os.fork()  # from a process that has read what is slow to read: half of the time of most tests
    if child == 0:
        _become_pytest(copy, told, tests)
    end = time.monotonic() + WAITING
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "it hung"
        time.sleep(0.1)
    code = os.waitstatus_to_exitcode(ended[1])
    if code == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", told.read_text("utf-8", "replace"), flags=re.MULTILINE)
    return failed[1] if failed else f"pytest ended with {code}"


def _become_pytest(copy: Path, told: Path, tests: list[str]) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)
        with told.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # Time of a clock says nothing of a change where other programs share the processor.
        resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST))
        os.chdir(copy)
        sys.path[0] = str(copy)
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests])
    finally:
        sys.stdout.flush()
        os._exit(code)


def preload() -> None:
    """Imports what most tests import, but for our own modules; in the surroundings that tests/conftest.py makes."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    for name in ("torch", "transformers", "peft", "datasets", "accelerate", "matplotlib.pyplot", "hypothesis"):
        importlib.import_module(name)
    ours = [name for name in sys.modules if name.partition(".")[0] in ("utils", "environment")]
    assert ours == ["environment"], ours


def drawn(count: int, seed: int, only: str) -> list[tuple[Mutation, str]]:
    """Changes of different lines, drawn with equal chances from all."""
    files = [path for path in sorted((environment.REPOSITORY / "utils").rglob("*.py")) if only in str(path)]
    every = [each for path in files for each in mutations(path)]
    random.Random(seed).shuffle(every)
    found: dict[tuple[str, int], tuple[Mutation, str]] = {}
    for mutation, text in every:
        found.setdefault((mutation.file, mutation.line), (mutation, text))
    return list(found.values())[:count]


def main() -> int:
    parser = argparse.ArgumentParser(description="Change lines of utils one at a time, and run their tests.")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="modules whose path has this in it")
    parser.add_argument("--lines", default="", help="file:line, with commas between: only these of the lines drawn")
    parser.add_argument("--coverage", type=Path, help="a coverage file that names the tests of each line")
    flags = parser.parse_args()
    tests_that_ran = ran_by(flags.coverage)
    preload()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        ignored = shutil.ignore_patterns(".git", ".venv", "saved_*", "__pycache__", ".*_cache")
        shutil.copytree(environment.REPOSITORY, copy, ignore=ignored)
        for mutation, text in drawn(flags.count, flags.seed, flags.only):
            if flags.lines and f"{mutation.file}:{mutation.line}" not in flags.lines.split(","):
                continue
            started = time.perf_counter()
            tests = (tests_that_ran(mutation), tests_of(mutation.file), further_tests_of(mutation.file))
            is_caught, by = caught(copy, mutation, text, tests)
            results.append(asdict(mutation) | {"caught": is_caught, "by": by})
            seconds = time.perf_counter() - started
            print(f"{'caught  ' if is_caught else 'SURVIVED'} {seconds:4.0f} s  {mutation.file}:{mutation.line}  {by}")
            if not is_caught:
                print(f"    - {mutation.before}\n    + {mutation.after}")
            sys.stdout.flush()
    if flags.lines:
        again = {(each["file"], each["line"]): each for each in results}  # these in the place of what was found before
        earlier = json.loads((environment.RESULTS / "mutations.json").read_text())["results"]["mutations"]
        results = [again.pop((each["file"], each["line"]), None) or each for each in earlier] + list(again.values())
    share = sum(each["caught"] for each in results) / len(results)
    figures = {"lines": len(results), "caught": sum(each["caught"] for each in results), "share": round(share, 3)}
    command = f"python3 benchmarks/mutations.py --count {flags.count} --seed {flags.seed}"
    environment.write("mutations", [command], {**figures, "mutations": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
