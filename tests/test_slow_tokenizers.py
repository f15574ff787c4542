"""Tokenizers without their own code: SentencePiece's ids, and each family's frame and chat form."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from conftest import RECORDS
from sentencepiece_models import SAYINGS, train

from utils.encode import Encoder, encode_prompt, stop_ids
from utils.readers import Row
from utils.slow_tokenizers import SLOW_TOKENIZERS, BaichuanTokenizer
from utils.templates import TEMPLATES
from utils.tokens import control_ids, fingerprint, prefix_ids

OF_PIECES = ["chatglm2", "chatglm3", "baichuan", "baichuan2", "internlm", "internlm2"]
BEFORE = {
    "chatglm2": ["[gMASK]", "sop"],
    "chatglm3": ["[gMASK]", "sop"],
    "baichuan": [],
    "baichuan2": [],
    "internlm": ["<s>"],
    "internlm2": ["<s>"],
}
CHATML = {
    str(500 + k): {"content": name, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    for k, name in enumerate(("<|im_end|>", "<|im_start|>"))
}  # fmt: skip
CHAT = TEMPLATES["chat"]
ASKED = {"conversation": [{"role": "user", "content": "你好 </s> 👋"}]}
DIALOGUE = {
    "conversation": [
        *ASKED["conversation"],
        {"role": "assistant", "content": " 你好！<|user|>"},
        {"role": "user", "content": "<|assistant|>\n再说一次"},
        {"role": "assistant", "content": "ok"},
    ]
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each family with a vocabulary of its own kind."""
    root = tmp_path_factory.mktemp("checkpoints")
    marks = ["<reserved_106>", "<reserved_107>", "<eoh>", "<eoa>"]
    for kind in OF_PIECES:
        (root / kind).mkdir()
        train(root / kind / "tokenizer.model", user_defined_symbols=marks if kind[0] in "bi" else ["sop"])
        config = {"tokenizer_class": "Gone", "auto_map": {"AutoTokenizer": ["tokenization_gone.Gone", None]}}
        more = {"added_tokens_decoder": CHATML} if kind == "internlm2" else {}
        (root / kind / "tokenizer_config.json").write_text(json.dumps({**config, **more}))
    return root


@pytest.fixture(scope="module")
def tokenizers(checkpoints: Path) -> dict[str, Any]:
    return {kind: SLOW_TOKENIZERS[kind].from_pretrained(checkpoints / kind) for kind in OF_PIECES}


def sp_of(checkpoints: Path, kind: str) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(checkpoints / kind / "tokenizer.model"))


def ids_of(tokenizer: Any, text: str, *, literally: bool = True, dressed: bool = False) -> list[int]:
    return tokenizer(text, add_special_tokens=dressed, split_special_tokens=literally)["input_ids"]


@pytest.mark.parametrize("text", SAYINGS)
@pytest.mark.parametrize("kind", OF_PIECES)
def test_texts_have_sentencepieces_ids_and_come_back(kind: str, text: str, tokenizers: Any, checkpoints: Path) -> None:
    tokenizer = tokenizers[kind]
    ids = ids_of(tokenizer, text)
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text
    assert not control_ids(tokenizer) & set(ids)
    expected = sp_of(checkpoints, kind).encode(text)
    assert ids == expected or control_ids(tokenizer) & set(expected), "only where SentencePiece gives a control token"


@pytest.mark.parametrize("kind", OF_PIECES)
def test_what_stands_before_a_text(kind: str, tokenizers: Any) -> None:
    tokenizer = tokenizers[kind]
    assert tokenizer.convert_ids_to_tokens(prefix_ids(tokenizer)) == BEFORE[kind]
    assert ids_of(tokenizer, "a", dressed=True) == prefix_ids(tokenizer) + ids_of(tokenizer, "a")
    assert tokenizer.eos_token_id == 2
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_bos_token = True
    assert prefix_ids(tokenizer) == ([1] if kind[0] in "bi" else prefix_ids(tokenizers[kind]))


