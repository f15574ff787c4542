"""The tab that shows what a dataset holds: its tags, its figures, and its rows as the model sees them.

Knows: the datasets of the catalogue whose file is on this machine, and their first rows. Does not know other files: a
request names one of the keys that were listed when the page was made.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import gradio

from utils import catalog, collection, hygiene, lookup
from utils.catalog import DatasetSpec
from utils.encode import Encoder
from utils.page import markup
from utils.page.shared import HTML, Shared
from utils.page.texts import Text, read_texts, say
from utils.proof import MaskError
from utils.readers import Row, read_rows
from utils.templates import last_answer
from utils.tokens import control_ids

ROWS = 500
"""Rows of a file that are looked at: as many as are read and encoded while one waits."""
KEPT = 8
"""Datasets whose rows stay in memory."""
CUTOFF = 512
"""For adapters that do not say with which they were trained."""
_TAGS = ("lang", "task", "gen", "type", "made", "size", "model_output", "license", "source")


def here() -> dict[str, DatasetSpec]:
    """The datasets that can be browsed."""
    return {key: spec for key, spec in catalog.read_catalog().items() if collection.is_here(spec)}


def build(page: Shared, datasets: Mapping[str, DatasetSpec]) -> None:
    """The tab's components and what they do."""
    put = page.labels.put
    if not datasets:
        put(gradio.Markdown, Text("data.none"))
        return
    browser = Browser(page, datasets)
    with gradio.Row():
        key = put(
            gradio.Dropdown,
            [(f"{name}: {spec.title}", name) for name, spec in datasets.items()],
            label=Text("data.dataset"),
            info=Text("data.dataset_info"),
            elem_id="data-dataset",
            scale=3,
        )
        number = put(
            gradio.Number,
            value=1,
            precision=0,
            minimum=1,
            maximum=ROWS,
            label=Text("data.row"),
            elem_id="data-row",
            min_width=90,
        )
    with gradio.Row():
        before = put(gradio.Button, Text("do.before"), elem_id="data-before", min_width=120)
        after = put(gradio.Button, Text("do.after"), elem_id="data-after", min_width=120)
    put(gradio.Markdown, Text("data.mask"))
    figures = gradio.Markdown(elem_id="data-figures", latex_delimiters=[])
    mask = gradio.Markdown(elem_id="data-mask", **HTML)
    with gradio.Row():
        tags = gradio.Markdown(elem_id="data-tags", **HTML)
        statistics = gradio.Markdown(elem_id="data-statistics", **HTML)

    quietly: dict[str, Any] = {"show_progress": "minimal", "concurrency_limit": 2}
    about, row = [tags, statistics, number, figures, mask], [number, figures, mask]
    # Shown when the page opens, and again in another language or for another model.
    gradio.on(
        [page.language.change, page.model.change, key.change],
        browser.about,
        [key, page.model, page.language],
        about,
        **quietly,
    )
    inputs = [key, number, page.model, page.language]
    number.submit(browser.row(0), inputs, row, **quietly)
    before.click(browser.row(-1), inputs, row, **quietly)
    after.click(browser.row(+1), inputs, row, **quietly)
    page.on_open.append((browser.about, [key, page.model, page.language], about))


