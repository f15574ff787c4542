"""What a run tells people: its plan, its result, its model card.

Knows: how to draw and to write. Does not know how anything was computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utils import hub, plots, preview, runinfo
from utils.dataset import TrainingData
from utils.methods import get_method
from utils.progress import LOG_NAME
from utils.runinfo import RunInfo
from utils.schedule import Steps, duration


def plan_lines(
    settings: Mapping[str, Any], data: TrainingData, steps: Steps, preflight: Iterable[str], *, rows_a_step: int
) -> list[str]:
    """What a run is about to do; `preflight`: the lines about its devices."""
    shown = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in settings.items()}
    lines = [f"  {name}: {value}" for name, value in shown.items() if value not in (None, "", False)]
    lines += [f"data: {source['name']}: {source['path']} ({source['shape']})" for source in data.sources]
    lines += data.ledger.lines()
    lines += ["tokens a row:", *preview.histogram(data.train.lengths)]
    lines += preflight
    lines.append(
        f"steps: {steps.total:,} of {rows_a_step} rows; warm-up {steps.warmup}, validation every {steps.evaluating}, "
        f"checkpoint every {steps.saving}"
    )
    return lines


def result_lines(run: RunInfo, directory: Path) -> list[str]:
    """What a run has done, and what to do next."""
    verified = run.verified
    figures = "  ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value:,}"
        for name, value in run.metrics.items()
    )
    what, where = ("model", "") if get_method(run.method).trains_base else ("adapter", " into a fresh base")
    return [
        f"{what} verified: {verified['tensors']} tensors read back{where}; largest logit difference "
        f"{verified['max_logit_difference']:.1e} of {verified['max_logit']:.1f}",
        f"{figures}  ({run.trained_tokens:,} trained tokens in {duration(run.seconds)})",
        *([run.kept] if run.kept else []),
        f"{what}: {directory}",
        f"loss curve: {directory / 'loss.png'}",
        f"ask it: python3 generate.py --lora_dir {directory} --greedy",
    ]


def publish(run: RunInfo, directory: Path) -> list[str]:
    """Writes the plot, the card and, last, `run.json`: a directory that has it is a finished run. Returns
    `result_lines`."""
    data = "-".join(Path(name).name for name in run.data)
    plots.loss(read_log(directory / LOG_NAME), directory / "loss.png", f"{Path(run.base).name} on {data}")
    (directory / "README.md").write_text(model_card(run), encoding="utf-8")
    runinfo.write(run, directory)
    return result_lines(run, directory)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a `training_log.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def ledger_lines(ledger: Mapping[str, Any]) -> list[str]:
    """A run's ledger as sentences, by source."""
    lines = []
    for name, account in ledger["sources"].items():
        lines.append(
            f"{name}: {account['read']:,} rows read, {account['trained']:,} trained on ({account['repeated']:,} of "
            f"them copies), {account['validation']:,} held out; {account['trained_tokens']:,} of "
            f"{account['tokens']:,} tokens carry loss"
        )
        if account["split"]:
            lines.append(f"{name}: {account['split']:,} of its rows are further answers of a dialogue")
        if account["left_out"]:
            lines.append(f"{name}, left out by :N: {account['left_out']:,}")
        lines += [f"{name}, dropped: {count:,}: {what}" for what, count in account["dropped"].items()]
        lines += [f"{name}, cut: {count:,}: {what}" for what, count in account["truncated"].items()]
        lines += [f"{name}, noticed: {count:,}: {what}" for what, count in account["reported"].items()]
    return [*lines, *ledger["notes"]]


def model_card(run: RunInfo) -> str:
    """The adapter's README.md, with the metadata that the hub reads (https://huggingface.co/docs/hub/model-cards)."""
    sources = "\n".join(
        f"| {source['name']} | {source['rows']:,} | {source['license'] or 'not stated'} | `{source['sha256']}` |"
        for source in run.sources
    )
    metrics = "\n".join(f"- {name}: {value}" for name, value in run.metrics.items())
    ledger = "\n".join(f"- {line}" for line in ledger_lines(run.ledger))
    settings = "\n".join(f"| {name} | {value} |" for name, value in sorted(run.settings.items()) if value is not None)
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    words = _words(run)
    return f"""---
{hub.card_metadata(run.base, library=words["library"], tags=(run.method, "alpaca-cot"))}
---

# {words["title"]}, trained on {"-".join(run.data)}

{words["method"]}

Load it with `{words["loader"]}.from_pretrained`, or ask it with
`python3 generate.py --lora_dir <this directory> --greedy`.
The prompt must be the one it was trained with:
template `{run.settings["template"]}`, sha256 `{run.template_hash[:16]}…`.

## Data

| source | rows | licence | sha256 |
| --- | --- | --- | --- |
{sources}

{ledger}

## Result

{metrics}
- trained tokens: {run.trained_tokens:,} in {run.seconds:,.0f} s
- {run.kept}

The saved {words["reread"]}: largest logit difference {run.verified["max_logit_difference"]:.2e}
where the largest logit is {run.verified["max_logit"]:.2f}, over {run.verified["probe_tokens"]} tokens.

## Settings

| flag | value |
| --- | --- |
{settings}

Versions: {versions}. Commit: {run.commit or "not in git"}. Seed: {run.settings["seed"]}. Started {run.started}.
"""


def _words(run: RunInfo) -> dict[str, str]:
    """What a card says of an adapter, and of a run that holds all weights."""
    method, base = get_method(run.method), Path(run.base).name
    paper = f", [arXiv {method.paper}](https://arxiv.org/abs/{method.paper})" if method.paper else ""
    words = {"method": f"Method: {method.label}{paper}."}
    if method.trains_base:
        return words | {
            "library": "transformers",
            "loader": "transformers.AutoModelForCausalLM",
            "title": f"{base}, all weights",
            "reread": "model was read back",
        }
    return words | {
        "library": "peft",
        "loader": "peft.PeftModel",
        "title": f"An adapter for {base} by {method.label}",
        "reread": "adapter was read back into a fresh base",
    }
