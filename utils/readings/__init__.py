"""What an answer says, by the type of answer that its task asks for, and how it was read.

Knows: which type is read by which module, and four ways of reading: announced ("the answer is 18", "#### 18",
"答案是18", "故选B"), bare (the text is the answer, or opens with it), by a fallback (the last number, letter, … of the
text), not at all. Does not know models, files, prompts or what is done with a score.

A score that rests on fallbacks is worth less than one on announced answers, so every answer says how it was read
(`Audit` counts).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from utils import lookup
from utils.readings import dates, letters, markup, numbers, options, truths, wording, words
from utils.readings.contract import HOWS, LETTERS, UNREAD, How, Kind, Reading, Undecided, same

__all__ = ["HOWS", "KINDS", "LETTERS", "UNREAD", "Audit", "How", "Reading", "read", "same"]

KINDS: dict[str, Kind] = {
    "number": numbers.KIND,
    "choice": options.KIND,
    "yes_no": truths.KIND,
    "letters": letters.KIND,
    "date": dates.KIND,
    "text": words.KIND,
}


@dataclass(frozen=True, kw_only=True)
class Audit:
    """How many answers were read in which way."""

    announced: int = 0
    bare: int = 0
    fallback: int = 0
    unread: int = 0

    @classmethod
    def of(cls, readings: Iterable[Reading]) -> Audit:
        """Counts them."""
        return cls(**Counter(reading.how for reading in readings))

    def __str__(self) -> str:
        return (
            f"{self.announced:,} announced, {self.bare:,} bare, {self.fallback:,} by fallback, "
            f"{self.unread:,} could not be read"
        )


def read(text: str, kind: str, choices: Sequence[str] = ()) -> Reading:
    """What `text` answers. Where it goes on with another question, what follows is no part of the answer.

    Args:
        kind: a key of `KINDS`.
        choices: the options' texts, for `choice`: without them, letters A to H; with them also by an option's words.

    Raises:
        ValueError: an unknown kind.

    >>> read("9 * 2 = 18\\n#### 18", "number"), read("故选：D。", "choice")
    (Reading(answer='18', how='announced'), Reading(answer='d', how='announced'))
    >>> read("It costs $5, and $3 more.", "number"), read("Who knows?", "number")
    (Reading(answer='3', how='fallback'), Reading(answer=None, how='unread'))
    """
    if kind not in KINDS:
        raise ValueError(lookup.unknown_name("answer type", kind, tuple(KINDS)))
    ways = KINDS[kind]
    text = markup.plain(text, is_free=ways.is_free)
    if not ways.is_free:
        choices = [markup.plain(choice, is_free=False) for choice in choices]
    for own in wording.before_next_questions(text):
        found = _read(own, kind, ways, choices)
        if found.how == "announced" or (found.how == "bare" and not ways.is_free):
            return found
    return _read(text, kind, ways, choices)


def _read(text: str, kind: str, ways: Kind, choices: Sequence[str]) -> Reading:
    announcements = wording.announcements(text, ways)
    try:
        if found := _announced(announcements, text, kind, ways, choices):
            return found
        if answer := ways.bare(text, choices):
            return _reconsidered(Reading(answer, "bare"), text, kind, ways, choices)
        if announcements and not ways.is_free:  # what stands before an announcement that says nothing is not the answer
            text = text[announcements[0].position :]
        answer = ways.fallback(text if ways.is_free else wording.conclusion(text, ways), choices)
    except Undecided:
        return UNREAD
    return Reading(answer, "fallback") if answer else UNREAD


def _announced(
    announcements: Sequence[wording.Announcement], text: str, kind: str, ways: Kind, choices: Sequence[str]
) -> Reading | None:
    """The last announcement that can be read.

    Raises:
        Undecided: it names several answers.
    """
    for each in announcements:
        if each.is_whole:
            answer = ways.bare(each.said, choices) or ways.fallback(each.said, choices)
        else:
            answer = ways.announced(each.said, choices)
            answer = answer or ways.announced(wording.without_lead(each.said, ways), choices)
        if answer:
            return _reconsidered(Reading(answer, "announced"), text[each.position :], kind, ways, choices)
    return None


def _reconsidered(found: Reading, after: str, kind: str, ways: Kind, choices: Sequence[str]) -> Reading:
    """`found`, or what takes its place in `after`, the text that begins with it or follows it."""
    taken_back = None if ways.is_free else wording.second_thought(after)
    later = ways.fallback(wording.conclusion(after[taken_back.end() :], ways), choices) if taken_back else None
    if taken_back is None or later is None or same(kind, found.answer, later):
        return found
    is_same_sentence = taken_back.start() < len(wording.sentence(after))
    return Reading(later, "announced" if found.how == "announced" and is_same_sentence else "fallback")
