from pathlib import Path

import pytest

from utils import catalog
from utils.catalog import DATA_DIR, is_path, missing_file, mixture_name, parse_mixture, read_catalog


def test_rows_have_tags_of_the_vocabulary_and_a_licence() -> None:
    for key, spec in read_catalog().items():
        assert set(spec.lang) <= set(catalog.LANGUAGES), key
        assert set(spec.task) <= set(catalog.TASKS), key
        assert set(spec.gen) <= set(catalog.GENERATIONS), key
        assert spec.license, key
        assert spec.size > 0, key
        assert spec.download or (DATA_DIR / spec.path).is_file(), f"{key} is neither here nor to be downloaded"


def test_the_seeds_keys_and_mixtures_resolve() -> None:
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
    ],
)
def test_what_is_a_path(expression: str, path: bool) -> None:
    assert is_path(expression) is path


def test_mixture_names_fit_a_folder() -> None:
    assert mixture_name(["alpaca-belle-cot"]) == "alpaca-belle-cot"
    assert mixture_name(["../x/cot_aqua_train.json", "b.jsonl:5"]) == "cot_aqua_train-b_5"
    assert mixture_name(["belle1.5m:10"]) == "belle1.5m_10"


def test_a_missing_file_says_how_to_get_it() -> None:
    (known,) = parse_mixture(["cot"])
    assert "CoT_data.json is missing. Download it from https://" in missing_file(known)
    (own,) = parse_mixture(["no/such.json"])
    assert "--data: there is no file no/such.json (looked in " in missing_file(own)


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    file = tmp_path / "d.toml"
    file.write_text('[a]\ntitle = "A"\ncolour = "red"\n')
    with pytest.raises(ValueError, match=r"row \[a\].*colour"):
        read_catalog(file)
    file.write_text('[A-b]\ntitle = "A"\n')
    with pytest.raises(ValueError, match="may hold only a-z, 0-9"):
        read_catalog(file)
