"""The prompt of a run as a chat template: the same ids as in training, or none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sentencepiece_models import train, train_chatglm
from tiny_families import make_family
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from utils import chat_templates, loading, slow_tokenizers
from utils.chat_templates import Exported, Probe, compared, export, jinja_of, joints, probes
from utils.encode import encode_prompt, encode_rows
from utils.models import get_model
from utils.readers import Row
from utils.templates import TEMPLATES, Template

OURS = [name for name, row in TEMPLATES.items() if not row.from_tokenizer]
# A byte BPE, the bundled one's rules; control tokens around the text; a unigram model without Rust form; and others.
FAMILIES = ["bloom", "chatglm2", "baichuan", "internlm", "moss", "qwen"]
# Everything a row may have at once, and fields that Jinja could take for its own.
ODD = Template(
    with_input="{instruction}{input}",
    without_input="{{%- \"'\\ -%}}\n{instruction}\n\t{instruction} {{{{ }}}} 🙂\u2028→",
    dialogue_system="{% raw %} \\n",
    dialogue_between="\n ",
    dialogue_user="{round}#{round}: {content}\n\n\n",
    dialogue_assistant="\n",
)


def read(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def ids(tokenizer: Any, messages: Any, **options: Any) -> list[int]:
    options = {"add_generation_prompt": True, **options}
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


def saved(tokenizer: Any, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    return folder


def with_template(tokenizer: Any, row: Template, **options: Any) -> Any:
    tokenizer.chat_template = jinja_of(row, tokenizer, **{"asks_instructions": True, **options})
    return tokenizer


def all_probes(asks_instructions: bool) -> list[Probe]:
    return list(probes(asks_instructions=asks_instructions))


@pytest.fixture
def plain(tokenizer: Any, tmp_path: Path) -> Any:
    """The bundled tokenizer, a copy of this test's own."""
    return read(saved(tokenizer, tmp_path / "plain"))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_family(request.param, tmp_path_factory.mktemp(request.param) / "base")
    base = loading.choose(str(folder), get_model(request.param), precision="fp32", quantization_bit=16)
    return base.tokenizer()


@pytest.mark.parametrize("asks_instructions", [True, False])
@pytest.mark.parametrize("name", OURS)
def test_plain_transformers_renders_the_ids_of_training(
    family: Any, name: str, asks_instructions: bool, tmp_path: Path
) -> None:
    row = TEMPLATES[name]
    exported = export(saved(family, tmp_path), row, family, asks_instructions=asks_instructions)
    assert exported.asks == "conversations"
    tried = all_probes(asks_instructions)
    assert exported.proved >= len(tried) > 100
    served = read(tmp_path)
    for probe in tried:
        assert ids(served, probe.messages) == encode_prompt(probe.record, row, family), probe.messages


def test_probes_have_all_kinds_of_conversations() -> None:
    tried = all_probes(True)
    roles = {tuple(message["role"][0] for message in probe.messages) for probe in tried}
    assert roles == {tuple(kind) for kind in ("u", "su", "uau", "suau", "uauau", "suauau")}
    texts = {message["content"] for probe in tried for message in probe.messages}
    assert "" in texts
    assert any(text != text.strip() for text in texts)
    assert any("🌏" in text for text in texts)
    assert any("蓝" in text for text in texts)
    assert {"instruction" in probe.record for probe in tried if len(probe.messages) == 1} == {True}
    assert not any("instruction" in probe.record for probe in probes(asks_instructions=False))


@pytest.mark.parametrize("asks_instructions", [True, False])
def test_any_row_s_text_is_said_as_it_is(plain: Any, asks_instructions: bool) -> None:
    with_template(plain, ODD, asks_instructions=asks_instructions)
    tried = all_probes(asks_instructions)
    for probe in tried:
        expected = encode_prompt(probe.record, ODD, plain)
        assert plain.decode(ids(plain, probe.messages)) == plain.decode(expected), probe.messages


