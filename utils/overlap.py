"""Whether a text repeats a question of an evaluation set.

Knows: what counts as a word, and two rules: a run of words that is shared, and a whole question. Does not know files,
records or which tasks there are (`utils.tasks`).

The run is 13 words long where a task says nothing else, as in GPT-3's cleaning (Brown et al. 2020, arXiv:2005.14165,
appendix C). A question that is shorter than its task's run counts when it is the whole prompt, or when it stands whole
in a text and is too specific to do so by chance: from 5 words, or 16 Chinese or Japanese characters. (None of the
StrategyQA, AQuA and BELLE questions of 3 to 7 words stands by chance in 37,718 rows of other FLAN, Code Alpaca and
GPTeacher sets.)

A text is looked at in every 7th window of 7 words and every 3rd of 3, and nothing is lost by that: a shared run of 13
words or more holds one of those windows of 7 whole, and a question of 5 words or more one of 3.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# Scripts written without spaces whose characters count as words: Han, Hiragana and Katakana.
CJK = r"\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
SEPARATE = re.compile(rf"[{CJK}]")
WORD = re.compile(rf"([{CJK}]+)|([^\W_{CJK}]+)")
# Full-width letters and digits, half-width Katakana, ligatures, and accents that stand apart from their letters.
FOLDABLE = re.compile(r"[\u0300-\u036f\ufb00-\ufb06\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uff9f]")
PUNCTUATION = "‘’“”–—…×÷°£€\xa0"
"""What most often stands in text that is ASCII otherwise; without it such a text takes the short way."""
LOWER_ALPHANUMERIC = bytes(ord(chr(i).lower()) if i < 128 and chr(i).isalnum() else ord(" ") for i in range(256))

RUN_WINDOW, WHOLE_WINDOW = 7, 3
SHORTEST_RUN = 2 * RUN_WINDOW - 1
SHORTEST_WHOLE_WORDS = 2 * WHOLE_WINDOW - 1
SHORTEST_WHOLE_CHARACTERS = 16

HELD_AGAINST = "held against the questions of "

Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """A task's questions."""

    name: str
    questions: tuple[str, ...]
    ngram: int = SHORTEST_RUN
    """Words of a run that must not be shared, 13 or more; 0: only whole questions count."""


def held_against(note: str) -> set[str]:
    """The tasks that a line of `EvaluationSets.described` names as looked at; none for another line."""
    _, found, rest = note.partition(HELD_AGAINST)
    return set(rest.partition(";")[0].split(", ")) if found else set()


def words(text: str) -> list[str]:
    """The words of a text with case, punctuation and spacing folded; a Chinese or Japanese character is a word.

    >>> words("The farmers' market: $2!"), words("３个苹果 (A)")
    (['the', 'farmers', 'market', '2'], ['3', '个', '苹', '果', 'a'])
    """
    if not text.isascii():
        for mark in PUNCTUATION:
            text = text.replace(mark, " ")
    if text.isascii():
        return text.encode().translate(LOWER_ALPHANUMERIC).decode().split()
    if FOLDABLE.search(text):  # looking is a tenth of the work of folding
        text = unicodedata.normalize("NFKC", text)
    found: list[str] = []
    for characters, word in WORD.findall(text.lower()):
        if word:
            found.append(word)
        else:
            found.extend(characters)
    return found


