import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from sentencepiece_models import SAYINGS, train

from utils import generation
from utils.slow_tokenizers import SLOW_TOKENIZERS
from utils.stopping import Ends

CODE = "def f(x):\n    if x:\n\t\treturn  x\n\n  # 你好，世界 龘\n      🌏👩‍👩‍👧\n é\n  "


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
        "do_sample": False,
        "max_new_tokens": len(script),
        "prefix_allowed_tokens_fn": lambda _, so_far: [script[min(len(so_far) - 2, len(script) - 1)]],
    }


def said(model: Any, tokenizer: Any, ids: Sequence[int], *, stop_ids: Sequence[int] = (2,)) -> tuple[str, list[str]]:
    """The answer `ids` as `generate` gives it, and streamed."""
    settings = saying(ids)
    ends = Ends(ids=stop_ids)
    (whole,) = generation.generate(model, tokenizer, [[5, 6]], ends=ends, settings=settings)
    return whole.text, list(generation.stream(model, tokenizer, [5, 6], ends=ends, settings=settings))


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
    assert "".join(generation.stream(speaker, spoken, [5, 6], ends=Ends(ids=[2]), settings=saying(ids)))
    assert len(ids) > 150
    assert sorted(lengths)[-2] < 12, "all of it is decoded once, at the end"


def test_what_fails_while_decoding_reaches_the_reader(
    speaker: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise ValueError("no such id")

    monkeypatch.setattr(tokenizer, "decode", broken)
    with pytest.raises(ValueError, match="no such id"):
        list(generation.stream(speaker, tokenizer, [5, 6], ends=Ends(ids=[2]), settings=saying([300])))
