"""A run's prompt as a `chat_template`: the Jinja that vLLM and transformers render a chat with, proved on ids.

Knows: how a row of `utils.templates` is said in Jinja, and which conversations show that the ids are those of training.
Does not know merging, models, or the servers themselves.

A template writes one text, which is tokenised whole; training tokenises each prompt and each answer by itself. So the
proof is on ids, through the tokenizer as plain transformers reads it back from disk. Where tokens would grow together
across the line between a prompt and an answer, what is exported takes questions that no answer precedes, and refuses
the others: a single question's prompt is one text here as there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from utils.conversation import Conversation, Exchange
from utils.encode import encode_prompt, has_one_answer
from utils.equivalence import QUESTIONS
from utils.templates import Message, Template, to_messages
from utils.tokens import Codec, Tokenizer, prefix_ids, require_eos, suffix_ids

NAME = "chat_template.jinja"
"""Where transformers keeps a tokenizer's template."""
LEADS = ("", " ")
"""What may have to stand before an answer: SentencePiece puts a blank before a text, and an answer is one of its own in
training."""
MOST_JOINTS = 100
"""Answers that are taken from the vocabulary to be tried behind a prompt."""

SYSTEMS = ("", "Answer in one word.", "你只用中文回答。🙂", "  blanks around \n")
SAYINGS = (
    "Blue.",
    "蓝色。",
    "42",
    "🌏 é",
    " a blank before, and one behind ",
    "\n\nlines around\n\n",
    "\ttab  doubled   blanks",
    "(a) in brackets",
    "- one\n- two\n",
    "**bold**, `code`, ### head",
    "“引号”：他说。",
    ": colon",
    "",
)
"""Questions and answers in turn: scripts, layout, and beginnings that tokenizers like to join to what is before them.
Control tokens typed as text are not among them: in a chat template they become control tokens."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What became of a checkpoint's chat template."""

    asks: Literal["conversations", "questions", "its own", "nothing"]
    """`questions`: only those that no answer precedes. `its own`: the run was trained in the tokenizer's template, and
    keeps it. `nothing`: the checkpoint has none."""
    proved: int = 0
    """Conversations whose ids are those of training."""
    differs: str = ""
    """Why it is not more than that; the first difference, in words."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        same = f"the same ids as in training for {self.proved} conversations, read by plain transformers"
        if self.asks == "nothing":
            return f"chat template: none, for {self.differs}"
        if self.asks == "its own":
            return f"chat template: the tokenizer's own; {self.differs or same}"
        if self.asks == "questions":
            return f"chat template: the trained prompt, for a question without earlier ones; {same}; {self.differs}"
        return f"chat template: the trained prompt; {same}"


def export(folder: Path, template: Template, tokenizer: Tokenizer, *, asks_instructions: bool) -> Exported:
    """Puts the run's prompt beside the tokenizer that was saved to `folder`, as far as it is proved there. What is not
    leaves no template: one of the base's would ask in another prompt than the trained one.

    Args:
        tokenizer: the run's, which gives the ids of training.
        asks_instructions: whether a question that nothing precedes was trained as an instruction
            (`conversation.asks_instructions`).
    """
    if not template.from_tokenizer:
        _remove(folder)
    try:
        plain = _plain(folder)
    except Exception as error:  # a file that it does not know makes it raise anything
        what = f"does not read this tokenizer, a {type(tokenizer).__name__} ({type(error).__name__})"
        return Exported(asks="nothing", differs=f"plain transformers, and with it vLLM, {what}")
    if template.from_tokenizer:
        same, different = compared(list(probes(asks_instructions=False)), template, tokenizer, plain)
        share = f"{len(different)} of {same + len(different)} conversations have other ids than in training"
        others = f"{share}, such as {different[0]}" if different else ""
        return Exported(asks="its own", proved=same, differs=others)
    reasons: list[list[str]] = []
    for lead, answers in [*((lead, True) for lead in LEADS), ("", False)]:
        tried = [
            *probes(asks_instructions=asks_instructions, answers=answers),
            *(joints(template, tokenizer, lead) if answers else ()),
        ]
        plain.chat_template = jinja_of(
            template, tokenizer, asks_instructions=asks_instructions, lead=lead, answers=answers
        )
        _, different = compared(tried, template, tokenizer, plain)
        if not different:
            (folder / NAME).write_text(plain.chat_template, encoding="utf-8")
            same, different = compared(tried, template, tokenizer, _plain(folder))
            if different:
                _remove(folder)
                return Exported(asks="nothing", differs=f"it is read back as another: {different[0]}")
            why = "" if answers else f"not after an answer: {min(reasons, key=len)[0]}"
            return Exported(asks="conversations" if answers else "questions", proved=same, differs=why)
        reasons.append(different)
    return Exported(asks="nothing", differs=f"the ids would be others than in training: {reasons[-1][0]}")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A conversation that a model could be asked, as a chat server gets it and as training has it."""

    messages: Sequence[Message]
    record: Mapping[str, Any]


