"""The Rust form gives SentencePiece's ids for any text, or there is none; what it saves, others read alike."""

from __future__ import annotations

import copy
import json
import pickle
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from sentencepiece_models import SAYINGS, TEXTS, train
from tokenizers import AddedToken

from utils.pieces import Pieces
from utils.rust_pieces import agrees, rust_form
from utils.slow_tokenizers import SLOW_TOKENIZERS, LlamaTokenizer
from utils.tokens import PROBE, Codec, fingerprint, prefix_ids

MARKS = ["<reserved_106>", "<reserved_107>", "<eoh>", "<eoa>", "<eo", "\n\n", "▁▁"]
BITS = [
    *"ab  \n\t1=-。你é龘🌏\u200b\x00",
    "  ",
    "---",
    "def ",
    "ha",
    *MARKS[:4],
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "sop",
]


def texts(pieces: Sequence[str], number: int) -> Iterator[str]:
    """`SAYINGS`, then as many texts of the vocabulary's pieces, of what is hard, and of any characters."""
    draw = random.Random(7)
    yield from SAYINGS
    for _ in range(number):
        length = draw.choice([1, 2, 5, 30, 120])
        yield "".join(draw.choices(pieces, k=length)).replace("▁", " ")
        yield "".join(draw.choices(BITS, k=length))
        yield "".join(
            chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x10FFFF)])) for _ in range(length)
        )


def form(path: Path) -> tuple[Any, Pieces]:
    pieces = Pieces(path.read_bytes())
    added = {i: AddedToken(pieces.texts[i], special=True) for i in [*pieces.controls, pieces.unknown]}
    made = rust_form(path.read_bytes(), pieces.texts, added, before=["<s>"], after=[])
    assert made is not None
    made.encode_special_tokens = True
    return made, pieces


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_dummy_prefix": False},
        {"user_defined_symbols": MARKS},
        {"user_defined_symbols": MARKS, "add_dummy_prefix": False},
        {"split_digits": True, "split_by_whitespace": False, "vocab_size": 700},
    ],
    ids=["llama", "no blank", "whole pieces", "whole pieces, no blank", "digits"],
)
def test_any_text_has_sentencepieces_ids_and_comes_back(tmp_path: Path, options: dict[str, Any]) -> None:
    made, pieces = form(train(tmp_path / "tokenizer.model", **options))
    sp = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in texts(pieces.texts, 500):
        ids = made.encode(text, add_special_tokens=False).ids
        assert ids == sp.encode(text), text
        assert made.decode(ids, skip_special_tokens=False) == pieces.decode(ids, {}) == text.replace("▁", " ")


def test_the_real_llama_vocabulary_has_sentencepieces_ids_and_comes_back(real_data: Path) -> None:
    made, pieces = form(real_data / "checkpoints" / "llama.tokenizer.model")
    for text in texts(pieces.texts, 1000):
        ids = made.encode(text, add_special_tokens=False).ids
        assert ids == pieces.encode(text), text
        assert made.decode(ids, skip_special_tokens=False) == text.replace("▁", " ")
    assert made.encode("").ids == [1]
    assert made.encode("a", "b").ids == [1, 263, 1, 289]


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {"normalization_rule_name": "nfkc"},
        {"remove_extra_whitespaces": True},
        {"byte_fallback": False, "vocab_size": 260},
        {"treat_whitespace_as_suffix": True},
    ],
    ids=lambda options: str(next(iter(options))),
)
def test_what_the_rust_library_cannot_say_stays_exact(tmp_path: Path, options: dict[str, Any]) -> None:
    train(tmp_path / "tokenizer.model", **options)
    made = SLOW_TOKENIZERS["llama"].from_pretrained(tmp_path)
    assert type(made) is LlamaTokenizer
    assert made.rust() is None


