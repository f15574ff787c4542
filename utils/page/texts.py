"""What the page says, in each of its languages.

Knows: the table of texts beside it, which language a browser asks for, and which component shows which text. Does not
know what the components are for.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import gradio
from gradio.blocks import Block

from utils import lookup
from utils.cli import GENERATION

TABLE = Path(__file__).with_name("texts.toml")
LANGUAGES: Mapping[str, str] = MappingProxyType({"en": "English", "zh": "中文"})
"""Each language's own name by its code."""
Made = TypeVar("Made", bound=Block)


class Text(str):
    """The name of a text, such as `chat.question`, where a component takes a text."""


class Trouble(Exception):
    """What keeps a question from its answer, said as a text of the table."""

    def __init__(self, key: str, **values: Any) -> None:
        super().__init__(key)
        self.key, self.values = key, values

    def said(self, language: str) -> str:
        """For people."""
        return say(self.key, language, **self.values)


@functools.cache
def read_texts() -> Mapping[str, Mapping[str, str]]:
    """Each text by its name, then by language."""
    tables = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    texts = {f"{group}.{name}": row for group, rows in tables.items() for name, row in rows.items()}
    for name, (_, _, explanation) in GENERATION.items():
        texts[f"parameter.{name}"] = {"en": explanation, **texts[f"parameter.{name}"]}
    return MappingProxyType(texts)


def say(key: str, language: str, **values: Any) -> str:
    """A text in a language, with what it is about.

    Raises:
        ValueError: no such text.
    """
    text = lookup.find("text", key, read_texts())[known(language)]
    return text.format(**values) if values else text


def known(language: Any) -> str:
    """The language if the page has it, else English: what a request brings can be anything."""
    return language if isinstance(language, str) and language in LANGUAGES else "en"


def preferred(accepted: str | None, asked: str | None = None) -> str:
    """The language for a browser: the one that the address asks for, else the first of its own that the page has.

    Args:
        accepted: the header Accept-Language. Browsers send it in order of preference.
        asked: `lang` of the address.
    """
    for wish in (asked or "", *(accepted or "").split(",")):
        code = wish.strip()[:2].lower()
        if code in LANGUAGES:
            return code
    return "en"


@dataclass
class Labels:
    """The components that show texts of the table, so that all can be changed to another language at once."""

    shown: list[tuple[Any, Mapping[str, Text | Sequence[Text]]]] = field(default_factory=list)

    def put(self, make: Callable[..., Made], *values: Any, **options: Any) -> Made:
        """A component whose options, or first value, may be a `Text`, in English at first."""
        if values and isinstance(values[0], Text):
            options, values = {"value": values[0], **options}, values[1:]
        keys = {name: value for name, value in options.items() if isinstance(value, Text)}
        made = make(*values, **options | {name: say(key, "en") for name, key in keys.items()})
        self.shown.append((made, keys))
        return made

    @property
    def components(self) -> list[Any]:
        """In the order of `updates`."""
        return [component for component, _ in self.shown]

    def updates(self, language: str) -> list[Any]:
        """What Gradio is told so that each component speaks the language."""
        told = []
        for _, keys in self.shown:
            said: dict[str, Any] = {
                name: say(key, language) if isinstance(key, Text) else [say(each, language) for each in key]
                for name, key in keys.items()
            }
            told.append(gradio.update(**said))
        return told