def test_a_configuration_says_whether_bos_is_put(checkpoints: Path) -> None:
    for kind in ("baichuan", "internlm"):
        for wanted in (True, False):
            made = SLOW_TOKENIZERS[kind].from_pretrained(checkpoints / kind, add_bos_token=wanted)
            assert prefix_ids(made) == [1] * wanted


@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3"])
def test_glm_control_tokens_follow_the_pieces(kind: str, tokenizers: Any, checkpoints: Path) -> None:
    """[gMASK] is 64790 and sop 64792 in the real vocabulary of 64789 pieces, <|user|> is 64795."""
    tokenizer, first = tokenizers[kind], sp_of(checkpoints, kind).get_piece_size()
    names = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
    names += ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"] if kind == "chatglm3" else []
    assert tokenizer.convert_tokens_to_ids(names) == [first + k for k in range(len(names))]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id) == (0, None)
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab()) == first + len(names)


@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3"])
def test_a_piece_that_reads_like_a_control_token_is_not_one(kind: str, tokenizers: Any, checkpoints: Path) -> None:
    tokenizer, piece = tokenizers[kind], sp_of(checkpoints, kind).piece_to_id("sop")
    ids = ids_of(tokenizer, "a sop")
    assert tokenizer.convert_tokens_to_ids("sop") not in ids
    assert tokenizer.decode(ids) == "a sop"
    assert piece not in ids_of(tokenizer, "[gMASK]sop", literally=False)
    assert tokenizer.convert_ids_to_tokens(piece) == f"<piece_{piece}>"


def test_roles_of_chatglm3_are_what_its_chat_input_has(tokenizers: Any, checkpoints: Path) -> None:
    tokenizer, sp = tokenizers["chatglm3"], sp_of(checkpoints, "chatglm3")
    gmask, sop, user, assistant = tokenizer.convert_tokens_to_ids(["[gMASK]", "sop", "<|user|>", "<|assistant|>"])
    line, asked = sp.encode("\n"), sp.encode(ASKED["conversation"][0]["content"])
    assert encode_prompt(ASKED, CHAT, tokenizer) == [gmask, sop, user, *line, *asked, assistant, *line]
    assert stop_ids(CHAT, tokenizer) == sorted([tokenizer.eos_token_id, user])


def test_rounds_of_chatglm2(tokenizers: Any) -> None:
    tokenizer = tokenizers["chatglm2"]
    text = tokenizer.apply_chat_template(DIALOGUE["conversation"][:3], tokenize=False, add_generation_prompt=True)
    first, answer, second = (turn["content"] for turn in DIALOGUE["conversation"][:3])
    assert text == f"[gMASK]sop[Round 1]\n\n问：{first}\n\n答：{answer}\n\n[Round 2]\n\n问：{second}\n\n答："


def test_reserved_pieces_of_baichuan2_mark_the_speakers(tokenizers: Any, checkpoints: Path) -> None:
    tokenizer, sp = tokenizers["baichuan2"], sp_of(checkpoints, "baichuan2")
    user, assistant = map(sp.piece_to_id, ("<reserved_106>", "<reserved_107>"))
    assert encode_prompt(ASKED, CHAT, tokenizer) == [user, *sp.encode("你好 </s> 👋"), assistant]
    assert stop_ids(CHAT, tokenizer) == [tokenizer.eos_token_id]
    typed = ids_of(tokenizer, "<reserved_106>")
    assert user not in typed
    assert user in sp.encode("<reserved_106>"), "the trap is there"


def test_internlm2_takes_its_chat_tokens_from_the_configuration(tokenizers: Any) -> None:
    tokenizer = tokenizers["internlm2"]
    assert tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"]) == [500, 501]
    prompt = encode_prompt(ASKED, CHAT, tokenizer)
    assert prompt[:2] == [1, 501]
    assert prompt.count(500) == 1
    assert stop_ids(CHAT, tokenizer) == [2, 500]
    assert tokenizer.decode([500, *ids_of(tokenizer, "a")], skip_special_tokens=True) == "a"


