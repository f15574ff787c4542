"""What the model will see, for people: rows with their trained tokens marked, and the lengths of all rows.

Knows: encoded rows and how a terminal shows them. Does not know how a row was made.
"""

from __future__ import annotations

import itertools
from typing import Any

from utils.proof import IGNORED, Encoded

GREEN, DIM, RESET = "\033[1;32m", "\033[2m", "\033[0m"


def marked(row: Encoded, tokenizer: Any, *, color: bool) -> str:
    """The row as text: what is trained in green, the rest dim; without colour, what is trained stands in ⟦ ⟧."""
    pieces = []
    for trained, group in itertools.groupby(
        zip(row.input_ids, row.labels, strict=True), lambda pair: pair[1] != IGNORED
    ):
        ids = [token for token, _ in group]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if color:
            pieces.append(f"{GREEN if trained else DIM}{text}{RESET}")
        else:
            pieces.append(f"⟦{text}⟧" if trained else text)
    trained_tokens = sum(label != IGNORED for label in row.labels)
    return f"── {row.origin} · {len(row.input_ids)} tokens, {trained_tokens} trained\n{''.join(pieces)}"


def histogram(lengths: Any, *, bins: int = 8, width: int = 40) -> list[str]:
    """Lines of a bar chart of row lengths in tokens (a list or an array of whole numbers, not empty)."""
    import numpy

    low, high = int(numpy.min(lengths)), int(numpy.max(lengths))
    step = max(1, -(-(high - low + 1) // bins))
    edges = list(range(low, high + 1, step))
    counts = [int(count) for count in numpy.histogram(lengths, bins=[*edges, edges[-1] + step])[0]]
    top = max(counts)
    lines = []
    for edge, count in zip(edges, counts, strict=True):
        bar = "█" * -(-count * width // top)
        lines.append(f"  {edge:>6,}–{min(edge + step - 1, high):<6,} {count:>8,} {bar}")
    return lines
