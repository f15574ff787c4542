"""What is counted, and what is logged: over plain HTTP."""

from __future__ import annotations

import json
import logging
import re

import httpx2
import plain_http
import pytest
import service_server
from plain_http import CHAT
from service_server import TEXT, Scripted, serving

from utils.assistant import Assistant

served, scheduler, url = service_server.served, service_server.scheduler, service_server.url
options = plain_http.options


def test_figures(url: str, scheduler: Scripted) -> None:
    httpx2.get(f"{url}/query/secret question")
    httpx2.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": True})
    httpx2.get(f"{url}/v1/nothing-secret")
    reply = httpx2.get(f"{url}/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain")
    for line in (
        r'alpaca_cot_requests_total\{route="/query/\{query:path\}",status="200"\} \d',
        r'alpaca_cot_requests_total\{route="/v1/chat/completions",status="200"\} \d',
        r'alpaca_cot_request_seconds_bucket\{le="0.005",route="/v1/chat/completions"\} \d',
        r"alpaca_cot_first_token_seconds_count \d",
        r"alpaca_cot_waiting 0",
        r"alpaca_cot_running 0",
        r"alpaca_cot_new_tokens_total 0",
        r"process_resident_memory_bytes \d",
    ):
        assert re.search(f"^{line}", reply.text, flags=re.MULTILINE), line
    assert "secret" not in reply.text


def test_what_is_asked_is_logged_only_if_wanted(url: str, opened: Assistant, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="utils.service")
    httpx2.get(f"{url}/query/secret")
    httpx2.post(f"{url}/v1/completions", json={"prompt": "secret"})
    httpx2.post(f"{url}/v1/completions", json={"prompt": "secret", "secret": 5})
    assert "POST /v1/completions 200" in caplog.text
    assert "secret" not in caplog.text
    assert TEXT not in caplog.text
    with serving(opened, Scripted(), log_prompts=True) as talkative:
        httpx2.post(f"{talkative}/v1/completions", json={"prompt": "secret\nPOST /v1/completions 200 你好"})
    lines = [record.getMessage() for record in caplog.records]
    assert (
        json.dumps({"prompts": ["secret\nPOST /v1/completions 200 你好"], "answers": [TEXT]}, ensure_ascii=False)
        in lines
    )
