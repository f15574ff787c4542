"""The decoding parameters on the page: a slider each, checked again on arrival, and a link that carries them.

Knows: `utils.cli.GENERATION`, the range of each slider, and the address's query. Does not know questions or models.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import gradio

from utils import cli
from utils.conversation import Room
from utils.page.texts import Labels, Text, Trouble

SLIDERS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "top_p": (0.05, 1.0, 0.05),
        "temperature": (0.05, 2.0, 0.05),
        "top_k": (0, 200, 1),
        "num_beams": (1, 8, 1),
        "no_repeat_ngram_size": (0, 20, 1),
        "repetition_penalty": (1.0, 3.0, 0.05),
        "max_new_tokens": (1, 2048, 1),
    }
)
"""Least, most and step. What a request asks for lies within them, too."""
SEED, LARGEST_SEED = "seed", 2**53 - 1
"""The largest whole number that a browser keeps exactly."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters of one page: their names in order, defaults and bounds."""

    defaults: Mapping[str, Any]
    bounds: Mapping[str, tuple[float, float, float]]

    @classmethod
    def of(cls, context: int | None, flags: argparse.Namespace | None = None) -> Parameters:
        """Those of a model; the defaults are those of the flags, as far as a slider has them."""
        bounds = dict(SLIDERS)
        values = {name: getattr(flags, name, row[0]) for name, row in cli.GENERATION.items()}
        if context is not None:
            bounds["max_new_tokens"] = (1, min(SLIDERS["max_new_tokens"][1], max(1, context - 1)), 1)
            values["max_new_tokens"] = Room(context=context, longest_answer=values["max_new_tokens"]).kept
        if getattr(flags, "greedy", False):
            values |= cli.greedy_settings(values["max_new_tokens"])
        for name, (least, most, _) in bounds.items():
            values[name] = type(values[name])(min(max(values[name], least), most))
        return cls(defaults=values | {SEED: getattr(flags, SEED, 42)}, bounds=bounds)

    def components(self, labels: Labels) -> list[Any]:
        """A component for each, in order."""
        made: list[Any] = []
        for name, value in self.defaults.items():
            if name == SEED:
                made.append(
                    labels.put(
                        gradio.Number,
                        value=value,
                        precision=0,
                        minimum=0,
                        maximum=LARGEST_SEED,
                        label=Text("page.seed"),
                        info=Text("page.seed_info"),
                        elem_id=f"parameter-{name}",
                    )
                )
                continue
            shown = {"label": name, "info": Text(f"parameter.{name}"), "elem_id": f"parameter-{name}"}
            if name in self.bounds:
                least, most, step = self.bounds[name]
                made.append(labels.put(gradio.Slider, least, most, value, step=step, **shown))
            else:
                made.append(labels.put(gradio.Checkbox, value, **shown))
        return made

    def taken(self, values: Sequence[Any]) -> dict[str, Any]:
        """The components' values by name, checked.

        Raises:
            Trouble: one that is out of its bounds or no such value at all.
        """
        found = {}
        for name, value in zip(self.defaults, values, strict=True):
            try:
                found[name] = self._checked(name, f"{value:.12g}" if isinstance(value, float) else str(value))
            except ValueError as error:
                raise Trouble("status.refused", why=str(error)) from error
        return found

    def from_query(self, query: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
        """(values that an address asks for, on top of the defaults; what it asks for that cannot be had)."""
        found, refused = dict(self.defaults), []
        for name in self.defaults:
            if name in query:
                try:
                    found[name] = self._checked(name, query[name])
                except ValueError as error:
                    refused.append(str(error))
        return found, refused

    def query(self, values: Mapping[str, Any], **others: str) -> str:
        """The query of an address that asks for these values; defaults are left out."""
        changed = {name: value for name, value in values.items() if value != self.defaults[name]}
        return urlencode({**others, **{name: str(value).lower() for name, value in changed.items()}})

    def _checked(self, name: str, text: str) -> Any:
        """The value, or a `ValueError` that says in any language what it must be."""
        kind = cli.GENERATION[name][1] if name in cli.GENERATION else cli.natural_int
        least, most, _ = self.bounds.get(name, (0, LARGEST_SEED if name == SEED else 1, 1))
        try:
            value = kind(text[:40])
        except (argparse.ArgumentTypeError, OverflowError):
            value = None
        if value is None or not least <= value <= most:
            raise ValueError(f"{name} = {text[:40]!r} ({least:,} … {most:,})")
        return value


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the engine is asked for, as of the scripts' flags."""
    return cli.generation_settings(argparse.Namespace(**values, greedy=False))
