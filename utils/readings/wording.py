"""What is said around an answer, in English and Chinese: that it is one, that it is none, that it is taken back.

Knows: announcements before and after an answer, denials, refusals, second thoughts, texts that are cut off, and texts
that go on with another question. Does not know any type of answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from utils.readings.contract import Kind
from utils.scoring import SENTENCE_END

LETTER_FOLLOWS = r"(?=[(（\[]?[A-H](?![A-Za-z]))"
# Wider than scoring.ANNOUNCED, for what follows must be of a type. The last one that can be read counts.
ANSWER_IS = (
    r"(?=[AaCcOo#答结选应])(?:"  # the characters that each of these begins with: most places are passed by at once
    r"(?i:answers?)[\"'*_]*(?:\s+(?i:to|of|for)\s[^.:\n]{1,80}?|\s*\([^()\n]{1,40}\))?\s*"
    r"(?:\b(?i:is|are|(?:would|must|should|will|could|has\s+to)\s+be)(?![A-Za-z'’])\s*:?|[:=]|(?<=\s)[-–—]\s)"
    r"|\b(?i:ans)[*_]*\s*[:=]"
    r"|(?i:(?:option|choice)\s+(?:(?:that|which)\s[^.\n]{1,40}?\s)?is(?![A-Za-z'’])|(?:option|choice)[*_]*\s*[:=])\s*:?"
    r"|####(?=\s*[-$¥€£(]*\s*\.?\d|\s*[*(]*\w+[*).]*\s*(?:\n|$))"
    r"|(?:(?<=[#*] )|(?<=[#*])|(?<=inal )|(?<=\n)|^)(?:(?i:answer)|答案)[*_]*[ \t]*(?=\n)"
    r"|(?:答案|结果|选项|结论)[*_】]*\s*(?:应该|应当|应|可能|[就便即也])?(?:[是为选]?\s*[：:=]+|[是为选]|等于)"
    r"|答案并?不是[^。\n]{1,30}?而是"
    rf"|答案】?\s*{LETTER_FOLLOWS}"
    rf"|选择?\s*[：:]?\s*{LETTER_FOLLOWS}"
    r"|应该?[是为]\s*(?=[(（$¥-]?[A-H\d]))"
)
MARKS = re.compile(ANSWER_IS)
NEAR = 1000
"""Characters within which an announcement names its answer."""
MOST_ANNOUNCEMENTS = 50
"""A text in a loop has hundreds."""
IS_ANSWER = (
    r"(?<!\s)\s+(?i:is|are)\s+(?i:therefore\s+)?(?i:(?:the|my)\s+)?(?i:(?:final|correct|right|best|only|most\s+likely)\s+)*"
    r"(?i:answer|option|choice)\b(?!\s*[:：])"
    r"|[是为](?:正确|最终|最佳|本题)?的?(?:答案|选项)(?!\s*[是为选：:】A-H])"
)
MARKS_BEFORE = re.compile(IS_ANSWER)
STATEMENT = re.compile(r"(?:^|[\n。；;])[ \t]*答[：:]\s*(?P<said>[^\n]+)")
"""A school book's last sentence: all of it is the answer."""
OPENING = " \t\r\n*_:：{([（【$\\\"“「『'‘`≈~=,，"
LEADING = re.compile(
    r"(?:(?i:therefore|thus|hence|then|(?:most\s+|very\s+)?(?:likely|probably)(?:\s+to\s+be)?|clearly|definitely|certainly|simply|"
    r"indeed|obviously|typically|usually|generally|actually|only|exactly|just|about|approximately|around|roughly|nearly|almost|equal\s+to)[\s,:]+"
    r"|大约|约为?|大概|很?可能是?|一共|总共|共)+"
)
QUOTED = re.compile(r"[\s:：]*['‘](?P<said>[^'’\n]{1,40})['’](?!\w)")
NOT_CHOSEN = re.compile(r"(?:不|别|勿)(?:能|应|该|可以?|会|要)*$")

NOT_BUT = re.compile(r"(?i:not|neither)\s[^.\n]{1,40}?\bbut\s+(?i:rather\s+)?")
DENIED = re.compile(r"(?i:not)\b|不是")
DENIAL = re.compile(r"(?:\b(?i:not)|n['’]t)\s+(?:option\s+)?[^\s.,;]+|(?:不是|并非|而非|不等于)\s*[^\s，。；,.;]+")

