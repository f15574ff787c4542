import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS

from utils import hygiene, tasks
from utils.hygiene import CHECKS, Examiner, language_of, names, prompt_hash, record_hash, resolve, text_of
from utils.overlap import EvaluationSets, QuestionSet

ENGLISH = "The seasons change because the axis of the earth is tilted, so that each half is turned to the sun in turn."
CHINESE = "四季的变化是因为地球的自转轴是倾斜的，所以南北半球轮流朝向太阳，于是有了春夏秋冬。"
RUSSIAN = "Времена года меняются, потому что ось вращения Земли наклонена к плоскости её орбиты."
JAPANESE = "季節が変わるのは、地球の自転軸が傾いているからです。そのため、太陽の当たり方が変わります。"


def single(instruction: str = "Why?", output: str = "So.", given: str = "") -> dict[str, str]:
    return {"instruction": instruction, "input": given, "output": output}


def talk(*texts: str, system: str | None = None) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"conversation": [*([{"role": "system", "content": system}] if system is not None else []), *turns]}


def found(record: dict[str, Any], *languages: str, **options: Any) -> set[str]:
    return set(names(Examiner(languages=languages, **options).examine(record)))


def test_good_rows_have_no_findings() -> None:
    examiner = Examiner(languages=("EN", "CN"))
    echoes = [record for record in RECORDS if names(examiner.examine(record))]
    assert echoes == []
    assert found(talk("你好 👋", "你好！有什么可以帮你的吗？", "谢谢", "不客气 🌏", system="你很友好。"), "CN") == set()


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (single(output=""), {"empty_answer"}),
        (single(output=" \n\t\u3000"), {"empty_answer"}),
        (single(instruction=" \n"), {"empty_instruction"}),
        (single(instruction="", output=""), {"empty_answer", "empty_instruction"}),
        (single(instruction="", given="what?"), set()),
        (single(output="👍"), set()),
        (talk("Hi", " ", "And?", "So."), {"empty_answer"}),
        (talk("Hi", "Hello", "And?", ""), {"empty_answer"}),
        (talk(" ", "Hello", system="Be kind."), {"empty_instruction"}),
        (talk(" ", "Hello", "And?", "So."), set()),
    ],
)
def test_empty(record: dict[str, Any], expected: set[str]) -> None:
    assert found(record) == expected


@pytest.mark.parametrize(
    ("record", "echo"),
    [
        (single("What is ice?", "What is ice?"), True),
        (single("What is  ice?", " What is ice. "), True),
        (single("Repeat:", "a b c", given='"a b c"'), True),
        (single("Repeat:", "Repeat:\na b c", given="a b c"), True),
        (single("你好吗？", "你好吗"), True),
        (single("Make it upper case.", "ICE", given="ice"), False),
        (single("What is ice?", "What is ice? It is water."), False),
        (single("...", "..."), False),
        (talk("Hi", "Hello", "So?", "So?"), True),
        (talk("Hi", "Hello", "So?", "Hi"), False),
    ],
)
def test_echo(record: dict[str, Any], echo: bool) -> None:
    assert (found(record) == {"echo"}) is echo


@pytest.mark.parametrize(
    ("output", "bad"),
    [
        ("20 Ã— 3 = 60", True),
        ("It is 20Â°C outside.", True),
        ("â€œQuotedâ€\x9d", True),
        ("å¤©ç©º", True),
        ("锟斤拷锟斤拷", True),
        ("20 × 3 = 60 and 20 °C — “quoted” – it’s £5…", False),
        ("天空是蓝色的。「好」！", False),
        ("Ça va très bien, Zoë. 👍🏽", False),
        ("Привет, мир", False),
        ("plain", False),
    ],
)
def test_mojibake(output: str, bad: bool) -> None:
    assert ("mojibake" in found(single(output=output))) is bad


