"""When a run is asked to end before its time: signals, and the hours that it may take.

Knows: SIGINT, SIGTERM, the clock and exit codes. Does not know what is saved, or how.

The first signal asks: the step in progress is finished, a checkpoint is saved, and the program ends with 128 + the
signal's number, as a shell would say it. The second ends the program at once, as if it had never been caught. A
launcher passes its own end on as another signal than the terminal's (torchrun turns Ctrl-C into SIGTERM for processes
that have had SIGINT already), so under one only the same signal counts twice.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
OUT_OF_TIME = 124
"""Exit code of a run whose hours are over, as timeout(1) has it."""
NOT_ASKED = 0


class Interruption:
    """Whether a run is to end now.

    Args:
        deadline: seconds since the epoch; None: none.
        aloud: whether this process says that a signal was heard.
    """

    def __init__(self, deadline: float | None = None, *, aloud: bool = True) -> None:
        self._deadline, self._aloud = deadline, aloud
        self._heard: list[int] = []
        self.code = NOT_ASKED
        """Exit code that all processes have agreed on; `NOT_ASKED` until then."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While it holds, signals are heard instead of ending the process."""
        if threading.current_thread() is not threading.main_thread():  # only there can Python take signals
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    @property
    def asked(self) -> int:
        """The exit code that this process would end with; `NOT_ASKED` if nothing asks it to."""
        if self._heard:
            return 128 + self._heard[0]
        return OUT_OF_TIME if self._deadline is not None and time.time() >= self._deadline else NOT_ASKED

    def _hear(self, number: int, _: FrameType | None) -> None:
        launched = "TORCHELASTIC_RUN_ID" in os.environ or "WORLD_SIZE" in os.environ
        if number in self._heard or (self._heard and not launched):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._heard.append(number)
        if len(self._heard) == 1 and self._aloud:
            name = signal.Signals(number).name
            line = f"\n{name}: finishing this step, then saving; {name} again ends the run at once\n"
            with suppress(OSError):  # Ctrl-C ends `| tee`, too, and then nobody reads
                os.write(2, line.encode())  # the signal may have come inside a print, which cannot be entered twice


def described(code: int) -> str:
    """What an exit code says about the end, for people."""
    return "--max_hours are over" if code == OUT_OF_TIME else f"stopped by {signal.Signals(code - 128).name}"