def changed(path: Path, added: Sequence[tuple[str, float, int]] = (), kinds: dict[str, int] | None = None) -> Path:
    """The model at `path` with more pieces (text, score, kind), and other kinds."""
    found: Any = sentencepiece_model_pb2
    proto = found.ModelProto.FromString(path.read_bytes())
    for text, score, kind in added:
        proto.pieces.add(piece=text, score=score, type=kind)
    for piece in proto.pieces:
        piece.type = (kinds or {}).get(piece.piece, piece.type)
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_control_token_that_merging_gives_too_stays_exact(tmp_path: Path) -> None:
    sop = Pieces(train(tmp_path / "tokenizer.model").read_bytes()).texts[270]
    added = {270: AddedToken(sop, special=True)}
    pieces = Pieces((tmp_path / "tokenizer.model").read_bytes())
    assert rust_form((tmp_path / "tokenizer.model").read_bytes(), pieces.texts, added, before=[], after=[]) is None


def test_pieces_that_are_taken_apart_or_cannot_be_spelt_stay_exact(tmp_path: Path) -> None:
    several: list[dict[str, Any]] = [{"kinds": {"er": 5}}, {"added": [("龘龘", -1.0, 1)]}]
    for changes in several:
        changed(train(tmp_path / "tokenizer.model"), **changes)
        made: Any = SLOW_TOKENIZERS["llama"].from_pretrained(tmp_path)
        assert made.__class__ is LlamaTokenizer
        assert Codec(made).texts(Codec(made).ids(["er 龘龘"], has_control=False)) == ["er 龘龘"]