def test_what_is_not_suspicious_is_never_mojibake_to_ftfy() -> None:
    import ftfy.badness

    harmless = [
        chr(i) for i in range(0x20, 0x10000) if not 0xD800 <= i < 0xE000 and not hygiene.SUSPICIOUS.search(chr(i))
    ]
    typographic = [c for c in harmless if not c.isalnum() and ord(c) < 0x3100]
    rng = random.Random(0)
    texts = [one + other for one in typographic for other in typographic]
    texts += ["".join(rng.choices(harmless, k=6)) for _ in range(3000)]
    assert not [text for text in texts if ftfy.badness.is_bad(text)]


@pytest.mark.parametrize(
    "character", ["\x00", "\x07", "\x0b", "\x1b", "\x7f", "\x85", "\ufffd", "\ufeff", "\u202e", "\u2066"]
)
@pytest.mark.parametrize("around", ["plain text", "汉字 text"])
def test_control_characters(character: str, around: str) -> None:
    for record in (single(output=around + character + "x"), single(character + around), talk("a", "b", character, "d")):
        assert "control_characters" in found(record)


def test_layout_and_emoji_are_no_control_characters() -> None:
    for text in ("a\tb\r\nc", "👨\u200d👩\u200d👧 你好\n", "שלום\u200f", "é\u00ad"):
        assert found(single(output=text)) == set()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "EN"),
        (CHINESE, "CN"),
        (RUSSIAN, "other"),
        (JAPANESE, "other"),
        ("한국어로 질문에 대답해 주세요. 계절이 바뀌는 이유는 무엇입니까?", "other"),
        ("", ""),
        ("42", ""),
        ("(B)", ""),
        ("你好", ""),
        (f"{ENGLISH}{CHINESE}", ""),
        ("Les saisons changent parce que son axe est incliné sur le plan du soleil, puis tout recommence.", ""),
        ("def mean(values):\n    return sum(values) / len(values)\n\nprint(mean([1, 2, 3]))", ""),
        ("👋🌏" * 20, ""),
    ],
)
def test_language_of(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("1+1→2。所以答案是2。", "CN"),
        ("北京", "CN"),
        ("4+3→7. So the answer is 7.", "EN"),
        ("是", ""),
        ("7", ""),
        ("", ""),
    ],
)
def test_a_short_answer_is_counted_under_its_language(text: str, language: str) -> None:
    assert language_of(text) == ""
    assert language_of(text, hygiene.ENOUGH_TO_COUNT) == language


@pytest.mark.parametrize(
    ("record", "languages", "mismatch"),
    [
        (single(ENGLISH, CHINESE), (), True),
        (single(CHINESE, ENGLISH), ("EN", "CN"), True),
        (single(CHINESE, ENGLISH), ("ML",), True),
        (single(f"请翻译：{CHINESE}", ENGLISH), ("CN",), False),
        (single(f"Translate: {ENGLISH}", CHINESE), ("EN", "CN"), False),
        (single(ENGLISH, ENGLISH), ("EN",), False),
        (single(ENGLISH, ENGLISH), ("CN",), True),
        (single(CHINESE, CHINESE), ("EN",), True),
        (single(RUSSIAN, RUSSIAN), ("EN", "CN"), True),
        (single(RUSSIAN, RUSSIAN), ("ML",), False),
        (single(RUSSIAN, RUSSIAN), (), False),
        (single(CHINESE, "print(sum(values) / len(values)); print(max(values))"), ("CN",), False),
        (single(CHINESE, "B"), ("CN",), False),
        (single(f"{ENGLISH} — it’s so", ENGLISH), ("EN",), False),
        (talk(CHINESE, CHINESE, CHINESE, ENGLISH), ("CN",), True),
    ],
)
def test_language_mismatch(record: dict[str, Any], languages: tuple[str, ...], mismatch: bool) -> None:
    assert ("language_mismatch" in found(record, *languages)) is mismatch


def test_over_long_counts_all_texts() -> None:
    assert found(single("a" * 60, "b" * 38), max_characters=99) == set()
    assert found(single("a" * 60, "b" * 39), max_characters=99) == {"over_long"}
    assert found(single(output="答" * (hygiene.MAX_CHARACTERS + 1))) == {"over_long"}
    assert "over_long" in found(talk("a" * 50, "b", "c", "d" * 60), max_characters=99)


