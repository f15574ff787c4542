"""ChatGLM-6B's tokenizer: the ids of its layout, what stands around a prompt, and text that stays text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from conftest import RECORDS
from sentencepiece_models import CHATGLM_CONTROLS, LAYOUT, SAYINGS, train, train_chatglm

from utils.chatglm.tokenization import ChatGLMTokenizer
from utils.encode import Encoder, encode_prompt
from utils.readers import Row
from utils.templates import TEMPLATES
from utils.tokens import Codec, control_ids, prefix_ids

CONFIG = {
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "end_token": "</s>",
    "gmask_token": "[gMASK]",
    "mask_token": "[MASK]",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "remove_space": False,
    "do_lower_case": False,
    "tokenizer_class": "ChatGLMTokenizer",
    "num_image_tokens": 0,
    "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chatglm")
    train_chatglm(directory / "ice_text.model")
    (directory / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return directory


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return ChatGLMTokenizer.from_pretrained(checkpoint)


def ids_of(tokenizer: Any, text: str, *, literally: bool = True, dressed: bool = False) -> list[int]:
    return tokenizer(text, add_special_tokens=dressed, split_special_tokens=literally)["input_ids"]


def test_control_tokens_have_the_ids_of_their_pieces(tokenizer: Any, checkpoint: Path) -> None:
    sp = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "ice_text.model"))
    found = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id, tokenizer.gmask_token_id)
    assert found == tuple(sp.piece_to_id(name) for name in ("<sop>", "<eop>", "[MASK]", "[gMASK]"))
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.end_token_id) == (3, 0, 2)
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab()) == sp.get_piece_size()
    assert control_ids(tokenizer) == {sp.piece_to_id(name) for name in ("<s>", "</s>", "<pad>", *CHATGLM_CONTROLS)}


@pytest.mark.parametrize("text", SAYINGS)
def test_a_prompt_ends_with_gmask_and_sop(tokenizer: Any, text: str) -> None:
    plain = ids_of(tokenizer, text)
    assert ids_of(tokenizer, text, dressed=True) == [*plain, tokenizer.gmask_token_id, tokenizer.bos_token_id]
    assert prefix_ids(tokenizer) == []


@pytest.mark.parametrize("text", SAYINGS)
def test_what_was_typed_stays_text(tokenizer: Any, text: str) -> None:
    ids = ids_of(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert not control_ids(tokenizer) & set(ids)
    num_layout = sum(name in LAYOUT for name in tokenizer.convert_ids_to_tokens(ids))
    assert num_layout == 0 or any(character in text for character in ("\n", "\t", "  "))
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text, split_special_tokens=True)) == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_what_a_template_writes_is_meant(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, "[gMASK]<sop>a<n>b<eop>", literally=False)
    names = tokenizer.convert_ids_to_tokens(ids)
    assert names[:2] == ["[gMASK]", "<sop>"]
    assert names[-1] == "<eop>"
    assert names.count("<n>") == 1
    assert tokenizer.decode(ids) == "[gMASK]<sop>a\nb<eop>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a\nb"
    assert tokenizer.decode([len(tokenizer) + 50, *ids_of(tokenizer, "a")]) == "a"


@pytest.mark.parametrize("text", [text for text in SAYINGS if not {"<", "["} & set(text)])
def test_without_marks_in_it_a_text_has_one_reading(tokenizer: Any, text: str) -> None:
    assert ids_of(tokenizer, text, literally=True) == ids_of(tokenizer, text, literally=False)


@pytest.mark.parametrize("config", [{"num_image_tokens": 20000}, {"num_image_tokens": None}])
def test_the_first_release_counts_image_tokens_first(
    tokenizer: Any, checkpoint: Path, tmp_path: Path, config: Any
) -> None:
    shutil.copy(checkpoint / "ice_text.model", tmp_path)
    stated = {name: value for name, value in {**CONFIG, **config}.items() if value is not None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    shifted = ChatGLMTokenizer.from_pretrained(tmp_path)
    for text in SAYINGS:
        ids = ids_of(shifted, text, dressed=True)
        assert ids == [i + 20000 for i in ids_of(tokenizer, text, dressed=True)]
        assert shifted.decode(ids, skip_special_tokens=True) == text
    assert shifted.vocab_size == tokenizer.vocab_size + 20000
    assert shifted.convert_ids_to_tokens(7) == "<image_7>"


def test_the_first_releases_file_gets_the_pieces_that_its_code_added(tmp_path: Path) -> None:
    path = train_chatglm(tmp_path / "ice_text.model", complete=False)
    num_pieces = sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()
    config = {**CONFIG, "eos_token": "</s>", "eop_token": "<eop>", "num_image_tokens": 20000}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    made = ChatGLMTokenizer.from_pretrained(tmp_path)
    added = made.convert_ids_to_tokens([20000 + num_pieces + k for k in range(8 + 80 + 256)])
    assert added == [*CHATGLM_CONTROLS, *LAYOUT[1:], *(f"<0x{byte:02X}>" for byte in range(256))]
    # The first release's vocabulary: 130000 pieces make [MASK] 150000, [gMASK] 150001, <sop> 150004, <eop> 150005.
    assert made.gmask_token_id == 20000 + num_pieces + 1
    assert made.eos_token == "<eop>"
    for text in SAYINGS:
        assert made.decode(ids_of(made, text)) == text


def test_saved_and_read_back_it_is_the_same(tokenizer: Any, tmp_path: Path, checkpoint: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = ChatGLMTokenizer.from_pretrained(tmp_path)
    assert (tmp_path / "ice_text.model").read_bytes() == (checkpoint / "ice_text.model").read_bytes()
    assert [ids_of(again, text, dressed=True) for text in SAYINGS] == [
        ids_of(tokenizer, t, dressed=True) for t in SAYINGS
    ]
    assert again.definition == tokenizer.definition
    assert again.get_vocab() == tokenizer.get_vocab()
    assert "auto_map" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_batches_are_padded_on_the_left(tokenizer: Any) -> None:
    batch = tokenizer(["你好", "Name a colour."], padding=True)
    short, long = batch["input_ids"]
    assert len(short) == len(long)
    assert short[0] == tokenizer.pad_token_id
    assert short[-2:] == long[-2:] == [tokenizer.gmask_token_id, tokenizer.bos_token_id]
    assert batch["attention_mask"][0].count(0) == short.count(tokenizer.pad_token_id)


def test_rows_of_every_text_are_proved(tokenizer: Any) -> None:
    records = [*RECORDS, *({"instruction": text or "?", "input": text, "output": text} for text in SAYINGS)]
    encoder = Encoder(TEMPLATES["alpaca"], tokenizer, cutoff_len=4096, truncation="drop")
    for record, outcome in zip(records, encoder([Row(record=r, origin="row") for r in records]), strict=True):
        assert outcome.encoded
        ids, answer = outcome.encoded.input_ids, ids_of(tokenizer, record["output"])
        prompt = encode_prompt(record, TEMPLATES["alpaca"], tokenizer)
        assert ids == [*prompt, *answer, tokenizer.eos_token_id]
        assert prompt[-2:] == [tokenizer.gmask_token_id, tokenizer.bos_token_id]
        assert tokenizer.decode(answer) == record["output"]


def test_the_codec_gives_the_same_for_many_texts_at_once(tokenizer: Any) -> None:
    codec = Codec(tokenizer)
    for has_control in (False, True):
        ids = codec.ids(SAYINGS, has_control=has_control)
        assert ids == [ids_of(tokenizer, text, literally=not has_control) for text in SAYINGS]
        assert codec.texts(ids) == [tokenizer.decode(row) for row in ids]


@pytest.mark.parametrize("text", ["Name a colour, so on.", "把这句话翻译成英文。", "Hello 🌏 世界", "a\n\tb  c"])
def test_a_stream_is_the_text(tokenizer: Any, text: str) -> None:
    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    streamer.put(FakeTensor(ids_of(tokenizer, "?", dressed=True)))
    for token_id in [*ids_of(tokenizer, text), tokenizer.eos_token_id]:
        streamer.put(FakeTensor([token_id]))
    streamer.end()
    pieces = list(streamer)
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 1
    assert not any("\ufffd" in piece for piece in pieces)


class FakeTensor(list[int]):
    """What a streamer asks of a tensor of ids."""

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    def tolist(self) -> list[int]:
        return list(self)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"do_lower_case": True}, "do_lower_case is true"), ({"remove_space": True}, "remove_space is true")],
)
def test_options_that_would_change_a_text_are_refused(checkpoint: Path, config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"tokenizer_config.json: {message}, but this tokenizer changes no text"):
        ChatGLMTokenizer.from_pretrained(checkpoint, **config)


def test_a_vocabulary_of_another_model_is_named(tmp_path: Path) -> None:
    train(tmp_path / "ice_text.model")
    with pytest.raises(ValueError, match=r"ice_text.model: it has '<0x00>' but no '\[gMASK\]'; download it again"):
        ChatGLMTokenizer.from_pretrained(tmp_path)


def test_the_real_tokenizer_config_is_understood(real_data: Path, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint / "ice_text.model", tmp_path)
    shutil.copy(real_data / "checkpoints" / "chatglm-6b.tokenizer_config.json", tmp_path / "tokenizer_config.json")
    made = ChatGLMTokenizer.from_pretrained(tmp_path)
    assert (made.bos_token, made.eos_token, made.pad_token_id) == ("<sop>", "<eop>", 3)
    assert ids_of(made, "你好", dressed=True)[-2:] == [made.gmask_token_id, made.bos_token_id]