class Browser:
    """What the tab's components do."""

    def __init__(self, page: Shared, datasets: Mapping[str, DatasetSpec]) -> None:
        self._page, self._datasets = page, datasets
        self._rows = functools.lru_cache(maxsize=KEPT)(self._read)
        self._statistics = functools.lru_cache(maxsize=KEPT * 4)(self._measured)

    def about(self, key: str, model: str, language: str) -> tuple[Any, ...]:
        """Tags, figures and the first row."""
        spec = lookup.find("dataset", key, self._datasets)
        return self._tags(spec, language), self._figures(key, model, language), *self._shown(key, 1, model, language)

    def row(self, step: int) -> Callable[[str, float, str, str], tuple[Any, ...]]:
        """Shows the row that is `step` further on, of those that there are."""

        def show(key: str, number: float, model: str, language: str) -> tuple[Any, ...]:
            return self._shown(key, int(number or 1) + step, model, language)

        return show

    def _shown(self, key: str, number: int, model: str, language: str) -> tuple[Any, ...]:
        """(its number, its figures, the row with its trained tokens marked)."""
        rows = self._rows(key)
        number = min(max(number, 1), len(rows))
        row = rows[number - 1]
        origin = say("data.origin", language, name=key, number=number)
        tokenizer = self._page.answering.opened.origin(model).tokenizer
        try:
            outcome = self._encoder(model)([row])[0]
        except MaskError as error:
            return number, say("data.not_trained", language, origin=origin, why=markup.harmless(str(error))), ""
        encoded = outcome.encoded
        if encoded is None:
            why = markup.harmless(outcome.what)
            return number, say("data.not_trained", language, origin=origin, why=why), _plain(row)
        trained = [label >= 0 for label in encoded.labels]
        told = say("data.figures", language, origin=origin, tokens=len(trained), trained=sum(trained))
        cut = f" · {outcome.what}" if outcome.what else ""
        return number, told + cut, markup.marked_ids(encoded.input_ids, tokenizer, control_ids(tokenizer), trained)

    def _tags(self, spec: DatasetSpec, language: str) -> str:
        def told(value: Any) -> str:
            if isinstance(value, tuple):
                return ", ".join(told(each) for each in value)
            if isinstance(value, int):
                return f"{value:,}"
            return say(f"tag.{value}", language) if f"tag.{value}" in read_texts() else value

        values = {name: getattr(spec, name) for name in _TAGS}
        shown = {name: told(value) for name, value in values.items() if value}
        return markup.table([(say(f"data.{name}", language), value) for name, value in shown.items()])

    def _figures(self, key: str, model: str, language: str) -> str:
        found = self._statistics(key, model)
        names = {"CN": "中文", "EN": "English"} | {
            name: say(f"data.{text}", language) for name, text in {"": "unknown", "other": "other"}.items()
        }
        spoken = ", ".join(f"{names.get(name, name)} {count:,}" for name, count in found["languages"].most_common())
        lengths, trained = found["lengths"], found["trained"]
        spread = ""
        if lengths:
            middle = lengths[(len(lengths) - 1) // 2]
            spread = say("data.quantiles", language, least=lengths[0], most=lengths[-1], middle=middle)
        share = f"{trained:,} ({trained / max(sum(lengths), 1):.0%})"
        rows = {
            "looked_at": f"{found['rows']:,}",
            "dialogues": f"{found['dialogues']:,}",
            "languages": spoken,
            "tokens": spread,
            "trained": share,
            "left_out": f"{found['rows'] - len(lengths):,}",
        }
        return markup.table([(say(f"data.{name}", language), value) for name, value in rows.items()])

    def _measured(self, key: str, model: str) -> dict[str, Any]:
        """Figures of the rows that are looked at."""
        rows, encode = self._rows(key), self._encoder(model)
        found = []
        for row in rows:
            try:
                found.append(encode([row])[0].encoded)
            except MaskError:  # shown with its reason where the row is
                found.append(None)
        kept = [each for each in found if each is not None]
        return {
            "rows": len(rows),
            "dialogues": sum("conversation" in row.record for row in rows),
            "languages": Counter(hygiene.language_of(last_answer(row.record), hygiene.ENOUGH_TO_COUNT) for row in rows),
            "lengths": sorted(len(each.input_ids) for each in kept),
            "trained": sum(each.num_targets for each in kept),
        }

    def _encoder(self, model: str) -> Encoder:
        """As the model's data were encoded."""
        origin = self._page.answering.opened.origin(model)
        used = origin.run.settings if origin.run else {}
        return Encoder(
            origin.template,
            origin.tokenizer,
            cutoff_len=used.get("cutoff_len", CUTOFF),
            truncation=used.get("truncation", "drop"),
        )

    def _read(self, key: str) -> list[Row]:
        spec = lookup.find("dataset", key, self._datasets)
        return list(islice(read_rows(catalog.DATA_DIR / spec.path), ROWS))


def _plain(row: Row) -> str:
    """A row that is not encoded, as it stands in its file."""
    turns = row.record.get("conversation")
    texts = [f"{turn['role']}: {turn['content']}" for turn in turns] if turns else list(map(str, row.record.values()))
    return f"<div class='exact'>{markup.literal(chr(10).join(texts))}</div>"