REFUSAL = re.compile(
    r"(?i:(?:can(?:not|['’]t|\s+not)|could\s+not|couldn['’]t|(?:un|not\s+)able\s+to|impossible\s+to)\s+(?:be\s+)?"
    r"(?:determin|answer|say|tell|solve|choose|see|comput|calculat|provide|know|decid|help)"
    r"|(?:not\s+enough|insufficient)\s+(?:information|data)|(?:don['’]t|do\s+not)\s+know|\bno\s+idea\b|as\s+an\s+AI\b)"
    r"|无法|没法|不能确定|难以[确判]|不知道|抱歉|没有足够|不足以|(?:信息|条件|数据)不[足够]|[没未](?:有)?给出"
)
CUT_OFF = re.compile(
    r"(?:(?:[=+/×÷]|\s\*)\s*[$¥]?|\s(?i:and|or|the|an?|of|to|is|are|with|for|by|plus|minus|times|so|then|has|have|that)"
    r"|[和与是加减乘除])\s*$"
)
SECOND_THOUGHT = re.compile(
    r"(?i:\bwait\b(?=\s*[,.!:;—…]|\s+no\b)|\bno\s+wait\b|(?:^|[.!?\n]\s{0,4})actually\b|\bcorrection\b|\bscratch\s+that\b"
    r"|\bon\s+(?:second\s+thought|reflection)\b|\boops\b|\bI\s+made\s+(?:a|an)\s+(?:mistake|error)\b"
    r"|\bthat\s*(?:['’]s|\s+is|\s+was)\s+(?:wrong|not\s+right|incorrect)\b"
    r"|\blet\s+me\s+(?:correct|re(?:check|do|consider|calculate|think|compute|count))|[.,;:—]\s*no(?=[,:.]\s))"
    r"|等等|等一下|(?<=[。，！；\n])\s?不对|更正|重新[计算想数]|[算说弄]错"
)
MOST_QUESTIONS = 8
"""Those that a prompt's examples may repeat before the answer; a text in a loop has hundreds."""
NEXT_QUESTION = re.compile(
    r"\n[ \t]*(?:[#*]{1,6}[ \t]*)?(?:(?i:Q|Question|Problem|Instruction|Input|User|Human)(?:\s*\d+)?\s*[*_]*\s*[:：]"
    r"|(?:问题?|题目|用户|人类|指令|例题?)\s*\d*\s*[：:]|###\s*(?i:Instruction|Input|Question))"
)


@dataclass(frozen=True)
class Announcement:
    """What is said to be the answer."""

    said: str
    position: int
    """Where it ends: before this nothing can take it back."""
    is_whole: bool
    """Whether `said` is the answer and nothing more, or begins with it."""


def announcements(text: str, ways: Kind) -> list[Announcement]:
    """The last first."""
    found = []
    for mark in ways.marks.finditer(text):
        if NOT_CHOSEN.search(text, max(0, mark.start() - 6), mark.start()):
            continue
        near = text[mark.end() : mark.end() + NEAR]
        rest = near.lstrip(ways.opening)
        if not ways.is_free and (quoted := QUOTED.match(near)):
            rest = f"{quoted['said']}{near[quoted.end() :]}"
        if ways.has_denials and (corrected := NOT_BUT.match(rest)):
            rest = rest[corrected.end() :].lstrip(ways.opening)
        if DENIED.match(rest) and not ways.opens_with_not:
            continue
        found.append(Announcement(rest, mark.end() + len(near) - len(rest), is_whole=False))
    for mark in ways.marks_before.finditer(text):
        before = re.split(r"[.。!?！？;；\n]\s", text[max(0, mark.start() - 100) : mark.start()])[-1]
        if len(before) <= 80:
            found.append(Announcement(before, mark.end(), is_whole=True))
    found += [Announcement(each["said"], each.end(), is_whole=True) for each in STATEMENT.finditer(text)]
    return sorted(found, key=lambda each: each.position, reverse=True)[:MOST_ANNOUNCEMENTS]


def without_lead(said: str, ways: Kind) -> str:
    """`said` without "probably", "about", … before it."""
    lead = LEADING.match(said)
    return said[lead.end() :].lstrip(ways.opening) if lead else ""


def sentence(text: str) -> str:
    """The first sentence."""
    end = SENTENCE_END.search(text)
    return text[: end.start()] if end else text


def second_thought(text: str) -> re.Match[str] | None:
    """Where what was said before is taken back, for the last time."""
    found = list(SECOND_THOUGHT.finditer(text))
    return found[-1] if found else None


def conclusion(text: str, ways: Kind) -> str:
    """What of a text without an announcement can hold its answer: nothing before a refusal, nothing that is denied,
    and nothing of a text that is cut off."""
    if CUT_OFF.search(text):
        return ""
    refusals = list(REFUSAL.finditer(text))
    if refusals:
        end = SENTENCE_END.search(text, refusals[-1].end())
        text = text[end.end() :] if end else ""
    return DENIAL.sub(" ", text) if ways.has_denials else text


def before_next_questions(text: str) -> Iterator[str]:
    """What stands before each of the next questions in the text, the shortest first."""
    for mark in islice(NEXT_QUESTION.finditer(text), MOST_QUESTIONS):
        if text[: mark.start()].strip():
            yield text[: mark.start()]
