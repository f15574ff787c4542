"""The rows of JSON Lines and of a JSON array.

Knows: JSON, and what Python takes for JSON though it loses something. Does not know gzip or encodings' bytes
(`utils.formats.opening`), or what a row means.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from utils.formats import faults
from utils.formats.faults import BadRow, RawRow, not_utf8, too_long
from utils.formats.opening import open_bytes, open_text

CHUNK = 1 << 20
"""Bytes or characters read at a time."""
HOLD = 2
"""How many times the longest row is held to find the end of one that is too long; the next begins behind it."""
NEAR_THE_END = 16
"""An error this close to the end of what was read may only mean that more must be read: the longest literal or escape
(`\\ud83c\\udf0f`, 12 characters) is shorter."""


def decoded(rows: Iterable[RawRow], path: Path) -> Iterator[RawRow]:
    """What `scan` gave, as values and `BadRow`s."""
    decoder = _Decoder()
    for where, raw in rows:
        yield where, _line_value(raw, f"{path} {where}", decoder) if isinstance(raw, bytes) else raw


def document(path: Path) -> Any:
    """A file that is one JSON value. Raises `ValueError` as `read` does."""
    with open_text(path) as file:
        text = file.read()
    try:
        value = _Decoder().whole(text, str(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: broken JSON ({error})") from error
    if isinstance(value, BadRow):
        raise ValueError(str(value))
    return value


class _Decoder:
    """JSON into values. Of two equal keys Python keeps the last without a word, and it takes NaN; here the value is a
    `BadRow` then. As its end is known nevertheless, what follows can be read."""

    def __init__(self) -> None:
        self._faults: list[tuple[str, str]] = []
        self._json = json.JSONDecoder(parse_constant=self._constant, object_pairs_hook=self._object)

    def value(self, text: str, at: int, origin: str) -> tuple[Any, int]:
        """The value that begins at `at`, and where it ends. Raises `ValueError` and `RecursionError`."""
        self._faults.clear()
        value, end = self._json.raw_decode(text, at)
        return (BadRow(origin, *self._faults[0]) if self._faults else value), end

    def whole(self, text: str, origin: str) -> Any:
        """The value that a text is."""
        stripped = text.strip()
        value, end = self.value(stripped, 0, origin)
        if end != len(stripped):
            raise json.JSONDecodeError("Extra data", stripped, end)
        return value

    def _constant(self, name: str) -> None:
        self._faults.append(("NaN or Infinity", f"broken JSON ({name} is not JSON); write null, or a number as text"))

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            problem = f"broken JSON (the key {twice!r} stands twice in one object); leave one of them"
            self._faults.append(("a key twice", problem))
        return found


def _line_value(line: bytes, origin: str, decoder: _Decoder) -> Any:
    """The value of a line of JSON, or its `BadRow`."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} of the line is {line[error.start]:#04x}"
        return BadRow(origin, "not UTF-8", f"not UTF-8 ({byte}); save the file as UTF-8")
    try:
        return decoder.whole(text, origin)
    except (ValueError, RecursionError) as error:
        hint = "; one object over several lines belongs in [ ]" if text.strip() == "{" else ""
        if text.startswith("\ufeff"):
            hint = "; a byte-order mark stands before it, as where files were joined: take it out"
        return BadRow(origin, "broken JSON", f"broken JSON ({_said(error)}){hint}")


def _said(error: Exception, begin: int = 0) -> str:
    """What json says of a text, and where in the row that begins at `begin`; its own line is that of the text."""
    return f"{error.msg} at character {error.pos - begin}" if isinstance(error, json.JSONDecodeError) else str(error)


def begins_array(path: Path) -> bool:
    """Whether a file is a JSON array, not lines."""
    with open_bytes(path) as file:
        start = file.read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip(b" \t\r\n")
        while not start and (more := file.read(CHUNK)):
            start = more.lstrip(b" \t\r\n")
    return start.startswith(b"[")


def json_lines(path: Path) -> Iterator[RawRow]:
    """The lines that are not empty, as bytes for `decoded`; one that is too long is read past, not held."""
    with open_bytes(path) as file:
        number = 0
        while line := file.readline(faults.LONGEST_ROW + 1):
            number += 1
            if len(line) > faults.LONGEST_ROW and not line.endswith(b"\n"):
                while (more := file.readline(CHUNK)) and not more.endswith(b"\n"):
                    pass
                yield f"line {number}", too_long(f"{path} line {number}", "bytes")
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            # A line of other blanks, such as ideographic spaces, is empty, too.
            if line.startswith(b"{") or line.decode(errors="replace").strip():
                yield f"line {number}", line


def read_array(path: Path) -> Iterator[RawRow]:
    """Element by element, so that an error knows its row."""
    with open_text(path, errors="surrogateescape") as file:
        array, row = _ArrayText(file), 0
        array.next_character()
        array.skip(1)
        while array.next_character() != "]":
            row += 1
            value = array.value(f"{path} row {row}")
            yield f"row {row}", value
            after = array.next_character()
            if after == ",":
                array.skip(1)
                if array.next_character() == "]":
                    raise ValueError(f"{path} row {row}: broken JSON (a comma follows the last row)")
            elif after != "]":
                what = f"found {after!r}" if after else "the file ends here"
                raise ValueError(f"{path} row {row}: broken JSON (after it a comma or ] was expected, {what})")
        array.skip(1)
        if array.next_character():
            raise ValueError(f"{path}: broken JSON (text follows the closing ] after row {row})")


class _ArrayText:
    """A place in the text of a JSON array, of which only the part around it is in memory."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at, self._ended, self._decoder = file, "", 0, False, _Decoder()

    def skip(self, count: int) -> None:
        self._at += count

    def next_character(self) -> str:
        """The next character that is no white space, where the place then is; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def value(self, origin: str) -> Any:
        """The value that begins here, or what is wrong with it. Raises ValueError where its end cannot be found."""
        while True:
            try:
                value, end = self._decoder.value(self._text, self._at, origin)
            except (ValueError, RecursionError) as error:
                endless = len(self._text) - self._at > HOLD * faults.LONGEST_ROW
                if endless or not self._may_go_on(error):
                    what = f"no end within {HOLD * faults.LONGEST_ROW:,} characters"
                    raise ValueError(
                        f"{origin}: broken JSON ({what if endless else _said(error, self._at)}); mend it, for in an "
                        "array the next row cannot be found behind it"
                    ) from error
            else:
                # Only a number may go on where it seems to end: 12 may be the beginning of 123, or of 12.5.
                if self._ended or type(value) not in (int, float) or self._text[end : end + 1] in tuple(" \t\r\n,]"):
                    text, self._at = self._text[self._at : end], end
                    if len(text) > faults.LONGEST_ROW:
                        return too_long(origin, "characters")
                    return not_utf8(text, "the row", origin) or value
            self._read_on()

    def _may_go_on(self, error: Exception) -> bool:
        """Whether the value may only be broken because it goes on beyond what was read."""
        if self._ended or not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated") or error.pos >= len(self._text) - NEAR_THE_END

    def _read_on(self) -> bool:
        """Reads at least as much again as is held, so that a long value is decoded few times over; False at the end."""
        held = self._text[self._at :]
        more = "" if self._ended else self._file.read(max(CHUNK, len(held)))
        self._ended = not more
        self._text, self._at = held + more, 0
        return bool(more)