class EvaluationSets:
    """The questions of several tasks, indexed. It is pickled as its questions."""

    def __init__(self, sets: Iterable[QuestionSet], absent: Iterable[str] = ()) -> None:
        """
        Args:
            absent: names of tasks whose files are not here, for the report.

        Raises:
            ValueError: an `ngram` of 1 to 12.
        """
        self._sets = tuple(sets)
        self.checked = tuple(one.name for one in self._sets)
        """The tasks that a text is held against."""
        self.absent = tuple(absent)
        self._runs: dict[int, dict[Words, str]] = {}
        """Length of a run → the run → its task."""
        self._prompts: dict[Words, str] = {}
        """Questions without runs → their task."""
        self._endings: dict[Words, list[tuple[int, Words, str]]] = {}
        """Window → its place in the question, the question, the task."""
        windows: set[Words] = set()
        digest = hashlib.sha256()
        for one in sorted(self._sets, key=lambda one: one.name):
            if 0 < one.ngram < SHORTEST_RUN:
                raise ValueError(
                    f"task {one.name!r}: a run of {one.ngram} words; it must be 0 or at least {SHORTEST_RUN}"
                )
            digest.update(f"\n# {one.name} {one.ngram}\n".encode())
            for question in one.questions:
                asked = tuple(map(sys.intern, words(question)))
                digest.update((" ".join(asked) + "\n").encode())
                windows.update(self._add(asked, one))
        self._run_windows = frozenset(windows)
        self._ending_windows = frozenset(self._endings)
        self.fingerprint = digest.hexdigest()
        """Hex sha256 over names, run lengths and words: equal for sets that match the same texts."""

    def described(self) -> str:
        """What rows were held against, and how many tasks are not here, in one line."""
        absent = f"; the files of {len(self.absent)} other tasks are not on this machine" if self.absent else ""
        return f"{HELD_AGAINST}{', '.join(self.checked) or 'no evaluation set'}{absent}"

    def __reduce__(self) -> tuple[Any, ...]:
        return EvaluationSets, (self._sets, self.absent)

    def _add(self, asked: Words, one: QuestionSet) -> Iterator[Words]:
        """Indexes a question by its runs, or else whole; yields the windows of its runs."""
        if one.ngram and len(asked) >= one.ngram:
            runs = self._runs.setdefault(one.ngram, {})
            for run in _windows(asked, one.ngram):
                runs.setdefault(run, one.name)
            yield from _windows(asked, RUN_WINDOW)
        elif asked:
            self._prompts.setdefault(asked, one.name)
            characters = sum(1 for word in asked if SEPARATE.match(word))
            if len(asked) - characters >= SHORTEST_WHOLE_WORDS or characters >= SHORTEST_WHOLE_CHARACTERS:
                # Beginnings ("what is the …") are alike, so a question is found by how it ends.
                for start in range(len(asked) - SHORTEST_WHOLE_WORDS, len(asked) - WHOLE_WINDOW + 1):
                    window = asked[start : start + WHOLE_WINDOW]
                    self._endings.setdefault(window, []).append((start, asked, one.name))

    def match(self, prompt: str, answer: str = "") -> str | None:
        """The task of which `prompt` or `answer` repeats a question, or None.

        Args:
            answer: text that is searched too; only `prompt` is compared with the shortest questions, as a whole.
        """
        found = words(prompt)
        task = self._prompts.get(tuple(found))
        if task is not None:
            return task
        if answer:
            found += words(answer)
        # zip over one iterator cuts into windows without a loop in Python
        if not self._run_windows.isdisjoint(zip(*[iter(found)] * RUN_WINDOW, strict=False)):
            task = self._shared_run(found)
        if task is None and not self._ending_windows.isdisjoint(zip(*[iter(found)] * WHOLE_WINDOW, strict=False)):
            task = self._whole_question(found)
        return task

    def _shared_run(self, found: list[str]) -> str | None:
        for length, runs in self._runs.items():
            for run in _windows(tuple(found), length):
                if run in runs:
                    return runs[run]
        return None

    def _whole_question(self, found: list[str]) -> str | None:
        for at in range(0, len(found) - WHOLE_WINDOW + 1, WHOLE_WINDOW):
            for offset, asked, task in self._endings.get(tuple(found[at : at + WHOLE_WINDOW]), ()):
                start = at - offset
                if start >= 0 and tuple(found[start : start + len(asked)]) == asked:
                    return task
        return None


def _windows(text: Words, length: int) -> Iterator[Words]:
    """Every run of `length` words."""
    return (text[start : start + length] for start in range(len(text) - length + 1))
