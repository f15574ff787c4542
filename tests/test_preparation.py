"""prepare_data.py as its user meets it: each command, a second time, and what goes wrong."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import hub_server
import pytest
from conftest import RECORDS, TINY_BASE

import prepare_data
from utils import catalog, collection, preparation
from utils.catalog import HUB_REPOSITORY, DatasetSpec

online, server = hub_server.online, hub_server.server
TSV = "1+1?\\nOptions:\\n(A) 2\\n(B) 3\t(A)\tOne and one\\nare two.\n" * 2


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        code = prepare_data.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    for module in (catalog, collection, preparation):
        monkeypatch.setattr(module, "DATA_DIR", folder, raising=False)
    return folder


@pytest.fixture
def one_row(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A catalogue of one row, changed as asked."""

    def use(**changes: Any) -> None:
        row: dict[str, Any] = {
            "title": "T", "path": "t.json", "status": "part", "lang": ("EN",), "task": ("TS",), "gen": ("HG",), "type": "t",
            "made": "m", "source": "https://example.org/t", "license": "MIT", "citation": "c", "model_output": "no",
        }  # fmt: skip
        rows = {"t": DatasetSpec(**row | changes)}
        monkeypatch.setattr(catalog, "read_catalog", lambda: rows)

    return use


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "--lang", "CN", "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows["belle"]["here"] is False
    assert all("CN" in row["lang"] for row in rows.values())
    assert "cot_sample" in run(capsys, "list", "--status", "ours")[1]
    code, out, _ = run(capsys, "show", "cot_sample")
    assert (code, '"instruction": "Start with' in out) == (0, True)
    assert json.loads(run(capsys, "show", "cot", "--json")[1])["converter"] == "flan_cot_tsv"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["shw"], 2, "did you mean show?"),
        (["list", "--lang", "XX"], 2, " list: error: argument --lang: invalid choice: 'XX'"),
        (["show", "bele"], 1, "unknown dataset 'bele' in show. Did you mean belle"),
        (["fetch", "bele"], 2, "unknown dataset 'bele' in fetch. Did you mean belle"),
        (["check", "nosuch.json"], 1, "there is no file nosuch.json"),
        (["check", "cot_sample", "--drop", "refusl"], 2, "unknown check 'refusl' in --drop. Did you mean refusal"),
        (["mix", "cot_sample", "-o", "a.csv"], 1, "a.csv: the ending '.csv' is not one of"),
        (["mix", "cot_sample"], 2, "the following arguments are required: -o/--output"),
        (["convert", "cot_aqua", "-o", "a.json"], 1, "name its upstream files, too; fetch cot_aqua --raw brings them"),
        (["convert", "code_alpaca", "x.json", "-o", "a.json"], 1, "there is no file x.json"),
        (["convert", "cot_sample", "x.json", "-o", "a.json"], 1, "nothing is to be converted"),
        (["stats", "cot_sample", "--cutof_len", "3"], 2, "did you mean --cutoff_len?"),
    ],
)
def test_wrong_commands_say_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, _, err = run(capsys, *arguments)
    assert (found, message in err) == (code, True), err
    assert not list(tmp_path.iterdir())


def test_convert_and_convert_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    raw, out = tmp_path / "aqua_train.tsv", tmp_path / "a.json"
    raw.write_text(TSV, encoding="utf-8")
    code, text, _ = run(capsys, "convert", "cot_aqua", raw, "-o", out)
    assert (code, "2 rows of 2" in text) == (0, True)
    record = json.loads(out.read_text(encoding="utf-8"))[0]
    assert record["output"].startswith("One and one\nare two.")
    assert "here already" in run(capsys, "convert", "cot_aqua", raw, "-o", out)[1]
    assert "here already" not in run(capsys, "convert", "cot_aqua", raw, "-o", out, "--style", "answer_only")[1]
    assert "One and one" not in out.read_text(encoding="utf-8")
    assert run(capsys, "convert", "--converter", "flan_cot_tsv", raw, "-o", out, "--set", "aqua")[0] == 0


def test_a_file_without_its_format_is_not_taken_for_a_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    code, _, err = run(capsys, "convert", tmp_path / "a.jsonl", "-o", tmp_path / "b.json")
    assert code == 1
    assert "that is a file; before it comes a key of the catalogue, or --converter NAME" in err


