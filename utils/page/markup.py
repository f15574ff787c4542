"""What people and models wrote, made fit for a page: nothing in it is HTML, and nothing in it makes the browser fetch.

Knows: Gradio's Markdown, and how ids become marked text. Does not know components or languages.

A tag begins with `<` and a letter, `/`, `!` or `?`; a picture with `![`. Between the two characters comes U+2060, which
has no width and no meaning: the browser then shows what was written, letter by letter, in code as elsewhere. A script
of the page (`utils.page.appearance`) takes it out of what is copied, and `as_written` out of what comes back. Behind
this, Gradio's own sanitiser and the page's Content-Security-Policy stand.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

JOINER = "\N{WORD JOINER}"
_OPENS = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)")
_CLOSED = re.compile(f"([<!]){JOINER}")


def harmless(text: str) -> str:
    """Markdown that has no HTML and no pictures, and reads the same.

    >>> harmless("1 < 2 <b>") == "1 < 2 <" + JOINER + "b>"
    True
    """
    return _OPENS.sub(lambda found: found[0] + JOINER, text)


def as_written(text: str) -> str:
    """What `harmless` made, as it was."""
    return _CLOSED.sub(r"\1", text)


def literal(text: str) -> str:
    """HTML that shows exactly this text, in one line: Markdown would read on after an empty one."""
    return html.escape(text).replace("\r\n", "\n").replace("\r", "\n").replace("\n", "<br>")


def marked_ids(
    ids: Sequence[int], tokenizer: Any, control: Iterable[int], trained: Sequence[bool] | None = None
) -> str:
    """Ids as HTML: control tokens in `kbd`, trained ones in `mark`.

    Args:
        control: ids of control tokens.
        trained: which of the ids carry loss; None: that is not shown.
    """
    known = set(control)

    def shown(token_ids: Iterable[int]) -> str:
        pieces = []
        for is_control, group in itertools.groupby(token_ids, known.__contains__):
            text = tokenizer.decode(list(group), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            pieces.append(f"<kbd>{literal(text)}</kbd>" if is_control else literal(text))
        return "".join(pieces)

    pairs = itertools.groupby(zip(ids, trained or [False] * len(ids), strict=True), lambda pair: pair[1])
    pieces = [(is_trained, shown(token for token, _ in group)) for is_trained, group in pairs]
    body = "".join(f"<mark>{piece}</mark>" if is_trained else piece for is_trained, piece in pieces)
    return f"<div class='exact'>{body}</div>"


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] = ()) -> str:
    """An HTML table of texts; without a header, the first column names the rows."""
    lines = []
    if header:
        lines.append("".join(f"<th>{literal(str(cell))}</th>" for cell in header))
    for first, *others in rows:
        tag = "td" if header else "th"
        lines.append(f"<{tag}>{literal(str(first))}</{tag}>" + "".join(f"<td>{literal(str(c))}</td>" for c in others))
    return "<div class='wide'><table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"
