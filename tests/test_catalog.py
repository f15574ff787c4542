import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from utils import catalog
from utils.catalog import DATA_DIR, is_path, missing_file, mixture_name, parse_mixture, read_catalog

# The table of the original project's Chinese page: key, rows, Lang, Task, Gen.
TABLE = """
cot 74771 EN/CN MT HG
gpt4all 806199 EN MT COL
gpteacher 29013 EN MT SI
guanaco 534610 ML MT SI
hc3 37175 EN/CN TS MIX
alpaca 52002 EN MT SI
natural_instructions 5040134 ML MT COL
belle_cn 1079517 CN TS/MT SI
instinwild 52191 EN/CN MT SI
prosocial_dialog 165681 EN TS MIX
finance 68912 EN TS COL
xp3 78883588 ML MT COL
firefly 1649398 CN MT COL
instruct 888969 EN MT COL
code_alpaca 20022 EN TS SI
alpaca_gpt4 52002 EN/CN MT SI
webgpt 18994 EN TS MIX
dolly 15015 EN TS HG
baize 653699 EN MT COL
hh_rlhf 284517 EN TS MIX
oig 49237 EN MT COL
gaokao 2785 CN MT COL
camel 760620 EN MT SI
flan_muffin 1764800 EN MT COL
coig 298428 CN MT COL
"""
CONVERTERS = """
flan_cot_tsv gsm8k aqua fields sharegpt dialogue_text moss answers self_instruct gaokao camel stack_exchange coig
prosocial ultrachat natural_instructions
"""
NINE = "cot_aqua cot_creak cot_ecqa cot_esnli cot_gsm8k cot_qasc cot_qed cot_sensemaking cot_strategyqa"
NAMED_ALONE = f"""
{NINE} cot_cn alpaca_data belle belle1m belle1.5m belle_chat belle_math multiturn_chat
gpteacher_instruct gpteacher_roleplay gpteacher_toolformer gpteacher_codegen camel_code xp3_code
instinwild_en instinwild_cn hc3_en hc3_cn alpaca_gpt4_en alpaca_gpt4_cn
"""
ROW: dict[str, Any] = {
    "title": "A",
    "path": "a.json",
    "status": "part",
    "lang": ["EN"],
    "task": ["MT"],
    "gen": ["HG"],
    "type": "问答 🌏",
    "made": "by hand",
    "source": "https://example.org",
    "license": "MIT",
    "citation": "A, B, 2023",
    "model_output": "no",
}


def write(folder: Path, **changes: object) -> Path:
    """A catalogue of one row, `ROW` with `changes`; None takes a field away."""
    fields = {name: value for name, value in {**ROW, **changes}.items() if value is not None}
    file = folder / "d.toml"
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    file.write_text("[a]\n" + "\n".join(lines), encoding="utf-8")
    return file


def test_the_table_of_the_original_project_is_whole() -> None:
    collected = {key: spec for key, spec in read_catalog().items() if spec.status == "collected"}
    found = [f"{key} {s.size} {'/'.join(s.lang)} {'/'.join(s.task)} {'/'.join(s.gen)}" for key, s in collected.items()]
    assert found == TABLE.split("\n")[1:-1]
    assert len(collected) == 25
    assert sum(spec.size or 0 for spec in collected.values()) == 93_282_279
    in_progress = [key for key, spec in read_catalog().items() if spec.status == "in progress"]
    assert in_progress == ["sharegpt", "auto_cot", "stackllama", "moss", "ultrachat"]


def test_every_row_says_all_that_it_must() -> None:
    for key, spec in read_catalog().items():
        assert catalog.KEY.fullmatch(key), key
        for name in ("title", "path", "type", "made", "source", "license", "citation"):
            assert getattr(spec, name).strip(), f"{key}: {name}"
            assert "\n" not in getattr(spec, name), f"{key}: {name}"
        assert spec.converter in {"", *CONVERTERS.split()}, key
        assert spec.hub or spec.raw or spec.status == "ours", f"{key} can be had from nowhere"
        assert spec.converter or not spec.raw, f"{key}: nothing converts its raw files"
        assert not Path(spec.path).is_absolute(), key
        assert ".." not in Path(spec.path).parts, key
        for address in spec.raw:
            assert re.fullmatch(r"hf://datasets(/[\w.\-]+){3,}|https://\S+", address), address
        for entry in spec.unverified:
            name, _, document = entry.partition(": ")
            assert name in ROW.keys() | {"hub", "raw", "size", "sha256"}, f"{key}: {entry}"
            assert document, f"{key}: {entry}"


def test_parts_have_a_whole_and_wholes_are_none() -> None:
    rows = read_catalog()
    for key, spec in rows.items():
        assert bool(spec.part_of) is (spec.status == "part"), key
        if spec.part_of:
            assert rows[spec.part_of].status == "collected", key
            assert set(spec.lang) <= set(rows[spec.part_of].lang), key
    assert set(NAMED_ALONE.split()) <= rows.keys()
    nine = [rows[key].size or 0 for key in NINE.split()]
    assert sum(nine) == rows["cot"].size


def test_the_names_of_the_original_project_lead_to_its_files() -> None:
    paths = {
        "alpaca": "alpaca_data_cleaned.json",
        "belle": "belle_data_cn.json",
        "cot": "CoT_data.json",
        "belle1.5m": "belle_data1.5M_cn.json",
        "finance": "finance_en.json",
        "multiturn_chat": "multiturn_chat_0.8M.json",
    }
    assert {key: read_catalog()[key].path for key in paths} == paths


