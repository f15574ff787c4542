import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from utils.templates import (
    TEMPLATES,
    fingerprint,
    get_template,
    last_answer,
    prompts_of,
    render,
    render_prompt,
    to_messages,
    without_answer,
)

ALPACA, CHAT = TEMPLATES["alpaca"], TEMPLATES["chat"]
DIALOGUE = {
    "conversation": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi 👋"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "{braces} 和中文"},
        {"role": "assistant", "content": ""},
    ]
}


def test_the_stanford_prompts_are_exact_bytes() -> None:
    with_input = render_prompt({"instruction": "I", "input": "C"}, ALPACA, NO_TOKENIZER)
    without = render_prompt({"instruction": "I", "input": ""}, ALPACA, NO_TOKENIZER)
    assert [len(with_input), len(without)] == [1, 1]
    assert without[0].text == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nI\n\n### Response:"
    )
    assert with_input[0].text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nI\n\n### Input:\nC\n\n### Response:"
    )


def test_an_answer_is_the_only_target_and_ends_its_turn() -> None:
    prompt, answer = render({"instruction": "I", "input": "", "output": "O</s>"}, ALPACA, NO_TOKENIZER)
    assert (prompt.is_target, prompt.ends_turn, prompt.has_control) == (False, False, False)
    assert (answer.text, answer.is_target, answer.ends_turn, answer.has_control) == ("O</s>", True, True, False)


def test_braces_in_a_record_are_text() -> None:
    (segment,) = render_prompt({"instruction": "{input} {0}", "input": "{instruction}"}, ALPACA, NO_TOKENIZER)
    assert "### Instruction:\n{input} {0}\n\n### Input:\n{instruction}\n\n" in segment.text


def test_in_a_dialogue_only_the_assistant_is_trained() -> None:
    segments = render(DIALOGUE, ALPACA, NO_TOKENIZER)
    assert [s.text for s in segments if s.is_target] == ["Hello.", ""]
    assert all(s.ends_turn == s.is_target for s in segments)
    text = "".join(s.text for s in segments)
    assert (
        text
        == "Be brief.\n\n### Human:\nHi 👋\n\n### Assistant:Hello.\n\n### Human:\n{braces} 和中文\n\n### Assistant:"
    )


def test_a_dialogue_without_system_message_gets_the_templates() -> None:
    record = {"conversation": DIALOGUE["conversation"][1:]}
    assert render(record, ALPACA, NO_TOKENIZER)[0].text.startswith(ALPACA.dialogue_system + "\n\n### Human:\n")


def test_every_answer_of_a_dialogue_has_the_prompt_that_inference_sends() -> None:
    segments = render(DIALOGUE, ALPACA, NO_TOKENIZER)
    prompts = prompts_of(DIALOGUE)
    assert len(prompts) == 2
    assert [s.text for s in render_prompt(prompts[0], ALPACA, NO_TOKENIZER)] == [segments[0].text]
    assert render_prompt(prompts[1], ALPACA, NO_TOKENIZER) == segments[:3]


def test_chat_renders_what_the_tokenizer_renders(chat_tokenizer: Any) -> None:
    segments = render(DIALOGUE, CHAT, chat_tokenizer)
    expected = chat_tokenizer.apply_chat_template(DIALOGUE["conversation"], tokenize=False)
    assert "".join(s.text for s in segments) == expected
    assert [s.text for s in segments if s.is_target] == ["Hello.", "<|im_end|>", "", "<|im_end|>"]
    typed = [s for s in segments if s.text in ("Hi 👋", "Hello.", "{braces} 和中文", "Be brief.")]
    assert len(typed) == 4
    assert not any(s.has_control for s in typed)


