"""A continuation's likelihood is that of a plain forward pass, whatever shares its batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import make_family
from tiny_runs import PROMPT_METHODS, make_origin

from utils import adapters, loading, weighing
from utils.encode import encode_answer, encode_prompt
from utils.models import get_model
from utils.templates import get_template
from utils.weighing import Continued, Scales

QUESTIONS = ["Which floats? 🎈", "哪个会浮？", "A", "Sort: " + "b, " * 20]
OPTIONS = ["cork", "软木", "🌏 é", "a longer option than the others, in English", "A"]


@pytest.fixture(scope="session")
def bases(llama_base: Path, bloom_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "llama": llama_base,
        "bloom": bloom_base,
        "chatglm": make_family("chatglm", tmp_path_factory.mktemp("weighed") / "chatglm"),
    }


def loaded(family: str, place: Path) -> tuple[Any, Any]:
    """Model and tokenizer."""
    base = loading.choose(str(place), get_model(family), precision="fp32", quantization_bit=16)
    return base.load().eval(), base.tokenizer()


def pairs(family: str, tokenizer: Any) -> list[Continued]:
    template = get_template(get_model(family).template)
    records = [{"instruction": question, "input": ""} for question in QUESTIONS]
    return [
        Continued(
            prompt=encode_prompt(record, template, tokenizer),
            continuation=encode_answer(record, option, template, tokenizer),
        )
        for record in records
        for option in OPTIONS
    ]


@torch.no_grad()
def by_hand(model: Any, row: Continued) -> tuple[float, bool]:
    """From all logits of the row by itself."""
    ids = torch.tensor([[*row.prompt, *row.continuation]])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(row) :]
    chances = logits[len(row.prompt) - 1 : -1].double().log_softmax(-1)
    given = [chances[i, token].item() for i, token in enumerate(row.continuation)]
    return sum(given), chances.argmax(-1).tolist() == list(row.continuation)


@pytest.mark.parametrize("family", ["llama", "bloom", "chatglm"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_it_is_that_of_a_plain_forward_pass(family: str, batch_size: int, bases: dict[str, Path]) -> None:
    model, tokenizer = loaded(family, bases[family])
    rows = pairs(family, tokenizer)
    told: list[int] = []
    found = Scales(model, pad_id=tokenizer.pad_token_id, batch_size=batch_size).weigh(model, rows, told.append)
    for row, each in zip(rows, found, strict=True):
        total, is_greedy = by_hand(model, row)
        assert each.total == pytest.approx(total, abs=1e-3)
        assert each.is_greedy == is_greedy
    assert told[-1] == len(rows)
    assert told == sorted(told)


def test_what_the_model_says_itself_is_greedy(bases: dict[str, Path]) -> None:
    model, tokenizer = loaded("llama", bases["llama"])
    (first, *_) = pairs("llama", tokenizer)
    ids = torch.tensor([first.prompt])
    said = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=3)[0, len(ids[0]) :]
    rows = [Continued(prompt=first.prompt, continuation=said.tolist()), first]
    found = Scales(model, pad_id=3, batch_size=2).weigh(model, rows)
    assert [each.is_greedy for each in found] == [True, False]
    assert found[0].total == pytest.approx(by_hand(model, rows[0])[0], abs=1e-4)


@pytest.mark.parametrize("method", ["lora", *PROMPT_METHODS])
def test_behind_an_adapter_and_its_virtual_tokens(method: str, llama_base: Path, tmp_path: Path) -> None:
    origin = make_origin(llama_base, tmp_path, method=method)
    model = adapters.load_adapter(origin.base.load(), tmp_path)
    rows = pairs("llama", origin.tokenizer)
    found = Scales(model, pad_id=3, batch_size=4).weigh(model, rows)
    for row, each in zip(rows, found, strict=True):
        assert each.total == pytest.approx(by_hand(model, row)[0], abs=1e-3)
    with model.disable_adapter():
        plain = Scales(model, pad_id=3, batch_size=4).weigh(model, rows[:3])
    assert [each.total for each in plain] != [each.total for each in found[:3]]


def test_batches_keep_within_their_limits(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded("llama", bases["llama"])
    rows = pairs("llama", tokenizer)
    free = Scales(model, pad_id=3, batch_size=64)
    few = Scales(model, pad_id=3, batch_size=64, most_positions=2 * len(max(rows, key=len)))
    monkeypatch.setattr(weighing, "LOGIT_BYTES", 4 * model.config.vocab_size * 60)
    narrow = Scales(model, pad_id=3, batch_size=64)
    assert len(list(free._batches(rows))) == 1
    for batch in few._batches(rows):
        assert len(batch) * max(len(rows[i]) for i in batch) <= 2 * len(max(rows, key=len))
    for batch in narrow._batches(rows):
        assert sum(len(rows[i].continuation) for i in batch) <= 60 or len(batch) == 1
    assert [each.total for each in narrow.weigh(model, rows)] == pytest.approx(
        [each.total for each in free.weigh(model, rows)], abs=1e-3
    )
    assert free.weigh(model, []) == []


def test_a_row_that_does_not_fit_is_refused(bases: dict[str, Path]) -> None:
    model, _ = loaded("llama", bases["llama"])
    row = Continued(prompt=[5] * 510, continuation=[6] * 3)
    with pytest.raises(
        ValueError, match="the prompt has 510 tokens; with an option of 3 that is more than the model's"
    ):
        Scales(model, pad_id=3, batch_size=4).weigh(model, [row])
