"""What is wrong with a training row: the checks, what each does by default, and how rows are told apart.

Knows: unified records (`docs/design.md`) and the table of checks. Does not know files, ledgers or tokens; nor which
language is meant by Latin letters that are not English, so that only English, Chinese and other scripts are told apart.

A row's findings are one number: bit i stands for the i-th check of `CHECKS`. Checks that need more than one row
(`per_row=False`) are the caller's: duplicates by `record_hash`, near duplicates by `utils.near_duplicates`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from utils import lookup, tasks
from utils.overlap import EvaluationSets, QuestionSet

MAX_CHARACTERS = 8192
"""About what the 2,048 tokens of LLaMA's first context hold of English, at four characters a token."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that can be wrong with a row."""

    what: str
    """For people."""
    default: Literal["drop", "report", "off"]
    """`off`: costly, done only when asked for."""
    per_row: bool = True
    """Whether one row is enough to tell."""


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "empty_answer": Check(what="an answer is empty", default="drop"),
        "empty_instruction": Check(what="nothing is asked", default="drop"),
        "duplicate": Check(what="repeats an earlier row exactly", default="drop", per_row=False),
        "evaluation_overlap": Check(what="repeats a question of an evaluation set", default="drop"),
        "near_duplicate": Check(what="says nearly what an earlier row says", default="off", per_row=False),
        "echo": Check(what="the answer only repeats the question", default="report"),
        "mojibake": Check(what="holds text decoded with the wrong encoding", default="report"),
        "control_characters": Check(what="holds control characters or marks that reorder text", default="report"),
        "language_mismatch": Check(what="answers in another language than it asks or is tagged", default="report"),
        "escaped_newlines": Check(
            what="holds the two characters \\n, which may stand for a line break", default="report"
        ),
        "over_long": Check(what="is longer than most models read", default="report"),
        "refusal": Check(what="refuses, or speaks as an AI language model", default="report"),
    }
)
BITS: Mapping[str, int] = MappingProxyType({name: 1 << i for i, name in enumerate(CHECKS)})

# Control characters but tab, line feed and carriage return; the replacement character; a byte-order mark; and the
# embeddings, overrides and isolates by which text can be shown in another order than it has (CVE-2021-42574).
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffd\u202a-\u202e\u2066-\u2069]")
PRINTABLE_ASCII = bytes([*b"\t\n\r", *range(0x20, 0x7F)])

# What a refusal begins with, in English and Chinese.
REFUSAL_HEAD = re.compile(
    r"\W*(?:(?:(?:i|we)(?:['’]m| am|['’]re| are) (?:\w+ )?sorry|sorry|(?:my )?apologies|i apologi[sz]e|unfortunately)"
    r",? (?:but |that |as an? [\w ]+, )*(?:i|we)(?: can(?:['’]t|not| not)|(?:['’]m| am|['’]re| are) (?:not able|unable)"
    r"| won['’]t| do(?:n['’]t| not) (?:have|feel|know))"
    r"|i (?:can(?:['’]t|not| not)|am unable to|am not able to) "
    r"(?:assist|help you|comply|fulfil|engage in|generate|provide)"
    r"|(?:非常|很|十分|真的?)?(?:抱歉|对不起|不好意思|遗憾)\W*(?:但是?\W*)?(?:作为.{1,20}?[，,])?我?"
    r"(?:还?(?:无法|不能|不可以)|没有?办法))",
    re.IGNORECASE,
)
HEAD_CHARACTERS = 100
# What only an assistant says of itself, wherever it stands.
REFUSAL_MARK = re.compile(
    r"\b(?:as|being|i(?:['’]m| am)(?: just| only| merely)?) an? (?:ai|artificial intelligence)\b"
    r"(?= *,|[ -]*(?:text[ -]based |large )?(?:language |conversational )?(?:model|assistant|chatbot))"
    r"|(?:作为|我是|我只是)(?:一个|一名|一款|一种|个)?(?:AI|人工智能|大型?)(?:语言|大?模型|助手|助理|程序|机器人|[，,])",
    re.IGNORECASE,
)