@pytest.mark.parametrize(
    "output",
    [
        "As an AI language model, I do not have feelings.",
        "Well, as an AI language model I cannot know.",
        "Thank you! I'm just an AI assistant.",
        "i'm sorry, but i cannot help with that.",
        "I’m sorry, I can’t assist with this request.",
        "I am very sorry but I am not able to do so.",
        "Sorry, I can't do that.",
        "Unfortunately, I am unable to open links.",
        "I cannot provide medical advice.",
        "作为一个人工智能语言模型，我没有感情。",
        "作为AI语言模型，我不能推断任何事情。",
        "你好！我是一个AI助手。",
        "很抱歉，我无法回答这个问题。",
        "对不起，作为一个语言模型，我不能这样做。",
        "抱歉，无法提供。",
    ],
)
def test_refusals(output: str) -> None:
    assert found(single(output=output)) == {"refusal"}
    assert found(talk("Hi", "Hello", "And?", output)) == {"refusal"}


@pytest.mark.parametrize(
    "output",
    [
        "He said: I'm sorry, but I cannot come.",
        "I'm sorry for your loss.",
        "Sorry is a word that people say.",
        "The chair is as an airplane seat.",
        "An AI language model predicts the next token.",
        "I cannot be divided by two: I am odd.",
        "人工智能是计算机科学的一个分支。",
        "作为一个医生，他无法拒绝。",
        "他说很抱歉，他迟到了。",
        "她的工作让我很遗憾。",
    ],
)
def test_what_only_looks_like_a_refusal(output: str) -> None:
    assert found(single(output=output)) == set()


def test_overlap_is_looked_for_in_every_text() -> None:
    question = "How many loaves of bread does the baker sell in the morning if she bakes ninety?"
    sets = EvaluationSets([QuestionSet(name="t", questions=(question, "Why not now?"))])
    rows = [
        single(question),
        single("Answer.", given=question),
        single("Make a question.", question),
        single("Why not", given="now?"),
        talk("Hi", "Hello", question, "12"),
        talk("Hi", "Hello", "Why not now?", "12"),
        talk("Hi", "Hello", "Ask me.", question),
        talk("Hi", "Hello", system=question),
    ]
    assert [found(row, overlap=sets) for row in rows] == [{"evaluation_overlap"}] * len(rows)
    assert found(single("Why not now?", "Why not now? I ask."), overlap=sets) == {"evaluation_overlap"}
    assert found(single("Say why not now.", "Why not now?"), overlap=sets) == set()
    assert found(rows[0]) == set(), "no sets, no finding"


def test_findings_are_bits_in_the_order_of_the_checks() -> None:
    record = single("", " ") | {"input": "\x00"}
    bits = Examiner().examine(record)
    assert names(bits) == ("empty_answer", "control_characters")
    assert [names(1 << i) for i in range(len(CHECKS))] == [(name,) for name in CHECKS]
    assert names(0) == ()
    several = {name for record in RECORDS for name in names(Examiner().examine(record))}
    assert not several & {name for name, check in CHECKS.items() if not check.per_row}


def test_what_is_dropped() -> None:
    default = {"empty_answer", "empty_instruction", "duplicate", "evaluation_overlap"}
    assert resolve([], []) == default
    assert resolve(["refusal", "near_duplicate"], ["duplicate"]) == default - {"duplicate"} | {
        "refusal",
        "near_duplicate",
    }
    with pytest.raises(
        ValueError, match=r"unknown check 'refusals' in --drop. Did you mean refusal\? Known: control_char"
    ):
        resolve(["refusals"], [])
    with pytest.raises(ValueError, match=r"unknown check 'dupe' in --keep.*duplicate"):
        resolve([], ["dupe"])
    with pytest.raises(ValueError, match="--drop and --keep both name echo, refusal: choose one of them"):
        resolve(["refusal", "echo"], ["echo", "refusal"])


