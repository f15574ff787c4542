"""Ids that come one by one → text, in pieces that no later id changes.

Knows: what decoders make of broken characters and of a text's beginning. Does not know models, threads or where an
answer ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from utils.stopping import decoded

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""The name of a byte piece in SentencePiece's vocabularies."""


class Streamer:
    """Ids one by one → the text that no later id changes.

    A decoder takes a blank from what it thinks the beginning of a text. So ids are decoded behind those that were shown
    last, never alone, and what is new is shown; what was shown before those is not decoded again.

    Args:
        show: is called with each piece, none of them empty.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], show: Callable[[str], object]) -> None:
        self._tokenizer, self._stop_ids, self._show = tokenizer, stop_ids, show
        self._shown_ids: list[int] = []
        self._shown = ""
        self._new_ids: list[int] = []
        self._text = ""
        self._stopped = False

    def put(self, token: int) -> None:
        """Takes the next id of the answer; those from one of `stop_ids` on are none of it."""
        self._stopped |= token in self._stop_ids
        if not self._stopped:
            self._add(token)

    def end(self) -> None:
        """Shows what was held back."""
        if piece := self._text[len(self._shown) :]:
            self._show(piece)

    def _add(self, token: int) -> None:
        before = self._text
        self._new_ids.append(token)
        self._text = decoded(self._tokenizer, [*self._shown_ids, *self._new_ids])
        # A character may lack bytes. Some decoders make a whole run of byte pieces U+FFFD when one of them is wrong: it
        # is held back until another piece follows, which a control token, that adds no text, is not.
        if self._text == before or self._text.endswith(_BROKEN) or self._is_byte(token):
            return
        self._show(self._text[len(self._shown) :])
        self._shown_ids, self._new_ids = self._new_ids, []
        self._shown = self._text = decoded(self._tokenizer, self._shown_ids)

    def _is_byte(self, token: int) -> bool:
        return _BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(token) or "") is not None
