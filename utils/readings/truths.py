"""Yes and no as answers.

Knows: the words for both in English and Chinese, and what is judged right or wrong. Does not know what announces an
answer. "No one", "yes or no", "不一定" and "是否" are neither.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from utils.readings.contract import Kind
from utils.readings.wording import ANSWER_IS, MARKS_BEFORE, OPENING
from utils.scoring import YES_NO

YES_CN = (
    "是的", "是", "对的", "对", "正确", "可以", "能", "会", "有", "行", "没错", "肯定", "当然", "当然可以", "当然会",
    "当然能", "当然是",
)  # fmt: skip
NO_CN = (
    "不是", "不对", "不正确", "不可以", "不能", "不会", "不行", "不可能", "不", "并不", "并不是", "并非", "否", "否定",
    "没有", "没", "错误", "错", "当然不", "当然不会", "当然不是", "当然不能",
)  # fmt: skip
NO_EN = ("no", "false", "incorrect", "nope")
SURE = r"(?i:of\s+course|definitely|absolutely|certainly|clearly|sure)"
ALTERNATIVES = "|".join(sorted((*YES_CN, *NO_CN), key=len, reverse=True))
CLAUSE_ENDS = r"(?=的?\s*(?:$|[^\w\s]|因为))"
ENDS = r"(?=\s*(?:$|[^\w\s'’-]|[-–—]\s)|\s+(?i:it|they|he|she|you|we|I|there|that|this)\s)"
TRUTH = re.compile(
    rf"(?:(?i:an?|the)\s+(?:(?i:clear|definite|resounding|firm|big|strong)\s+)?)?"
    rf"(?P<word>{YES_NO}|(?i:true|false|incorrect|correct)(?![A-Za-z0-9'’-])|(?:{ALTERNATIVES}){CLAUSE_ENDS})"
)
OPENS = re.compile(
    rf"(?P<denied>{SURE}\s+not|(?i:not\s+(?:really|at\s+all)|never)){ENDS}"
    rf"|(?P<word>(?i:yes|no|true|false|correct|incorrect|nope|yep|yeah|yup)|{SURE}){ENDS}"
    rf"|(?P<chinese>{ALTERNATIVES}){CLAUSE_ENDS}"
)
JUDGED = re.compile(
    r"(?:\b(?i:is|are|was|were)|['’]s)\s+(?P<not>(?i:not)\s+)?(?P<judged>(?i:true|false|correct|incorrect|wrong|right))\b"
    r"|(?:说法|描述|判断|观点|句话|结论|陈述|命题)(?:是|都|为)*(?P<不>不|并不|并非)?(?P<判>正确|错误|[对错真假])的?(?=\s*(?:$|[^\w\s]))"
)
SOFT = re.compile(
    r"(?i:.*\b(?:say|guess|answer|likely|probably|so|then)\s+(?P<word>yes|no)"
    r"|(?P<denied>(?:.*\s)?(?:probably|likely)\s+not|I\s+(?:think|believe|guess)\s+not"
    r"|I\s+(?:don['’]t|do\s+not)\s+(?:think|believe)\s+so)"
    rf"|我?(?:觉得|认为|想|猜|恐怕)(?P<chinese>{ALTERNATIVES})"
    r"|(?P<so>I\s+(?:think|believe|guess)\s+so|(?:most\s+)?(?:probably|likely)))"
)
CLAUSE = re.compile(r"[^.。,，;；!?！？\n]+(?=[.。,，;；!?！？\n]|$)")
LISTED = re.compile(r"-\s*(?i:yes\s*-\s*no|no\s*-\s*yes)\b")


def _of(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    fields = match.groupdict()
    if fields.get("denied"):
        return "no"
    word = (fields.get("word") or fields.get("chinese") or "").lower()
    return "no" if word in (*NO_EN, *NO_CN) else "yes"


def _announced(rest: str, choices: Sequence[str]) -> str | None:
    return _of(TRUTH.match(rest))


def _bare(text: str, choices: Sequence[str]) -> str | None:
    return _of(OPENS.match(text.lstrip(OPENING)))


def _last(text: str, choices: Sequence[str]) -> str | None:
    """The last clause that is yes or no and nothing else, or judges something right or wrong."""
    text = LISTED.sub(" ", text)
    found: list[tuple[int, str | None]] = [(each.start(), _judgement(each)) for each in JUDGED.finditer(text)]
    for clause in CLAUSE.finditer(text):
        words = clause.group().strip(OPENING + ")）*\"”'")
        if match := OPENS.fullmatch(words) or SOFT.fullmatch(words):
            found.append((clause.start(), _of(match)))
    return max(found, key=lambda each: each[0])[1] if found else None


def _judgement(match: re.Match[str]) -> str:
    judged, is_denied = match["judged"] or match["判"], bool(match["not"] or match["不"])
    is_right = judged.lower() in ("true", "correct", "right", "正确", "对", "真")
    return "yes" if is_right != is_denied else "no"


KIND = Kind(
    announced=_announced,
    bare=_bare,
    fallback=_last,
    marks=re.compile(f"{ANSWER_IS}|应该?[是为]"),
    marks_before=MARKS_BEFORE,
    opening=OPENING,
    has_denials=False,
    opens_with_not=True,
)
