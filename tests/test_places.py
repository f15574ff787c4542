import json
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import COMMIT, REPOSITORY, Hub

from utils import hub, places
from utils.places import find

online, server = hub_server.online, hub_server.server
CONFIG = json.dumps({"peft_type": "LORA"}).encode()


@pytest.fixture
def published(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A model repository with folders of adapters, and an empty cache."""
    server.files = {
        "README.md": b"# r",
        "alpaca-belle/adapter_config.json": CONFIG,
        "alpaca-belle/adapter_model.bin": b"bin",
        "alpaca-belle/checkpoint-1/adapter_config.json": CONFIG,
        "alpaca-belle/model.py": b"raise SystemExit",
        "alpaca-belle/optimizer.pt": b"large",
        "中文 [1]/a*/adapter_config.json": CONFIG,
        "中文 [1]/a*/adapter_model.bin": b"old",
        "中文 [1]/a*/adapter_model.safetensors": "🌏".encode(),
        "中文 [1]/a*/tokenizer.json": b"{}",
        "中文 [1]/a*/ice_text.model": b"",
        "中文 [1]/ab/adapter_config.json": CONFIG,
        "run/run.json": b"{}",
        "run/config.json": b"{}",
        "run/model.safetensors": b"whole",
        "whole/config.json": b"{}",
        "data/x.json": b"{}",
    }
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    return server


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def bodies(server: Hub) -> int:
    return sum(asked.method == "GET" and ("/resolve/" in asked.path or asked.storage) for asked in server.asked)


def test_only_the_folders_own_files_are_fetched_and_no_code(published: Hub, tmp_path: Path) -> None:
    directory = find(f"{REPOSITORY}/alpaca-belle")
    assert directory.is_relative_to(tmp_path / "hf" / "hub")
    assert names(directory) == {"adapter_config.json", "adapter_model.bin"}
    assert (directory / "adapter_model.bin").read_bytes() == b"bin"
    assert not any(word in asked.path for asked in published.asked for word in ("model.py", "optimizer", "README"))


@pytest.mark.parametrize(
    "place", ["中文 [1]/a*", "中文 [1]/a*/", "中文 [1]/a*@main", f"中文 [1]/a*@{COMMIT}", "中文 [1]/a*@v1"]
)
def test_any_folder_by_any_revision_and_its_safetensors(published: Hub, place: str) -> None:
    directory = find(f"{REPOSITORY}/{place}")
    assert names(directory) == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "ice_text.model"}
    assert (directory / "adapter_model.safetensors").read_text(encoding="utf-8") == "🌏"
    assert find(Path(f"{REPOSITORY}/{place}")) == directory


def test_a_run_that_holds_all_weights(published: Hub) -> None:
    assert names(find(f"{REPOSITORY}/run")) == {"run.json", "config.json", "model.safetensors"}


def test_what_is_cached_needs_no_network(published: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find(f"{REPOSITORY}/alpaca-belle")
    fetched = bodies(published)
    assert find(f"{REPOSITORY}/alpaca-belle") == first
    assert bodies(published) == fetched, "the cache has it"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(published.asked)
    assert find(f"{REPOSITORY}/alpaca-belle") == first
    assert len(published.asked) == asked
    with pytest.raises(ConnectionError) as caught:
        find(f"{REPOSITORY}/run")
    assert str(caught.value).startswith(
        f"cannot load '{REPOSITORY}/run': it is no directory here, HF_HUB_OFFLINE is set, and it is not, or not whole, in "
        "the hub's cache. Give a local directory to --lora_dir; or name a mirror with HF_ENDPOINT"
    )
    with pytest.raises(FileNotFoundError, match="has no adapter 'alpaca-bele': did you mean alpaca-belle"):
        find(f"{REPOSITORY}/alpaca-bele")


def test_a_fetch_that_broke_off_is_not_taken_for_whole(published: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find(f"{REPOSITORY}/中文 [1]/a*")
    (first / "tokenizer.json").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConnectionError, match="not whole, in the hub's cache"):
        find(f"{REPOSITORY}/中文 [1]/a*")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "tokenizer.json" in names(find(f"{REPOSITORY}/中文 [1]/a*"))


def test_a_silent_hub(published: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "answers", lambda address: False)
    with pytest.raises(
        ConnectionError, match=r"it is no directory here, http://127.0.0.1:\d+ does not answer from here"
    ):
        find(f"{REPOSITORY}/run")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (REPOSITORY, f"^{REPOSITORY} is no adapter: it has alpaca-belle, alpaca-belle/checkpoint-1, run, 中文 .1./a., 中文 .1./ab$"),
        (f"{REPOSITORY}/alpaca_bele", f"^{REPOSITORY} has no adapter 'alpaca_bele': did you mean alpaca-belle"),
        (f"{REPOSITORY}/中文 [1]", "has no adapter '中文 .1.': it has 中文 .1./a., 中文 .1./ab$"),
        (f"{REPOSITORY}/data", "has no adapter 'data': it has alpaca-belle, "),
        (f"{REPOSITORY}/🌏", "has no adapter '🌏': it has alpaca-belle, "),
        (f"{REPOSITORY}/whole", "/whole is a whole model and no adapter: give it to --model_name_or_path$"),
        (f"{REPOSITORY}/中文 [1]/ab", "/ab has neither adapter_model.safetensors nor adapter_model.bin: ask its owner"),
        (f"{REPOSITORY}/run@v7", f"{REPOSITORY} has no revision 'v7'; it has main, v1; see https://huggingface.co/{REPOSITORY}$"),
        ("no/such/repository", r"^there is no directory no/such/repository here; there is no model repository no/such at 127.0.0.1:\d+: check its name; see https://huggingface.co/no/such$"),
    ],
)  # fmt: skip
def test_what_is_not_there(published: Hub, place: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message) as error:
        find(place)
    assert "\n" not in str(error.value)
    assert not bodies(published)


def test_an_empty_repository(published: Hub) -> None:
    published.files = {"README.md": b""}
    with pytest.raises(FileNotFoundError, match=f"no adapter 'a' and no folder with one: see .*{REPOSITORY}$"):
        find(f"{REPOSITORY}/a")


def test_tokens_are_sent_and_their_lack_is_said(published: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    published.token = "hf_secret"
    with pytest.raises(
        PermissionError, match=r"alpaca-belle .401.: no token was sent, .* set HF_TOKEN or run `hf auth"
    ):
        find(f"{REPOSITORY}/alpaca-belle")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PermissionError, match="token of HF_TOKEN or `hf auth login` is not accepted") as error:
        find(f"{REPOSITORY}/alpaca-belle")
    assert "hf_wrong" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert names(find(f"{REPOSITORY}/alpaca-belle")) == {"adapter_config.json", "adapter_model.bin"}
    published.gated = True
    with pytest.raises(
        PermissionError, match=f"Accept its conditions at https://huggingface.co/{REPOSITORY}, then set"
    ):
        find(f"{REPOSITORY}/run@v1")


def test_a_hub_that_is_down_says_so(published: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    published.statuses = [(503, {})] * 50
    with pytest.raises(
        ConnectionError, match=r"refuses .*/run .503. after 4 attempts; run the same command again later"
    ):
        find(f"{REPOSITORY}/run")


def test_local_places(published: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "第一 🌏").mkdir(parents=True)
    (tmp_path / "runs" / "第一 🌏" / "adapter_config.json").write_text("{}")
    assert find("runs/第一 🌏") == Path("runs/第一 🌏")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/runs/第一 🌏") == tmp_path / "runs" / "第一 🌏"
    for place, message in (
        ("runs", "^runs holds no run.json and no adapter_config.json: it is not a run of .*; in it are 第一 🌏$"),
        ("runs/第 🌏", "^there is no directory runs/第 🌏: did you mean runs/第一 🌏"),
        ("runs/x/y", "^there is no directory runs/x/y$"),
        ("nothing", "^there is no directory nothing$"),
        ("../a/b", "^there is no directory ../a/b$"),
        (str(tmp_path / "none"), "^there is no directory .*none$"),
        ("", "holds no run.json and no adapter_config.json"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            find(place)
    assert not published.asked, "none of them is asked for at the hub"


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("a/b", ("a/b", "", None)),
        ("a/b.c/d e/f@v1", ("a/b.c", "d e/f", "v1")),
        ("a/b/../c", None),
        ("./a/b", None),
        ("/a/b", None),
        ("a", None),
        ("模型/b", None),
        ("https://huggingface.co/a/b", None),
    ],
)
def test_addresses(place: str, parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = places.on_hub(place)
    assert (found and (found.repository, found.folder, found.revision)) == parts
    (tmp_path / "a").mkdir()
    assert places.on_hub(place) is None, "what begins with a directory that is here is a path"
