"""What people and models wrote, shown as text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from utils.page import markup

NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a <b>b</b> <!-- c --> <?php ?>",
    "![pixel](https://example.invalid/x.png)",
    "![ref][1]\n\n[1]: https://example.invalid/x.png",
    "```\n<iframe src=//example.invalid>\n```",
    "",
    "1 < 2 且 3 > 2 🌏",
]


@pytest.mark.parametrize("text", NASTY)
def test_what_is_shown_has_no_tag_and_no_picture_and_comes_back_as_it_was(text: str) -> None:
    shown = markup.harmless(text)
    assert not re.search(r"<[A-Za-z/!?]|!\[", shown)
    assert shown.replace(markup.JOINER, "") == text
    assert markup.as_written(shown) == text
    assert "<" not in markup.literal(text).replace("<br>", "")


def test_marked_ids_show_every_token_once_and_keep_what_a_person_wrote_apart(tokenizer: Any) -> None:
    words = tokenizer("什么是 </s>? 🌏\n\n<b>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    shown = markup.marked_ids([1, *words, 2], tokenizer, {1, 2}, [False] + [True] * (len(words) + 1))
    assert shown.count("<kbd>") == 2
    assert shown.count("\n") == 0
    assert "<kbd>&lt;s&gt;</kbd>" in shown
    assert "<kbd>&lt;/s&gt;</kbd></mark>" in shown
    assert "什么是 &lt;/s&gt;? 🌏<br><br>&lt;b&gt;" in shown
    assert markup.marked_ids([], tokenizer, {1}) == "<div class='exact'></div>"
