"""What a person types comes back to the character, and never becomes a piece that means something."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece_models import CHATGLM_CONTROLS, LAYOUT, SAYINGS, train, train_chatglm

from utils.pieces import Pieces, read_model

MEANT = {"\n": "<n>", "\t": "<|tab|>", **{" " * n: f"<|blank_{n}|>" for n in range(2, 81)}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("plain") / "tokenizer.model")


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def laid_out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    path = train_chatglm(tmp_path_factory.mktemp("laid_out") / "ice_text.model", model_type=request.param)
    return Pieces(path.read_bytes(), layout=MEANT)


@pytest.mark.parametrize("text", SAYINGS)
def test_ids_are_sentencepieces_own(plain: Path, text: str) -> None:
    expected = sentencepiece.SentencePieceProcessor(model_file=str(plain)).encode(text)
    pieces = Pieces(plain.read_bytes(), guarded=["</s>", "<nowhere>"])
    assert pieces.encode(text) == pieces.encode_literally(text) == expected
    assert pieces.decode(expected, {}) == text


@pytest.mark.parametrize("text", SAYINGS)
def test_what_was_typed_is_read_back(laid_out: Pieces, text: str) -> None:
    ids = laid_out.encode_literally(text)
    assert laid_out.decode(ids, {}) == text
    names = [laid_out.texts[i] for i in ids]
    assert [name for name in names if name in LAYOUT] == [MEANT[w] for w in re.findall(r" {2,80}|\n|\t", text)]
    assert not set(names) & {*CHATGLM_CONTROLS, "<unk>"}


def test_layout_is_one_piece_and_the_longest(laid_out: Pieces) -> None:
    text = "a" + " " * 83 + "b\n\tc"
    names = [laid_out.texts[i] for i in laid_out.encode(text)]
    assert [name for name in names if name in LAYOUT] == ["<|blank_80|>", "<|blank_3|>", "<n>", "<|tab|>"]
    assert laid_out.encode(text) == laid_out.encode_literally(text)


def test_a_piece_written_out_is_the_piece_unless_taken_literally(laid_out: Pieces) -> None:
    newline = laid_out.ids["<n>"]
    assert newline in laid_out.encode("a<n>b")
    assert newline not in laid_out.encode_literally("a<n>b")
    assert laid_out.decode(laid_out.encode("a<n>b"), {}) == "a\nb"
    assert laid_out.decode(laid_out.encode_literally("a<n>b"), {}) == "a<n>b"


WRITTEN = st.sampled_from([*"an<>|[]_3 \n\t你🌏", "<n>", "<|tab|>", "<|blank_3|>", "[gMASK]", "<sop>"])


@given(st.lists(WRITTEN).map("".join))
@settings(deadline=None, max_examples=300, derandomize=True)
def test_any_text_is_read_back(laid_out_once: Pieces, text: str) -> None:
    ids = laid_out_once.encode_literally(text)
    assert laid_out_once.decode(ids, {}) == text
    written = [laid_out_once.texts[i] for i in ids if laid_out_once.texts[i] in {*LAYOUT, *CHATGLM_CONTROLS}]
    assert written == [MEANT[run] for run in re.findall(r" {2,80}|\n|\t", text)]


@pytest.fixture(scope="module")
def laid_out_once(tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    """Control tokens that are found in a text, as some vocabularies have them."""
    path = train_chatglm(
        tmp_path_factory.mktemp("once") / "m", control_symbols=[], user_defined_symbols=[*LAYOUT, *CHATGLM_CONTROLS]
    )
    return Pieces(path.read_bytes(), layout=MEANT, guarded=CHATGLM_CONTROLS)


def test_a_normaliser_cannot_write_a_guarded_piece(tmp_path: Path) -> None:
    path = train_chatglm(
        tmp_path / "m",
        normalization_rule_name="nfkc",
        control_symbols=[],
        user_defined_symbols=[*LAYOUT, *CHATGLM_CONTROLS],
    )
    pieces = Pieces(path.read_bytes(), layout=MEANT, guarded=CHATGLM_CONTROLS)
    typed = "a\n＜ｓｏｐ＞b　＜ｎ＞"
    assert {"<sop>", "<n>"} <= {pieces.texts[i] for i in pieces.encode(typed)}, "the trap is there"
    names = [pieces.texts[i] for i in pieces.encode_literally(typed)]
    assert "<sop>" not in names
    assert names.count("<n>") == 1
    assert pieces.decode(pieces.encode_literally(typed), {}) == "a\n<sop>b <n>"


def test_blanks_at_the_ends_of_parts_stay(tmp_path: Path) -> None:
    """With a normaliser that drops blanks at the ends of a text, parts of a text must not end in one."""
    path = train_chatglm(tmp_path / "m", remove_extra_whitespaces=True)
    pieces = Pieces(path.read_bytes(), layout=MEANT)
    for text in ("a <n> b", "a <|blank_2|> b", "x\n <n> \n y"):
        assert pieces.decode(pieces.encode_literally(text), {}) == text


def test_bytes_join_and_broken_ones_show(plain: Path) -> None:
    pieces = Pieces(plain.read_bytes())
    whole = pieces.encode("🌏")
    assert len(whole) == 5  # the blank and four bytes
    assert pieces.decode(whole, {}) == "🌏"
    assert pieces.decode(whole[:-1], {}) == "\ufffd"
    assert pieces.decode([*whole[:-1], *pieces.encode("a")], {}) == "\ufffd a"


def test_only_one_blank_is_left_out_and_only_at_a_beginning(plain: Path) -> None:
    pieces = Pieces(plain.read_bytes())
    a, control = pieces.encode(" a"), pieces.ids["</s>"]
    assert pieces.decode(a, {}) == " a"
    assert pieces.decode([*a, *a], {}) == " a  a"
    assert pieces.decode([*a, control, *a], {control: "</s>"}) == " a</s> a"
    assert pieces.decode([*a, control, *a], {control: ""}) == " a a"
    assert pieces.decode([len(pieces), -1, *a], {}) == " a"


def test_a_vocabulary_without_the_blank_puts_none_and_drops_none(tmp_path: Path) -> None:
    pieces = Pieces(train(tmp_path / "m", add_dummy_prefix=False).read_bytes())
    for text in ("a", " a", "  a"):
        assert pieces.decode(pieces.encode(text), {}) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file or directory; download"), (b"{}", r"not a SentencePiece model \(2 bytes\); download")],
)
def test_a_file_that_is_no_vocabulary_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"tokenizer.model: {message} the checkpoint's tokenizer again"):
        read_model(path)
