import random
from typing import Any

import pytest
import torch

from utils import cli, sampling
from utils.sampling import Draw, chosen_by, row_seeds

SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_beams": 1, "max_new_tokens": 4}


def generators(seeds: Any) -> list[random.Random]:
    return [random.Random(seed) for seed in seeds]


def test_draws_follow_the_probabilities() -> None:
    """Chi-squared of 20,000 draws from five probabilities, one of them 0: below the 99.99 % quantile of 3 degrees."""
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    rows = 20_000
    scores = probabilities.log().expand(rows, 5)
    drawn = Draw(generators(row_seeds(7, rows)))(torch.zeros(rows, 1), scores)
    assert ((drawn == 0).sum(-1) == 1).all(), "one token is left in each row"
    counts = (drawn == 0).sum(0).double()
    assert counts[1] == 0
    expected = probabilities.double() * rows
    seen = expected > 0
    assert ((counts - expected)[seen] ** 2 / expected[seen]).sum() < 21.1


def test_one_token_with_all_probability_is_always_drawn() -> None:
    for token in (0, 6):
        scores = torch.full((50, 7), -torch.inf)
        scores[:, token] = 3.0
        assert (Draw(generators(range(50)))(torch.zeros(50, 1), scores).argmax(-1) == token).all()


def test_a_row_draws_what_it_draws_alone() -> None:
    scores = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(3, 1)
    together, alone = Draw(generators([1, 2, 3])), Draw(generators([3]))
    for _ in range(5):
        assert torch.equal(together(ids, scores)[2:], alone(ids[:1], scores[2:]))


def test_seeds_of_rows_are_theirs() -> None:
    seeds = row_seeds(42, 1000)
    assert len(set(seeds)) == 1000
    assert row_seeds(42, 3, first=997) == seeds[997:], "whatever is before them"
    assert not set(seeds) & set(row_seeds(43, 1000))
    assert row_seeds(42, 0) == []


def test_greedy_decoding_is_told_of_no_sampling() -> None:
    told = chosen_by(cli.greedy_settings(8), generators([1]))
    assert "logits_processor" not in told
    assert (told["temperature"], told["top_p"], told["top_k"], told["do_sample"]) == (None, None, None, False)


def test_sampling_is_ours_and_the_rest_transformers() -> None:
    asked = {**SAMPLED, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "repetition_penalty": 1.3}
    told = chosen_by(asked, generators([1]))
    assert told["do_sample"] is False, "the likeliest of the one token that is left"
    assert told["repetition_penalty"] == 1.3
    assert [type(each).__name__ for each in told["logits_processor"]] == [
        "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "Draw",
    ]  # fmt: skip
    plain = chosen_by(SAMPLED, generators([1]))
    assert [type(each).__name__ for each in plain["logits_processor"]] == ["Draw"]


def test_beams_that_are_drawn_are_transformers_own() -> None:
    settings: dict[str, Any] = {**SAMPLED, "num_beams": 2}
    assert chosen_by(settings, generators([1])) == settings
    assert sampling.draws_alone(settings)
    before = torch.random.get_rng_state()
    with sampling.seeded(settings, 5):
        first = torch.rand(3)
    with sampling.seeded(settings, 5):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_parameter_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        chosen_by({**SAMPLED, "temperature": -1.0}, generators([1]))
