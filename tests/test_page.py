"""The whole page in an application, and what of Gradio can be reached."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import fastapi
import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from utils import page, scheduling
from utils.page.gate import ADDRESSES
from utils.page.parameters import Parameters
from utils.page.texts import say


@pytest.fixture(scope="module")
def client(opened: Any) -> Iterator[TestClient]:
    scheduler = scheduling.Scheduler(opened)
    application = fastapi.FastAPI()

    @application.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    page.mount(application, page.blocks(opened, scheduler))
    with TestClient(application) as client:
        yield client
    scheduler.close(wait=1)


def test_the_page_is_there_beside_other_routes_and_needs_nothing_from_elsewhere(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/").status_code == 200
    theme = client.get("/theme.css")
    assert theme.status_code == 200
    assert not re.search(r"url\(['\"]?(?!['\"]?data:)", theme.text)
    assert "@import" not in theme.text
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["title"] == "Alpaca-CoT"
    kinds = {component["type"] for component in config["components"]}
    assert not kinds & {"file", "uploadbutton", "image", "audio", "video", "multimodaltextbox", "gallery", "code"}
    assert not [dependency for dependency in config["dependencies"] if dependency.get("js")]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/upload?upload_id=1",
        "/gradio_api/upload_progress",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=..%2f..%2fetc%2fpasswd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://example.invalid/",
        "/gradio_api/stream/x",
        "/gradio_api/call/send",
        "/gradio_api/openapi.json",
        "/gradio_api/component_server",
        "/gradio_api/vibe-edit",
        "/gradio_api/deep_link",
        "/gradio_api/mcp/",
        "/gradio_api/runs",
        "/gradio_api/custom_component/x/client/component/index.js",
        "/assets/..%2f..%2f..%2fetc/passwd",
        "/static/%2e%2e/%2e%2e/config",
        "/monitoring",
        "/login",
        "/token",
        "/docs/../gradio_api/upload",
    ],
)
def test_what_the_page_does_not_need_of_gradio_is_not_there(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code in (404, 405)
    assert "root:" not in answer.text


def test_the_gate_lets_no_address_through_that_goes_up(client: TestClient) -> None:
    assert ADDRESSES.fullmatch("/assets/index-a1.js")
    assert ADDRESSES.fullmatch("/gradio_api/heartbeat/abc")
    for path in ("/assets/", "//", "/gradio_api/heartbeat/a/b", "/gradio_api/queue/join/x", "/config\n"):
        assert not ADDRESSES.fullmatch(path), path
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/gradio_api/queue/join"):
        pass


def answered(client: TestClient, event: str, target: str, *given: Any) -> list[Any]:
    """What Gradio is told when this happens to the component of that `elem_id`; "" is the page."""
    config = client.get("/config").json()
    names = {each["id"]: each["props"].get("elem_id") or "" for each in config["components"]}
    (number,) = (
        each["id"]
        for each in config["dependencies"]
        if any(names.get(part, "") == target and happens == event for part, happens in each["targets"])
    )
    body = {"fn_index": number, "data": list(given), "session_hash": "somebody"}
    reply = client.post("/gradio_api/run/predict", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]


def test_the_page_opens_in_the_browser_s_language_with_what_its_address_asks_for(client: TestClient) -> None:
    client.headers["Accept-Language"] = "zh-CN,zh;q=0.9"
    everything, language, model, notice, *values = answered(client, "load", "")
    assert everything["visible"]
    assert (language, model, notice["visible"]) == ("zh", "run", False)
    parameters = Parameters.of(512)
    assert values[: len(parameters.defaults)] == list(parameters.defaults.values())
    assert any(isinstance(told, dict) and told.get("value") == say("do.send", "zh") for told in values)


def test_a_link_to_the_settings_has_what_was_changed(client: TestClient) -> None:
    values = dict(Parameters.of(512).defaults) | {"temperature": 0.35}
    (link,) = answered(client, "click", "share", "zh", "base", False, *values.values())
    assert link["value"].endswith("/?lang=zh&model=base&temperature=0.35")
