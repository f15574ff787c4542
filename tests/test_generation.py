import io
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS, TINY_BASE
from tiny_families import CASES, make_family

import generate
from utils import generation
from utils.encode import encode_prompt
from utils.generation import Answer
from utils.loading import choose
from utils.models import get_model
from utils.stopping import Ends
from utils.templates import TEMPLATES

GREEDY = {"do_sample": False, "num_beams": 1, "max_new_tokens": 24}
PENALISED = {**GREEDY, "repetition_penalty": 1.8, "no_repeat_ngram_size": 3}
SAMPLED = {**PENALISED, "do_sample": True, "top_p": 0.9, "temperature": 2.0, "top_k": 40}
EOS = Ends(ids=[2])


@pytest.fixture(scope="module")
def base() -> Any:
    return choose(str(TINY_BASE), get_model("tiny")).load().eval()


@pytest.fixture(scope="module")
def random_base(llama_base: Path) -> Any:
    """It says anything, and rarely that it has ended."""
    return choose(str(llama_base), get_model("llama")).load().eval()


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [encode_prompt(record, TEMPLATES["alpaca"], tokenizer) for record in RECORDS]


def streamed(model: Any, tokenizer: Any, prompt: list[int], **options: Any) -> Answer:
    """The answer that a stream returns, which is the text that it gave."""
    returned: list[Answer] = []

    def whole() -> Any:
        returned.append((yield from generation.stream(model, tokenizer, prompt, **options)))

    assert "".join(whole()) == returned[0].text
    return returned[0]


@pytest.mark.parametrize("settings", [GREEDY, PENALISED, SAMPLED], ids=["greedy", "penalised", "sampled"])
@pytest.mark.parametrize("texts", [(), ("e", "\N{EARTH GLOBE ASIA-AUSTRALIA}")], ids=["EOS", "texts"])
def test_a_rows_answer_is_its_own(
    settings: Any, texts: Any, base: Any, random_base: Any, tokenizer: Any, prompts: Any
) -> None:
    """Whatever is beside it, whether it is streamed, and although rows leave the batch when they have ended."""
    for model in (base, random_base):
        ends, seeds = Ends(ids=[2, 300, 301, 302, 303, 304], texts=texts), list(range(len(prompts)))
        options: dict[str, Any] = {"ends": ends, "settings": settings}
        together = generation.generate(model, tokenizer, prompts, seeds=seeds, batch_size=5, **options)
        alone = [
            generation.generate(model, tokenizer, [ids], seeds=[seed], **options)[0]
            for ids, seed in zip(prompts, seeds, strict=True)
        ]
        shown = [streamed(model, tokenizer, ids, seed=s, **options) for ids, s in zip(prompts, seeds, strict=True)]
        assert together == alone == shown
        assert any(answer.text for answer in together)
    assert all(1 <= answer.new_tokens <= 24 for answer in together)


@pytest.mark.parametrize(("name", "number"), CASES, ids=lambda value: str(value))
def test_every_family_answers_in_a_batch_as_alone(name: str, number: int, tmp_path: Path) -> None:
    """Prefix attention, ALiBi, shared heads, two-dimensional positions: left padding and leaving rows change nothing."""
    chosen = choose(str(make_family(name, tmp_path / "模型", number)), get_model(name), precision="fp32")
    model, tokenizer = chosen.load().eval(), chosen.tokenizer()
    template = TEMPLATES[get_model(name).template]
    asked = [encode_prompt(record, template, tokenizer) for record in RECORDS[:5]]
    settings = {**GREEDY, "max_new_tokens": 8}
    probe = generation.generate(model, tokenizer, asked[:2], ends=Ends(ids=[-1]), settings=settings)
    assert [answer.new_tokens for answer in probe] == [8, 8]
    # Ids that some of the rows say early, so that they leave the others.
    likely = tokenizer(probe[0].text, add_special_tokens=False)["input_ids"][:1]
    options: dict[str, Any] = {"ends": Ends(ids=likely or [2]), "settings": settings}
    together = generation.generate(model, tokenizer, asked, **options)
    assert together == [generation.generate(model, tokenizer, [ids], **options)[0] for ids in asked]


