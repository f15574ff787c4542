import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS, TINY_BASE
from sentencepiece_models import SAYINGS, train

import generate
from utils import generation
from utils.encode import encode_prompt
from utils.loading import choose
from utils.models import get_model
from utils.slow_tokenizers import SLOW_TOKENIZERS
from utils.templates import TEMPLATES

GREEDY = {"do_sample": False, "num_beams": 1, "max_new_tokens": 24}
CODE = "def f(x):\n    if x:\n\t\treturn  x\n\n  # 你好，世界 龘\n      🌏👩‍👩‍👧\n é\n  "


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


@pytest.fixture(scope="module")
def speaker() -> Any:
    """A random Llama with room for every vocabulary here; it says what it is told to (`saying`)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32_000, max_position_embeddings=2048, **shape)).eval()


def words() -> Any:
    """Whole words, which are joined by blanks; transformers would clean those up before a mark."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    named = ["<pad>", "<unk>", "</s>", *"abcdef.,!你🌏", "n't", "'s"]
    made: Any = Tokenizer(WordPiece({name: i for i, name in enumerate(named)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece(cleanup=False)
    roles = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=True, **roles)


@pytest.fixture(scope="module", params=["bytes", "exact", "rust", "one blank fewer", "words", "real"])
def spoken(request: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of each kind: they differ in what they think the beginning of a text, and in broken bytes."""
    if request.param in ("bytes", "words"):
        return tokenizer if request.param == "bytes" else words()
    folder = tmp_path_factory.mktemp("spoken")
    if request.param == "real":
        checkpoints = request.getfixturevalue("real_data") / "checkpoints"
        (folder / "tokenizer.model").write_bytes((checkpoints / "llama.tokenizer.model").read_bytes())
    else:
        train(folder / "tokenizer.model", add_dummy_prefix=request.param != "one blank fewer")
    row = SLOW_TOKENIZERS["llama"]
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    made = (row.exact if request.param == "exact" else row).from_pretrained(folder)
    assert made.is_fast == (request.param != "exact")
    made.pad_token = "<unk>"
    return made


def saying(ids: Sequence[int], end: int = 2) -> dict[str, Any]:
    """Settings with which a model that is asked `[5, 6]` says `ids`."""
    script = [*ids, end]
    return {
        **GREEDY,
        "max_new_tokens": len(script),
        "prefix_allowed_tokens_fn": lambda _, so_far: [script[min(len(so_far) - 2, len(script) - 1)]],
    }


def said(model: Any, tokenizer: Any, ids: Sequence[int], *, stop_ids: Sequence[int] = (2,)) -> tuple[str, list[str]]:
    """The answer `ids` as `generate` gives it, and streamed."""
    settings = saying(ids)
    (whole,) = generation.generate(model, tokenizer, [[5, 6]], stop_ids=stop_ids, settings=settings)
    return whole, list(generation.stream(model, tokenizer, [5, 6], stop_ids=stop_ids, settings=settings))


@pytest.mark.parametrize("text", [CODE, CODE[::-1], *SAYINGS], ids=repr)
def test_a_streamed_text_is_the_text(text: str, speaker: Any, spoken: Any) -> None:
    ids = spoken(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    whole, pieces = said(speaker, spoken, ids)
    assert "".join(pieces) == whole
    assert "" not in pieces
    if len(spoken) > 100:  # the few whole words are not all that is written here
        assert whole == text, "nothing is lost, at no line's beginning"
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces), "characters come whole"
        assert len(pieces) >= min(len(text.split()), 5), "piece by piece"


def test_streamed_ids_that_are_no_text_are_what_generate_makes_of_them(speaker: Any, spoken: Any) -> None:
    """Broken characters, control tokens between bytes, blanks at any place."""
    draw = random.Random(3)
    size = len(spoken)
    bytes_of = [i for i in range(size) if spoken.convert_ids_to_tokens(i)[:3] == "<0x"] or list(range(size))
    for few in (range(size), bytes_of, [*bytes_of[-80:], 0, 1], [0, 1, 3, 4, *range(min(260, size - 9), size)]):
        ids = [i for i in draw.choices(few, k=50) if i != 2]
        whole, pieces = said(speaker, spoken, ids)
        assert "".join(pieces) == whole


@pytest.mark.parametrize("between", [[], [1], [1, 1]], ids=["", "BOS", "BOS twice"])
def test_characters_that_break_off_are_what_generate_makes_of_them(
    between: list[int], speaker: Any, spoken: Any
) -> None:
    """What is wrong with a byte may show in the characters before it."""
    name = "<0x{:02X}>" if "<0x00>" in spoken.get_vocab() else None
    start = spoken("ok ", add_special_tokens=False)["input_ids"]
    for text in ("🌏", "é你", "\n🌏"):
        if name:
            ids = [spoken.convert_tokens_to_ids(name.format(byte)) for byte in text.encode()]
        else:
            ids = spoken(text, add_special_tokens=False)["input_ids"]
        for cut in range(len(ids)):
            for answer in ([*ids, *between, *ids[:cut]], [*ids, *between, *ids[:cut], *between, *start]):
                whole, pieces = said(speaker, spoken, [*start, *answer])
                assert "".join(pieces) == whole


def test_blanks_before_a_mark_stay(speaker: Any) -> None:
    ids = words()("a , b n't c . 🌏 !", add_special_tokens=False)["input_ids"]
    whole, pieces = said(speaker, words(), ids)
    assert "".join(pieces) == whole == "a , b n't c . 🌏 !"


def test_a_stop_that_is_a_word_is_not_shown(speaker: Any, spoken: Any) -> None:
    ids = spoken("a b c", add_special_tokens=False)["input_ids"]
    whole, pieces = said(speaker, spoken, [*ids, *ids], stop_ids=[2, ids[-1]])
    assert "".join(pieces) == whole == spoken.decode(ids[:-1])


def test_of_a_long_answer_only_the_end_is_decoded_again(
    speaker: Any, spoken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = spoken("a b c\n" * 60, add_special_tokens=False)["input_ids"]
    decode, lengths = spoken.decode, []

    def spy(some: Sequence[int], **options: Any) -> str:
        lengths.append(len(some))
        return decode(some, **options)

    monkeypatch.setattr(spoken, "decode", spy)
    assert "".join(generation.stream(speaker, spoken, [5, 6], stop_ids=[2], settings=saying(ids)))
    assert len(ids) > 150
    assert max(lengths) < 12


def test_what_fails_while_decoding_reaches_the_reader(
    speaker: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise ValueError("no such id")

    monkeypatch.setattr(tokenizer, "decode", broken)
    with pytest.raises(ValueError, match="no such id"):
        list(generation.stream(speaker, tokenizer, [5, 6], stop_ids=[2], settings=saying([300])))


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
