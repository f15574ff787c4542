"""The page's sliders, and links to their settings."""

from __future__ import annotations

import argparse

import pytest

from utils import cli
from utils.page.parameters import LARGEST_SEED, SLIDERS, Parameters, settings_of
from utils.page.texts import Trouble


@pytest.fixture
def parameters() -> Parameters:
    return Parameters.of(512)


def test_the_defaults_are_the_scripts_and_lie_within_their_sliders() -> None:
    found = Parameters.of(None)
    assert {name: found.defaults[name] for name in cli.GENERATION} == {k: v[0] for k, v in cli.GENERATION.items()}
    small = Parameters.of(64)
    assert small.bounds["max_new_tokens"][1] == 63
    assert small.defaults["max_new_tokens"] == 32
    flags = argparse.Namespace(temperature=0.5, greedy=True, max_new_tokens=9, seed=7)
    greedy = Parameters.of(512, flags).defaults
    assert (greedy["do_sample"], greedy["max_new_tokens"], greedy["seed"]) == (False, 9, 7)


def test_a_link_brings_the_settings_back(parameters: Parameters) -> None:
    from urllib.parse import parse_qsl

    changed = dict(parameters.defaults) | {"temperature": 0.35, "do_sample": False, "top_k": 0, "seed": 2**53 - 1}
    query = parameters.query(changed, lang="zh", model="模型 a&b")
    assert set(dict(parse_qsl(query))) == {"lang", "model", "temperature", "do_sample", "top_k", "seed"}
    assert parameters.from_query(dict(parse_qsl(query))) == (changed, [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", "nan"),
        ("temperature", "-1"),
        ("temperature", "1e999"),
        ("top_p", "7"),
        ("num_beams", "1000000000"),
        ("max_new_tokens", "512"),
        ("top_k", "🌏"),
        ("seed", "-1"),
        ("seed", str(LARGEST_SEED + 1)),
        ("do_sample", "<script>"),
        ("no_repeat_ngram_size", ""),
    ],
)
def test_what_a_link_or_a_request_cannot_have_is_left_at_its_default(
    parameters: Parameters, name: str, text: str
) -> None:
    found, refused = parameters.from_query({name: text, "unknown": "1"})
    assert found == parameters.defaults
    assert len(refused) == 1
    assert name in refused[0]
    values = {**parameters.defaults, name: text}
    with pytest.raises(Trouble) as caught:
        parameters.taken(list(values.values()))
    assert name in caught.value.said("zh")
    assert "无法" in caught.value.said("zh")


def test_the_sliders_values_are_what_the_scripts_ask_for(parameters: Parameters) -> None:
    values = parameters.taken([float(v) if isinstance(v, int) and name != "do_sample" else v
                               for name, v in parameters.defaults.items()])  # fmt: skip
    assert values == parameters.defaults
    expected = argparse.Namespace(**parameters.defaults, greedy=False)
    assert settings_of(values) == cli.generation_settings(expected)
    assert set(SLIDERS) == {name for name in cli.GENERATION if name != "do_sample"}