def test_what_we_ship_is_here_and_is_what_the_row_says() -> None:
    ours = {key: spec for key, spec in read_catalog().items() if spec.status == "ours"}
    assert set(ours) == {"cot_sample", "answer_sample", "cot_sample_test", "for_dict_data"}
    for spec in ours.values():
        content = (DATA_DIR / spec.path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == spec.sha256
        assert len(json.loads(content)) == spec.rows == spec.size
        assert not spec.hub
        assert not spec.raw


def test_keys_and_mixtures_resolve() -> None:
    for expression in ("alpaca", "belle", "alpaca-belle", "cot", "alpaca-cot", "alpaca-belle-cot", "belle1.5m"):
        assert [part.name for part in parse_mixture([expression])] == expression.split("-")


def test_paths_resolve_from_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (part,) = parse_mixture(["cot_sample"])
    assert part.path.is_absolute()
    assert part.path.is_file()


def test_rows_and_repeats() -> None:
    one, two, three = parse_mixture(["alpaca:100-belle*2", "my.json:5*3"])
    assert (one.name, one.max_rows, one.repeat) == ("alpaca", 100, 1)
    assert (two.name, two.max_rows, two.repeat) == ("belle", None, 2)
    assert (three.name, three.max_rows, three.repeat, three.path) == ("my.json", 5, 3, Path("my.json"))


@pytest.mark.parametrize("expression", ["alpaca:0", "alpaca*x", "alpaca:-1", "alpaca*1.5", "alpaca:", "a/b.json:x"])
def test_malformed_amounts(expression: str) -> None:
    with pytest.raises(ValueError, match="takes a whole number of 1 or more"):
        parse_mixture([expression])


def test_unknown_key_names_the_nearest_and_the_whole_expression() -> None:
    with pytest.raises(ValueError, match=r"unknown dataset 'bele' in --data 'alpaca-bele-cot'. Did you mean belle"):
        parse_mixture(["alpaca-bele-cot"])
    with pytest.raises(ValueError, match="--data names nothing"):
        parse_mixture([])


@pytest.mark.parametrize(
    ("expression", "path"),
    [
        ("alpaca", False),
        ("belle1.5m", False),
        ("a.json", True),
        ("a.jsonl:5", True),
        ("dir/x", True),
        ("a.csv*2", True),
        ("a.jsonl.gz", True),
        ("A.JSON:3*2", True),
        ("a.parquet.gz", False),
    ],
)
def test_what_is_a_path(expression: str, path: bool) -> None:
    assert is_path(expression) is path


def test_mixture_names_fit_a_folder() -> None:
    assert mixture_name(["alpaca-belle-cot"]) == "alpaca-belle-cot"
    assert mixture_name(["../x/cot_aqua_train.json", "b.jsonl:5"]) == "cot_aqua_train-b_5"
    assert mixture_name(["belle1.5m:10"]) == "belle1.5m_10"


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    def message(**changes: object) -> str:
        (part,) = parse_mixture(["a"], read_catalog(write(tmp_path, **changes)))
        return missing_file(part)

    here = f"dataset 'a' is not on this machine: {DATA_DIR / 'a.json'} is missing. "
    assert (
        message(hub="A/a.json", raw=["https://example.org/a"])
        == here + "Run python3 prepare_data.py fetch a, or give --data your own file"
    )
    convert = here + "Convert it from the original file: python3 prepare_data.py show a says how"
    assert message(raw=["https://example.org/a"]) == convert
    assert message(converter="fields") == convert
    assert message(status="ours") == here + "Restore it from the repository"
    (own,) = parse_mixture(["no/such.json"])
    assert "--data: there is no file no/such.json (looked in " in missing_file(own)


def test_a_row_is_read(tmp_path: Path) -> None:
    (spec,) = read_catalog(write(tmp_path, size=7, part_of="a", sha256="0a" * 32)).values()
    assert (spec.type, spec.size, spec.rows, spec.part_of, spec.raw) == ("问答 🌏", 7, None, "a", ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
        ({"license": None}, "missing 1 required keyword-only argument: 'license'"),
        ({"status": "lost"}, "status takes one of collected, in progress, part, added, ours, found lost"),
        ({"lang": ["EN", "DE"]}, "lang takes one of EN, CN, ML, found EN, DE"),
        ({"task": []}, "task takes one of MT, TS, found nothing"),
        ({"gen": ["SELF"]}, "gen takes one of HG, SI, MIX, COL, found SELF"),
        ({"gen": "SI"}, "gen must be a list of texts, found 'SI'"),
        ({"raw": [1]}, "raw must be a list of texts, found (1,)"),
        ({"model_output": "maybe"}, "model_output takes one of yes, no, partly, found maybe"),
        ({"part_of": "b"}, "part_of names 'b', which is no row"),
        ({"size": 0}, "size must be a whole number of 1 or more, found 0"),
        ({"size": "many"}, "size must be a whole number of 1 or more, found 'many'"),
        ({"rows": True}, "rows must be a whole number of 1 or more, found True"),
        ({"title": 3}, "title must be text, found 3"),
        ({"sha256": "ABC"}, "sha256 must be 64 digits of 0-9 and a-f, found 'ABC'"),
    ],
)
def test_a_broken_row_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_catalog(file)
    assert str(error.value).startswith(f"{file}: row [a]: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[A-b]\ntitle = "A"\n', "key 'A-b' may hold only a-z, 0-9, _ and . (- joins keys into a mixture)"),
        ('title = "A"\n', "title stands outside a row"),
        ("[a\n", "broken TOML ("),
        ("[a]\n[a]\n", "broken TOML ("),
    ],
)
def test_a_broken_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "d.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")) as error:
        read_catalog(file)
    assert "\n" not in str(error.value)


def test_an_empty_catalogue_is_empty(tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text("", encoding="utf-8")
    assert not read_catalog(tmp_path / "d.toml")
