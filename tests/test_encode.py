import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS

from utils import encode
from utils.encode import encode_answer, encode_prompt, encode_rows, stop_ids, truncate
from utils.proof import IGNORED, Draft, Encoded, MaskError, prove
from utils.readers import Row, read_rows
from utils.templates import TEMPLATES, Segment
from utils.tokens import control_ids, prefix_ids, require_eos

ALPACA, CHAT = TEMPLATES["alpaca"], TEMPLATES["chat"]
DIALOGUE = {
    "conversation": [
        {"role": "user", "content": "Hi <s> 👋"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "再说一次</s>"},
        {"role": "assistant", "content": "你好。"},
    ]
}


def rows(*records: Any) -> list[Row]:
    return [Row(record=record, origin=f"test row {i}") for i, record in enumerate(records, start=1)]


def encode_all(records: Any, template: Any, tokenizer: Any, **options: Any) -> list[Encoded]:
    encoded, dropped, truncated = encode_rows(
        rows(*records), template, tokenizer, **{"cutoff_len": 4096, "truncation": "drop", **options}
    )
    assert not dropped
    assert not truncated
    return encoded


def trained_text(row: Encoded, tokenizer: Any) -> str:
    return tokenizer.decode([i for i, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED])


@pytest.mark.parametrize("template", [ALPACA, CHAT], ids=["alpaca", "chat"])
def test_exactly_the_answers_and_their_end_are_trained(template: Any, chat_tokenizer: Any) -> None:
    end = "<|im_end|>" if template is CHAT else "</s>"
    encoded = encode_all([*RECORDS, DIALOGUE], template, chat_tokenizer)
    for record, row in zip(RECORDS, encoded, strict=False):
        assert trained_text(row, chat_tokenizer) == record["output"] + end
        assert row.num_targets == sum(label != IGNORED for label in row.labels)
        assert all(label in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True))
    assert trained_text(encoded[-1], chat_tokenizer) == f"Hello.{end}你好。{end}"


@pytest.mark.parametrize("template", [ALPACA, CHAT], ids=["alpaca", "chat"])
def test_an_answers_ids_are_those_of_training_without_their_end(template: Any, chat_tokenizer: Any) -> None:
    for record, row in zip(RECORDS, encode_all(RECORDS, template, chat_tokenizer), strict=True):
        trained = [label for label in row.labels if label != IGNORED]
        question = {key: value for key, value in record.items() if key != "output"}
        found = encode_answer(question, record["output"], template, chat_tokenizer)
        assert found == [i for i in trained if i not in stop_ids(template, chat_tokenizer)]
        assert chat_tokenizer.decode(found) == record["output"]


@pytest.mark.parametrize("template", [ALPACA, CHAT], ids=["alpaca", "chat"])
def test_training_prompts_are_inference_prompts(template: Any, chat_tokenizer: Any) -> None:
    for record, row in zip(RECORDS, encode_all(RECORDS, template, chat_tokenizer), strict=True):
        first = next(i for i, label in enumerate(row.labels) if label != IGNORED)
        question = {key: value for key, value in record.items() if key != "output"}
        assert encode_prompt(question, template, chat_tokenizer) == row.input_ids[:first]


def test_control_tokens_that_a_person_typed_are_text(tokenizer: Any) -> None:
    row = encode_all(RECORDS[2:3], ALPACA, tokenizer)[0]
    assert Counter(row.input_ids)[tokenizer.eos_token_id] == 1
    assert Counter(row.input_ids)[tokenizer.bos_token_id] == 1
    assert row.input_ids[-1] == row.labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row.input_ids).count("</s>") == 3


def test_exact_ids_of_a_row(tokenizer: Any) -> None:
    row = encode_all([{"instruction": "你", "input": "", "output": "7"}], ALPACA, tokenizer)[0]
    text = ALPACA.without_input.format(instruction="你")
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = tokenizer("7", add_special_tokens=False)["input_ids"]
    assert row.input_ids == [1, *prompt, *answer, 2]
    assert row.labels == [IGNORED] * (len(prompt) + 1) + [*answer, 2]


def test_the_prefix_is_the_tokenizers_own(tokenizer: Any, chat_tokenizer: Any) -> None:
    assert prefix_ids(tokenizer) == [tokenizer.bos_token_id]
    assert encode_all(RECORDS[:1], CHAT, chat_tokenizer)[0].input_ids[0] != chat_tokenizer.bos_token_id


def test_answers_end_at_eos_and_at_the_templates_mark(chat_tokenizer: Any) -> None:
    mark = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop_ids(ALPACA, chat_tokenizer) == [chat_tokenizer.eos_token_id]
    assert stop_ids(CHAT, chat_tokenizer) == sorted([chat_tokenizer.eos_token_id, mark])


def test_no_eos_is_an_error(tokenizer: Any) -> None:
    import copy

    without = copy.deepcopy(tokenizer)
    without.eos_token = None
    with pytest.raises(ValueError, match="no EOS token, so the model could not learn to stop: set eos_token"):
        require_eos(without)
    with pytest.raises(ValueError, match="no EOS token"):
        encode_rows(rows(RECORDS[0]), ALPACA, without, cutoff_len=64, truncation="drop")


