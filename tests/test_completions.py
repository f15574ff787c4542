from __future__ import annotations

from typing import Any

import pytest
from conftest import RECORDS

from utils import cli
from utils.api import Passing
from utils.completions import as_text, read_answer, read_models, request_fields
from utils.encode import encode_prompt
from utils.generation import Answer
from utils.stopping import Ends
from utils.templates import TEMPLATES

ENDS = Ends(ids=[2], texts=("\n\n### Instruction:",))
SAMPLED = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "num_beams": 1,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 0,
    "max_new_tokens": 64,
}


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [encode_prompt(record, TEMPLATES["alpaca"], tokenizer) for record in RECORDS]


def test_greedy_decoding_is_a_temperature_of_nothing_and_penalties_are_switched_off_aloud() -> None:
    assert request_fields(cli.greedy_settings(64), ENDS, "ids") == {
        "max_tokens": 64,
        "temperature": 0.0,
        "stop": ["\n\n### Instruction:"],
        "top_k": -1,
        "repetition_penalty": 1.0,
        "stop_token_ids": [2],
        "return_token_ids": True,
    }


def test_to_a_server_of_text_only_openai_s_own_fields_are_said() -> None:
    assert request_fields(cli.greedy_settings(64), Ends(ids=[2]), "text") == {"max_tokens": 64, "temperature": 0.0}
    plain = {**SAMPLED, "top_k": 0, "repetition_penalty": 1.0}
    assert request_fields(plain, Ends(ids=[2]), "text") == {"max_tokens": 64, "temperature": 0.7, "top_p": 0.9}
    assert request_fields(SAMPLED, Ends(ids=[2]), "text") == {
        "max_tokens": 64,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "repetition_penalty": 1.3,
    }


def test_sampling_and_no_limit_of_tokens() -> None:
    fields = request_fields({**SAMPLED, "top_k": 0}, ENDS, "ids")
    assert (fields["temperature"], fields["top_p"], fields["top_k"], fields["repetition_penalty"]) == (
        0.7,
        0.9,
        -1,
        1.3,
    )


def test_what_the_api_has_no_field_for_is_refused_by_its_flag() -> None:
    message = (
        "^--no_repeat_ngram_size 6 and --num_beams 4: a server's API has no such parameter; with --api_base give "
        "--no_repeat_ngram_size 0 --num_beams 1, or --greedy$"
    )
    with pytest.raises(ValueError, match=message):
        request_fields({**SAMPLED, "no_repeat_ngram_size": 6, "num_beams": 4}, ENDS, "ids")


def test_a_prompt_as_text_is_read_as_its_ids_or_is_none(tokenizer: Any, prompts: list[list[int]]) -> None:
    assert all(ids[0] == tokenizer.bos_token_id for ids in prompts)
    texts = [as_text(ids, tokenizer) for ids in prompts]
    for record, ids, text in zip(RECORDS, prompts, texts, strict=True):
        if "</s>" in record["instruction"]:  # which a server would take for the end of a text
            assert text is None
        else:
            assert text is not None
            assert text.startswith("Below is an instruction"), "a tokenizer adds its own BOS"
            assert tokenizer(text)["input_ids"] == ids
    assert "你好，世界 🌏" in str(texts[1])


def test_a_prompt_without_what_the_tokenizer_adds_cannot_be_sent_as_text(tokenizer: Any) -> None:
    assert as_text(tokenizer("你好 🌏", add_special_tokens=False)["input_ids"], tokenizer) is None
    assert as_text([], tokenizer) is None
    assert as_text(tokenizer("")["input_ids"], tokenizer) == ""


def reply(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"text": "", "finish_reason": "stop", **choice}], "usage": {"prompt_tokens": 3}}


def test_an_answer_s_ids_are_read_as_ours_are(tokenizer: Any) -> None:
    ids = tokenizer("你好 🌏", add_special_tokens=False)["input_ids"]
    ended = reply(text=" as a continuation", token_ids=[*ids, 2])
    expected = Answer(text="你好 🌏", finish_reason="stop", prompt_tokens=3, new_tokens=len(ids) + 1)
    assert read_answer(ended, [1, 5, 6], tokenizer, ENDS) == expected
    cut_off = reply(token_ids=ids, finish_reason="length")
    assert read_answer(cut_off, [1, 5, 6], tokenizer, ENDS) == Answer(
        text="你好 🌏", finish_reason="length", prompt_tokens=3, new_tokens=len(ids)
    )
    at_once = reply(token_ids=[2])
    assert read_answer(at_once, [1, 5, 6], tokenizer, ENDS) == Answer(
        text="", finish_reason="stop", prompt_tokens=3, new_tokens=1
    )


def test_a_text_is_taken_as_it_is_and_ends_where_ours_would(tokenizer: Any) -> None:
    answer = read_answer(reply(text=" Kept. \n 你好\n\n### Instruction:\nmore"), [1, 5, 6], tokenizer, ENDS)
    assert (answer.text, answer.finish_reason) == (" Kept. \n 你好", "stop")
    went_on = reply(text="a\n\n### Instruction:", finish_reason="length")
    assert read_answer(went_on, [1, 5, 6], tokenizer, ENDS).finish_reason == "stop"


def test_tokens_that_the_server_does_not_count_are_counted(tokenizer: Any) -> None:
    said = {**reply(text="你好 🌏"), "usage": {"prompt_tokens": 3, "completion_tokens": 0}}
    assert read_answer(said, [1, 5, 6], tokenizer, ENDS).new_tokens == 0
    unsaid = {**reply(text="你好 🌏"), "usage": None}
    count = len(tokenizer("你好 🌏", add_special_tokens=False)["input_ids"])
    assert read_answer(unsaid, [1, 5, 6], tokenizer, ENDS).new_tokens == count + 1
    cut_off = {**reply(text="你好 🌏", finish_reason="length"), "usage": None}
    assert read_answer(cut_off, [1, 5, 6], tokenizer, ENDS).new_tokens == count


def test_a_server_that_read_another_prompt_is_found_out(tokenizer: Any) -> None:
    message = (
        "^the server read 3 tokens where the prompt has 2: its tokenizer is not the run's. Serve the directory that "
        "merge.py wrote, with the tokenizer in it$"
    )
    with pytest.raises(ValueError, match=message):
        read_answer(reply(text="a"), [1, 5], tokenizer, ENDS)


@pytest.mark.parametrize(
    "wrong", [[], {}, None, "text", {"choices": []}, {"choices": [{"text": "a"}]}, {"choices": None}]
)
def test_what_is_no_completion_may_be_one_next_time(wrong: Any, tokenizer: Any) -> None:
    with pytest.raises(Passing, match="^what it sent is no completion: "):
        read_answer(wrong, [1, 5, 6], tokenizer, ENDS)
    with pytest.raises(Passing, match="^what it sent is no list of models: "):
        read_models(wrong)


def test_an_answer_that_was_broken_off_is_none(tokenizer: Any) -> None:
    with pytest.raises(Passing, match="it ended the answer for the reason 'abort'"):
        read_answer(reply(text="a", finish_reason="abort"), [1, 5, 6], tokenizer, ENDS)


def test_names_of_models() -> None:
    assert read_models({"data": [{"id": "模型"}, {"id": "b"}]}) == ["模型", "b"]
    assert read_models({"data": []}) == []
