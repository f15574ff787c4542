"""A request from its fields to its answers, and what the log says of it."""

from __future__ import annotations

import logging
import re
import time

import httpx2
import plain_http
import pytest
import service_server
from plain_http import CHAT
from service_server import Scripted

served, scheduler, url = service_server.served, service_server.scheduler, service_server.url
options = plain_http.options


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_has_a_request_s_tokens_and_how_long_it_took(
    stream: bool, url: str, scheduler: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="utils.service")
    before = time.perf_counter()
    assert httpx2.post(f"{url}/v1/chat/completions", json={**CHAT, "n": 2, "stream": stream}).status_code == 200
    whole = time.perf_counter() - before
    (line,) = [record.getMessage() for record in caplog.records if " tokens in " in record.getMessage()]
    found = re.fullmatch(r".+: (\d+) \+ (\d+) tokens in (\d+\.\d{3}) s", line)
    assert found is not None, line
    assert int(found[1]) == len(scheduler.asked[0].prompt)
    assert int(found[2]) == sum(asked.answer.new_tokens for asked in scheduler.asked if asked.answer)
    assert 0 <= float(found[3]) <= whole + 0.001, "it lies within what the client waited"