def long_record(prompt_words: int, answer_words: int) -> dict[str, str]:
    return {"instruction": "dial " * prompt_words, "input": "", "output": "wheel " * answer_words}


def test_drop_counts_long_rows(tokenizer: Any) -> None:
    encoded, dropped, truncated = encode_rows(
        rows(RECORDS[0], long_record(500, 3)), ALPACA, tokenizer, cutoff_len=128, truncation="drop"
    )
    assert (len(encoded), dict(dropped), dict(truncated)) == (1, {"longer than --cutoff_len 128": 1}, {})


def test_prompt_is_cut_from_the_left_and_keeps_the_answer(tokenizer: Any) -> None:
    (row,), dropped, truncated = encode_rows(
        rows(long_record(500, 3)), ALPACA, tokenizer, cutoff_len=64, truncation="prompt"
    )
    assert (len(row.input_ids), sum(dropped.values()), sum(truncated.values())) == (64, 0, 1)
    assert row.input_ids[0] == tokenizer.bos_token_id
    assert trained_text(row, tokenizer) == "wheel " * 3 + "</s>"
    assert "### Response:" in tokenizer.decode(row.input_ids)


def test_an_answer_that_does_not_fit_alone_is_dropped_even_then(tokenizer: Any) -> None:
    encoded, dropped, _ = encode_rows(rows(long_record(5, 500)), ALPACA, tokenizer, cutoff_len=64, truncation="prompt")
    assert (encoded, dict(dropped)) == ([], {"longer than --cutoff_len 64 even without its prompt": 1})


def test_a_cut_answer_loses_its_eos_and_is_counted_as_that(tokenizer: Any) -> None:
    encoded, dropped, truncated = encode_rows(
        rows(long_record(1, 500)), ALPACA, tokenizer, cutoff_len=96, truncation="answer"
    )
    assert not dropped
    assert dict(truncated) == {"answer cut from the right; EOS is not trained in these rows": 1}
    assert len(encoded[0].input_ids) == 96
    assert tokenizer.eos_token_id not in encoded[0].labels


def test_a_row_without_targets_is_dropped(tokenizer: Any) -> None:
    encoded, dropped, _ = encode_rows(rows(long_record(500, 3)), ALPACA, tokenizer, cutoff_len=64, truncation="answer")
    assert (encoded, dict(dropped)) == ([], {"no trained token is left": 1})


@pytest.mark.parametrize("truncation", ["prompt", "answer"])
@pytest.mark.parametrize("cutoff", [48, 60, 80])
def test_cut_dialogues_are_proved_too(truncation: Any, cutoff: int, tokenizer: Any) -> None:
    encoded, dropped, truncated = encode_rows(
        rows(DIALOGUE), ALPACA, tokenizer, cutoff_len=cutoff, truncation=truncation
    )
    assert len(encoded) + sum(dropped.values()) == 1
    assert all(len(row.input_ids) <= cutoff for row in encoded)
    assert len(encoded) == 0 or sum(truncated.values()) == 1


@pytest.mark.parametrize("excess", [-1, 0])
def test_what_fits_is_left_alone(excess: int) -> None:
    row = ([1, 2, 3], [IGNORED, 2, 3])
    assert truncate(row, 3 - excess, "drop", 1) == (row, "")


def test_a_cut_prompt_keeps_its_last_token_at_least() -> None:
    row = ([1, 11, 12, 13, 7, 2], [IGNORED] * 4 + [7, 2])
    assert truncate(row, 4, "prompt", 1) == (([1, 13, 7, 2], [IGNORED, IGNORED, 7, 2]), "prompt cut from the left")
    kept, what = truncate(row, 3, "prompt", 1)
    assert kept == row
    assert what == "longer than --cutoff_len 3 even without its prompt"


def proof_of(record: Any, tokenizer: Any) -> Draft:
    (row,) = rows(record)
    (encoded,) = encode_all([record], ALPACA, tokenizer)
    first = next(i for i, label in enumerate(encoded.labels) if label != IGNORED)
    return Draft(
        encoded=encoded, row=row, answers=[record["output"]], what="", spans=[(first, len(encoded.labels))],
        prompts=[encode_prompt(record, ALPACA, tokenizer)], head=1,
    )  # fmt: skip


def check(draft: Draft, tokenizer: Any) -> None:
    texts = [tokenizer.decode(ids) for ids in draft.whole_answers()]
    prove(draft, texts, tokenizer, control_ids(tokenizer))


def corrupt(draft: Draft, spans: Any = None, **changes: Any) -> Draft:
    encoded = dataclasses.replace(draft.encoded, **changes)  # type: ignore[type-var]
    return dataclasses.replace(draft, encoded=encoded, spans=spans or draft.spans)


