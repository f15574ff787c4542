"""Prompt templates: a record becomes segments of text, each marked as trained or not.

Knows: the exact bytes of each prompt and which parts are the assistant's. Does not know tokens: turning segments into
ids is `utils.encode`. Training, generation and serving all render here, so the prompt that was trained is the prompt
that is served; `fingerprint` of the template travels with the adapter and says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from utils import lookup

Record = Mapping[str, Any]
Message = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A piece of a rendered record; it is tokenised by itself."""

    text: str
    is_target: bool = False
    """The loss is taken on it."""
    has_control: bool = False
    """The template wrote it, so control tokens in it are meant; elsewhere `</s>` is four characters of text."""
    ends_turn: bool = False
    """The tokenizer's EOS follows, by id; it is a target where the segment is."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """One prompt. A row with `from_tokenizer` has no text of its own: the tokenizer's chat template renders."""

    with_input: str = ""
    without_input: str = ""
    dialogue_system: str = ""
    """Opens a dialogue that brings no system message."""
    dialogue_between: str = ""
    """Before a user's turn that something precedes."""
    dialogue_user: str = ""
    """`{round}` counts the user's turns, from 0."""
    dialogue_assistant: str = ""
    one_exchange_is_instruction: bool = False
    """A dialogue of one question is rendered as if it were no dialogue."""
    from_tokenizer: bool = False


class ChatTokenizer(Protocol):
    """What `chat` needs of a tokenizer."""

    chat_template: Any
    all_special_tokens: list[str]
    added_tokens_decoder: Mapping[int, Any]

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any: ...


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        # The two prompts of Stanford Alpaca (https://github.com/tatsu-lab/stanford_alpaca#data-release), byte for byte:
        # nothing follows "### Response:", and the answer is joined to it directly. The dialogue form is ours.
        "alpaca": Template(
            with_input=(
                "Below is an instruction that describes a task, paired with an input that provides further context. "
                "Write a response that appropriately completes the request.\n\n"
                "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
            ),
            without_input=(
                "Below is an instruction that describes a task. "
                "Write a response that appropriately completes the request.\n\n"
                "### Instruction:\n{instruction}\n\n### Response:"
            ),
            dialogue_system=(
                "Below is a dialogue between a human and an assistant. "
                "Write the assistant's response that appropriately continues it."
            ),
            dialogue_user="\n\n### Human:\n{content}",
            dialogue_assistant="\n\n### Assistant:",
        ),
        # What ChatGLM-6B was published with (https://github.com/THUDM/ChatGLM-6B): a first question as it is, and later
        # ones after the rounds before them.
        "chatglm": Template(
            with_input="{instruction}\n{input}",
            without_input="{instruction}",
            dialogue_between="\n",
            dialogue_user="[Round {round}]\n问：{content}",
            dialogue_assistant="\n答：",
            one_exchange_is_instruction=True,
        ),
        # What the tokenizer's own chat template writes; for bases that were already tuned to follow instructions.
        "chat": Template(from_tokenizer=True),
    }
)


def get_template(name: str) -> Template:
    """The row called `name`; `ValueError` with the nearest names."""
    return lookup.find("template", name, TEMPLATES, "--template")


def fingerprint(template: Template, chat_template: str | None = None) -> str:
    """sha256 (hex) of all that decides the prompt's bytes: the row, and the tokenizer's chat template if it is used."""
    # A field at its default says nothing, so that a field of a later version leaves the sum as it is.
    values = [(f.name, getattr(template, f.name), f.default) for f in dataclasses.fields(template)]
    row = {name: value for name, value, default in values if value != default}
    row["chat_template"] = chat_template if template.from_tokenizer else None
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def render(record: Record, template: Template, tokenizer: ChatTokenizer) -> list[Segment]:
    """A training record as segments: each of the assistant's turns is a target and ends with EOS."""
    if template.from_tokenizer:
        return _render_chat(to_messages(record), tokenizer)
    if "conversation" in record:
        return _render_dialogue(record["conversation"], template)
    return [
        Segment(text=_render_instruction(record, template)),
        Segment(text=record["output"], is_target=True, ends_turn=True),
    ]


def render_prompt(record: Record, template: Template, tokenizer: ChatTokenizer) -> list[Segment]:
    """What inference sends: the record up to where the assistant speaks next. Ignores `output`; a `conversation` must
    end with the user's turn."""
    if template.from_tokenizer:
        return _render_chat(to_messages({**record, "output": None}), tokenizer)
    if "conversation" in record:
        return _render_dialogue(record["conversation"], template)
    return [Segment(text=_render_instruction(record, template))]


def turn_marks(template: Template) -> tuple[str, ...]:
    """Texts with which the template opens the next question. A model that writes one where it should end its answer
    goes on as the user: what follows is not the answer. A chat template's marks are control tokens
    (`encode.stop_ids`)."""
    again = (template.dialogue_between + template.dialogue_user).partition("{")[0]
    paragraph = template.without_input.partition("{instruction}")[0].rpartition("\n\n")
    return tuple(mark for mark in (again, paragraph[1] + paragraph[2]) if mark.strip())


