"""A hub on the loopback that speaks the protocol as huggingface_hub uses it, with faults on demand.

Knows: `HEAD` and `GET /datasets/REPO/resolve/REVISION/FILE` (ETag, X-Repo-Commit, X-Linked-Etag, X-Linked-Size, a
redirect of large files to storage on another origin, Range), `/api/datasets/REPO/tree/…` in pages, `/refs`, and
X-Error-Code; the same for a model repository of that name with the same files, whose list comes in one page.
`/plain/FILE` is an ordinary web server. Does not know xet. A test module takes the fixtures by
assigning them to names of its own.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from utils import hub as client
from utils import transfer

BODY = "".join(f'{{"instruction": "问题 {n} 🌏", "input": "", "output": "答"}}\n' for n in range(4000)).encode()
SHA = hashlib.sha256(BODY).hexdigest()
NAME = "中文 data/a b#1.json"
COMMIT = "c0ffee" + "0" * 34
REPOSITORY = "QingyiSi/Alpaca-CoT"


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    range: str | None
    token: str | None
    coding: str | None
    storage: bool


@dataclass
class Hub:
    """What the server has and does. Faults are used up: `[503, 503]` refuses twice, then answers."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Path → bytes; names with a large ending (`.json`) are kept in storage, as LFS does, the rest in git."""
    wrong: dict[str, bytes] = field(default_factory=dict)
    """What is sent instead of the bytes that the tags speak of."""
    cuts: list[int] = field(default_factory=list)
    """After so many bytes of a body the connection ends."""
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Answers that come first, with their headers."""
    token: str = ""
    """Without it the answer is 401."""
    gated: bool = False
    silent_seconds: float = 0.0
    """Before an answer to anything but the probe."""
    ranges: bool = True
    lengths: bool = True
    """Whether a body is announced with its length, or ends where the connection ends."""
    page_size: int = 2
    headers: dict[str, str] = field(default_factory=lambda: {"X-Repo-Commit": COMMIT})
    plain_tag: str = '"v1"'
    plain_headers: dict[str, str] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    storage_url: str = ""

    def bodies(self) -> list[Asked]:
        """The requests for bytes."""
        return [a for a in self.asked if a.method == "GET" and (a.storage or "/plain/" in a.path)]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """`hub` at two ports, its own and that of its storage."""
    servers = [_Server(("127.0.0.1", 0), _handler(hub, storage)) for storage in (False, True)]
    hub.url, hub.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is not this server's trouble."""


