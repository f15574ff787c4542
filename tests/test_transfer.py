from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import hub_server
import pytest
from conftest import REPOSITORY as CHECKOUT
from hub_server import BODY, NAME, REPOSITORY, SHA, Hub

from utils import transfer
from utils.fetching import fetch, fetch_url, list_files

online, server, target = hub_server.online, hub_server.server, hub_server.target


@pytest.mark.parametrize(
    ("repository", "name", "revision", "words"),
    [
        (REPOSITORY, "alpaca/alpaca_dta.json", "main", ["there is no 'alpaca/alpaca_dta.json' of Qing", "did you mean alpaca/alpaca_data.json?"]),
        (REPOSITORY, "完全不同", "main", ["its files are 中文 data/a b#1.json, alpaca/alpaca_data.json, README.md, empty.json"]),
        (REPOSITORY, "alpaca", "main", ["'alpaca' of QingyiSi/Alpaca-CoT is a folder: name one of its files, alpaca/alpaca_data.json"]),
        (REPOSITORY, NAME, "v9", ["has no revision 'v9'; it has main, v1", "see https://huggingface.co/datasets/QingyiSi"]),
        ("no/such", "a.json", "main", ["there is no dataset repository no/such at 127.0.0.1", "check its name"]),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named_with_what_is_near(
    repository: str, name: str, revision: str, words: list[str], server: Hub, target: Path
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fetch(repository, name, target, revision=revision)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said_even_where_no_list_can_be_had(server: Hub, target: Path) -> None:
    server.files.clear()
    with pytest.raises(
        FileNotFoundError, match=r"there is no 'a.json' of QingyiSi/Alpaca-CoT; see https://huggingface.co/datasets"
    ):
        fetch(REPOSITORY, "a.json", target)


def test_without_a_token(server: Hub, target: Path) -> None:
    server.token = "hf_secret"
    with pytest.raises(
        PermissionError,
        match=r"refuses .* \(401\): no token was sent, .* or does not exist.* set HF_TOKEN or run `hf auth login`",
    ):
        fetch(REPOSITORY, NAME, target)


def test_a_token_is_sent_to_the_hub_and_not_to_its_storage(
    server: Hub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(
        PermissionError, match=r"\(401\): the token of HF_TOKEN or `hf auth login` is not accepted"
    ) as caught:
        fetch(REPOSITORY, NAME, target)
    assert "hf_old" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(REPOSITORY, NAME, target)
    stored = [asked.token for asked in server.asked if asked.storage]
    assert stored == [None]


def test_a_gated_repository(server: Hub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(
        PermissionError,
        match=r"\(403\): the repository is gated. Accept its conditions at https://huggingface.co/datasets/QingyiSi/Alpaca-CoT, then set HF_TOKEN",
    ):
        fetch(REPOSITORY, NAME, target)


def test_passing_trouble_is_waited_out(server: Hub, target: Path) -> None:
    server.statuses = [(500, {}), (429, {"Retry-After": "0"}), (503, {})]
    assert fetch(REPOSITORY, NAME, target).sha256 == SHA


@pytest.mark.parametrize("status", [500, 503, 429])
def test_lasting_trouble_is_reported(status: int, server: Hub, target: Path) -> None:
    server.statuses = [(status, {})] * 9
    with pytest.raises(ConnectionError, match=rf"\({status}\) after 4 attempts; run the same command again later"):
        fetch(REPOSITORY, NAME, target)
    assert len(server.asked) == 4


def test_a_server_that_asks_for_an_hour_does_not_get_it(server: Hub, target: Path) -> None:
    server.statuses = [(429, {"Retry-After": "3600"})]
    with pytest.raises(ConnectionError, match=r"\(429\); run the same command again in 3600 seconds"):
        fetch(REPOSITORY, NAME, target)


def test_a_silent_server_is_given_up_by_the_users_limit(
    server: Hub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.silent_seconds = 5
    monkeypatch.setattr(transfer, "WAITS", ())
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=r"broke while .* \(.*timed out.*\); run the same command again"):
        fetch(REPOSITORY, NAME, target)
    assert time.monotonic() - started < 4
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="HF_HUB_ETAG_TIMEOUT='soon' must be a whole number of seconds"):
        fetch(REPOSITORY, NAME, target)


def test_an_unreachable_hub_is_reported_within_ten_seconds(
    online: None, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as deaf:  # takes a connection, and says nothing
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ConnectionError) as caught:
            fetch(REPOSITORY, NAME, target, sha256=SHA)
        assert time.monotonic() - started < 10
    message = str(caught.value)
    page = "https://huggingface.co/datasets/QingyiSi/Alpaca-CoT/resolve/main/%E4%B8%AD%E6%96%87%20data/a%20b%231.json"
    assert (
        "does not answer from here; name a mirror with HF_ENDPOINT=https://…; or by hand: download " + page in message
    )
    assert f"(its sha256 must be {SHA}) and save it as {target}" in message
    assert "\n" not in message


def test_offline_is_the_users_wish(server: Hub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for place in ("here", "in the client"):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1" if place == "here" else "0")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", place != "here")
        with pytest.raises(ConnectionError, match=r"HF_HUB_OFFLINE is set. Unset it; or by hand: download https://"):
            fetch(REPOSITORY, NAME, target)
        with pytest.raises(
            ConnectionError,
            match=r"cannot fetch the files of Qing.*; or see what there is at https://huggingface.co/datasets/QingyiSi/Alpaca-CoT/tree/main$",
        ):
            list_files(REPOSITORY)
    assert server.asked == []


def test_an_address_that_is_no_hub(server: Hub, target: Path) -> None:
    server.headers = {}
    words = (
        "http://127.0.0.1:.* answers, but not as the hub does: check HF_ENDPOINT, and whether this network wants you"
    )
    with pytest.raises(ConnectionError, match=words + ".*no X-Repo-Commit"):
        fetch(REPOSITORY, NAME, target)
    server.statuses = [(404, {})]
    with pytest.raises(ConnectionError, match=words + r".*404 without X-Error-Code\); or by hand: download https://"):
        fetch(REPOSITORY, NAME, target)
    server.statuses = [(200, {"Content-Type": "text/html"})]
    with pytest.raises(ConnectionError, match=words + ".*its list of files is not one"):
        list_files(REPOSITORY)


def test_the_files_of_a_repository(server: Hub) -> None:
    assert [(file.path, file.bytes) for file in list_files(REPOSITORY)] == [
        ("README.md", 4), ("alpaca/alpaca_data.json", 3), ("empty.json", 0), (NAME, len(BODY)),
    ]  # fmt: skip
    inside = list_files(REPOSITORY, "中文 data")
    assert [(file.path, file.sha256) for file in inside] == [(NAME, SHA)]
    assert [file.sha256 for file in list_files(REPOSITORY) if file.path == "README.md"] == [""]
    with pytest.raises(FileNotFoundError, match="there is no 'alpca' of QingyiSi/Alpaca-CoT"):
        list_files(REPOSITORY, "alpca")


def test_plain_addresses(server: Hub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    url = f"{server.url}/plain/%E4%B8%AD%E6%96%87%20data/a%20b%231.json"
    server.cuts = [5000, 5000]
    found = fetch_url(url, target)
    assert (found.sha256, found.checked, target.read_bytes()) == (SHA, "its size", BODY)
    assert "bytes=5000-" in [asked.range for asked in server.asked]
    assert {asked.token for asked in server.asked} == {None}, "the hub's token is the hub's"
    assert fetch_url(url, target).skipped
    with pytest.raises(
        ValueError,
        match=f"the given sha256 is {'1' * 64}, what came has {SHA}; .* the source has changed, or look at http",
    ):
        fetch_url(url, target, sha256="1" * 64)
    assert target.read_bytes() == BODY


def test_a_plain_file_that_changed_midway_comes_anew(server: Hub, target: Path) -> None:
    url = f"{server.url}/plain/empty.json"
    server.files["empty.json"] = BODY
    server.cuts = [5000, 5000]  # the first ends the look at the headers

    def swap(here: int, whole: int | None) -> None:
        if here:
            server.plain_tag, server.files["empty.json"] = '"v2"', BODY[::-1]

    fetch_url(url, target, on_progress=swap)
    assert target.read_bytes() == BODY[::-1], "If-Range: old and new bytes are not mixed"


def test_plain_bytes_without_a_tag_are_not_continued_by_another_run(server: Hub, target: Path) -> None:
    server.plain_tag, server.cuts = "", [1000] * 5
    url = f"{server.url}/plain/alpaca/alpaca_data.json"
    server.files["alpaca/alpaca_data.json"] = BODY
    with pytest.raises(ConnectionError):
        fetch_url(url, target)
    fetch_url(url, target)
    assert (server.bodies()[-1].range, target.read_bytes()) == (None, BODY)


def test_a_plain_file_of_unknown_length_that_was_whole_comes_anew(server: Hub, target: Path) -> None:
    def interrupt(here: int, whole: int | None) -> None:
        if here == len(BODY):
            raise KeyboardInterrupt

    server.files["a.json"], server.lengths = BODY, False
    with pytest.raises(KeyboardInterrupt):
        fetch_url(f"{server.url}/plain/a.json", target, on_progress=interrupt)
    found = fetch_url(f"{server.url}/plain/a.json", target)
    assert [asked.range for asked in server.bodies()][-2:] == [f"bytes={len(BODY)}-", None], "416: nothing is left"
    assert (found.checked, target.read_bytes()) == ("nothing", BODY)


def test_plain_addresses_that_do_not_lead_to_a_file(server: Hub, target: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"there is no file at http://.*none.json \(404\): the source has moved"
    ):
        fetch_url(f"{server.url}/plain/none.json", target)
    server.plain_headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(ValueError, match="is a web page, not a file"):
        fetch_url(f"{server.url}/plain/README.md", target)
    server.plain_headers = {"Content-Encoding": "gzip"}
    with pytest.raises(ConnectionError, match="comes packed as gzip, which was not asked for"):
        fetch_url(f"{server.url}/plain/README.md", target)
    server.statuses = [(403, {})]
    with pytest.raises(PermissionError, match=r"\(403\); if a browser may have it, by hand: download http://"):
        fetch_url(f"{server.url}/plain/README.md", target)
    for address in ("ftp://a/b", "a.json", "https:///b", "hf://models/a/b/c", "hf://datasets/a/b"):
        with pytest.raises(ValueError, match="is not an address of a file"):
            fetch_url(address, target)


def test_a_process_of_its_own_obeys_its_environment(server: Hub, tmp_path: Path) -> None:
    """Nothing patched: what the client reads at import and what we read at the call are one environment."""
    code = f"from pathlib import Path; from utils.fetching import fetch; print(fetch({REPOSITORY!r}, {NAME!r}, Path('a.json')).sha256)"
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
    server.token = "hf_secret"
    run = {"cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], env={**environment, "HF_TOKEN": "hf_secret"}, **run)
    assert done.stdout == f"{SHA}\n", done.stderr
    assert (tmp_path / "a.json").read_bytes() == BODY
    (tmp_path / "a.json").unlink()
    refused = subprocess.run([sys.executable, "-c", code], env={**environment, "HF_HUB_OFFLINE": "1"}, **run)
    assert refused.stderr.splitlines()[-1].startswith(f"ConnectionError: cannot fetch {NAME!r}")