def test_padding_is_no_token_that_was_said(random_base: Any, tokenizer: Any, prompts: Any) -> None:
    """A penalty on repetitions would fall on the padding of shorter rows; where that is EOS, they would go on longer."""
    likely = generation.generate(random_base, tokenizer, prompts[:1], ends=EOS, settings=GREEDY)[0]
    ids = tokenizer(likely.text, add_special_tokens=False)["input_ids"]
    kept, tokenizer.pad_token_id = tokenizer.pad_token_id, ids[0]
    try:
        long = [*prompts[0], *prompts[1]]
        options: dict[str, Any] = {"ends": EOS, "settings": PENALISED}
        beside = generation.generate(random_base, tokenizer, [prompts[0], long], **options)[0]
        assert beside == generation.generate(random_base, tokenizer, [prompts[0]], **options)[0]
    finally:
        tokenizer.pad_token_id = kept


def test_only_new_tokens_come_back_and_stop_is_by_id(base: Any, tokenizer: Any, prompts: Any) -> None:
    six = {**GREEDY, "max_new_tokens": 6}
    answers = [answer.text for answer in generation.generate(base, tokenizer, prompts, ends=EOS, settings=six)]
    encoded = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    which = max(range(len(answers)), key=lambda i: len(encoded[i]))
    assert "### Response" not in answers[which]
    ids = encoded[which]
    (short,) = generation.generate(base, tokenizer, [prompts[which]], ends=EOS, settings={**six, "max_new_tokens": 1})
    assert (short.finish_reason, short.new_tokens) == ("length", 1)
    ends = Ends(ids=[2, ids[1]])
    (cut,) = generation.generate(base, tokenizer, [prompts[which]], ends=ends, settings=GREEDY)
    assert cut.text == tokenizer.decode(ids[: ids.index(ids[1])])
    assert (cut.finish_reason, cut.prompt_tokens) == ("stop", len(prompts[which]))


def test_a_text_that_ends_an_answer_is_not_shown_in_part(random_base: Any, tokenizer: Any, prompts: Any) -> None:
    whole = streamed(random_base, tokenizer, prompts[0], ends=EOS, settings=GREEDY).text
    for start in range(1, len(whole) - 2):
        text = whole[start : start + 3]
        ends = Ends(ids=[2], texts=(text,))
        answer = streamed(random_base, tokenizer, prompts[0], ends=ends, settings=GREEDY)
        assert answer.text == whole[: whole.index(text)]
        assert answer.finish_reason == "stop"
        assert generation.generate(random_base, tokenizer, [prompts[0]], ends=ends, settings=GREEDY) == [answer]


def test_progress_is_told_and_the_longest_come_first(base: Any, tokenizer: Any, prompts: Any) -> None:
    done: list[int] = []
    generation.generate(base, tokenizer, prompts[:5], ends=EOS, settings=GREEDY, batch_size=2, on_batch=done.append)
    assert done == [2, 4, 5]
    lengths = [3, 9, 5, 9, 1, 5]
    assert list(generation.batches(lengths, 2, GREEDY, None)) == [[1, 3], [2, 5], [0, 4]]


def test_a_batch_has_no_more_positions_than_there_is_room_for() -> None:
    lengths, settings = [10, 20, 30, 40], {"max_new_tokens": 10}
    for room in (1, 50, 90, 100, 1000):
        found = list(generation.batches(lengths, 32, settings, room))
        assert sorted(row for batch in found for row in batch) == [0, 1, 2, 3]
        for batch in found:
            longest = max(lengths[row] for row in batch)
            assert len(batch) == 1 or len(batch) * (longest + 10) <= room
    assert list(generation.batches(lengths, 32, settings, 100)) == [[3, 2], [1, 0]], "one that fits exactly is in"


