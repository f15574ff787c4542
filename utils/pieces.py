"""SentencePiece itself: text into the ids of a model's pieces, and back, to the character.

Knows: SentencePiece models, the pieces that stand for layout, and how to keep what a person typed from becoming a piece
that means something. Does not know transformers, families or what is put around a text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

BLANK = "▁"
"""How SentencePiece writes a space, and the space that it puts before a text."""
MARK = "\U0010ffff"
"""Before what stands for a piece, where a person must not be able to write it: Unicode promises that no text has it."""
NORMAL, UNKNOWN, USER_DEFINED, UNUSED, BYTE = 1, 2, 4, 5, 6
"""Kinds of piece (sentencepiece_model.proto): merged, for what is rare, found whole, merged but never given, a byte."""


def read_model(path: Path) -> bytes:
    """The bytes of a SentencePiece model.

    Raises:
        ValueError: no such file, or none of SentencePiece's; the message names it.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; download the checkpoint's tokenizer again") from error
    try:
        _processor(model)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: not a SentencePiece model ({len(model)} bytes); download the checkpoint's tokenizer again"
        ) from error
    return model


def _processor(model: bytes) -> Any:
    from sentencepiece import SentencePieceProcessor

    processor: Any = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return processor


class Pieces:
    """The pieces of one model; all ids are SentencePiece's own.

    Args:
        model: the bytes of the model.
        layout: what is written in a text → the piece that stands for it, such as a newline → `<n>`. Pieces that the
            model lacks are left out.
        guarded: texts of pieces that mean something, beside those of `layout`; `encode_literally` never gives their
            ids. Control pieces need no guard, for SentencePiece finds none in a text.
    """

    def __init__(self, model: bytes, *, layout: Mapping[str, str] | None = None, guarded: Iterable[str] = ()) -> None:
        self._sp = _processor(model)
        self.texts: list[str] = [self._sp.id_to_piece(i) for i in range(self._sp.get_piece_size())]
        """The name of each piece, by id."""
        self.ids: dict[str, int] = {text: i for i, text in enumerate(self.texts)}
        """The id of each piece, by name."""
        self.controls: list[int] = [i for i in range(len(self.texts)) if self._sp.is_control(i)]
        """The ids that no text has: `<s>`, `</s>` and the like."""
        self.unknown: int = self._sp.unk_id()
        self._layout = {written: piece for written, piece in (layout or {}).items() if piece in self.ids}
        self._layout_of = {self.ids[piece]: written for written, piece in self._layout.items()}
        self._written = _any_of(self._layout)
        self._literal = _processor(_hidden(model, {*guarded}, {*self._layout.values()}))
        self._puts_blank = self._sp.encode("a", out_type=str)[0].startswith(BLANK)

    def __len__(self) -> int:
        return len(self.texts)

    def encode(self, text: str) -> list[int]:
        """The ids that the model was trained with; a piece that is written out in `text`, such as `<n>`, is that piece.
        Nothing for an empty text."""
        return self._sp.encode(self._laid_out(text))

    def encode_literally(self, text: str) -> list[int]:
        """The same, but the pieces of layout and the guarded ones, written out in `text`, are its characters. Where
        `text` has none of them, the ids are those of `encode`."""
        return self._literal.encode(self._laid_out(text, MARK))

    def decode(self, ids: Iterable[int], names: Mapping[int, str]) -> str:
        """The text of `ids`, piece by piece.

        A run of byte pieces is one UTF-8 text, broken bytes become U+FFFD; the blank that SentencePiece puts before a
        text is left out at the beginning and behind each of `names`; ids that the model lacks are nothing.

        Args:
            names: ids that are written as told, instead of as a piece.
        """
        written: list[bytes] = []
        begins = self._puts_blank
        for i in ids:
            if i in names:
                written.append(names[i].encode())
                begins = self._puts_blank
                continue
            if not 0 <= i < len(self.texts):
                continue
            if self._sp.is_byte(i):
                written.append(bytes([int(self.texts[i][3:5], 16)]))
            else:
                text = self._layout_of.get(i) or self.texts[i].replace(BLANK, " ")
                written.append(
                    text.removeprefix(" ").encode() if begins and i not in self._layout_of else text.encode()
                )
            begins = False
        return b"".join(written).decode(errors="replace")

    def _laid_out(self, text: str, mark: str = "") -> str:
        if not self._layout:
            return text
        return self._written.sub(lambda match: mark + self._layout[match.group()], text)


def _hidden(model: bytes, guarded: Collection[str], layout: Collection[str]) -> bytes:
    """The model, so that no text has the `guarded` pieces, and a text has those of `layout` behind a mark only."""
    from sentencepiece import sentencepiece_model_pb2

    found: Any = sentencepiece_model_pb2
    proto = found.ModelProto.FromString(model)
    for piece in proto.pieces:
        if piece.piece in layout:
            piece.piece = MARK + piece.piece
        elif piece.piece in guarded and piece.type in (NORMAL, USER_DEFINED):
            piece.type = UNUSED  # merged through, and then taken apart
    return proto.SerializeToString()


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of `texts`; nothing where there is none."""
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