def _handler(hub: Hub, storage: bool) -> Callable[..., _Handler]:
    return lambda *arguments: _Handler(hub, storage, *arguments)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, storage: bool, *arguments: Any) -> None:
        self.hub, self.storage = hub, storage
        super().__init__(*arguments)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.path == "/":  # the probe
            return self._send(200, {}, b"")
        token = self.headers.get("Authorization")
        wishes = self.headers.get("Range"), token, self.headers.get("Accept-Encoding")
        self.hub.asked.append(Asked(self.command, self.path, *wishes, self.storage))
        time.sleep(self.hub.silent_seconds)
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if self.storage:
            return self._bytes(path[1:], {"ETag": '"storage"'})
        if self.hub.statuses:
            status, headers = self.hub.statuses.pop(0)
            return self._send(status, headers, b"")
        if path.startswith("/plain/"):
            tags = {"ETag": self.hub.plain_tag} if self.hub.plain_tag else {}
            return self._bytes(path.removeprefix("/plain/"), tags | self.hub.plain_headers)
        if self.hub.gated and token:
            return self._send(403, {"X-Error-Code": "GatedRepo"}, b"")
        if self.hub.token and token != f"Bearer {self.hub.token}":
            message = "Invalid credentials in Authorization header" if token else "Invalid username or password."
            return self._send(401, {"X-Error-Message": message}, b"")
        if REPOSITORY not in path:
            return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"")
        if path.startswith("/api/models/"):
            return self._model_api(path.removeprefix(f"/api/models/{REPOSITORY}").strip("/"))
        if path.startswith("/api/"):
            return self._api(path.removeprefix(f"/api/datasets/{REPOSITORY}/"))
        return self._resolve(*path.removeprefix("/datasets").removeprefix(f"/{REPOSITORY}/resolve/").split("/", 1))

    def _resolve(self, revision: str, name: str) -> None:
        if revision not in ("main", COMMIT):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        if name not in self.hub.files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", **self.hub.headers}, b"")
        body = self.hub.files[name]
        if not name.endswith(".json"):
            return self._bytes(name, {**self.hub.headers, "ETag": f'"{git_id(body)}"'})
        headers = {
            "Location": f"{self.hub.storage_url}/{urllib.parse.quote(name)}",
            "X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Linked-Size": str(len(body)),
        }
        return self._send(302, {**self.hub.headers, **headers}, b"")

    def _api(self, rest: str) -> None:
        if rest == "refs":
            refs = {"branches": [{"name": "main"}], "tags": [{"name": "v1"}], "converts": []}
            return self._send(200, {}, json.dumps(refs).encode())
        _, revision, *folder = rest.split("/", 2)
        if revision != "main":
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        inside = "".join(f"{name}/" for name in folder)
        rows = [self._row(name) for name in self.hub.files if name.startswith(inside)]
        if not rows:
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        start = int(query.get("cursor", 0))
        end = start + self.hub.page_size
        # The hub names itself in the link, and a mirror passes that on.
        link = f'<https://huggingface.co{self.path.partition("?")[0]}?recursive=true&cursor={end}>; rel="next"'
        headers = {"Link": link} if end < len(rows) else {}
        folder_row = [{"type": "directory", "path": "a folder", "size": 0}]
        return self._send(200, headers, json.dumps(folder_row + rows[start:end]).encode())

    def _model_api(self, rest: str) -> None:
        kind, _, revision = rest.partition("/")
        if kind == "refs":
            return self._api(rest)
        if revision not in ("", "main", "v1", COMMIT):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        rows = [self._row(name) for name in self.hub.files]
        body = rows if kind == "tree" else {"id": REPOSITORY, "sha": COMMIT, "siblings": []}
        return self._send(200, {}, json.dumps(body).encode())

    def _row(self, name: str) -> dict[str, Any]:
        body = self.hub.files[name]
        row = {"type": "file", "path": name, "size": len(body), "oid": git_id(body)}
        if name.endswith(".json"):
            row["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
        return row

    def _bytes(self, name: str, headers: dict[str, str]) -> None:
        body = self.hub.wrong.get(name, self.hub.files.get(name))
        if body is None:
            return self._send(404, {}, b"")
        wished, same = self.headers.get("Range"), self.headers.get("If-Range")
        if wished and self.hub.ranges and same in (None, headers.get("ETag")):
            start = int(wished.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self._send(416, {"Content-Range": f"bytes */{len(body)}"}, b"")
            headers = {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            return self._send(206, headers, body[start:])
        return self._send(200, headers, body)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        length = {"Content-Length": str(len(body))} if self.hub.lengths or not body else {"Connection": "close"}
        for name, value in {**length, "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if status in (200, 206) and self.hub.cuts and self.hub.cuts[0] < len(body):
            body = body[: self.hub.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(body)


def git_id(body: bytes) -> str:
    """What git calls a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client as in a process that may use the network, without a token, without waiting between attempts."""
    from huggingface_hub import constants

    client.answers.cache_clear()
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "WAITS", (0.0, 0.0, 0.0))
    for name, value in {
        "HF_HUB_OFFLINE": False,  # what conftest set before the client was imported
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_TOKEN_PATH": str(tmp_path / "no token"),
    }.items():
        monkeypatch.setattr(constants, name, value)


@pytest.fixture
def server(online: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {NAME: BODY, "alpaca/alpaca_data.json": b"[1]", "README.md": b"# r\n", "empty.json": b""}
    with serving(Hub(files=files)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data" / "目标 [1].json"
