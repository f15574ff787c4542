"""How much a request may ask for.

Knows: bytes and seconds of a body, tokens, answers. Does not know who may ask, what an answer is, or how many a client
waits for (`utils.clients`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.service.problems import Problem

DRAINED = 32 * 2**20
"""Bytes of a body that is too long which are still read: a client sends all of it before it looks at the reply."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most of each."""

    body_bytes: int = 2**20
    body_seconds: float = 30.0
    """Until a request's body is here."""
    context: int = 8192
    """Tokens that a prompt and its longest answer may take together, where the model has not fewer."""
    answer: int = 512
    """Tokens of an answer for which a chat sets no limit."""
    answers: int = 32
    """Of one request: prompts times `n`."""


class WholeBodies:
    """Reads a body before anyone looks at it: in time, and not too long, whatever its headers say. An ASGI
    middleware."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await self._read(receive)
        except TimeoutError:
            late = f"the request was not here after {self._limits.body_seconds:g} seconds"
            problem = Problem(408, late, headers={"Connection": "close"})
            await problem.response()(scope, receive, send)
            return
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        if body is None:
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replayed, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """None: the client has gone."""
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            if size <= self._limits.body_bytes:
                chunks.append(chunk)
            elif size > DRAINED:
                break
        if size > self._limits.body_bytes:
            most = f"the body has more than {self._limits.body_bytes} bytes"
            raise Problem(413, f"{most}: shorten it", code="too_long", headers={"Connection": "close"})
        return b"".join(chunks)