@pytest.mark.parametrize(
    ("kind", "template"),
    [(kind, "alpaca") for kind in OF_PIECES]
    + [(kind, "chat") for kind in OF_PIECES if kind not in ("baichuan", "internlm")],
)
def test_rows_of_every_text_are_proved(kind: str, template: str, tokenizers: Any) -> None:
    tokenizer = tokenizers[kind]
    records = [*RECORDS, DIALOGUE, *({"instruction": text or "?", "input": text, "output": text} for text in SAYINGS)]
    encoder = Encoder(TEMPLATES[template], tokenizer, cutoff_len=4096, truncation="drop")
    for record, outcome in zip(records, encoder([Row(record=r, origin="row") for r in records]), strict=True):
        assert outcome.encoded
        start, end = outcome.spans[-2:]
        answer = outcome.encoded.input_ids[start:end]
        said = record["conversation"][-1]["content"] if "conversation" in record else record["output"]
        assert answer[:-1] == ids_of(tokenizer, said)
        assert answer[-1] in stop_ids(TEMPLATES[template], tokenizer)


@pytest.mark.parametrize("kind", OF_PIECES)
def test_saved_copied_and_pickled_it_is_the_same(kind: str, tokenizers: Any, checkpoints: Path, tmp_path: Path) -> None:
    tokenizer = tokenizers[kind]
    tokenizer.save_pretrained(tmp_path)
    model = (tmp_path / "tokenizer.model").read_bytes()
    assert model == (checkpoints / kind / "tokenizer.model").read_bytes()
    again = SLOW_TOKENIZERS[kind].from_pretrained(tmp_path)
    for other in (again, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert fingerprint(other) == fingerprint(tokenizer)
        assert [ids_of(other, t, dressed=True) for t in SAYINGS] == [
            ids_of(tokenizer, t, dressed=True) for t in SAYINGS
        ]
    assert again.chat_template == tokenizer.chat_template
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()).get("auto_map") is None


def test_a_checkpoints_own_chat_template_comes_first(checkpoints: Path) -> None:
    made = SLOW_TOKENIZERS["chatglm3"].from_pretrained(
        checkpoints / "chatglm3", chat_template="{{ messages[0]['content'] }}"
    )
    assert made.apply_chat_template(ASKED["conversation"], tokenize=False) == "你好 </s> 👋"


def test_tokens_that_are_added_later_follow_and_are_found(checkpoints: Path) -> None:
    tokenizer = SLOW_TOKENIZERS["chatglm2"].from_pretrained(checkpoints / "chatglm2")
    size, definition = len(tokenizer), tokenizer.definition
    assert (
        tokenizer.add_tokens(["<one>"]) == tokenizer.add_special_tokens({"additional_special_tokens": ["<two>"]}) == 1
    )
    assert len(tokenizer) == size + 2
    assert ids_of(tokenizer, "<two>") == ids_of(tokenizers_plain(checkpoints), "<two>")
    assert ids_of(tokenizer, "<one><two>", literally=False) == [size, size + 1]
    assert ids_of(tokenizer, "<one>") == [size]
    assert tokenizer.definition != definition


def tokenizers_plain(checkpoints: Path) -> Any:
    return SLOW_TOKENIZERS["chatglm2"].from_pretrained(checkpoints / "chatglm2")


def test_a_missing_or_broken_vocabulary_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.model is missing; download it again"):
        BaichuanTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_text("version https://git-lfs")
    with pytest.raises(ValueError, match="tokenizer.model: not a SentencePiece model"):
        BaichuanTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", [*SAYINGS, *(record["output"] for record in RECORDS)])
def test_the_real_llama_vocabulary_gives_sentencepieces_ids(real_data: Path, tmp_path: Path, text: str) -> None:
    source = real_data / "checkpoints" / "llama.tokenizer.model"
    shutil.copy(source, tmp_path / "tokenizer.model")
    made = BaichuanTokenizer.from_pretrained(tmp_path)
    ids = ids_of(made, text)
    assert ids == sentencepiece.SentencePieceProcessor(model_file=str(source)).encode(text)
    assert made.decode(ids) == text
