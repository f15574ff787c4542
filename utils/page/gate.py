"""Which of Gradio's addresses can be reached: those that this page asks for, and no others.

Knows: addresses. Does not know what is behind them. Gradio brings many more than a page without files needs, uploads,
files of the server, proxies and its own editor among them; what is not listed is not there (404).
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

ADDRESSES = re.compile(
    r"/?|/(config|theme\.css|manifest\.json|favicon\.ico|robots\.txt)/?|/(assets|static|svelte)/[\w./~@+-]+"
    r"|/gradio_api/(info|app_id|startup-events|theme\.css|cancel|reset)/?"
    r"|/gradio_api/queue/(join|data)|/gradio_api/run/predict|/gradio_api/heartbeat/\w+"
)


class Gate:
    """An ASGI application in front of Gradio's `App`."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None

    def close(self) -> None:
        """Lets open pages go: each holds a connection that a server which is to end would wait for. From any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._app.stop_event.set)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes on what is listed."""
        self._loop = asyncio.get_running_loop()
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if not ADDRESSES.fullmatch(path) or ".." in path:
                await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})
                return
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)
