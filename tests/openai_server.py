"""A model server on the loopback that speaks OpenAI's completions API as vLLM does, with faults on demand.

Knows: `POST /v1/completions` with a prompt of ids or text, `GET /v1/models`, keys, and what a server may do wrong. Its
answers are the prompt's own last tokens, so every row has another. Requests for one token are probes, which the faults
leave alone. Does not know models.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAMES = ("served",)


@dataclass(frozen=True)
class Fault:
    """What comes instead of an answer."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """The connection ends before anything, or in the middle of `body`."""


@dataclass
class ModelServer:
    """What the server has and does."""

    tokenizer: Any
    names: tuple[str, ...] = NAMES
    list_fault: Fault | None = None
    """What comes instead of the list of models."""
    key: str = ""
    """Without it the answer is 401."""
    faults: list[Fault] = field(default_factory=list)
    """Used up, one a request."""
    refuse: Callable[[dict[str, Any]], Fault | None] = lambda body: None
    """What is wrong with a request, probes included; used as often as it is so."""
    edit: Callable[[dict[str, Any]], Any] = lambda reply: reply
    """Changes an answer."""
    answer: int = 5
    """Tokens."""
    says_ids: bool = True
    before_answer: Callable[[], object] = lambda: None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Requests that were no probes."""
    probes: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most: int = 0
    """Requests at the same time."""
    at_once: int = 0
    url: str = ""
    lock: Any = field(default_factory=threading.Lock)

    def ids_of(self, prompt: Any) -> list[int]:
        return self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """As vLLM's, with the token that ends the answer."""
        ids = self.ids_of(body["prompt"])
        new = ids[-min(self.answer, body["max_tokens"] - 1) :] if body["max_tokens"] > 1 else ids[-1:]
        new, reason = ([*new, self.tokenizer.eos_token_id], "stop") if body["max_tokens"] > 1 else (new, "length")
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason}
        if self.says_ids and body.get("return_token_ids"):
            choice["token_ids"] = new
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new), "total_tokens": len(ids) + len(new)}
        return {"object": "text_completion", "choices": [choice], "usage": usage}


@contextmanager
def serving(server: ModelServer) -> Iterator[ModelServer]:
    """`server` at a port of its own, until the block ends."""
    listening = _Server(("127.0.0.1", 0), lambda *arguments: _Handler(server, *arguments))
    server.url = f"http://127.0.0.1:{listening.server_port}/v1"
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is not this server's trouble."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: ModelServer, *arguments: Any) -> None:
        self.model_server = server
        super().__init__(*arguments)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.model_server
        if not self._may():
            return
        rows = [{"id": name, "object": "model"} for name in server.names]
        found = server.list_fault or Fault(body=json.dumps({"object": "list", "data": rows}))
        self._send(found if self.path == "/v1/models" else _error(404, "Not Found"))

    def do_POST(self) -> None:
        server = self.model_server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._may():
            return
        if self.path != "/v1/completions":
            self._send(_error(404, "Not Found"))
        elif body["model"] not in server.names:
            self._send(_error(404, f"The model `{body['model']}` does not exist."))
        elif fault := server.refuse(body):
            self._send(fault)
        elif body["max_tokens"] == 1:
            server.probes.append(body)
            self._send(Fault(body=json.dumps(server.reply(body))))
        else:
            self._answer(body)

    def _answer(self, body: dict[str, Any]) -> None:
        server = self.model_server
        with server.lock:
            server.bodies.append(body)
            server.at_once += 1
            server.most = max(server.most, server.at_once)
            fault = server.faults.pop(0) if server.faults else None
        try:
            server.before_answer()
        finally:
            with server.lock:
                server.at_once -= 1
        self._send(fault or Fault(body=json.dumps(server.edit(server.reply(body)), ensure_ascii=False)))

    def _may(self) -> bool:
        server = self.model_server
        server.headers.append(dict(self.headers))
        given = self.headers.get("Authorization", "")
        if server.key and given != f"Bearer {server.key}":
            self._send(_error(401, f"Incorrect API key provided: {given.removeprefix('Bearer ')}"))
            return False
        return True

    def _send(self, fault: Fault) -> None:
        data = fault.body.encode()
        if fault.cut and not data:
            self.close_connection = True
            return
        self.send_response(fault.status)
        for name, value in {"Content-Length": str(len(data) + fault.cut), **fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = self.close_connection or fault.cut


def _error(status: int, message: str) -> Fault:
    return Fault(status=status, body=json.dumps({"error": {"message": message, "type": "an_error", "code": status}}))