def without_answer(record: Record) -> Record:
    """The record as a question: without its output, or without the assistant's last turn."""
    if "conversation" not in record:
        return {"instruction": record["instruction"], "input": record.get("input", "")}
    turns = record["conversation"]
    return {"conversation": turns[:-1] if turns[-1]["role"] == "assistant" else turns}


def last_answer(record: Record) -> str:
    """The output, or the assistant's last turn."""
    return record["conversation"][-1]["content"] if "conversation" in record else record["output"]


def prompts_of(record: Record) -> list[Record]:
    """The record cut before each of the assistant's turns: one prompt for each answer that is trained."""
    if "conversation" not in record:
        return [record]
    turns = record["conversation"]
    return [{"conversation": turns[:i]} for i, turn in enumerate(turns) if turn["role"] == "assistant"]


def to_messages(record: Record) -> list[Message]:
    """Any record as chat messages; `input` follows the instruction after an empty line."""
    if "conversation" in record:
        return list(record["conversation"])
    text = record["instruction"] + (f"\n\n{record['input']}" if record.get("input") else "")
    answer = record.get("output")
    messages: list[Message] = [{"role": "user", "content": text}]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


def _render_instruction(record: Record, template: Template) -> str:
    form = template.with_input if record.get("input") else template.without_input
    return form.format(instruction=record["instruction"], input=record.get("input", ""))


def _render_dialogue(turns: Sequence[Message], template: Template) -> list[Segment]:
    """Prompts and answers in turn; a prompt reaches from the end of one answer to the header of the next."""
    if template.one_exchange_is_instruction and [turn["role"] for turn in turns] in (["user"], ["user", "assistant"]):
        question, *answers = turns
        texts = [template.without_input.format(instruction=question["content"]), *(each["content"] for each in answers)]
        return [Segment(text=text, is_target=i > 0, ends_turn=i > 0) for i, text in enumerate(texts)]
    segments: list[Segment] = []
    prompt = turns[0]["content"] if turns[0]["role"] == "system" else template.dialogue_system
    questions = 0
    for turn in turns:
        if turn["role"] == "user":
            prompt += template.dialogue_between if prompt or segments else ""
            prompt += template.dialogue_user.format(content=turn["content"], round=questions)
            questions += 1
        elif turn["role"] == "assistant":
            segments.append(Segment(text=prompt + template.dialogue_assistant))
            segments.append(Segment(text=turn["content"], is_target=True, ends_turn=True))
            prompt = ""
    return [*segments, Segment(text=prompt + template.dialogue_assistant)] if prompt else segments


# Private-use characters: no text of a template or a person has them in this order.
_MARK = "\ue000{}\ue001"
_MARKED = re.compile("\ue000(\\d+)\ue001")


def _render_chat(messages: Sequence[Message], tokenizer: ChatTokenizer) -> list[Segment]:
    """Renders with marks in place of the contents and cuts there, so that what a person wrote is known from what the
    template wrote. The pieces joined must equal the template's own rendering of the real messages."""
    if not tokenizer.chat_template:
        raise ValueError(
            "--template chat needs a tokenizer with a chat template; this one has none: leave --template out"
        )
    marks = [{**message, "content": _MARK.format(i)} for i, message in enumerate(messages)]
    pieces = _MARKED.split(_apply(tokenizer, marks))
    if [int(i) for i in pieces[1::2]] != list(range(len(messages))):
        raise ValueError("this chat template leaves out or repeats a message; use --template alpaca")
    expected = _apply(tokenizer, messages)
    for clean in (str, str.strip):
        contents = [clean(message["content"]) for message in messages]
        segments = _chat_segments(pieces, contents, messages, tokenizer)
        if "".join(segment.text for segment in segments) == expected:
            return segments
    raise ValueError(
        "this chat template rewrites the text of messages, so what is trained could differ from what is served; "
        "use --template alpaca"
    )


def _chat_segments(
    pieces: Sequence[str], contents: Sequence[str], messages: Sequence[Message], tokenizer: ChatTokenizer
) -> list[Segment]:
    segments = [Segment(text=pieces[0], has_control=True)]
    for content, message, after in zip(contents, messages, pieces[2::2], strict=True):
        is_target = message["role"] == "assistant"
        # The control token that the template writes after an answer is what stops generation: it is trained. Where
        # the template writes none, EOS is added.
        end = next((token for token in control_tokens(tokenizer) if after.startswith(token)), "")
        segments.append(Segment(text=content, is_target=is_target, ends_turn=is_target and not end))
        if is_target and end:
            segments.append(Segment(text=end, is_target=True, has_control=True))
            after = after.removeprefix(end)
        segments.append(Segment(text=after, has_control=True))
    return [segment for segment in segments if segment.text or segment.is_target]


def control_tokens(tokenizer: ChatTokenizer) -> list[str]:
    """The texts of all control tokens, longest first: those with a role (EOS, …), and those that are merely marked as
    special, such as Phi-3's `<|end|>`."""
    marked = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*tokenizer.all_special_tokens, *marked} - {""}, key=len, reverse=True)


def _apply(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> str:
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=messages[-1]["role"] != "assistant"
        )
    except Exception as error:  # a template is a program: it can raise anything, "system role not supported" for one
        raise ValueError(f"this chat template refuses the conversation ({error}); use --template alpaca") from error
