"""web.py as its user runs it: a process of its own on the loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

import web

NEVER_ENDING = {"max_tokens": 400, "temperature": 1.5, "stream": True}


@contextmanager
def served(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(the process, its address)."""
    command = [sys.executable, str(REPOSITORY / "web.py"), "--port", "0", *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def asked(address: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """(status, JSON or text)."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data=data, headers={"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            status, text = reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except json.JSONDecodeError:
        return status, text


def test_a_page_and_an_api_on_the_loopback_that_end_when_they_are_told(finished: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "你好 🌏"}], "max_tokens": 3, "temperature": 0}
    with served("--lora_dir", finished) as (process, address):
        assert address.startswith("http://127.0.0.1:")
        assert asked(address, "/health") == (200, {"status": "ok"})
        status, models = asked(address, "/v1/models")
        assert (status, [model["id"] for model in models["data"]]) == (200, ["run", "base"])
        status, reply = asked(address, "/v1/chat/completions", chat)
        assert (status, reply["usage"]["completion_tokens"] <= 3) == (200, True)
        status, page = asked(address, "/")
        assert status == 200
        assert "gradio" in page
        body = {"messages": chat["messages"], **NEVER_ENDING}
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            reply.readline()  # it has begun
            process.send_signal(signal.SIGTERM)
            assert 503 in (asked(address, "/v1/chat/completions", chat)[0] for _ in range(100)), "new ones hear of it"
            rest = reply.read().decode()
        assert rest.rstrip().endswith("data: [DONE]"), "what was under way came to its end"
        assert process.wait(60) == 0


def test_a_key_keeps_others_out_and_is_on_no_command_line(finished: Path, tmp_path: Path) -> None:
    key = tmp_path / "密钥.txt"
    key.write_text("s3cret\n")
    with served("--lora_dir", finished, "--host", "0.0.0.0", "--api_key_file", key) as (process, address):
        local = address.replace("0.0.0.0", "127.0.0.1")
        status, reply = asked(local, "/v1/models")
        assert (status, reply["error"]["code"]) == (401, "invalid_api_key")
        assert asked(local, "/v1/models", Authorization="Bearer s3cre")[0] == 401
        assert asked(local, "/v1/models", Authorization="Bearer s3cret")[0] == 200
        assert asked(local, "/health")[0] == 200
        assert "s3cret" not in Path(f"/proc/{process.pid}/cmdline").read_text()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "a.name"])
def test_others_are_not_let_in_without_a_key(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        web.main(["--lora_dir", "x", "--host", host])
    assert exit_.value.code == 2
    message = f"--host {host} can be reached by others, who would need no key: give one with --api_key_file, or leave"
    assert message in capsys.readouterr().err


def test_which_hosts_are_this_machine() -> None:
    assert all(map(web.is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "localhost")))
    assert not any(map(web.is_loopback, ("0.0.0.0", "::", "10.0.0.1", "", "localhost.example")))


def test_wrong_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        web.main(["--lora_dir", "x", "--api_key", "a", "--api_key_file", "b"])
    assert "--api_key and --api_key_file are two keys: give one" in capsys.readouterr().err
    assert web.main(["--lora_dir", "x", "--api_key", "two words"]) == 1
    assert "the API's key must be one word of plain characters" in capsys.readouterr().err
    assert web.main(["--lora_dir", "x"]) == 1
    assert "there is no directory x" in capsys.readouterr().err
