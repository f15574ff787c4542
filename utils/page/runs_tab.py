"""The tab that shows how a run went: its loss, where its rows went, its settings, and how it was evaluated.

Knows: the files of a run's directory. Does not know other directories: a request names one of the runs that were listed
when the page was made.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import gradio

from utils import evaluation, held_out, lookup, plots, runinfo
from utils.page import markup
from utils.page.answering import Answering
from utils.page.shared import HTML, Shared
from utils.page.texts import Text, say
from utils.readers import read_rows
from utils.runinfo import RunInfo
from utils.scoring import Accuracy

LOG = "training_log.jsonl"
NO_ANSWERS = (LOG, "row_ids.jsonl")
_LEDGER = ("read", "left_out", "dropped", "validation", "repeated", "trained", "trained_tokens")


def listed(answering: Answering) -> dict[str, Path]:
    """The runs that can be looked at, by a name: the loaded ones, then those below `saved_models/`."""
    found = {name: answering.opened.origins[name].directory.resolve() for name in answering.opened.names}
    for path in sorted(runinfo.SAVED_MODELS.glob(f"*/{runinfo.NAME}")):
        if path.parent.resolve() not in found.values():
            found[str(path.parent)] = path.parent.resolve()
    return found


def build(page: Shared, runs: Mapping[str, Path]) -> None:
    """The tab's components and what they do."""
    put = page.labels.put
    if not runs:
        put(gradio.Markdown, Text("runs.none"))
        return
    run = put(gradio.Dropdown, list(runs), label=Text("runs.run"), info=Text("runs.run_info"), elem_id="runs-run")
    description = gradio.Markdown(elem_id="runs-description", **HTML)
    with gradio.Row():
        with gradio.Column(min_width=300):
            put(gradio.Markdown, Text("runs.loss"), elem_classes="heading")
            loss = gradio.Markdown(elem_id="runs-loss", elem_classes="picture", **HTML)
        with gradio.Column(min_width=300):
            put(gradio.Markdown, Text("runs.evaluation"), elem_classes="heading")
            evaluation = gradio.Markdown(elem_id="runs-evaluation", **HTML)
    put(gradio.Markdown, Text("runs.ledger"), elem_classes="heading")
    ledger = gradio.Markdown(elem_id="runs-ledger", **HTML)
    with put(gradio.Accordion, label=Text("runs.settings"), open=False):
        settings = gradio.Markdown(elem_id="runs-settings", **HTML)

    def show(name: str, language: str) -> tuple[str, ...]:
        return shown(name, lookup.find("run", name, runs), page.answering.opened.origins.get(name), language)

    outputs = [description, loss, ledger, settings, evaluation]
    gradio.on([run.change, page.language.change], show, [run, page.language], outputs, show_progress="minimal")
    page.on_open.append((show, [run, page.language], outputs))


def shown(name: str, directory: Path, origin: Any, language: str) -> tuple[str, str, str, str, str]:
    """(what the run is, its loss, its ledger, its settings, its evaluation), each as HTML.

    Args:
        origin: of a loaded adapter (`utils.identity.Identified`), else None.
    """
    try:
        found = runinfo.read(directory)
    except FileNotFoundError:
        about = markup.harmless(origin.description if origin else "")
        plain = say("runs.plain", language, name=markup.harmless(name), description=about)
        return plain, loss_of(directory, language), "", "", evaluation_of(directory, language)
    except ValueError as error:
        return markup.harmless(str(error)), "", "", "", ""
    header = [say("runs.name", language), say("runs.value", language)]
    return (
        _description(found, language),
        loss_of(directory, language),
        _ledger(found, language),
        markup.table(list(found.settings.items()), header),
        evaluation_of(directory, language),
    )


def _description(run: RunInfo, language: str) -> str:
    rows = [
        ("--model_type", run.model_type),
        ("--model_name_or_path", run.base),
        ("--data", " ".join(run.data)),
        (say("runs.started", language), run.started),
        (say("runs.seconds", language), f"{run.seconds:.0f}"),
        (say("runs.trained_tokens", language), f"{run.trained_tokens:,}"),
        *[(name, f"{value:.4g}") for name, value in run.metrics.items() if isinstance(value, int | float)],
    ]
    kept = run.kept.removeprefix("kept: ")  # which the row's name says
    return markup.table([*rows, *([(say("runs.kept", language), kept)] if kept else [])])


def _ledger(run: RunInfo, language: str) -> str:
    sources = dict(run.ledger.get("sources", {}))
    if len(sources) != 1:
        sources[say("runs.total", language)] = run.ledger
    rows = [[name, *(_figure(account.get(column, 0)) for column in _LEDGER)] for name, account in sources.items()]
    header = [say("runs.data_source", language), *(say(f"runs.{column}", language) for column in _LEDGER)]
    return markup.table(rows, header)


def _figure(value: Any) -> str:
    """A count, or counts by reason."""
    return f"{sum(value.values()) if isinstance(value, dict) else value:,}"


def loss_of(directory: Path, language: str) -> str:
    """The loss curve as a picture in HTML: the one that the run drew, or one of its log."""
    drawn, log = directory / "loss.png", directory / LOG
    if drawn.is_file():
        picture = drawn.read_bytes()
    elif log.is_file():
        entries = list(_entries(log))
        with tempfile.TemporaryDirectory() as folder:
            plots.loss(entries, Path(folder) / "loss.png", directory.name)
            picture = (Path(folder) / "loss.png").read_bytes()
    else:
        return say("runs.no_loss", language)
    coded = base64.b64encode(picture).decode()
    return f"<img alt='{markup.literal(say('runs.loss', language))}' src='data:image/png;base64,{coded}'>"


def _entries(log: Path) -> Iterator[dict[str, Any]]:
    """Those that are whole: a run that goes on, or was killed, may have begun another."""
    for line in log.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def evaluation_of(directory: Path, language: str) -> str:
    """Accuracy by the files of answers that `evaluate.py --output` wrote into the directory."""
    rows = []
    for path in sorted(directory.glob("*.jsonl")):
        if path.name not in NO_ANSWERS:
            try:
                rows += [(path.name, who, str(accuracy)) for who, accuracy in accuracies(path).items()]
            except (ValueError, KeyError, TypeError):
                continue  # a file of something else
    if not rows:
        return say("runs.no_evaluation", language)
    return markup.table(rows, [say(f"runs.{name}", language) for name in ("file", "who", "accuracy")])


def accuracies(path: Path) -> dict[str, Accuracy]:
    """The accuracy of each model whose answers are in a file of `evaluate.py --output`.

    Raises:
        ValueError, KeyError, TypeError: it is no such file.
    """
    with path.open(encoding="utf-8") as lines:
        entries = [json.loads(line) for line in lines if line.strip()]
    rows = list(islice(read_rows(path), len(entries)))
    models = [name for name in ("base", "adapter") if entries and isinstance(entries[0].get(name), dict)]
    scored = {name: held_out.score(rows, [entry[name]["text"] for entry in entries]) for name in models}
    return {name: evaluation.accuracy(found, 1) for name, found in scored.items()}
