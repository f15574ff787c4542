from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS, TINY_BASE

from utils import generation
from utils.encode import encode_prompt
from utils.loading import choose
from utils.models import get_model
from utils.templates import TEMPLATES

GREEDY = {"do_sample": False, "num_beams": 1, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def base(tokenizer: Any) -> Any:
    return choose(str(TINY_BASE), get_model("tiny")).load().eval()


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [encode_prompt(record, TEMPLATES["alpaca"], tokenizer) for record in RECORDS]


def test_batched_equals_one_by_one_and_streamed(base: Any, tokenizer: Any, prompts: Any) -> None:
    batched = generation.generate(base, tokenizer, prompts, stop_ids=[2], settings=GREEDY, batch_size=3)
    single = [generation.generate(base, tokenizer, [ids], stop_ids=[2], settings=GREEDY)[0] for ids in prompts]
    streamed = ["".join(generation.stream(base, tokenizer, ids, stop_ids=[2], settings=GREEDY)) for ids in prompts]
    assert batched == single == streamed
    assert any(batched)


def test_only_new_tokens_come_back_and_stop_is_by_id(base: Any, tokenizer: Any, prompts: Any) -> None:
    six = {**GREEDY, "max_new_tokens": 6}
    answers = generation.generate(base, tokenizer, prompts, stop_ids=[2], settings=six)
    encoded = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    which = max(range(len(answers)), key=lambda i: len(encoded[i]))
    assert "### Response" not in answers[which]
    ids = encoded[which]
    (cut,) = generation.generate(base, tokenizer, [prompts[which]], stop_ids=[2, ids[1]], settings=GREEDY)
    assert cut == tokenizer.decode(ids[: ids.index(ids[1])])


def test_progress_is_told(base: Any, tokenizer: Any, prompts: Any) -> None:
    done: list[int] = []
    generation.generate(base, tokenizer, prompts[:5], stop_ids=[2], settings=GREEDY, batch_size=2, on_batch=done.append)
    assert done == [2, 4, 5]


def test_no_prompts_no_answers(base: Any, tokenizer: Any) -> None:
    assert generation.generate(base, tokenizer, [], stop_ids=[2], settings=GREEDY) == []


def test_beams_are_one_piece(base: Any, tokenizer: Any, prompts: Any) -> None:
    pieces = list(generation.stream(base, tokenizer, prompts[0], stop_ids=[2], settings={**GREEDY, "num_beams": 2}))
    assert len(pieces) == 1


def test_sampling_follows_the_seed(base: Any, tokenizer: Any, prompts: Any) -> None:
    import torch

    settings = {"do_sample": True, "top_p": 0.9, "temperature": 3.0, "top_k": 40, "max_new_tokens": 16}
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(generation.generate(base, tokenizer, prompts[:2], stop_ids=[2], settings=settings))
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize("decode", [generation.generate, generation.stream])
def test_a_prompt_that_does_not_fit_is_refused(decode: Any, base: Any, tokenizer: Any) -> None:
    prompt = [[5] * 500] if decode is generation.generate else [5] * 500
    with pytest.raises(
        ValueError, match="the prompt has 500 tokens; with --max_new_tokens 24 .*context of 512: shorten"
    ):
        list(decode(base, tokenizer, prompt, stop_ids=[2], settings=GREEDY))


def test_a_family_without_position_limit(bloom_base: Path) -> None:
    assert generation.context_length(choose(str(bloom_base), get_model("bloom")).load()) is None


def test_an_error_while_streaming_reaches_the_reader(base: Any, tokenizer: Any, prompts: Any) -> None:
    with pytest.raises(ValueError, match="no_such_setting"):
        list(generation.stream(base, tokenizer, prompts[0], stop_ids=[2], settings={**GREEDY, "no_such_setting": 1}))