def probes(*, asks_instructions: bool, answers: bool = True) -> Iterator[Probe]:
    """Conversations of one to three rounds, with a system message and without; with `answers=False`, of one."""
    asked = [to_messages(question)[0]["content"] for question in QUESTIONS]
    for system in SYSTEMS:
        for question in (*asked, *SAYINGS) if not system else (asked[0], asked[4], *SAYINGS):
            yield _probe(system, (), question, asks_instructions)
    if not answers:
        return
    for i, said in enumerate(SAYINGS):
        question, later = asked[i % len(asked)], SAYINGS[(i + 5) % len(SAYINGS)]
        for system in SYSTEMS[:3]:
            yield _probe(system, [(question, said)], later, asks_instructions)
            yield _probe(system, [(question, said), (later, SAYINGS[i - 1])], question, asks_instructions)


def joints(template: Template, tokenizer: Tokenizer, lead: str = "") -> Iterator[Probe]:
    """Conversations with answers that the vocabulary has a token for together with the end of the prompt before them:
    the ones that would be read otherwise, if any are."""
    header = template.dialogue_assistant
    if not header or has_one_answer(template, tokenizer):
        return
    found: set[str] = set()
    for text in Codec(tokenizer).texts([[i] for i in sorted(tokenizer.get_vocab().values())]):  # pyright: ignore[reportAttributeAccessIssue]
        for cut in range(1, len(text)):
            rest = text[cut:].removeprefix(lead)
            if rest and text[cut:].startswith(lead) and header.endswith(text[:cut]) and "\ufffd" not in rest:
                found.add(rest)
    for answer in islice(sorted(found), MOST_JOINTS):
        yield _probe("", [("Why?", answer)], "And now?", False)


def _probe(system: str, said: Sequence[tuple[str, str]], question: str, asks_instructions: bool) -> Probe:
    exchanges = [Exchange(question=asked, answer=answer) for asked, answer in said]
    as_dialogue, as_trained = (
        Conversation(system=system, exchanges=exchanges, asks_instructions=flag).record(question, 0)
        for flag in (False, asks_instructions)
    )
    return Probe(messages=to_messages(as_dialogue), record=as_trained)


def compared(tried: Sequence[Probe], template: Template, tokenizer: Tokenizer, plain: Any) -> tuple[int, list[str]]:
    """How many conversations `plain`, with its chat template, gives the ids of training, which are those of
    `tokenizer`; and a sentence for each other one. What cannot be trained in this template is passed over."""
    same, found = 0, []
    for probe in tried:
        try:
            expected = encode_prompt(probe.record, template, tokenizer)
        except ValueError:
            continue
        *earlier, last = [message["content"] for message in probe.messages]
        shown = " → ".join(repr(text[:40]) for text in [*earlier[-2:], last])
        try:
            ids = plain.apply_chat_template(
                list(probe.messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template is a program: it can raise anything
            found.append(f"{shown} is refused ({error})")
            continue
        if list(ids) != expected:
            at = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), "the end")
            found.append(f"{shown} has {len(ids)} ids, in training {len(expected)}; they differ from number {at} on")
        same += list(ids) == expected
    return same, found