ASKS_TRANSLATION = re.compile(
    r"translat|翻译|译成|译为|译文|英译|汉译|中译|[英中汉法德日俄][文语]|\b(?:english|chinese|mandarin|french|german)\b",
    re.IGNORECASE,
)
# Words that are frequent in English prose and rare in program text.
ENGLISH = re.compile(
    r"\b(?:the|of|to|an|that|are|was|were|it|be|by|you|we|he|she|they|have|has|which)\b", re.IGNORECASE
)
ENGLISH_SHARE = 0.1
"""Of the words; in English prose these are about a fifth."""
ENOUGH_LETTERS, LETTERS_PER_CHARACTER, DOMINANT = 30, 3, 0.7
"""How many letters tell a language; for how many a Chinese character stands; the share that a script must have."""
ENOUGH_TO_COUNT = 2 * LETTERS_PER_CHARACTER
"""Letters by which an answer is counted under a language, where a wrong one costs nothing: two Chinese characters."""
# Lead bytes of UTF-8 tell scripts apart: E4 to E9 Han; EA to ED Hangul; C3 to C9 accented Latin; CE to DF, E0 and E1
# other alphabets, from Greek to Thai. So letters are counted by deleting all other bytes, at a tenth of a loop's cost.
NOT_LATIN = bytes(b for b in range(256) if not (b < 128 and chr(b).isalpha()) and not 0xC3 <= b <= 0xC9)
NOT_OTHER = bytes(b for b in range(256) if not (0xCE <= b <= 0xDF or b in (0xE0, 0xE1)))
NOT_HAN = bytes(b for b in range(256) if not 0xE4 <= b <= 0xE9)
NOT_HANGUL = bytes(b for b in range(256) if not 0xEA <= b <= 0xED)
KANA = (b"\xe3\x81", b"\xe3\x82", b"\xe3\x83")

# What ftfy needs to see one of: anything but ASCII, typographic quotes and dashes, and East Asian text.
SUSPICIOUS = re.compile(r"[^\x00-\x7f‘’“”–—…\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef\U0001f300-\U0010ffff]")
GBK_MOJIBAKE = ("锟斤拷", "烫烫烫", "屯屯屯")
"""What U+FFFD and uninitialised memory look like once they were read as GBK."""
EDGES = " \u3000\xa0\t\r\n\"'“”‘’.,:;!?。，：；！？"


class Examiner:
    """Examines one row after another."""

    def __init__(
        self, overlap: EvaluationSets | None = None, languages: Iterable[str] = (), max_characters: int = MAX_CHARACTERS
    ) -> None:
        """
        Args:
            overlap: None: no row is held against evaluation sets.
            languages: the dataset's tags (EN, CN, ML); with none, or ML, any language may be used.
            max_characters: of all texts of a row together, beyond which it is over_long.
        """
        self.overlap = overlap
        self.languages = frozenset(languages)
        self.max_characters = max_characters
        self._any_language = not self.languages or "ML" in self.languages
        self._ascii_is_right = self._any_language or "EN" in self.languages

    def examine(self, record: Mapping[str, Any]) -> int:
        """The findings of a row: the bits of those checks that look at one row."""
        if "conversation" not in record:
            asked, given, answer = record["instruction"], record["input"], record["output"]
            prompt = f"{asked}\n{given}" if asked and given else asked or given
            exchanges, system = [(prompt, answer)], ""
            bits = BITS["echo"] if is_echo(answer, (asked, given, prompt) if given else (asked,)) else 0
            whole = f"{prompt}\n{answer}"
        else:
            exchanges, system = exchanges_of(record["conversation"])
            bits = BITS["echo"] if any(is_echo(answer, (prompt,)) for prompt, answer in exchanges) else 0
            whole = "\n".join([system, *(text for exchange in exchanges for text in exchange)])
        return bits | self._examine_whole(whole) | self._examine_exchanges(exchanges, system, whole.isascii())

    def _examine_whole(self, text: str) -> int:
        """What is found in all texts of a row together."""
        bits = BITS["over_long"] if len(text) > self.max_characters else 0
        if "\\n" in text:
            bits |= BITS["escaped_newlines"]
        if text.isascii():  # then one deletion answers for a search at every character
            return bits | BITS["control_characters"] if text.encode().translate(None, PRINTABLE_ASCII) else bits
        if CONTROL.search(text):
            bits |= BITS["control_characters"]
        if is_mojibake(text):
            bits |= BITS["mojibake"]
        return bits

    def _examine_exchanges(self, exchanges: Sequence[tuple[str, str]], system: str, ascii_only: bool) -> int:
        bits, asked = 0, False
        overlap = self.overlap
        if overlap is not None and system and overlap.match(system):
            bits |= BITS["evaluation_overlap"]
        for prompt, answer in exchanges:
            asked = asked or not is_blank(prompt)
            if is_blank(answer):
                bits |= BITS["empty_answer"]
            elif is_refusal(answer):
                bits |= BITS["refusal"]
            if overlap is not None and overlap.match(prompt, answer):
                bits |= BITS["evaluation_overlap"]
            if not (ascii_only and self._ascii_is_right) and self._mismatch(prompt, answer):
                bits |= BITS["language_mismatch"]
        return bits if asked else bits | BITS["empty_instruction"]

    def _mismatch(self, prompt: str, answer: str) -> bool:
        if self._ascii_is_right and {script_of(prompt), script_of(answer)} <= {"latin", ""}:
            return False
        found = {language_of(prompt), language_of(answer)} - {""}
        if len(found) > 1 and not ASKS_TRANSLATION.search(prompt):
            return True
        return not self._any_language and bool(found) and not found & self.languages


