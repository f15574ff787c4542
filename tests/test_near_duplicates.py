import random
import tracemalloc
from collections.abc import Sequence

import pytest

from utils.near_duplicates import NearDuplicates, band_rows, shingles


def found(texts: Sequence[str], **options: float) -> list[int]:
    near = NearDuplicates(**options)  # pyright: ignore[reportArgumentType]
    for text in texts:
        near.add(text)
    return near.duplicates().tolist()


def prose(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(5000)}" for _ in range(count)]


def overlap(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def test_one_word_changed_in_sixty_is_found_and_the_first_is_kept() -> None:
    rng = random.Random(0)
    texts, expected = [], []
    for _ in range(100):
        original = prose(rng, 60)
        changed = [*original]
        changed[rng.randrange(60)] = "changed"
        expected += [-1, len(texts)]
        texts += [" ".join(original), " ".join(changed)]
    assert found(texts) == expected


def test_case_punctuation_and_spacing_do_not_matter() -> None:
    text = "A baker has twelve trays, and each of them holds eight loaves of bread."
    assert found([text, text.upper().replace(",", " -") + "  ", text]) == [-1, 0, 0]


def test_texts_that_share_a_template_are_kept() -> None:
    rng = random.Random(1)
    template = "Below is a question that a person has asked. Answer it in a few words. Question:"
    texts = [f"{template} {' '.join(prose(rng, 30))}" for _ in range(60)]
    assert found(texts) == [-1] * 60


def test_what_a_text_repeats_is_kept_itself() -> None:
    rng = random.Random(2)
    words = prose(rng, 100)
    texts = []
    for step in range(12):  # each is near to its neighbours, the ends are strangers
        texts.append(" ".join(words))
        words[step * 8 : step * 8 + 3] = prose(rng, 3)
    repeats = found(texts)
    assert repeats[0] == -1
    assert -1 in repeats[1:], "far enough from the first"
    assert any(repeat >= 0 for repeat in repeats)
    assert all(repeats[repeat] == -1 and repeat < number for number, repeat in enumerate(repeats) if repeat >= 0)


def test_short_and_empty_texts_compare_exactly() -> None:
    texts = ["", "yes", "no", " Yes! ", "", "one two three four", "one two three five", "👋", "🎉", "👋"]
    assert found(texts) == [-1, -1, -1, 1, 0, -1, -1, -1, -1, 7]
    assert found([]) == []
    assert found(["alone"]) == [-1]


def test_chinese_is_read_by_characters() -> None:
    text = "小明家里有一个很大的花园，花园里种着许多漂亮的花。春天来了，蜜蜂和蝴蝶都飞到花园里来，大家都非常喜欢这个美丽的地方。"
    other = "请写一篇关于人工智能的文章，说明它怎样改变了医疗、教育和交通，并讨论它会带来哪些新的问题，以及人们应当怎样去面对。"
    assert found([text, other, text.replace("春天", "夏天"), other[:30]]) == [-1, -1, 0, -1]


def test_against_every_pair_compared() -> None:
    rng = random.Random(3)
    texts: list[str] = []
    while len(texts) < 300:
        if texts and rng.random() < 0.5:
            words = rng.choice(texts).split()
            for _ in range(rng.choice((0, 1, 1, 2, 3, 6, 12))):
                words[rng.randrange(len(words))] = f"new{rng.randrange(10**6)}"
        else:
            words = prose(rng, rng.randint(20, 120))
        texts.append(" ".join(words))
    repeats = found(texts, threshold=0.75)
    nearest = [
        max((overlap(texts[i], texts[j]) for j in range(i) if repeats[j] == -1), default=0.0) for i in range(300)
    ]
    assert all(repeats[i] >= 0 for i in range(300) if nearest[i] >= 0.87), "recall well above the threshold"
    assert all(repeats[i] == -1 for i in range(300) if nearest[i] < 0.63), "precision well below it"
    clear = [i for i in range(300) if abs(nearest[i] - 0.75) > 0.04]
    right = sum((repeats[i] >= 0) == (nearest[i] >= 0.75) for i in clear)
    assert right >= 0.97 * len(clear) > 250
    assert sum(repeat >= 0 for repeat in repeats) > 50


def test_the_same_texts_give_the_same_result() -> None:
    rng = random.Random(4)
    texts = [" ".join(prose(rng, 12)) for _ in range(50)] * 2
    assert found(texts) == found(texts) == [-1] * 50 + list(range(50))


def test_more_can_be_added_after_a_look() -> None:
    near = NearDuplicates()
    near.add("one two three four five six")
    assert near.duplicates().tolist() == [-1]
    near.add("One, two, three, four, five, six.")
    assert (near.duplicates().tolist(), len(near)) == ([-1, 0], 2)


def test_memory_is_a_few_hundred_bytes_a_text() -> None:
    rng = random.Random(5)
    near = NearDuplicates()
    near.add("warm up: libraries are imported")
    texts = [" ".join(prose(rng, 20)) for _ in range(4000)]
    tracemalloc.start()
    for text in texts:
        near.add(text)
    near.duplicates()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 620 * len(texts)


def test_bands_find_pairs_at_the_threshold() -> None:
    for threshold in (0.3, 0.5, 0.75, 0.8, 0.95, 1.0):
        length = band_rows(threshold, 128)
        assert 1 - (1 - threshold**length) ** (128 // length) >= 0.95
    assert band_rows(0.01, 128) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "the threshold of near duplicates is 0; it must be above 0 and at most 1"),
        ({"threshold": 1.5}, "is 1.5; it must be"),
        ({"num_perm": 0}, "a signature of 0 minima; it must be 1 or more"),
    ],
)
def test_values_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found([], **options)
