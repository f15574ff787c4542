"""Signals and the clock; what ends a process, ends one that was made for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import pytest
from conftest import REPOSITORY

from utils import interruption
from utils.interruption import NOT_ASKED, OUT_OF_TIME, Interruption, described

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def send(number: signal.Signals) -> None:
    """Python's handlers of the main thread run before this returns."""
    signal.raise_signal(number)


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_the_first_signal_asks_and_says_so(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    asked = Interruption()
    with asked.listening():
        assert asked.asked == NOT_ASKED
        os.kill(os.getpid(), number)
        while not asked.asked:
            threading.Event().wait(0.01)
        assert asked.asked == 128 + number
    name = number.name
    assert capfd.readouterr().err == (
        f"\n{name}: finishing this step, then saving; {name} again ends the run at once\n"
    )
    assert described(asked.asked) == f"stopped by {name}"
    assert asked.code == NOT_ASKED, "that is for all processes to agree on"


def test_only_who_is_to_say_it_does(capfd: pytest.CaptureFixture[str]) -> None:
    asked = Interruption(aloud=False)
    with asked.listening():
        send(signal.SIGTERM)
    assert asked.asked == 128 + signal.SIGTERM
    assert capfd.readouterr().err == ""


def test_handlers_are_put_back() -> None:
    def own(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, own)
    others = signal.getsignal(signal.SIGINT)
    try:
        for error in (None, KeyboardInterrupt, ValueError):
            try:
                with Interruption().listening():
                    assert signal.getsignal(signal.SIGTERM) is not own
                    if error:
                        raise error
            except (KeyboardInterrupt, ValueError):
                pass
            assert signal.getsignal(signal.SIGTERM) is own
            assert signal.getsignal(signal.SIGINT) is others
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_hours_end_with_a_code_of_their_own() -> None:
    assert Interruption(time.time() + 3600).asked == NOT_ASKED
    assert Interruption(time.time() - 1).asked == OUT_OF_TIME == 124
    assert described(OUT_OF_TIME) == "--max_hours are over"
    late = Interruption(time.time() - 1, aloud=False)
    with late.listening():
        send(signal.SIGINT)
    assert late.asked == 130, "who was asked by a person says so"


def test_another_thread_cannot_listen_and_does_without() -> None:
    seen: list[object] = []

    def work() -> None:
        with Interruption().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


SCRIPT = """
import os, signal, sys
from utils.interruption import Interruption
asked = Interruption()
with asked.listening():
    for name in sys.argv[1:]:
        os.kill(os.getpid(), signal.Signals[name])
        print(name, asked.asked, flush=True)
sys.exit(asked.asked)
"""


def child(numbers: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that sends itself these signals, one after the other."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *numbers],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name not in LAUNCHERS} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("numbers", "by"),
    [
        (["SIGINT", "SIGINT"], signal.SIGINT),
        (["SIGTERM", "SIGTERM"], signal.SIGTERM),
        (["SIGINT", "SIGTERM"], signal.SIGTERM),
        (["SIGTERM", "SIGINT"], signal.SIGINT),
    ],
)
def test_the_second_signal_ends_the_process_as_if_it_had_never_been_caught(
    numbers: list[str], by: signal.Signals
) -> None:
    done = child(numbers)
    assert done.returncode == -by
    assert done.stdout == f"{numbers[0]} {128 + signal.Signals[numbers[0]]}\n"
    assert done.stderr.count("finishing this step, then saving") == 1


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_under_a_launcher_only_the_same_signal_counts_twice(launcher: str) -> None:
    passed_on = child(["SIGINT", "SIGTERM"], **{launcher: "2"})
    assert passed_on.returncode == 130, "the first signal says how it ends"
    assert passed_on.stdout == "SIGINT 130\nSIGTERM 130\n"
    assert passed_on.stderr.count("finishing this step") == 1
    assert child(["SIGINT", "SIGINT"], **{launcher: "2"}).returncode == -signal.SIGINT
    assert child(["SIGINT", "SIGTERM", "SIGTERM"], **{launcher: "2"}).returncode == -signal.SIGTERM


def test_a_signal_is_heard_although_nobody_reads_what_is_said() -> None:
    """Ctrl-C ends every process of `python … 2>&1 | tee log`."""
    reader, writer = os.pipe()
    os.close(reader)
    script = SCRIPT.replace("print(name, asked.asked, flush=True)", "pass")
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run([sys.executable, "-c", script, "SIGINT"], cwd=REPOSITORY, stderr=closed, timeout=60)
    assert done.returncode == 130


def test_one_signal_ends_with_its_own_code() -> None:
    assert child(["SIGTERM"]).returncode == 143
    assert child(["SIGINT"]).returncode == 130
    assert child([]).returncode == 0