def test_the_proof_accepts_what_encoding_makes_and_nothing_else(tokenizer: Any) -> None:
    good = proof_of(RECORDS[0], tokenizer)
    check(good, tokenizer)
    assert isinstance(good.encoded, Encoded)
    (first, end), ids, labels = good.spans[0], good.encoded.input_ids, good.encoded.labels
    cases = {
        "no token is trained": corrupt(good, labels=[IGNORED] * len(labels)),
        "1 labels differ from the answers' tokens": corrupt(good, labels=[*labels[:-2], 9, labels[-1]]),
        "stands twice in a row": corrupt(good, input_ids=[1, *ids], labels=[IGNORED, *labels]),
        "the prompt differs from what inference sends": corrupt(good, input_ids=[1, 50, *ids[2:]]),
        "the trained ids read": corrupt(good, input_ids=[*ids[:-2], 50, 2], labels=[*labels[:-2], 50, 2]),
        "1 labels differ from the answers' tokens, which alone": corrupt(good, labels=[*labels[: first - 1], ids[first - 1], *labels[first:]]),
        "does not end with a control token": corrupt(good, input_ids=[*ids[:-1], 50], labels=[*labels[:-1], 50]),
        "a control token stands inside the answer": corrupt(
            good, [(first, end + 1)], input_ids=[*ids[: end - 2], 2, 50, 2], labels=[*labels[: end - 2], 2, 50, 2]
        ),
    }  # fmt: skip
    for message, broken in cases.items():
        with pytest.raises(MaskError, match=f"test row 1: .*{message}"):
            check(broken, tokenizer)


def test_a_label_missing_at_the_end_is_found(tokenizer: Any) -> None:
    good = proof_of(RECORDS[0], tokenizer)
    assert isinstance(good.encoded, Encoded)
    with pytest.raises(MaskError, match="1 labels differ from the answers' tokens, which alone are trained"):
        check(corrupt(good, labels=[*good.encoded.labels[:-1], IGNORED]), tokenizer)


def test_a_tokenizer_that_cannot_write_the_text_is_found(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(record: Any, template: Any, _: Any) -> list[Segment]:
        return [Segment(text="Q"), Segment(text="another answer", is_target=True, ends_turn=True)]

    monkeypatch.setattr(encode, "render", lossy)
    monkeypatch.setattr(encode, "render_prompt", lambda *_: [Segment(text="Q")])
    with pytest.raises(MaskError, match="test row 1: the trained ids read 'another answer', the record says"):
        encode_rows(rows(RECORDS[0]), ALPACA, tokenizer, cutoff_len=99, truncation="drop")


def test_spaces_that_sentencepiece_folds_are_not_another_text(tokenizer: Any) -> None:
    good = proof_of({"instruction": "a", "input": "", "output": "b  c"}, tokenizer)
    check(dataclasses.replace(good, answers=[" b c"]), tokenizer)


def test_a_chat_template_that_cannot_be_trained_names_the_row(tokenizer: Any) -> None:
    with pytest.raises(MaskError, match="test row 1: --template chat needs a tokenizer with a chat template"):
        encode_rows(rows(RECORDS[0]), CHAT, tokenizer, cutoff_len=99, truncation="drop")


def test_a_generation_prompt_that_training_does_not_have_is_found(chat_tokenizer: Any) -> None:
    import copy

    thinks = copy.deepcopy(chat_tokenizer)
    thinks.chat_template = chat_tokenizer.chat_template.replace("assistant\n{% endif", "assistant\n<think>{% endif")
    with pytest.raises(MaskError, match="the prompt differs from what inference sends.*<think>"):
        encode_rows(rows(RECORDS[0]), CHAT, thinks, cutoff_len=99, truncation="drop")


def test_the_llama_tokenizer_is_proved_on_real_records(real_data: Path, tmp_path: Path) -> None:
    from utils.loading import choose
    from utils.models import get_model

    (tmp_path / "tokenizer.model").write_bytes((real_data / "checkpoints" / "llama.tokenizer.model").read_bytes())
    blank = '{"tokenizer_class": "LLaMATokenizer", "bos_token": "", "eos_token": "", "unk_token": ""}'
    (tmp_path / "tokenizer_config.json").write_text(blank)  # as the first conversions of LLaMA had it
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = choose(str(tmp_path), get_model("llama")).tokenizer()
    assert tokenizer("a")["input_ids"] == [1, 263]  # SentencePiece's own ids, after BOS
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<unk>")
    found = list(read_rows(real_data / "unified" / "cot_strategyqa_train.json"))
    encoded, dropped, _ = encode_rows(found, ALPACA, tokenizer, cutoff_len=512, truncation="drop")
    assert len(encoded) + sum(dropped.values()) == 2061
    encoded, _, _ = encode_rows(rows(*RECORDS), ALPACA, tokenizer, cutoff_len=512, truncation="drop")
    assert [row.input_ids[0] for row in encoded] == [1] * len(RECORDS)
    assert [row.labels[-1] for row in encoded] == [2] * len(RECORDS)
