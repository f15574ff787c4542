import pytest

from utils.lookup import find, unknown_name


def test_the_nearest_names_come_first_then_all() -> None:
    assert unknown_name("dataset", "bele", ["cot", "belle", "alpaca"], "--data 'alpaca-bele'") == (
        "unknown dataset 'bele' in --data 'alpaca-bele'. Did you mean belle? Known: alpaca, belle, cot."
    )


def test_nothing_near_is_no_guess() -> None:
    assert unknown_name("model type", "zzz", ["llama"]) == "unknown model type 'zzz'. Known: llama."


def test_find_returns_the_row_or_explains() -> None:
    assert find("thing", "a", {"a": 1}) == 1
    with pytest.raises(ValueError, match="unknown thing 'b' in --x. Known: a."):
        find("thing", "b", {"a": 1}, "--x")
