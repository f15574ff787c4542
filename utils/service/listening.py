"""The socket: where the service listens, and how it ends.

Knows: uvicorn and signals. Does not know what is served.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn


class Server(uvicorn.Server):
    """At the first SIGINT or SIGTERM `close` runs while requests still come in, so that they hear that it is over
    (503); then the server ends. At the second it ends at once.

    Args:
        close: returns once all that was under way is done.
        say: told the address when it listens.
    """

    def __init__(self, config: uvicorn.Config, *, close: Callable[[], object], say: Callable[[str], object]) -> None:
        super().__init__(config)
        self._close, self._say, self._is_closing = close, say, False

    async def startup(self, sockets: Any = None) -> None:
        """Listens, and says where."""
        await super().startup(sockets)
        for listener in self.servers:
            for socket in listener.sockets:
                name, number, *_ = socket.getsockname()
                self._say(f"http://{f'[{name}]' if ':' in name else name}:{number}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        if self._is_closing:
            super().handle_exit(sig, frame)
            return
        self._is_closing = True
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        self._close()
        self.should_exit = True


def listen(
    app: Any, host: str, port: int, *, close: Callable[[], object], say: Callable[[str], object], patience: int = 5
) -> int:
    """Serves `app` until a signal ends it; returns an exit code.

    Args:
        patience: seconds for replies that are being sent when all answers are done.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,  # its lines hold addresses, and with them what GET /query asks
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=patience,
    )
    server = Server(config, close=close, say=say)
    server.run()
    return 0 if server.started else 1