def test_the_hash_of_a_record_is_of_all_of_it_and_never_changes() -> None:
    records = [
        single("ab", "c"), single("a", "bc"), single("a", "c", "b"), single("abc", ""), single("", "abc"),
        talk("ab", "c"), talk("a", "bc"), talk("ab", "c", system=""), talk("a", "b", "c", "d"), single("汉", "👋"),
    ]  # fmt: skip
    hashes = [record_hash(record) for record in records]
    assert len(set(hashes)) == len(records)
    assert all(0 <= value < 2**64 for value in hashes)
    assert record_hash(single("ab", "c")) == 9735637380126093894, "what was cached would no longer be found"
    assert record_hash(dict(reversed(single("ab", "c").items()))) == hashes[0]


def test_the_hash_of_a_prompt_is_of_what_is_asked_first_and_the_seed() -> None:
    assert prompt_hash(single("q", "a")) == prompt_hash(single("q", "b")) == prompt_hash(talk("q", "c", "more", "d"))
    assert prompt_hash(single("q", given="x")) == prompt_hash(talk("x", "c", system="q"))
    assert len({prompt_hash(single("q"), seed) for seed in (0, 1, "", "x")}) == 4
    assert prompt_hash(single("q")) != prompt_hash(single("r"))


def test_text_of_a_record() -> None:
    assert text_of(single("a", "c", "b")) == "a\nb\nc"
    assert text_of(talk("a", "b", system="s")) == "s\na\nb"


def test_evaluation_sets_of_this_machine(tmp_path: Path) -> None:
    sets = hygiene.local_evaluation_sets()
    assert "cot_sample_test" in sets.checked
    assert {*sets.checked, *sets.absent} == tasks.read_tasks().keys()
    assert not set(sets.checked) & set(sets.absent)
    nothing = hygiene.local_evaluation_sets(tmp_path)
    assert (nothing.checked, set(nothing.absent)) == ((), tasks.read_tasks().keys())
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "gsm8k_test.jsonl").write_text('{"question": "a"}\n{}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="gsm8k_test.jsonl line 2: 'question' must be text"):
        hygiene.local_evaluation_sets(tmp_path)


def test_anything_that_is_text_is_examined() -> None:
    rng = random.Random(3)
    alphabet = [chr(i) for i in (*range(0x250), 0x3000, 0x4E00, 0xAC00, 0xD800, 0xFFFF, 0x1F600, 0x10FFFF)]
    examiner = Examiner(EvaluationSets([]), ("EN",))
    for _ in range(500):
        texts = ["".join(rng.choices(alphabet, k=rng.randrange(40))) for _ in range(4)]
        for record in (single(*texts[:3]), talk(*texts)):
            assert 0 <= examiner.examine(record) < 1 << len(CHECKS)
            assert record_hash(record) >= 0


def test_real_rows(real_data: Path) -> None:
    examiner = Examiner(hygiene.local_evaluation_sets(real_data), ("EN",))
    text = (real_data / "raw" / "flan_cot_gsm8k_train.tsv").read_text(encoding="utf-8")
    cells = [line.split("\t") for line in text.split("\n") if line]
    bits = [examiner.examine(single(question, rationale)) for question, _, rationale in cells]
    flagged = {name: sum(name in names(b) for b in bits) for name in CHECKS}
    assert 0 < flagged.pop("evaluation_overlap") < 0.01 * len(cells)
    assert not [name for name, count in flagged.items() if count > 0.001 * len(cells)]
    lines = (real_data / "raw" / "belle_eval_set.json").read_text(encoding="utf-8").splitlines()
    belle = [json.loads(line) for line in lines]
    chinese = Examiner(languages=("CN",))
    bits = [chinese.examine(single(row["question"], row["std_answer"])) for row in belle]
    assert sum("empty_answer" in names(b) for b in bits) == sum(not row["std_answer"].strip() for row in belle) > 300
    assert 0 < sum("refusal" in names(b) for b in bits) < 20
    assert sum("language_mismatch" in names(b) for b in bits) < 10
