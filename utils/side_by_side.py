"""Answers of several models to one question, in columns.

Knows: a terminal's width and how wide a character is on it. Does not know models.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping

NARROWEST = 24
"""Characters that a column must have; else the answers stand below each other."""


def table(answers: Mapping[str, str], *, width: int | None = None) -> str:
    """One column for each answer, headed by its model's name; every answer whole, wrapped at `width` (None: the
    terminal's)."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = width or shutil.get_terminal_size().columns
    if width < NARROWEST * len(answers):
        return "\n\n".join(f"## {name}\n{text}" for name, text in answers.items())
    # A copy for Markdown and for people: no colours, no links, and brackets are what they are.
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    shown = Table(box=box.ASCII2, width=width, show_lines=False)
    for name in answers:
        shown.add_column(Text(name), ratio=1, overflow="fold")
    shown.add_row(*(Text(text) for text in answers.values()))
    console.print(shown)
    written = console.file
    assert isinstance(written, io.StringIO)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())
