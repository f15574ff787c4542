"""The service before plain HTTP, small limits and a page; and a second one that wants a key."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from service_server import KEY, Scripted, serving
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from utils.assistant import Assistant
from utils.clients import Clients
from utils.service import Access, Limits

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
LIMITS = Limits(body_bytes=10_000, body_seconds=0.3)


def page(app: Any) -> None:
    """Where web.py mounts its own."""
    app.mount("/", Starlette(routes=[Route("/", lambda request: HTMLResponse("the page"))]))


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    return {"limits": LIMITS, "clients": Clients(3), "edit": page}


@pytest.fixture(scope="module")
def locked(opened: Assistant) -> Iterator[str]:
    with serving(opened, Scripted(), access=Access(api_key=KEY), edit=page) as address:
        yield address


def error(reply: httpx2.Response, status: int) -> dict[str, Any]:
    """What a reply of that status says, if it says it in OpenAI's form."""
    assert reply.status_code == status, reply.text
    assert reply.headers["Content-Type"] == "application/json"
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert not re.search(r"Traceback|\.py|/home|/work|/tmp", reply.text)
    return body["error"]


def raw(url: str, sent: bytes, *, more: bytes = b"") -> bytes:
    """What comes back to these bytes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent + more)
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
        return found