def names(bits: int) -> tuple[str, ...]:
    """The checks that `bits` stands for, in the order of `CHECKS`."""
    return tuple(name for name, bit in BITS.items() if bits & bit)


def resolve(drop: Iterable[str] = (), keep: Iterable[str] = ()) -> frozenset[str]:
    """The checks whose rows are dropped: those that do so by default and `drop`, without `keep`.

    Raises:
        ValueError: a name that is no check, with the nearest ones; a name in both.
    """
    drop, keep = frozenset(drop), frozenset(keep)
    for flag, chosen in (("--drop", drop), ("--keep", keep)):
        for name in sorted(chosen):
            lookup.find("check", name, CHECKS, flag)
    if never := sorted(keep & {"empty_answer", "empty_instruction"}):
        raise ValueError(f"--keep {never[0]}: such a row cannot be trained on; fill it in, or let it go")
    if both := sorted(drop & keep):
        raise ValueError(f"--drop and --keep both name {', '.join(both)}: choose one of them")
    return frozenset(name for name, check in CHECKS.items() if check.default == "drop") - keep | drop


def local_evaluation_sets(
    directory: Path = tasks.DATA_DIR, file: Path = tasks.DATA_DIR / "tasks.toml"
) -> EvaluationSets:
    """The questions of those tasks whose files lie below `directory`; `absent` names the others.

    Raises:
        ValueError: a broken row in the registry `file`, or a task's file that cannot be read.
    """
    specs = tasks.read_tasks(file)
    here = {name: spec for name, spec in specs.items() if (directory / spec.path).is_file()}
    return EvaluationSets(
        [
            QuestionSet(name=name, questions=tuple(tasks.questions(spec, directory)), ngram=spec.ngram)
            for name, spec in here.items()
        ],
        absent=[name for name in specs if name not in here],
    )


def record_hash(record: Mapping[str, Any]) -> int:
    """64 bits of a whole record, the same everywhere. Among the 78.9 million rows of xP3, two different ones share
    theirs with a probability of 0.02 %."""
    turns = record.get("conversation")
    fields = (
        [field for turn in turns for field in (turn["role"], turn["content"])]
        if turns is not None
        else [record["instruction"], record["input"], record["output"]]
    )
    # The lengths come first: without them ("ab", "c") and ("a", "bc") would be the same.
    return _hash64(f"{','.join([str(len(field)) for field in fields])};{''.join(fields)}")


def prompt_hash(record: Mapping[str, Any], seed: object = "") -> int:
    """64 bits of what a record asks first, and of `seed`."""
    return _hash64(f"{seed}\0{prompt_of(record)}")


