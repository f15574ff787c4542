"""Looking a name up in a registry, with an error that helps.

Knows: how to say which names are near and which exist. Does not know what the names stand for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
SHOWN = 20
"""Names in a message; the nearest are named in any case."""


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> str:
    """The message for an unknown `name`: the nearest ones first, then all.

    >>> unknown_name("dataset", "bele", ["alpaca", "belle"], "--data 'alpaca-bele'")
    "unknown dataset 'bele' in --data 'alpaca-bele'. Did you mean belle? Known: alpaca, belle."
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    place = f" in {where}" if where else ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"unknown {kind} {name!r}{place}.{guess} Known: {', '.join(names[:SHOWN])}{more}."


def find(kind: str, name: str, registry: Mapping[str, Value], where: str = "") -> Value:
    """`registry[name]`; a `ValueError` with the nearest names where there is none."""
    if name not in registry:
        raise ValueError(unknown_name(kind, name, registry, where))
    return registry[name]