def jinja_of(
    template: Template, tokenizer: Tokenizer, *, asks_instructions: bool, lead: str = "", answers: bool = True
) -> str:
    """The row's prompt as a chat template in Jinja, with what `tokenizer` puts around a text.

    It takes what `readers.check_record` takes of a dialogue, and raises what is wrong with another.

    Args:
        template: not one with `from_tokenizer`.
        asks_instructions: whether a question that nothing precedes is an instruction.
        lead: stands before an answer.
        answers: without, earlier rounds are refused.
    """
    before, behind = (_tokens(ids, tokenizer) for ids in (prefix_ids(tokenizer), suffix_ids(tokenizer)))
    end = _tokens([require_eos(tokenizer)], tokenizer)
    lines = [*_CHECKS, *([] if answers else _REFUSAL), f"{{{{- {before} -}}}}" if before else ""]
    answer = f"{{{{- ({_quoted(lead)} ~ turn.content if turn.content else '') ~ {end} -}}}}"
    # Where a row has one answer, those before it are text of the prompt.
    last = f"{{{{- {behind} ~ turn.content ~ {end} -}}}}" if behind else answer
    earlier = "{{- turn.content -}}" if has_one_answer(template, tokenizer) else answer
    dialogue = [
        f"{{{{- system or {_quoted(template.dialogue_system)} -}}}}",
        "{%- for turn in turns -%}",
        "{%- if turn.role == 'user' -%}",
        f"{{%- if not loop.first or system or {_quoted(template.dialogue_system)} -%}}",
        f"{{{{- {_quoted(template.dialogue_between)} -}}}}",
        "{%- endif -%}",
        f"{{{{- {_filled(template.dialogue_user, content='turn.content', round='loop.index0 // 2')} -}}}}",
        "{%- if not loop.last or add_generation_prompt -%}",
        f"{{{{- {_quoted(template.dialogue_assistant)} -}}}}",
        "{%- endif -%}",
        f"{{%- elif loop.last -%}}{last}{{%- else -%}}{earlier}",
        "{%- endif -%}",
        "{%- endfor -%}",
    ]
    if asks_instructions or template.one_exchange_is_instruction:
        dialogue = [
            "{%- if turns|length <= 2 and not system -%}",
            f"{{{{- {_filled(template.without_input, instruction='turns[0].content', input=_quoted(''))} -}}}}",
            f"{{%- for turn in turns[1:] -%}}{last}{{%- endfor -%}}",
            "{%- else -%}",
            *dialogue,
            "{%- endif -%}",
        ]
    closing = (
        [f"{{%- if add_generation_prompt and turns[-1].role == 'user' -%}}{{{{- {behind} -}}}}{{%- endif -%}}"]
        if behind
        else []
    )
    return "\n".join(line for line in [*lines, *dialogue, *closing] if line)


# What the API refuses is refused here, and with it what it would not show: text that is no part of the prompt.
_CHECKS = (
    "{%- if tools -%}",
    "{{- raise_exception('tools are no part of the prompt that this model was trained in') -}}",
    "{%- endif -%}",
    "{%- for turn in messages -%}{%- if turn.content is not string -%}",
    "{{- raise_exception('the content of a message must be text') -}}",
    "{%- endif -%}{%- endfor -%}",
    "{%- set has_system = messages[0].role in ['system', 'developer'] -%}",
    "{%- set system = messages[0].content if has_system else '' -%}",
    "{%- set turns = messages[1:] if has_system else messages -%}",
    "{%- for turn in turns -%}{%- if turn.role != ['user', 'assistant'][loop.index0 % 2] -%}",
    "{{- raise_exception('after an optional system message, user and assistant must alternate, from user on') -}}",
    "{%- endif -%}{%- endfor -%}",
    "{%- if not turns or (add_generation_prompt and turns[-1].role != 'user') -%}",
    "{{- raise_exception('the last message must be the user\\'s') -}}",
    "{%- endif -%}",
)
_REFUSAL = (
    "{%- if turns|length > 1 -%}",
    "{{- raise_exception('this template takes a question without earlier ones only: after an answer, its ids could be "
    "others than those the model was trained on') -}}",
    "{%- endif -%}",
)


def _quoted(text: str) -> str:
    """A Jinja string; of JSON's escapes, it reads all but surrogates."""
    return json.dumps(text, ensure_ascii=False)


def _filled(form: str, **expressions: str) -> str:
    """A text with fields as a Jinja expression."""
    parts = []
    for text, field, _, _ in Formatter().parse(form):
        parts += [_quoted(text)] if text else []
        parts += [f"({expressions[field]})"] if field else []
    return " ~ ".join(parts) or _quoted("")


def _tokens(ids: Sequence[int], tokenizer: Any) -> str:
    """Control tokens as a Jinja expression: by role where they have one that is everywhere known, else by name."""
    roles = {tokenizer.bos_token_id: "bos_token", tokenizer.eos_token_id: "eos_token"}
    return " ~ ".join(roles.get(i) or _quoted(tokenizer.convert_ids_to_tokens(i)) for i in ids)


def _plain(folder: Path) -> Any:
    """The tokenizer in `folder`, as whoever has transformers alone reads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _remove(folder: Path) -> None:
    """Takes every chat template out of a saved tokenizer."""
    (folder / NAME).unlink(missing_ok=True)
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    config = folder / "tokenizer_config.json"
    declared = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if declared.pop("chat_template", None) is not None:
        config.write_text(json.dumps(declared, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
