import random
from typing import Any

import pytest
import torch

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


def test_an_id_ends_a_row_once_and_for_all(tokenizer: Any) -> None:
    halt = Halt(tokenizer, Ends(ids=[2]), 1, pauses=False)
    assert halt(torch.tensor([[1, 5], [1, 2], [1, 7]]), None).tolist() == [False, True, False]
    assert halt(torch.tensor([[1, 5, 2], [1, 2, 9], [1, 7, 7]]), None).tolist() == [True, True, False]
    assert halt.lengths == [3, 2, None]
    halt.cancelled = True
    assert halt(torch.tensor([[1, 5, 2, 2], [1, 2, 9, 9], [1, 7, 7, 7]]), None).tolist() == [True] * 3
    assert halt.lengths == [3, 2, None], "who was not through is not said to have ended"


def test_a_text_in_the_prompt_ends_nothing(tokenizer: Any) -> None:
    prompt = tokenizer("a ### b", add_special_tokens=False)["input_ids"]
    said = tokenizer("x ###", add_special_tokens=False)["input_ids"]
    halt = Halt(tokenizer, Ends(ids=[2], texts=("###",)), len(prompt))
    for count in range(1, len(said) + 1):
        (ended,) = halt(torch.tensor([[*prompt, *said[:count]]]), None).tolist()
        assert ended == ("###" in tokenizer.decode(said[:count]))


def test_enough_rows_that_have_ended_make_the_others_pause(tokenizer: Any) -> None:
    for ended, pauses in ((0, False), (1, False), (2, True), (8, True)):
        halt = Halt(tokenizer, Ends(ids=[2]), 1, pauses=True)
        ids = torch.tensor([[1, 2]] * ended + [[1, 5]] * (8 - ended))
        expected = [True] * 8 if pauses else [True] * ended + [False] * (8 - ended)
        assert halt(ids, None).tolist() == expected, ended
        assert halt.lengths == [2] * ended + [None] * (8 - ended)


def test_the_marks_of_a_next_question() -> None:
    assert turn_marks(TEMPLATES["alpaca"]) == ("\n\n### Human:\n", "\n\n### Instruction:\n")
    assert turn_marks(TEMPLATES["chatglm"]) == ("\n[Round ",)
    assert turn_marks(TEMPLATES["chat"]) == ()
