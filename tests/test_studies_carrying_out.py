"""Commands of a study, run: each once, several lines at a time, and what is left of them where one fails or all stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from utils.studies import carrying_out
from utils.studies.carrying_out import Workers
from utils.studies.plan import Command, Line, Plan

# Writes what shows that it is done; "fail" says why not; "wait" stays until it is asked to end, and notes that it was.
SCRIPT = """
import json, os, pathlib, signal, sys, time
what, folder = sys.argv[1], pathlib.Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "times").open("a") as file:
    file.write("once\\n")
if what == "fail":
    print("数据 broken 💥")
    sys.exit(3)
if what == "wait":
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "asked").touch(), sys.exit(143)))
    (folder / "waiting").touch()
    while True:
        time.sleep(0.01)
(folder / "scores.json").write_text(json.dumps(os.environ.get("SLOT")))
"""


@pytest.fixture
def made(tmp_path: Path) -> Any:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")

    def make(*lines: tuple[str, ...]) -> Plan:
        return Plan(
            experiment=None,  # type: ignore[arg-type]
            file=tmp_path / "e.toml",
            directory=tmp_path,
            shares={},
            unseen={},
            base_bytes=0,
            lines=tuple(
                Line(
                    variant=f"v{number}",
                    seed=1,
                    positions=10 - number,
                    commands=tuple(
                        command(script, what, tmp_path / f"v{number}" / str(at)) for at, what in enumerate(line)
                    ),
                )
                for number, line in enumerate(lines)
            ),
        )

    return make


def command(script: Path, what: str, directory: Path) -> Command:
    return Command(
        title=f"{directory.parent.name}: {what}",
        argv=(str(script), what, str(directory)),
        directory=directory,
        inputs={},
    )


def times(plan: Plan) -> list[int]:
    """How often each command ran."""
    files = [command.directory / "times" for line in plan.lines for command in line.commands]
    return [len(file.read_text().splitlines()) if file.exists() else 0 for file in files]


@pytest.mark.parametrize("count", [1, 2])
def test_every_command_runs_once_in_its_lines_order_and_not_again(made: Any, count: int) -> None:
    plan, said = made(("go", "go"), ("go",), ("go",)), []
    slots = [{"SLOT": str(number)} for number in range(count)]
    Workers(slots, said.append).carry_out(plan)
    assert times(plan) == [1, 1, 1, 1]
    assert said[-1].startswith("3 of 3 lines in ")
    used = {(command.directory / "scores.json").read_text() for line in plan.lines for command in line.commands}
    assert used <= {f'"{number}"' for number in range(count)}
    Workers(slots, said.append).carry_out(plan)
    assert times(plan) == [1, 1, 1, 1]


def test_a_command_that_fails_names_its_last_words_and_the_next_run_goes_on(made: Any, tmp_path: Path) -> None:
    plan = made(("go", "fail", "go"), ("go",))
    with pytest.raises(ValueError, match="v0: fail ended with exit code 3") as error:
        Workers([{}], print).carry_out(plan)
    assert "数据 broken 💥" in str(error.value)
    assert str(plan.lines[0].commands[1].log) in str(error.value)
    assert times(plan)[:3] == [1, 1, 0]
    (tmp_path / "script.py").write_text(SCRIPT.replace('what == "fail"', "False"), encoding="utf-8")
    Workers([{}], print).carry_out(plan)
    assert times(plan)[:3] == [1, 2, 1]


def test_one_that_says_it_is_done_and_has_written_nothing_has_failed(made: Any, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("print('all well')", encoding="utf-8")
    with pytest.raises(ValueError, match=r"(?s)ended with exit code 0\..*all well"):
        Workers([{}], print).carry_out(made(("go",)))


def test_where_one_fails_the_others_are_asked_to_end(made: Any) -> None:
    plan = made(("wait",), ("fail",), ("go",))
    with pytest.raises(ValueError, match="v1: fail ended"):
        Workers([{}, {}], print).carry_out(plan)
    waiting = plan.lines[0].commands[0].directory
    assert (waiting / "asked").exists() or not (waiting / "waiting").exists()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard: it is not where a shell has begun the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_asks_every_command_to_save_and_to_end(made: Any, number: int) -> None:
    plan = made(("wait",), ("wait",), ("go",))
    directories = [line.commands[0].directory for line in plan.lines[:2]]

    def send() -> None:
        while not all((directory / "waiting").exists() for directory in directories):
            pass
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        Workers([{}, {}], print).carry_out(plan)
    sender.join()
    assert all((directory / "asked").exists() for directory in directories)
    assert times(plan) == [1, 1, 0]


def test_a_command_that_does_not_end_is_killed(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying_out, "PATIENCE", 0.2)
    deaf = SCRIPT.replace('((folder / "asked").touch(), sys.exit(143))', "None")
    (tmp_path / "script.py").write_text(deaf, encoding="utf-8")
    plan = made(("wait",), ("fail",))
    with pytest.raises(ValueError, match="v1: fail ended"):
        Workers([{}, {}], print).carry_out(plan)
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "script.py")], capture_output=True, text=True, check=False)
    assert left.stdout == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the cores")
def test_slots_share_the_cores_and_a_large_base_takes_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    from utils import distributed

    monkeypatch.setattr(distributed, "usable_cores", lambda: 8)
    assert carrying_out.slots(2, 0) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert carrying_out.slots(None, 10**15) == [{"OMP_NUM_THREADS": "8"}]