def test_what_stands_behind_a_prompt_stands_there_once(tmp_path: Path) -> None:
    from utils.chatglm import ChatGLMTokenizer

    train_chatglm(tmp_path / "ice_text.model")
    made: Any = ChatGLMTokenizer.from_pretrained(str(tmp_path), num_image_tokens=0)
    gmask, begin = made.suffix_tokens
    same, different = compared(all_probes(True), TEMPLATES["chatglm"], made, with_template(made, TEMPLATES["chatglm"]))
    assert (same, different) == (len(all_probes(True)), [])
    dialogue = [{"role": "user", "content": "一"}, {"role": "assistant", "content": "二"}]
    for messages in (dialogue[:1], [*dialogue, *dialogue[:1]]):
        found = ids(made, messages)
        assert found[-2:] == [gmask, begin]
        assert found.count(begin) == 1


@pytest.mark.parametrize("system", ["", "只用中文。"])
def test_a_whole_dialogue_is_the_row_that_is_trained(family: Any, system: str, tmp_path: Path) -> None:
    row = TEMPLATES["alpaca"]
    export(saved(family, tmp_path), row, family, asks_instructions=False)
    turns = [("system", system)] if system else []
    for question, answer in (("Name a colour.", "蓝色 🙂"), ("Why?", " So. "), ("再说一个。", "")):
        turns += [("user", question), ("assistant", answer)]
        messages = [{"role": role, "content": content} for role, content in turns]
        rows = [Row(record={"conversation": messages}, origin="row", source="test")]
        encoded, *_ = encode_rows(rows, row, family, cutoff_len=10_000, truncation="drop")
        assert ids(read(tmp_path), messages, add_generation_prompt=False) == list(encoded[0].input_ids)


def test_an_empty_system_message_is_none_and_a_developer_s_is_one(plain: Any) -> None:
    with_template(plain, TEMPLATES["alpaca"])
    asked = [{"role": "user", "content": "你好"}]
    assert ids(plain, [{"role": "system", "content": ""}, *asked]) == ids(plain, asked)
    both = [ids(plain, [{"role": role, "content": "Be brief."}, *asked]) for role in ("system", "developer")]
    assert both[0] == both[1] != ids(plain, asked)