def prompt_of(record: Mapping[str, Any]) -> str:
    """What a record asks first, as one string: instruction and input, or the turns before the first answer."""
    if "conversation" in record:
        return "\n".join(turn["content"] for turn in record["conversation"][:2] if turn["role"] != "assistant")
    return "\n".join(text for text in (record["instruction"], record["input"]) if text)


def text_of(record: Mapping[str, Any]) -> str:
    """All texts of a record, a line or more each."""
    if "conversation" in record:
        return "\n".join(turn["content"] for turn in record["conversation"])
    return "\n".join((record["instruction"], record["input"], record["output"]))


def exchanges_of(turns: Iterable[Mapping[str, str]]) -> tuple[list[tuple[str, str]], str]:
    """A dialogue's questions with their answers, and its system text."""
    exchanges, system, prompt = [], "", ""
    for turn in turns:
        match turn["role"]:
            case "system":
                system = turn["content"]
            case "user":
                prompt = turn["content"]
            case _:
                exchanges.append((prompt, turn["content"]))
    return exchanges, system


def is_blank(text: str) -> bool:
    """Whether a text is empty or only white space."""
    return not text or text.isspace()


def is_echo(answer: str, asked: Iterable[str]) -> bool:
    """Whether `answer` is one of the texts of `asked` but for spacing and the punctuation around it."""
    first = answer.lstrip(EDGES)[:1]
    return bool(first) and any(text.lstrip(EDGES)[:1] == first and _plain(text) == _plain(answer) for text in asked)


def is_refusal(answer: str) -> bool:
    """Whether an answer begins like a refusal or says that an AI language model speaks, in English or Chinese."""
    if REFUSAL_HEAD.match(answer, 0, HEAD_CHARACTERS):
        return True
    lower = answer.lower()
    if " ai" in lower or "ial intelligence" in lower:  # looking for these first costs a tenth
        return REFUSAL_MARK.search(answer) is not None
    return not answer.isascii() and ("作为" in answer or "我" in answer) and REFUSAL_MARK.search(answer) is not None


def is_mojibake(text: str) -> bool:
    """Whether a text was decoded with the wrong encoding: by pairs of characters that no language has (ftfy), or by
    what broken GBK leaves."""
    if any(mark in text for mark in GBK_MOJIBAKE):
        return True
    if not SUSPICIOUS.search(text):  # a tenth of ftfy's cost
        return False
    import ftfy.badness

    return ftfy.badness.is_bad(text)


def script_of(text: str, enough: int = ENOUGH_LETTERS) -> str:
    """`latin`, `CN` or `other`; empty where there are fewer letters than `enough`, or no script has most of them."""
    encoded = text.encode(errors="replace")
    latin = len(encoded.translate(None, NOT_LATIN))
    chinese = other = 0
    if not text.isascii():
        chinese = LETTERS_PER_CHARACTER * len(encoded.translate(None, NOT_HAN))
        syllables = len(encoded.translate(None, NOT_HANGUL)) + sum(encoded.count(lead) for lead in KANA)
        other = len(encoded.translate(None, NOT_OTHER)) + LETTERS_PER_CHARACTER * syllables
        if other > chinese / 4:  # Japanese and Korean have Han characters too
            chinese, other = 0, other + chinese
    total = latin + chinese + other
    if total >= enough:
        for script, letters in (("latin", latin), ("CN", chinese), ("other", other)):
            if letters >= DOMINANT * total:
                return script
    return ""


def language_of(text: str, enough: int = ENOUGH_LETTERS) -> str:
    """`EN`, `CN` or `other` (a script that is neither Latin nor Chinese); empty where that cannot be told: fewer
    letters than `enough`, several scripts, program text, or another language in Latin letters."""
    script = script_of(text, enough)
    if script != "latin":
        return script
    return "EN" if len(ENGLISH.findall(text)) >= ENGLISH_SHARE * len(text.split()) else ""


def _plain(text: str) -> str:
    return " ".join(text.strip(EDGES).split())


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
