"""The page's texts, in both languages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from utils import catalog, cli
from utils.page import texts
from utils.page.texts import LANGUAGES, Text, say


def test_every_text_is_there_in_every_language_with_the_same_blanks() -> None:
    blanks = re.compile(r"\{(\w+)\}")
    for key, row in texts.read_texts().items():
        assert set(row) == set(LANGUAGES), key
        assert all(text.strip() for text in row.values()), key
        assert len({tuple(sorted(blanks.findall(text))) for text in row.values()}) == 1, key
    parameters = {key.partition(".")[2] for key in texts.read_texts() if key.startswith("parameter.")}
    assert parameters == set(cli.GENERATION)


def test_every_text_is_used_and_every_text_that_is_used_exists() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in Path(texts.__file__).parent.glob("*.py"))
    named = set(re.findall(r"""["']([a-z]+\.[a-z_]+)["']""", source)) & {
        f"{group}.{name}" for group, name in (key.split(".") for key in texts.read_texts())
    }
    built = {key for key in texts.read_texts() if re.match(r"(tab|parameter|data|runs|compare|tag)\.", key)}
    assert set(texts.read_texts()) <= named | built
    with pytest.raises(ValueError, match=r"unknown text.*do\.send"):
        say("do.sent", "en")


@pytest.mark.parametrize(
    ("accepted", "asked", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", None, "zh"),
        ("de-DE,en-GB;q=0.5", None, "en"),
        ("fr", None, "en"),
        (None, None, "en"),
        ("en", "zh", "zh"),
        ("zh", "../../etc/passwd", "zh"),
        ("", "", "en"),
    ],
)
def test_the_language_is_the_address_s_or_the_browser_s_first(accepted: Any, asked: Any, language: str) -> None:
    assert texts.preferred(accepted, asked) == language


def test_every_tag_of_the_catalogue_is_explained() -> None:
    for tag in (*catalog.LANGUAGES, *catalog.TASKS, *catalog.GENERATIONS):
        for language in LANGUAGES:
            assert re.fullmatch(rf"{tag}( \(|（).+[)）]", say(f"tag.{tag}", language))
    assert [say(f"tag.{said}", "zh") for said in catalog.MODEL_OUTPUTS] == ["是", "否", "部分"]


def test_a_table_s_headers_change_with_the_language() -> None:
    labels = texts.Labels(shown=[(None, {"label": Text("page.examples"), "headers": [Text("do.send")] * 2})])
    (told,) = labels.updates("zh")
    assert (told["label"], told["headers"]) == ("示例", ["发送", "发送"])


def test_a_language_that_a_request_makes_up_is_english() -> None:
    assert say("do.stop", "<script>") == "Stop"
    assert say("do.stop", ["zh"]) == "Stop"  # pyright: ignore[reportArgumentType]
