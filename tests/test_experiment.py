"""Experiment files: the bundled ones are whole, and what is wrong with another is said with its field."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY
from studies import experiment_text

from utils.studies import plan
from utils.studies.experiment import read

BUNDLED = sorted((REPOSITORY / "examples" / "studies").glob("*.toml"))


@pytest.fixture
def text(tmp_path: Path) -> str:
    return experiment_text(tmp_path / "base", tmp_path / "d.jsonl", tmp_path / "q.jsonl")


def test_the_experiments_of_the_seeds_are_there() -> None:
    assert {"cot", "prompt", "chinese", "shots", "sizes", "peft", "gpu-7b"} == {path.stem for path in BUNDLED}


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_a_bundled_experiment_is_whole_and_its_flags_are_taken(path: Path) -> None:
    found = read(path)
    assert len(found.seeds) >= 3
    assert found.comparisons
    for name, variant in found.variants.items():
        chosen = plan.resolved(found, name, [rows.mixture for rows in variant.data])
        assert chosen.seed == found.seeds[0]


def test_the_fields_arrive(tmp_path: Path, text: str) -> None:
    (tmp_path / "e.toml").write_text(text, encoding="utf-8")
    found = read(tmp_path / "e.toml")
    assert found.title == "Do answers help? 试验 <b>"
    assert found.variants["cn"].data[0].language == "cn"
    assert found.variants["all"].data[0].is_as_it_stands
    assert not found.variants["cn"].data[0].is_as_it_stands
    assert found.cells("all") == [("all", "sums")] == found.cells("all/sums")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [1, 2]", "seed = [1, 2]", "unknown field 'seed'. Did you mean seeds?"),
        ("seeds = [1, 2]", "", "seeds: Field required"),
        ("seeds = [1, 2]", "seeds = [1, 1]", "seeds: [1, 1] names one twice"),
        ("seeds = [1, 2]", "seeds = []", "seeds: List should have at least 1 item"),
        ("steps = 2", "steps = 0", "steps: Input should be greater than or equal to 1"),
        ("steps = 2", 'steps = "2"', "steps: Input should be a valid integer"),
        ('language = "cn"', 'language = "fr"', "variants.cn.data.0.language: Input should be 'en' or 'cn'"),
        ('style = "cot"', 'style = "cott"', "variants.cn.data.0.style: unknown style 'cott'. Did you mean cot?"),
        ('kind = "number"', 'kind = "numbr"', "unknown answer type 'numbr'. Did you mean number?"),
        ('title = "中文"', 'titel = "中文"', "unknown field 'titel' in variants.cn. Did you mean title?"),
        ("val_set_size = 1", "seed = 3", "flags: a study gives seed itself"),
        ("[variants.cn]", "[variants.Cn]", "variants.Cn: a name becomes a folder"),
        ("[variants.cn]", "[variants.base]", "variants.base: that name is the base alone"),
        ('task = "gsm8k"', 'task = "gsm"', "unknown task 'gsm' in evaluations.sums. Did you mean gsm8k?"),
        ("max_new_tokens = 4", "shots = 99", "evaluations.sums: task 'GSM8K, test' has 4 worked examples, not 99"),
        ('against = "cn"', 'against = "cnn"', "unknown variant 'cnn' in comparison 1 (Do English data help?)"),
        ('against = "cn"', 'against = "cn/sum"', "unknown evaluation 'sum' in comparison 1"),
        ('against = "cn"', "", "comparisons.0.against: Field required"),
        ('against = "cn"', 'against = "cn"\nby = 0.4', "by says how much a claim claims, and expects claims nothing"),
        ("steps = 2", "steps = ", "broken TOML"),
    ],
)
def test_what_is_wrong_is_said_with_its_field(tmp_path: Path, text: str, old: str, new: str, message: str) -> None:
    assert old in text
    path = tmp_path / "e.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=r"e\.toml: ") as error:
        read(path)
    assert message in str(error.value)


def test_sides_of_a_comparison_ask_the_same(tmp_path: Path, text: str) -> None:
    more = '\n[evaluations.other]\ntitle = "Other"\ntask = "aqua"\n'
    path = tmp_path / "e.toml"
    path.write_text(text.replace('against = "cn"', 'against = "cn/other"') + more, encoding="utf-8")
    with pytest.raises(ValueError, match="name an evaluation on both sides, or on neither"):
        read(path)
    path.write_text(
        text.replace('of = "all"', 'of = "all/sums"').replace('against = "cn"', 'against = "cn/other"') + more,
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match="sums and other do not ask the same questions"):
        read(path)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "cot.toml").touch()
    with pytest.raises(FileNotFoundError, match=r"there is no experiment .*/ct\.toml; its folder has cot\.toml"):
        read(tmp_path / "ct.toml")