@pytest.mark.parametrize(
    ("roles", "content", "options", "message"),
    [
        ("us", "a", {}, "after an optional system message, user and assistant must alternate, from user on"),
        ("uu", "a", {}, "user and assistant must alternate"),
        ("au", "a", {}, "user and assistant must alternate"),
        ("ssu", "a", {}, "user and assistant must alternate"),
        ("s", "a", {}, "the last message must be the user's"),
        ("ua", "a", {}, "the last message must be the user's"),
        ("u", [{"type": "text", "text": "a"}], {}, "the content of a message must be text"),
        ("u", None, {}, "the content of a message must be text"),
        ("u", "a", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools are no part of the prompt"),
    ],
)
def test_what_was_not_trained_is_refused(plain: Any, roles: str, content: Any, options: Any, message: str) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    with_template(plain, TEMPLATES["alpaca"])
    with pytest.raises(Exception, match=message):
        ids(plain, [{"role": names[role], "content": content} for role in roles], **options)


def joining_tokenizer() -> Any:
    """A byte BPE that has a token for the end of a prompt with what an answer begins with."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {text: i for i, text in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), ":("])}
    made: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", "(")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def test_where_tokens_grow_together_only_first_questions_are_taken(tmp_path: Path) -> None:
    made, row = joining_tokenizer(), TEMPLATES["alpaca"]
    exported = export(saved(made, tmp_path), row, made, asks_instructions=True)
    assert exported.asks == "questions"
    assert re.search(
        r"^chat template: the trained prompt, for a question without earlier ones; the same ids .* not after an answer: "
        r".*'\(.*' → .* has \d+ ids, in training \d+; they differ from number \d+ on$",
        str(exported),
    )
    served = read(tmp_path)
    for probe in probes(asks_instructions=True, answers=False):
        assert ids(served, probe.messages) == encode_prompt(probe.record, row, made)
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    with pytest.raises(Exception, match="a question without earlier ones only"):
        ids(served, said)


def test_the_vocabulary_says_which_answers_would_grow_together() -> None:
    made = joining_tokenizer()
    assert [probe.messages[1]["content"] for probe in joints(TEMPLATES["alpaca"], made)] == ["("]
    assert list(joints(TEMPLATES["alpaca"], made, lead=" ")) == []
    assert list(joints(TEMPLATES["chatglm"], made)) == []


def test_an_answer_s_blank_is_written_for_sentencepiece_alone(tokenizer: Any, tmp_path: Path) -> None:
    train(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    pieces = slow_tokenizers.SLOW_TOKENIZERS["llama"].from_pretrained(str(tmp_path))
    leads = []
    for made in (pieces, tokenizer):
        folder = saved(made, tmp_path / str(len(leads)))
        (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
        assert export(folder, TEMPLATES["alpaca"], made, asks_instructions=True).asks == "conversations"
        leads.append('(" " ~ turn.content' in (folder / chat_templates.NAME).read_text(encoding="utf-8"))
    assert leads == [True, False]


def test_a_tokenizer_of_ours_alone_gets_no_template(tmp_path: Path) -> None:
    from utils.chatglm import ChatGLMTokenizer

    (tmp_path / "base").mkdir()
    train_chatglm(tmp_path / "base" / "ice_text.model")
    made: Any = ChatGLMTokenizer.from_pretrained(str(tmp_path / "base"))
    exported = export(saved(made, tmp_path), TEMPLATES["chatglm"], made, asks_instructions=True)
    assert str(exported) == (
        "chat template: none, for plain transformers, and with it vLLM, does not read this tokenizer, a "
        "ChatGLMTokenizer (ValueError)"
    )
    assert not (tmp_path / chat_templates.NAME).exists()


def test_pieces_that_plain_transformers_reads_otherwise_get_no_template(tmp_path: Path) -> None:
    # Without bytes for what is rare there is no Rust form, and transformers makes its own of the file.
    train(tmp_path / "tokenizer.model", byte_fallback=False, model_type="unigram", vocab_size=300)
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    made = slow_tokenizers.SLOW_TOKENIZERS["llama"].from_pretrained(str(tmp_path))
    assert not hasattr(made, "backend_tokenizer")
    exported = export(saved(made, tmp_path / "saved"), TEMPLATES["alpaca"], made, asks_instructions=True)
    assert exported.asks == "nothing"
    assert re.search("the ids would be others than in training: .* has .* ids|does not read this", exported.differs)
    assert not (tmp_path / "saved" / chat_templates.NAME).exists()


def test_files_that_give_other_ids_get_no_template_and_lose_the_base_s(chat_tokenizer: Any, tmp_path: Path) -> None:
    file = saved(chat_tokenizer, tmp_path) / "tokenizer.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    facts["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(facts), encoding="utf-8")
    config = tmp_path / "tokenizer_config.json"
    declared = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**declared, "chat_template": "older place"}), encoding="utf-8")
    exported = export(tmp_path, TEMPLATES["alpaca"], chat_tokenizer, asks_instructions=True)
    assert str(exported).startswith("chat template: none, for the ids would be others than in training: 'Name three")
    assert not read(tmp_path).chat_template


def test_the_base_s_template_gives_way_to_the_trained_prompt(chat_tokenizer: Any, tmp_path: Path) -> None:
    exported = export(saved(chat_tokenizer, tmp_path), TEMPLATES["alpaca"], chat_tokenizer, asks_instructions=True)
    assert exported.asks == "conversations"
    assert "### Response:" in read(tmp_path).chat_template
    assert "im_start" in chat_tokenizer.chat_template


def test_a_run_in_the_tokenizer_s_own_template_keeps_it(chat_tokenizer: Any, tmp_path: Path) -> None:
    exported = export(saved(chat_tokenizer, tmp_path), TEMPLATES["chat"], chat_tokenizer, asks_instructions=True)
    assert read(tmp_path).chat_template == chat_tokenizer.chat_template
    # Newlines before and after a text grow together with the template's own.
    assert 0 < exported.proved < len(all_probes(False))
    assert re.search(
        r"^chat template: the tokenizer's own; \d+ of 144 conversations have other ids than in training, such as "
        r"'\\n\\nlines around\\n\\n' has \d+ ids",
        str(exported),
    )


def test_facts_are_json() -> None:
    exported = Exported(asks="questions", proved=3, differs="“引号”")
    assert Exported(**json.loads(json.dumps(exported.as_dict()))) == exported
