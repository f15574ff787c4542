"""Who answers a file of questions, and by what its answers are told from another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from utils import answerers

SETTINGS = {"max_new_tokens": 2, "do_sample": False, "num_beams": 1}


def here(place: Path, **options: Any) -> answerers.Answerer:
    given = {"stop": (), "batch_size": 2, "cut": False, "merge": False, "wishes": {}} | options
    return answerers.here(str(place), SETTINGS, **given)


def test_all_that_changes_answers_is_in_the_identity(finished: Path) -> None:
    plain = here(finished).identity
    assert plain["merged"] is False
    assert here(finished).identity == plain
    for options, name in [({"merge": True}, "merged"), ({"batch_size": 3}, "batch_size"), ({"stop": ("。",)}, "stop")]:
        other = here(finished, **options).identity
        assert {key for key in {*plain, *other} if plain.get(key) != other.get(key)} == {name}
    assert here(finished, merge=True).identity["merged"] is True


@pytest.mark.parametrize("merge", [True, False])
def test_the_base_is_never_merged_into(finished: Path, merge: bool) -> None:
    found = here(finished, merge=merge, base=True).identity
    assert (found["merged"], "answers" in found) == (False, True)
