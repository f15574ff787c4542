import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECORDS, finetune

import generate
from utils import adapters, folding, generation
from utils.assistant import BASE, Assistant, open_run
from utils.generation import Answer, Failure

GREEDY = {"do_sample": False, "num_beams": 1, "max_new_tokens": 8}
QUESTIONS = [{"instruction": record["instruction"], "input": record["input"]} for record in RECORDS]


@pytest.fixture(scope="module")
def other(llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second run on the base of `finished`."""
    folder = tmp_path_factory.mktemp("other")
    data = folder / "records.json"
    data.write_text(json.dumps(RECORDS[::-1], ensure_ascii=False), encoding="utf-8")
    shape = ["--per_gpu_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--max_steps", 6, "--val_set_size", 0]
    assert finetune(llama_base, data, folder / "另一个.run", *shape, "--seed", 7) == 0
    return folder / "另一个.run"


def texts(opened: Assistant, **options: Any) -> list[str]:
    return [answer.text for answer in opened.answers(QUESTIONS, GREEDY, **options)]


def test_several_adapters_over_one_base(finished: Path, other: Path) -> None:
    alone = {place: texts(open_run(place)) for place in (finished, other)}
    plain = texts(open_run(finished), adapter=BASE)
    assert plain not in alone.values()
    assert alone[finished] != alone[other]
    opened = open_run(finished, other)
    assert opened.names == ("run", "另一个.run")
    for _ in range(2):  # whoever answered before
        assert texts(opened) == alone[finished]
        assert texts(opened, adapter="另一个.run") == alone[other]
        assert texts(opened, adapter=BASE) == plain
    streamed = "".join(opened.stream(QUESTIONS[0], GREEDY, adapter="另一个.run"))
    assert streamed == alone[other][0]
    with pytest.raises(ValueError, match="unknown adapter '另一个' in what is loaded"):
        texts(opened, adapter="另一个")


def test_names_are_told_apart(finished: Path) -> None:
    assert open_run(finished, finished, finished).names == ("run", "run-2", "run-3")


def test_a_merged_adapter_answers_the_same(finished: Path) -> None:
    beside, merged = open_run(finished), open_run(finished, merge=True)
    assert not folding.adapted_layers(merged.model)
    ids = torch.tensor([beside.prompt_ids(QUESTIONS[1])])
    with torch.no_grad():
        expected, found = beside.model(input_ids=ids).logits, merged.model(input_ids=ids).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert texts(merged) == texts(beside)
    with pytest.raises(ValueError, match="was merged into the base, which cannot answer any more: --merge_adapter off"):
        texts(merged, adapter=BASE)


def test_in_16_bits_it_stays_beside(finished: Path) -> None:
    assert folding.adapted_layers(open_run(finished, merge=True, precision="bf16").model)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_base_in_fewer_bits_answers(bits: int, finished: Path) -> None:
    opened = open_run(finished, quantization_bit=bits, merge=True)
    assert folding.adapted_layers(opened.model)
    assert len(texts(opened)) == len(QUESTIONS)


def test_a_row_that_fails_fails_alone(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_run(finished)
    prompts = [opened.prompt_ids(record) for record in QUESTIONS]
    expected = opened.answers(QUESTIONS, GREEDY)
    real, sizes = generation.generate, []

    def tight(model: Any, tokenizer: Any, asked: Any, **options: Any) -> list[Answer]:
        sizes.append(len(asked))
        if prompts[2] in list(asked):
            raise RuntimeError("CUDA out of memory.\n  Tried to allocate")
        return real(model, tokenizer, asked, **options)

    monkeypatch.setattr(generation, "generate", tight)
    done: list[int] = []
    found = opened.answer_each(prompts, GREEDY, ends=opened.ends(), on_batch=done.append)
    assert found[2] == Failure(message="CUDA out of memory. Tried to allocate")
    assert [answer for i, answer in enumerate(found) if i != 2] == [a for i, a in enumerate(expected) if i != 2]
    assert len(sizes) <= 8, "not every row by itself"
    assert max(done) <= len(prompts)


def test_a_prompt_is_cut_as_training_cuts_it(finished: Path) -> None:
    opened = open_run(finished)
    record = {"instruction": "很长 🌏 " * 300, "input": ""}
    whole = opened.prompt_ids(record)
    with pytest.raises(ValueError, match="the prompt has .* tokens; with --max_new_tokens 12"):
        opened.fitting_prompt(record, 12, cut=False)
    kept, cut = opened.fitting_prompt(record, 12, cut=True)
    assert len(kept) == 500 == len(whole) - cut
    assert kept[0] == whole[0] == opened.tokenizer.bos_token_id
    assert kept[1:] == whole[-499:]
    assert opened.fitting_prompt(QUESTIONS[0], 12, cut=True) == (opened.prompt_ids(QUESTIONS[0]), 0)
    with pytest.raises(ValueError, match="no room for a prompt: 0 tokens are left to it; lower --max_new_tokens"):
        opened.fitting_prompt(record, 512, cut=True)
    assert adapters.context_length(opened.model) == 512


def test_generate_compares(
    finished: Path, other: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    asked = ["--greedy", "--max_new_tokens", "8", "--instruction", "你好 🌏", "--lora_dir"]
    assert generate.main([*asked, str(finished), str(other), "--compare"]) == 0
    head = capsys.readouterr().out.splitlines()[1]
    assert [name.strip() for name in head.split("|")[1:-1]] == ["base", "run", "另一个.run"]
    shown = []
    for place in (finished, other):
        assert generate.main([*asked, str(place)]) == 0
        shown.append(capsys.readouterr().out.rstrip("\n"))
    monkeypatch.setenv("COLUMNS", "40")
    assert generate.main([*asked, str(finished), str(other), "--compare"]) == 0
    out = capsys.readouterr().out
    assert f"## run\n{shown[0]}\n\n## 另一个.run\n{shown[1]}\n" in out


def test_a_default_that_a_small_context_has_no_room_for_is_lowered(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's first question, to a model of 512 positions."""
    opened = open_run(finished)
    assert opened.within_context({"max_new_tokens": 512, "top_k": 3}) == {"max_new_tokens": 256, "top_k": 3}
    assert opened.within_context({"max_new_tokens": 511}) == {"max_new_tokens": 511}, "what is asked for is kept"
    assert generate.main(["--lora_dir", str(finished), "--greedy", "--instruction", "你好 🌏"]) == 0
    assert capsys.readouterr().out