def test_chat_adds_eos_where_the_template_writes_no_end(chat_tokenizer: Any) -> None:
    plain = _with_template(chat_tokenizer, "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    segments = render({"instruction": "a", "input": "", "output": "b"}, CHAT, plain)
    (target,) = [s for s in segments if s.is_target]
    assert (target.text, target.ends_turn) == ("b", True)


def test_an_end_that_is_special_without_a_role_is_the_end(tokenizer: Any) -> None:
    import copy

    from tokenizers import AddedToken

    phi = copy.deepcopy(tokenizer)
    phi.add_tokens([AddedToken("<|end|>", special=True)])
    assert "<|end|>" not in phi.all_special_tokens
    phi.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>\n{% endfor %}"
    segments = render({"instruction": "a", "input": "", "output": "b"}, CHAT, phi)
    assert [(s.text, s.ends_turn) for s in segments if s.is_target] == [("b", False), ("<|end|>", False)]


def test_a_question_is_the_record_without_its_answer() -> None:
    assert without_answer({"instruction": "a", "output": "b"}) == {"instruction": "a", "input": ""}
    assert last_answer({"instruction": "a", "output": "b"}) == "b"
    assert without_answer(DIALOGUE) == {"conversation": DIALOGUE["conversation"][:-1]}
    assert without_answer(without_answer(DIALOGUE)) == without_answer(DIALOGUE)
    assert last_answer(DIALOGUE) == ""


def test_chat_follows_a_template_that_strips(chat_tokenizer: Any) -> None:
    strips = _with_template(
        chat_tokenizer, "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
    )
    record = {"instruction": " a ", "input": "", "output": "\tb "}
    segments = render(record, CHAT, strips)
    assert "".join(s.text for s in segments) == "user: a\nassistant: b\n"


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        (None, "needs a tokenizer with a chat template.*leave --template out"),
        (
            "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
            "rewrites the text of messages.*--template alpaca",
        ),
        ("{{ messages[0]['content'] }}", "leaves out or repeats a message.*--template alpaca"),
        ("{{ raise_exception('no system role') }}", "refuses the conversation .no system role..*--template alpaca"),
    ],
)
def test_chat_refuses_what_it_cannot_mark(chat_tokenizer: Any, chat_template: str | None, message: str) -> None:
    tokenizer = _with_template(chat_tokenizer, chat_template)
    with pytest.raises(ValueError, match=message):
        render({"instruction": "a", "input": "", "output": "b"}, CHAT, tokenizer)


def test_input_follows_the_instruction_in_messages() -> None:
    assert to_messages({"instruction": "a", "input": "b"}) == [{"role": "user", "content": "a\n\nb"}]


def test_the_fingerprint_knows_every_byte() -> None:
    assert fingerprint(ALPACA) == fingerprint(ALPACA, "ignored, for the row has its own text")
    assert fingerprint(ALPACA) != fingerprint(dataclasses.replace(ALPACA, without_input=ALPACA.without_input + "\n"))
    assert fingerprint(CHAT, "a") != fingerprint(CHAT, "b")


def test_unknown_template() -> None:
    with pytest.raises(ValueError, match="unknown template 'alpca' in --template. Did you mean alpaca"):
        get_template("alpca")


def _with_template(tokenizer: Any, chat_template: str | None) -> Any:
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = chat_template
    return changed


class _NoTokenizer:
    """Plain templates need no tokenizer."""

    chat_template = None
    all_special_tokens: list[str] = []  # noqa: RUF012
    added_tokens_decoder: Mapping[int, Any] = {}  # noqa: RUF012

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any:
        raise AssertionError("a plain template asked for the chat template")


NO_TOKENIZER = _NoTokenizer()


def test_chatglm_sends_a_first_question_as_it_is_and_later_ones_in_rounds() -> None:
    template = get_template("chatglm")
    turns = [
        {"role": "user", "content": "你好 {x}"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "再见"},
    ]

    def text(record: Any) -> str:
        return "".join(segment.text for segment in render_prompt(record, template, None))  # type: ignore[arg-type]

    assert text({"instruction": "Why?", "input": ""}) == "Why?"
    assert text({"instruction": "Why?", "input": "因为"}) == "Why?\n因为"
    assert text({"conversation": turns[:1]}) == "你好 {x}"
    assert text({"conversation": turns}) == "[Round 0]\n问：你好 {x}\n答：Hi\n[Round 1]\n问：再见\n答："
    system = {"role": "system", "content": "Be brief."}
    assert text({"conversation": [system, turns[0]]}) == "Be brief.\n[Round 0]\n问：你好 {x}\n答："
