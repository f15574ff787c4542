import json
import pickle
import random
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY

from utils import overlap, tasks
from utils.overlap import EvaluationSets, QuestionSet, words

QUESTION = (
    "A baker has 12 trays of bread with 8 loaves on each tray; she sells 75 loaves by noon. How many loaves remain?"
)
SHORT = "Would a pear sink in the water?"
CHINESE = "小明有十二个苹果，他给了小红五个，又买了八个，现在他一共有几个苹果？"


def sets(*questions: str, name: str = "task", ngram: int = 13) -> EvaluationSets:
    return EvaluationSets([QuestionSet(name=name, questions=questions, ngram=ngram)])


def sample(name: str) -> list[dict[str, str]]:
    return json.loads((REPOSITORY / "data" / "sample" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("  ,.!\n", []),
        ("The farmer's MARKET_place: $2,000", ["the", "farmer", "s", "market", "place", "2", "000"]),
        ("the farmer’s “market”—2 000…", ["the", "farmer", "s", "market", "2", "000"]),
        ("３个苹果ABC", ["3", "个", "苹", "果", "abc"]),
        ("カタカナ ｶﾅ ひらがな", [*"カタカナカナひらがな"]),
        ("한국어 질문", ["한국어", "질문"]),
        ("cafe\u0301 CAFÉ Straße", ["café", "café", "straße"]),
        ("👋 你好 🌏", ["你", "好"]),
    ],
)
def test_words_fold_case_punctuation_and_spacing(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_ascii_takes_a_shorter_way_to_the_same_words() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(chr(rng.randrange(128)) for _ in range(80))
        assert words(text) == words(text + "你")[:-1], repr(text)


@pytest.mark.parametrize("before", range(15))
def test_a_shared_run_is_found_wherever_it_stands(before: int) -> None:
    asked = words(QUESTION)
    found = sets("One two three.", QUESTION)
    for start in range(len(asked) - 12):
        text = " ".join(["x"] * before + asked[start : start + 13] + ["y"] * (start % 5))
        assert found.match(text) == "task"
        shorter = " ".join(["x"] * before + asked[start : start + 12] + ["y"] * 20)
        assert found.match(shorter) is None, "twelve words are not thirteen"


def test_the_windows_lose_nothing_that_every_run_would_find() -> None:
    rng = random.Random(1)
    vocabulary = [f"w{i}" for i in range(4)]
    questions = [" ".join(rng.choices(vocabulary, k=rng.randint(13, 16))) for _ in range(150)]
    index = sets(*questions)
    runs = {tuple(w[i : i + 13]) for q in questions for w in [words(q)] for i in range(len(w) - 12)}
    outcomes = set()
    for _ in range(400):
        drawn = rng.choices(vocabulary, k=rng.randint(1, 40))
        if rng.random() < 0.5:
            at, run = rng.randint(0, len(drawn)), list(rng.choice(sorted(runs)))
            drawn[at:at] = run[: rng.choice((12, 13))]
        expected = any(tuple(drawn[i : i + 13]) in runs for i in range(len(drawn) - 12))
        assert (index.match(" ".join(drawn)) is not None) is expected
        outcomes.add(expected)
    assert outcomes == {True, False}


@pytest.mark.parametrize("before", range(7))
def test_a_short_question_is_found_whole_wherever_it_stands(before: int) -> None:
    found = sets(SHORT, "Why?", "Is it so?")
    assert found.match("x " * before + SHORT.upper() + " Let's think step by step.") == "task"
    assert found.match("x " * before + "would a pear sink in the") is None
    assert found.match("x " * before + "would a pear sink in the sea") is None
    assert found.match("x " * before, "It asked: would a pear sink in the water, and I said no.") == "task"


def test_a_question_too_short_to_be_specific_counts_only_as_the_whole_prompt() -> None:
    found = sets("Why?", "你好吗？", "Is it so?")
    assert found.match("why") == found.match("  你好吗") == "task"
    assert found.match("Why? Because it is so.") is None
    assert found.match("Tell me.", "Why?") is None
    assert found.match("请问你好吗？") is None


def test_what_is_empty_matches_nothing() -> None:
    found = sets("", "👋", "...")
    assert found.match("") is found.match("👋") is found.match("", "...") is None
    assert EvaluationSets([]).match(QUESTION) is None


def test_chinese_questions() -> None:
    assert sets(CHINESE).match("请回答：" + CHINESE[:20] + "（略）") == "task"
    whole = sets(CHINESE, ngram=40)
    assert whole.match("请回答：" + CHINESE + "请逐步思考。") == "task"
    assert whole.match("请回答：" + CHINESE[:-5]) is None
    assert sets("把这句话翻译成英文", ngram=26).match("把这句话翻译成英文：你好") is None, (
        "nine characters are a wording"
    )


def test_each_task_has_its_own_run_and_the_match_names_it() -> None:
    long = " ".join(f"b{i}" for i in range(40))
    found = EvaluationSets(
        [
            QuestionSet(name="a", questions=(QUESTION,)),
            QuestionSet(name="b", questions=(long,), ngram=26),
            QuestionSet(name="c", questions=("one two three four five six seven " * 3,), ngram=0),
        ],
        absent=["d"],
    )
    assert (found.checked, found.absent) == (("a", "b", "c"), ("d",))
    assert found.match(QUESTION) == "a"
    assert found.match(" ".join(words(long)[5:31])) == "b"
    assert found.match(" ".join(words(long)[5:30])) is None
    assert found.match("x " + "one two three four five six seven " * 3) == "c"
    assert found.match("one two three four five six seven " * 2) is None
    with pytest.raises(ValueError, match="task 'x': a run of 12 words; it must be 0 or at least 13"):
        sets(QUESTION, name="x", ngram=12)


def test_pickled_and_fingerprinted() -> None:
    found = sets(QUESTION, SHORT, CHINESE)
    again = pickle.loads(pickle.dumps(found))
    assert again.fingerprint == found.fingerprint
    assert [again.match(text) for text in (QUESTION, SHORT, CHINESE, "no")] == ["task"] * 3 + [None]
    assert sets(QUESTION.upper() + "!", SHORT, CHINESE).fingerprint == found.fingerprint, "what matches the same"
    changed = [
        sets(QUESTION, SHORT),
        sets(QUESTION, SHORT, CHINESE, name="other"),
        sets(QUESTION, SHORT, CHINESE, ngram=14),
    ]
    assert len({found.fingerprint, *(one.fingerprint for one in changed)}) == 4


def test_our_sample_is_not_in_its_test_and_the_test_is() -> None:
    spec = tasks.read_tasks()["cot_sample_test"]
    found = EvaluationSets([QuestionSet(name="t", questions=tuple(tasks.questions(spec)), ngram=spec.ngram)])
    flagged = {name: sum(found.match(r["instruction"], r["output"]) == "t" for r in sample(name)) for name in ("cot_sample", "cot_sample_test")}  # fmt: skip
    assert flagged == {"cot_sample": 0, "cot_sample_test": 200}
    by_runs = EvaluationSets([QuestionSet(name="t", questions=tuple(tasks.questions(spec)))])
    templated = sum(by_runs.match(r["instruction"]) == "t" for r in sample("cot_sample"))
    assert templated > 1000, "which is why this task has no runs: its templates are shared"


@pytest.fixture(scope="module")
def real_sets(real_data: Path) -> EvaluationSets:
    rows = tasks.read_tasks()
    places = {"belle_eval": "raw/belle_eval_set.json"}
    specs = {key: replace(rows[key], path=places.get(key, rows[key].path)) for key in ("gsm8k", "aqua", "strategyqa", "belle_eval")}  # fmt: skip
    return EvaluationSets(
        [
            QuestionSet(name=key, questions=tuple(tasks.questions(spec, real_data)), ngram=spec.ngram)
            for key, spec in specs.items()
        ]
    )


def test_real_training_rows_are_seldom_flagged_and_test_rows_always(real_sets: EvaluationSets, real_data: Path) -> None:
    def read(name: str, key: str) -> list[str]:
        return [json.loads(line)[key] for line in (real_data / name).read_text(encoding="utf-8").splitlines()]

    train = read("raw/gsm8k_train.jsonl", "question")
    assert 0 < sum(real_sets.match(q) is not None for q in train) < 0.01 * len(train)
    for name in ("eval/gsm8k_test.jsonl", "eval/aqua_test.json", "raw/belle_eval_set.json"):
        assert all(real_sets.match(question) for question in read(name, "question")), name
    code = json.loads((real_data / "raw" / "code_alpaca_2k.json").read_text(encoding="utf-8"))
    assert sum(real_sets.match(f"{row['instruction']}\n{row['input']}", row["output"]) is not None for row in code) == 0


def test_flans_strategyqa_is_the_evaluation_set(real_sets: EvaluationSets, real_data: Path) -> None:
    text = (real_data / "raw" / "flan_cot_strategyqa_train.tsv").read_text(encoding="utf-8")
    assert {real_sets.match(line.split("\t")[0]) for line in text.splitlines()} == {"strategyqa"}


def test_constants_hold_the_promise_of_the_windows() -> None:
    assert overlap.SHORTEST_RUN == tasks.SHORTEST_NGRAM == 13
    assert overlap.SHORTEST_WHOLE_WORDS == 5
