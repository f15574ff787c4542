"""The routes beside OpenAI's: over plain HTTP."""

from __future__ import annotations

import re

import httpx2
import plain_http
import service_server
from plain_http import error
from service_server import TEXT, Scripted, serving

from utils import cli
from utils.assistant import Assistant

served, scheduler, url = service_server.served, service_server.scheduler, service_server.url
options = plain_http.options


def test_the_page_of_the_api_comes_from_here(url: str) -> None:
    shown = httpx2.get(f"{url}/docs")
    assert shown.status_code == 200
    assert not re.search(r"https?://", shown.text)
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', shown.text):
        assert httpx2.get(url + path).status_code == 200
    document = httpx2.get(f"{url}/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/health", "/metrics", "/query/{query}", "/",
    }  # fmt: skip
    assert document["paths"]["/query/{query}"]["get"]["deprecated"]


def test_the_original_s_routes(url: str, scheduler: Scripted, opened: Assistant) -> None:
    found = httpx2.get(f"{url}/query/你好/世界? 🌏".replace("?", "%3F")).json()
    assert found.pop("time") >= 0
    assert found == {"query": "你好/世界? 🌏", "answer": TEXT}
    assert scheduler.asked[0].prompt == opened.prompt_ids({"instruction": "你好/世界? 🌏", "input": ""})
    settings = scheduler.asked[0].settings
    room = 512 - len(scheduler.asked[0].prompt)
    assert settings == {**{name: row[0] for name, row in cli.GENERATION.items()}, "max_new_tokens": room}
    assert scheduler.asked[0].seed == 42
    found = httpx2.post(f"{url}/", json={"prompt": "Why </s>?"}).json()
    assert found.pop("time") >= 0
    assert found == {"response": TEXT, "status": 200}
    assert scheduler.asked[1].settings["repetition_penalty"] == 1.8
    for body in ({}, {"prompt": None}, {"prompt": 5}, {"prompt": "a", "history": []}, []):
        error(httpx2.post(f"{url}/", json=body), 400)
    error(httpx2.get(f"{url}/query/{'x ' * 3000}"), 400)
    error(httpx2.get(f"{url}/query/%00"), 400)
    scheduler.fails = RuntimeError("/home/me/secret.py")
    error(httpx2.get(f"{url}/query/x"), 500)


def test_the_scheduler_ends_with_the_service(opened: Assistant) -> None:
    scheduler = Scripted()
    with serving(opened, scheduler):
        assert not scheduler.closed
    assert scheduler.closed