def test_check_stats_preview_and_mix(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = tmp_path / "数据.jsonl"
    refusal = {"instruction": "Tell me.", "output": "As an AI language model, I cannot."}
    data.write_text("\n".join(json.dumps(row) for row in [*RECORDS, RECORDS[0], refusal]), encoding="utf-8")
    code, out, _ = run(capsys, "check", data)
    assert code == 0
    assert "10 rows are valid records" in out
    assert "duplicate: 1 rows" in out
    assert "refusal: 1 rows: refuses, or speaks as an AI language model; reported (line 10)" in out
    assert "held against the questions of cot_sample_test" in out
    plot = tmp_path / "lengths.png"
    code, out, _ = run(capsys, "stats", data, "--tokenizer", TINY_BASE, "--plot", plot, "--cutoff_len", 64)
    assert code == 0
    assert "trained tokens: " in out
    assert "over --cutoff_len 64: " in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "tokens" not in run(capsys, "stats", data)[1]
    code, out, _ = run(capsys, "preview", data, "--rows", 2, "--cutoff_len", 60)
    assert (code, out.count("── ")) == (0, 2)
    mixed = tmp_path / "mixed.json"
    code, out, _ = run(capsys, "mix", f"{data}*2", "-o", mixed, "--drop", "refusal")
    assert (code, f"{mixed}: 16 rows" in out) == (0, True)
    assert "here already, from the same rows" in run(capsys, "mix", f"{data}*2", "-o", mixed, "--drop", "refusal")[1]
    code, _, err = run(capsys, "check", data, f"{mixed}.source.json")
    assert (code, "tells where the file beside it came from; it holds no data" in err) == (1, True)
    assert run(capsys, "mix", data, "-o", mixed) == (
        1,
        "",
        f"error: {mixed} exists, and is another mixture: --overwrite replaces it, -o names another\n",
    )
    assert run(capsys, "mix", data, "-o", mixed, "--overwrite")[0] == 0
    assert len(json.loads(mixed.read_text(encoding="utf-8"))) == 9


def printed_command(out: str) -> list[str]:
    """The arguments of the command that comes next, as it was printed."""
    (line,) = [line for line in out.splitlines() if line.startswith("then: ")]
    words = shlex.split(line.removeprefix("then: "))
    assert words[:2] == ["python3", "prepare_data.py"]
    return words[2:]


def test_a_file_that_was_placed_by_hand_is_checked_and_one_from_elsewhere_is_not_taken_for_it(
    server: hub_server.Hub, data_dir: Path, one_row: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["set/t.json"] = hub_server.BODY
    one_row(hub="set/t.json")
    data_dir.mkdir()
    (data_dir / "t.json").write_bytes(hub_server.BODY)
    code, out, err = run(capsys, "fetch", "t")
    assert (code, "here already" in out) == (0, True), err
    server.files["other/t.json"] = b"[]"
    one_row(hub="other/t.json")
    code, _, err = run(capsys, "fetch", "t")
    assert (code, "--overwrite replaces it" in err) == (1, True), err


def test_fetch_brings_a_file_once_and_replaces_no_other(
    server: hub_server.Hub, data_dir: Path, one_row: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["set/t.json"] = hub_server.BODY
    one_row(hub="set/t.json")
    target = data_dir / "t.json"
    code, out, err = run(capsys, "fetch", "t")
    assert (code, err) == (0, "")
    assert target.read_bytes() == hub_server.BODY
    assert f"sha256 {hub_server.SHA}" in out
    assert "here already, and whole" in run(capsys, "fetch", "t")[1]
    target.write_text("my own")
    code, _, err = run(capsys, "fetch", "t")
    assert (
        code,
        "is there, and is not the file that" in err,
    ) == (1, True)
    assert target.read_text() == "my own"
    assert run(capsys, "fetch", "t", "--overwrite")[0] == 0
    assert target.read_bytes() == hub_server.BODY


def test_fetch_of_a_folder_lets_one_choose(
    server: hub_server.Hub, data_dir: Path, one_row: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files |= {"set/en.json": hub_server.BODY, "set/cn.json": b"[]", "other/x.json": b"[]"}
    one_row(hub="set")
    code, _, err = run(capsys, "fetch", "t")
    assert (code, "choose some of its files with --files. It has: cn.json (0.0 MB), en.json" in err) == (1, True), err
    code, _, err = run(capsys, "fetch", "t", "--files", "e*.json", "typo.json")
    assert (code, "--files typo.json: no such file" in err) == (1, True), err
    code, out, _ = run(capsys, "fetch", "t", "--files", "e*.json")
    assert code == 0
    assert (data_dir / "raw" / "t" / "hub" / "en.json").read_bytes() == hub_server.BODY
    assert run(capsys, *printed_command(out))[0] == 0
    assert len(json.loads((data_dir / "t.json").read_text(encoding="utf-8"))) == 4000


def test_fetch_of_upstream_files(
    server: hub_server.Hub, data_dir: Path, one_row: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["up/a stream.jsonl"] = hub_server.BODY
    one_row(raw=(f"hf://datasets/{HUB_REPOSITORY}/up/a stream.jsonl",), converter="fields", note="a note")
    code, out, _ = run(capsys, "fetch", "t", "--raw")
    assert code == 0
    assert "mind: a note" in out
    assert run(capsys, *printed_command(out))[0] == 0
    assert len(json.loads((data_dir / "t.json").read_text(encoding="utf-8"))) == 4000
    assert run(capsys, "fetch", "t", "--raw", "--files", "x")[0] == 1
    code, _, err = run(capsys, "fetch", "t")
    assert (code, "fetch t --raw brings its upstream files" in err) == (1, True)
    one_row()
    for flags in ([], ["--raw"]):
        code, _, err = run(capsys, "fetch", "t", *flags)
        assert (code, "Look at https://example.org/t" in err) == (1, True)


def test_without_the_hub_it_says_how_to_do_it_by_hand(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = run(capsys, "fetch", "alpaca")
    assert code == 1
    assert "HF_HUB_OFFLINE is set" in err
    assert f"save it as {data_dir / 'alpaca_data_cleaned.json'}" in err
