import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from utils import hub


@pytest.fixture(autouse=True)
def ask_anew() -> None:
    """A port that was silent in one test may answer in the next."""
    hub.answers.cache_clear()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that does not answer, and an empty cache."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}/")


def test_without_network_the_message_says_what_to_do(silent: None) -> None:
    with pytest.raises(ConnectionError) as caught:
        hub.require_reachable("decapoda-research/llama-7b-hf")
    message = str(caught.value)
    assert message.startswith("cannot load 'decapoda-research/llama-7b-hf': http://127.0.0.1:")
    for step in ("local directory to --model_name_or_path", "HF_ENDPOINT", "HF_TOKEN", "hf auth login"):
        assert step in message


def test_a_local_directory_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "模型 1"
    model.mkdir()
    said = f"{model} does not appear to have a file named 分.bin. Checkout 'https://huggingface.co/{model}/tree/main' for available files"
    told = f"{model} does not appear to have a file named 分.bin. Its files are not whole: download them again"
    assert hub.advice(str(model), said) == f"cannot load {str(model)!r}: {told}"
    assert hub.advice(str(model), said + ".") == hub.advice(str(model), said)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.advice("~/模型 1", "").endswith("Its files are not whole: download them again")
    assert "for available files. Give a local directory to" in hub.advice("a/b", said)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved_models").mkdir()
    assert hub.advice("saved_models/gone", "no").startswith(
        "cannot load 'saved_models/gone': there is no directory saved_models/gone here, and no. "
    )


def test_a_cached_model_needs_no_network(silent: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "hf" / "hub" / "models--a--b" / "snapshots" / "123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert hub.require_reachable("a/b") is True, "asked, the client would retry for half a minute"


def test_a_hub_that_answers_is_left_to_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    import http.server
    import threading

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert hub.require_reachable("a/b") is False
        server.shutdown()


@pytest.mark.parametrize("name", ["/no/such/model", "./no/such", "no/such/local/model", "~/none"])
def test_a_path_is_not_looked_for_on_the_hub(name: str, silent: None) -> None:
    with pytest.raises(FileNotFoundError, match="there is no model directory"):
        hub.require_reachable(name)


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"without a config.json, so it is not a model"):
        hub.require_reachable(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert hub.require_reachable(str(tmp_path)) is False


def test_a_look_up_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    import time

    forever = threading.Event()
    monkeypatch.setattr(hub, "_probe", lambda address: forever.wait(30))
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.1)
    started = time.monotonic()
    assert hub.answers("https://hub.example") is False
    assert time.monotonic() - started < 5, "name servers that are silent would take longer than any socket's timeout"
    forever.set()


@pytest.mark.parametrize(("value", "offline"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_offline_is_what_the_user_sets_now(value: str | None, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    if value is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub.is_offline() is offline


def test_an_empty_endpoint_is_the_public_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert hub.endpoint() == hub.PUBLIC == "https://huggingface.co"


def test_a_card_names_a_base_of_the_hub_and_no_path() -> None:
    """The hub refuses a card whose base is no model of its own."""
    of_hub = hub.card_metadata("some/基座", library="transformers", tags=["a"], relation="finetune")
    assert ModelCard(f"---\n{of_hub}\n---\n").data.to_dict() == {
        "base_model": "some/基座",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["a"],
    }
    of_path = hub.card_metadata("/我的/base 🦙", library="peft", tags=["a", "b"], relation="finetune")
    assert "base_model" not in of_path
    assert ModelCard(f"---\n{of_path}\n---\n").data.to_dict()["tags"] == ["a", "b"]
