"""Dialogues that upstream already publishes as lists of turns.

ShareGPT (checked on lm-sys/FastChat's `dummy_conversation.json`, 500 dialogues): `conversations`, each turn with `from`
and `value`. MOSS (checked on three of OpenLMLab/MOSS's published examples): `meta_instruction` and `chat`, an object of
`turn_1`, `turn_2`, …, each with `Human`, `MOSS` and the plugin parts; the text carries marks such as `<|Human|>:` and
`<eoh>`. UltraChat (stingning/ultrachat's dataset card, unverified): `data`, a list of texts, the user's first. CAMEL
(camel-ai's cards of the science sets, unverified): `message_1` asks and `message_2` solves; in the role-play sets, of
whose chats no document was seen, each message is taken to be an object with `role_type` and `content`. Prosocial Dialog
(allenai/prosocial-dialog's dataset card, unverified): a row an exchange, `context` and `response`; rows with one
`dialogue_id` are one dialogue.

A dialogue is kept whole or dropped with its reason: no turn is cut, merged or put elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils import formats
from utils.converters.contract import (
    Converter,
    Dropped,
    Options,
    Outcome,
    Turn,
    as_text,
    conversation,
    describe,
    instruction,
    mapping,
    optional_text,
    rows_or_document,
    sequence,
    text,
)
from utils.formats import RawRow

SPEAKERS: Mapping[str, str] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "claude", "assistant", "model", "bot"), "assistant"),
    "system": "system",
}
MOSS_TURN = re.compile(r"turn_([1-9]\d{0,5})")
MOSS_MARK = re.compile(r"\A\s*<\|(?:Human|MOSS)\|>:[ \t]*|\s*<eo[hm]>\s*\Z")
# Points to the results of the plugins, which are left out.
MOSS_REFERENCE = re.compile(r"<sup>(?:<\|\d+\|>)+</sup>")


def convert_sharegpt(raw: Any, options: Options) -> Iterator[Outcome]:
    """`conversations` of `from` and `value`."""
    turns: list[Turn] = []
    for item in sequence(mapping(raw), "conversations"):
        speaker, said = text(mapping(item), "from"), text(item, "value")
        if speaker.strip().lower() not in SPEAKERS:
            yield Dropped("a turn by neither user nor assistant")
            return
        turns.append((SPEAKERS[speaker.strip().lower()], said))
    yield conversation(turns)


def convert_moss(raw: Any, options: Options) -> Iterator[Outcome]:
    """The person's and MOSS's words; inner thoughts, commands and tool responses are left out."""
    row = mapping(raw, ["chat"])
    chat = mapping(row["chat"])
    numbers = {key: MOSS_TURN.fullmatch(key) for key in chat}
    if wrong := [key for key, match in numbers.items() if match is None]:
        raise ValueError(f"expected turn_1, turn_2, … in 'chat', found {wrong[0]!r}")
    turns: list[Turn] = [("system", optional_text(row, "meta_instruction").strip())]
    for key in sorted(chat, key=lambda key: int(key.removeprefix("turn_"))):
        turn = mapping(chat[key], ["Human", "MOSS"])
        turns += [("user", _moss(text(turn, "Human"))), ("assistant", _moss(text(turn, "MOSS")))]
    yield conversation(turns)


def _moss(said: str) -> str:
    return MOSS_REFERENCE.sub("", MOSS_MARK.sub("", said)).strip()


def convert_ultrachat(raw: Any, options: Options) -> Iterator[Outcome]:
    """`data`: the user's and the assistant's texts in turn."""
    turns = [as_text(said, "'data'") for said in sequence(mapping(raw), "data")]
    yield conversation([("assistant" if number % 2 else "user", said) for number, said in enumerate(turns)])


def convert_camel(raw: Any, options: Options) -> Iterator[Outcome]:
    """A problem and its solution, or a role-play of messages."""
    row = mapping(raw, ["message_1", "message_2"])
    if not isinstance(row["message_1"], Mapping):
        yield instruction(text(row, "message_1"), "", text(row, "message_2"))
        return
    turns: list[Turn] = []
    while (key := f"message_{len(turns) + 1}") in row:
        message = mapping(row[key], ["role_type", "content"])
        speaker = text(message, "role_type").lower()
        if speaker not in SPEAKERS:
            yield Dropped("a turn by neither user nor assistant")
            return
        turns.append((SPEAKERS[speaker], text(message, "content")))
    yield conversation(turns)


def read_prosocial(path: Path) -> Iterator[RawRow]:
    """The exchanges of one dialogue, which upstream writes in a row, as a list."""
    start, exchanges = "", []
    for where, raw in formats.read(path):
        if exchanges and (dialogue := _dialogue(raw)) is not None and dialogue == _dialogue(exchanges[-1]):
            exchanges.append(raw)
            continue
        if exchanges:
            yield start, exchanges
        start, exchanges = where, [raw]
    if exchanges:
        yield start, exchanges


def _dialogue(raw: Any) -> Any:
    return raw.get("dialogue_id") if isinstance(raw, Mapping) else None


def convert_prosocial(raw: Any, options: Options) -> Iterator[Outcome]:
    """The exchanges of one dialogue."""
    if not isinstance(raw, list):
        raise ValueError(f"expected the exchanges of a dialogue, found {describe(raw)}")
    turns: list[Turn] = []
    for exchange in raw:
        row = mapping(exchange, ["context", "response"])
        turns += [("user", text(row, "context")), ("assistant", text(row, "response"))]
    yield conversation(turns)


SHAREGPT = Converter(what="ShareGPT: conversations of from and value", read=formats.read, convert=convert_sharegpt)
MOSS = Converter(what="MOSS: turns with plugin parts", read=rows_or_document, convert=convert_moss)
ULTRACHAT = Converter(what="UltraChat: a list of texts", read=formats.read, convert=convert_ultrachat)
CAMEL = Converter(what="CAMEL: message_1, message_2, …", read=rows_or_document, convert=convert_camel)
PROSOCIAL = Converter(
    what="Prosocial Dialog: context, response, dialogue_id", read=read_prosocial, convert=convert_prosocial
)
