import random
from typing import Any

import pytest
import torch

from utils.decoding import Row
from utils.stopping import Ends, Halt, HeldBack
from utils.templates import TEMPLATES, turn_marks


def pieces_of(text: str, draw: random.Random) -> list[str]:
    """`text` cut at random places."""
    cuts = sorted(draw.sample(range(len(text) + 1), k=min(4, len(text))))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize(
    "texts", [(), ("###",), ("你好", "好\n"), ("ab", "abc", "c"), ("\N{EARTH GLOBE ASIA-AUSTRALIA}",)]
)
def test_what_is_shown_is_the_text_up_to_its_end(texts: tuple[str, ...]) -> None:
    draw, ends = random.Random(5), Ends(ids=[2], texts=texts)
    for _ in range(300):
        text = "".join(draw.choices(["a", "b", "c", "#", "##", "你", "好", "\n", "🌏", " "], k=draw.randrange(12)))
        held, shown = HeldBack(ends), ""
        for piece in pieces_of(text, draw):
            for part in held.add(piece):
                shown += part
                assert not any(end in shown for end in texts)
        shown += "".join(held.rest())
        expected, ended = ends.cut(text)
        assert (shown, held.ended) == (expected, ended)


def test_text_that_begins_no_end_is_shown_at_once() -> None:
    held = HeldBack(Ends(ids=[], texts=("###",)))
    assert list(held.add("one #")) == ["one "]
    assert list(held.add("1 ")) == ["#1 "]
    assert list(held.add("")) == []


def test_an_empty_text_ends_nothing() -> None:
    with pytest.raises(ValueError, match="--stop '': an empty text stands everywhere"):
        Ends(ids=[2], texts=("",))


def rows(count: int, *, prompt: int = 1, longest: int = 99, texts: tuple[str, ...] = ()) -> list[Row]:
    ends = Ends(ids=[2], texts=texts)
    return [Row(prompt=[1] * prompt, ends=ends, max_new_tokens=longest, seed=0) for _ in range(count)]


def test_an_id_ends_a_row_once_and_for_all(tokenizer: Any) -> None:
    some = rows(3)
    told: list[int] = []
    some[1].on_token = told.append
    halt = Halt(tokenizer, some, [0] * 3)
    assert halt(torch.tensor([[1, 5], [1, 2], [1, 7]]), None).tolist() == [False, True, False]
    assert halt(torch.tensor([[1, 5, 2], [1, 2, 9], [1, 7, 7]]), None).tolist() == [True, True, False]
    assert halt.lengths == [3, 2, None]
    assert told == [2], "what comes behind its end is not a row's"
    some[2].cancelled = True
    assert halt(torch.tensor([[1, 5, 2, 2], [1, 2, 9, 9], [1, 7, 7, 7]]), None).tolist() == [True] * 3
    assert halt.lengths == [3, 2, None], "who was not through is not said to have ended"


def test_each_row_has_a_longest_answer_of_its_own(tokenizer: Any) -> None:
    some = rows(2, longest=3)
    some[0].max_new_tokens = 1
    halt = Halt(tokenizer, some, [0, 0])
    assert halt(torch.tensor([[1, 5], [1, 5]]), None).tolist() == [True, False]
    assert halt(torch.tensor([[1, 5, 5], [1, 5, 5]]), None).tolist() == [True, False]
    assert halt(torch.tensor([[1, 5, 5, 5], [1, 5, 5, 5]]), None).tolist() == [True, True]
    assert halt.lengths == [2, 4]


def test_a_text_in_the_prompt_ends_nothing(tokenizer: Any) -> None:
    prompt = tokenizer("a ### b", add_special_tokens=False)["input_ids"]
    said = tokenizer("x ###", add_special_tokens=False)["input_ids"]
    some = rows(1, prompt=len(prompt), texts=("###",))
    for count in range(1, len(said) + 1):
        halt = Halt(tokenizer, some, [0])
        (ended,) = halt(torch.tensor([[*prompt, *said[:count]]]), None).tolist()
        assert ended == ("###" in tokenizer.decode(said[:count]))


def test_enough_rows_that_have_ended_make_the_others_pause(tokenizer: Any) -> None:
    for ended, pauses in ((0, False), (1, False), (2, True), (8, True)):
        halt = Halt(tokenizer, rows(8), [0] * 8, pauses=lambda: False)
        ids = torch.tensor([[1, 2]] * ended + [[1, 5]] * (8 - ended))
        expected = [True] * 8 if pauses else [True] * ended + [False] * (8 - ended)
        assert halt(ids, None).tolist() == expected, ended
        assert halt.lengths == [2] * ended + [None] * (8 - ended)


def test_who_is_asked_to_pause_or_has_a_cancelled_row_stops_and_is_told_no_more(tokenizer: Any) -> None:
    for cancelled in (False, True):
        some, told = rows(8), []
        some[0].on_token = told.append
        some[7].cancelled = cancelled
        halt = Halt(tokenizer, some, [0] * 8, pauses=lambda cancelled=cancelled: not cancelled)
        for width in (2, 3, 4):  # on a GPU transformers goes on for a while
            assert halt(torch.tensor([[5] * width] * 8), None).tolist() == [True] * 8
        assert told == [5]
        assert halt.lengths == [None] * 8


def test_the_marks_of_a_next_question() -> None:
    assert turn_marks(TEMPLATES["alpaca"]) == ("\n\n### Human:\n", "\n\n### Instruction:\n")
    assert turn_marks(TEMPLATES["chatglm"]) == ("\n[Round ",)
    assert turn_marks(TEMPLATES["chat"]) == ()
