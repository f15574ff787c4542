"""What a browser is told when something inside the page breaks."""

from __future__ import annotations

from typing import Any

import fastapi
import gradio
import pytest
from fastapi.testclient import TestClient

from utils import page

SECRET = "/home/somebody/秘密 🔑"


def broken() -> str:
    raise RuntimeError(SECRET)


def refusing() -> str:
    raise gradio.Error("Ask something. 请提问。")


@pytest.mark.parametrize(("handler", "said"), [(broken, False), (refusing, True)])
def test_only_what_was_written_for_people_is_said(handler: Any, said: bool) -> None:
    with gradio.Blocks() as made:
        gradio.Button().click(handler, None, gradio.Textbox())
    made.queue(api_open=False)
    application = fastapi.FastAPI()
    gate = page.mount(application, made)
    with TestClient(application) as client:
        asked = {"data": [], "fn_index": 0, "session_hash": "abc", "trigger_id": None, "event_data": None}
        assert client.post("/gradio_api/queue/join", json=asked).status_code == 200
        told = client.get("/gradio_api/queue/data", params={"session_hash": "abc"}).text
        gate.close()
    assert '"process_completed"' in told
    assert '"success":false' in told.replace(" ", "")
    assert "somebody" not in told
    assert ("Ask something." in told) is said