def test_no_prompts_no_answers(base: Any, tokenizer: Any) -> None:
    assert generation.generate(base, tokenizer, [], ends=EOS, settings=GREEDY) == []


def test_beams_are_one_piece_and_the_same_in_a_batch(random_base: Any, tokenizer: Any, prompts: Any) -> None:
    beams = {**GREEDY, "num_beams": 2, "max_new_tokens": 6}
    together = generation.generate(random_base, tokenizer, prompts[:3], ends=EOS, settings=beams)
    assert together == [streamed(random_base, tokenizer, ids, ends=EOS, settings=beams) for ids in prompts[:3]]
    pieces = list(generation.stream(random_base, tokenizer, prompts[0], ends=EOS, settings=beams))
    assert len(pieces) == 1


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_sample_follows_its_rows_seed_alone(num_beams: int, random_base: Any, tokenizer: Any, prompts: Any) -> None:
    settings = {**SAMPLED, "num_beams": num_beams, "max_new_tokens": 8}

    def said(rows: list[int], seeds: list[int]) -> list[str]:
        asked = [prompts[row] for row in rows]
        found = generation.generate(random_base, tokenizer, asked, ends=EOS, settings=settings, seeds=seeds)
        return [answer.text for answer in found]

    first = said([0, 1], [1, 1])
    assert said([1, 0], [1, 1]) == first[::-1]
    assert said([0], [1]) == first[:1] != said([0], [2])


@pytest.mark.parametrize("decode", [generation.generate, generation.stream])
def test_a_prompt_that_does_not_fit_is_refused(decode: Any, base: Any, tokenizer: Any) -> None:
    prompt = [[5] * 500] if decode is generation.generate else [5] * 500
    with pytest.raises(
        ValueError, match="the prompt has 500 tokens; with --max_new_tokens 24 .*context of 512: shorten"
    ):
        list(decode(base, tokenizer, prompt, ends=EOS, settings=GREEDY))


def test_a_family_without_position_limit(bloom_base: Path) -> None:
    assert generation.context_length(choose(str(bloom_base), get_model("bloom")).load()) is None


def test_an_error_while_streaming_reaches_the_reader(base: Any, tokenizer: Any, prompts: Any) -> None:
    with pytest.raises(ValueError, match="no_such_setting"):
        list(generation.stream(base, tokenizer, prompts[0], ends=EOS, settings={**GREEDY, "no_such_setting": 1}))


def test_who_stops_reading_stops_the_decoding(random_base: Any, tokenizer: Any, prompts: Any) -> None:
    steps: list[int] = []
    long = {**GREEDY, "max_new_tokens": 400}
    hook = random_base.register_forward_hook(lambda *_: steps.append(1))
    try:
        stream = generation.stream(random_base, tokenizer, prompts[0], ends=EOS, settings=long)
        next(stream)
        stream.close()
        seen = len(steps)
        assert seen < 200
    finally:
        hook.remove()
    assert len(steps) == seen, "nothing is decoded any more"


def test_a_question_that_does_not_fit_does_not_end_the_loop(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--lora_dir", str(finished), "--greedy", "--max_new_tokens", "2"]
    long = "太长 🌏 " * 300
    shown = []
    for questions in ("Hi\n你好\n", f"Hi\n{long}\n你好\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(questions))
        assert generate.main(asked) == 0
        shown.append(capsys.readouterr())
    first, last = shown[0].out.split("\n")[:2]
    assert shown[1].out == f"{first}\n\n{last}\n"
    assert "error" not in shown[0].err
    (line,) = [line for line in shown[1].err.splitlines() if "error" in line]
    assert line.startswith("error: the prompt has ")
    assert line.endswith("shorten the prompt or lower --max_new_tokens")
    (tmp_path / "q.txt").write_text(f"{long}\nHi\n", encoding="utf-8")
    for one in (["--instruction", long], ["--prompts_file", str(tmp_path / "q.txt")]):
        assert generate.main([*asked, *one]) == 1
        assert "error: the prompt has " in capsys.readouterr().err