def test_equal_scores_that_go_from_the_left_stay_exact(tmp_path: Path) -> None:
    """Vocabularies that were extended have such: of `ab` and `bc` with one score, the left one is merged first."""
    letters = "abcdefgh"
    pairs = [(x + y, 1.0, 1) for x in letters for y in letters]
    path = train(tmp_path / "tokenizer.model")
    known = set(Pieces(path.read_bytes()).texts)
    changed(path, [pair for pair in pairs if pair[0] not in known])
    made, pieces = form(path)
    differ = [
        text
        for text in texts(pieces.texts, 300)
        if made.encode(text, add_special_tokens=False).ids != pieces.encode(text)
    ]
    assert differ, "the trap is there"
    assert not agrees(made, lambda text, _: pieces.encode(text), lambda ids: pieces.decode(ids, {}), pieces.texts)
    assert type(SLOW_TOKENIZERS["llama"].from_pretrained(tmp_path)) is LlamaTokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a tiny vocabulary that says of itself what the first LLaMA's did: blank strings."""
    made = tmp_path_factory.mktemp("llama")
    train(made / "tokenizer.model", user_defined_symbols=MARKS[:4])
    blank = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "")
    (made / "tokenizer_config.json").write_text(json.dumps({**blank, "model_max_length": 77}))
    (made / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return made


CONTROLS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def load(directory: Path, kind: str = "llama", **options: Any) -> Any:
    return SLOW_TOKENIZERS[kind].from_pretrained(directory, **CONTROLS, **options)


@pytest.mark.parametrize("literally", [True, False])
@pytest.mark.parametrize("kind", ["llama", "baichuan", "baichuan2", "internlm"])
def test_a_familys_rust_form_gives_the_exact_ones_ids(kind: str, literally: bool, directory: Path) -> None:
    exact = SLOW_TOKENIZERS[kind].exact.from_pretrained(directory, **CONTROLS)
    rust = load(directory, kind)
    assert rust.is_fast
    assert not exact.is_fast
    assert Codec(rust)._backend is not None, "asked directly"
    assert len(rust) == rust.vocab_size == len(exact) == len(rust.get_vocab())
    names = ["chat_template", "padding_side", "all_special_tokens", "add_bos_token", "model_max_length", "eos_token_id"]
    assert [getattr(rust, name) for name in names] == [getattr(exact, name) for name in names]
    for text in texts(exact.pieces.texts, 100):
        ids = [made(text, split_special_tokens=literally)["input_ids"] for made in (rust, exact)]
        assert ids[0] == ids[1], text
        if literally:
            bare = rust(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ended = [*bare, rust.eos_token_id]
            assert rust.decode(ended) == exact.decode(ended) == text.replace("▁", " ") + "</s>"
            assert rust.decode(ended, skip_special_tokens=True) == text.replace("▁", " ")


def test_a_mark_typed_as_text_is_text(directory: Path) -> None:
    rust = load(directory, "baichuan2")
    user = rust.convert_tokens_to_ids("<reserved_106>")
    typed = rust("<reserved_106>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert user not in typed
    assert rust.decode(typed) == "<reserved_106>"
    assert rust("<reserved_106>你")["input_ids"][0] == user


@pytest.mark.parametrize("kind", ["llama", "baichuan2", "internlm"])
def test_plain_transformers_reads_what_is_saved(kind: str, directory: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rust = load(directory, kind)
    rust.pad_token = "<unk>"
    rust.save_pretrained(tmp_path)
    shutil.copy(directory / "config.json", tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (tmp_path / "tokenizer.model").read_bytes() == (directory / "tokenizer.model").read_bytes()
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert type(plain).__module__.startswith("transformers.")
    again = load(tmp_path, kind)
    assert fingerprint(again) == fingerprint(rust)
    assert [made.pad_token_id for made in (plain, again)] == [0, 0]
    assert plain.chat_template == again.chat_template == rust.chat_template
    again.save_pretrained(tmp_path)  # where it came from
    for text in [*SAYINGS, PROBE]:
        for literally in (True, False):
            options = {"split_special_tokens": literally}
            assert (
                plain(text, **options)["input_ids"]
                == again(text, **options)["input_ids"]
                == rust(text, **options)["input_ids"]
            )
        ids = rust(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert plain.decode(ids) == again.decode(ids) == text


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_whether_bos_is_put_is_kept(wanted: bool, exact: bool, directory: Path, tmp_path: Path) -> None:
    row = SLOW_TOKENIZERS["llama"]
    made = (row.exact if exact else row).from_pretrained(directory, **CONTROLS, add_bos_token=wanted)
    assert (prefix_ids(made), made.add_bos_token) == ([1] * wanted, wanted)
    made.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert (prefix_ids(again), again.add_bos_token) == ([1] * wanted, wanted)
    again.add_bos_token = not wanted
    assert prefix_ids(again) == [1] * (not wanted)


def test_what_is_no_bos_stays_before_a_text(tmp_path: Path) -> None:
    """ChatGLM2's `[gMASK] sop`, where no piece reads like one of them."""
    import sentencepiece_models

    words = [text for text in TEXTS if "sop" not in text]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentencepiece_models, "TEXTS", words)
        train(tmp_path / "tokenizer.model", vocab_size=480)
    rust = SLOW_TOKENIZERS["chatglm2"].from_pretrained(tmp_path)
    assert rust.is_fast
    before = rust.convert_tokens_to_ids(["[gMASK]", "sop"])
    rust.add_bos_token = True
    rust.save_pretrained(tmp_path)
    again = SLOW_TOKENIZERS["chatglm2"].from_pretrained(tmp_path)
    assert before == prefix_ids(rust) == prefix_ids(again) == [481, 483]


def test_copies_are_the_same(directory: Path) -> None:
    rust = load(directory)
    for other in (copy.deepcopy(rust), pickle.loads(pickle.dumps(rust))):
        assert fingerprint(other) == fingerprint(rust)
        assert other(PROBE)["input_ids"] == rust(PROBE)["input_ids"]


def test_a_saved_exact_one_loads_again(directory: Path, tmp_path: Path) -> None:
    exact = SLOW_TOKENIZERS["baichuan2"].exact.from_pretrained(directory, **CONTROLS)
    exact.save_pretrained(tmp_path)
    assert load(tmp_path, "baichuan2")(PROBE)["input_ids"] == exact(PROBE)["input_ids"]
