"""What a merged checkpoint says of itself: the lines after a merge, and its card.

Knows: the facts in `merge.json`, for people. Does not know how they came about (`utils.merging`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils import equivalence, hub, runinfo
from utils.chat_templates import Exported
from utils.equivalence import Divergence

WEIGHTS = {"base": "the base's weights", "trained": "the dequantised weights"}


def result_lines(facts: dict[str, Any], destination: Path) -> list[str]:
    """What was merged and proved, and what to do next."""
    proof, stored, own = facts["proof"], facts["precision"], facts["own_precision"]
    lines = []
    if stored not in ("fp32", own):
        lines = [f"stored in {stored}, the base's own is {own or 'unknown'}: rounding it is in none of the figures"]
    lines.append(f"what the adapter changes: {Divergence(**facts['effect'])}")
    lines += [
        f"merged into {WEIGHTS[kind]}, against what was trained: {Divergence(**figures)}"
        + (" (chosen)" if kind == facts["into"] else f" (--into {kind})")
        for kind, figures in facts["from_trained"].items()
    ]
    return [
        *lines,
        f"merged checkpoint verified: {proof['tensors']} tensors read back to the byte; {proof['layers']} layers are "
        f"layer + adapter up to {stored} rounding",
        f"merged against base + adapter: {Divergence(**proof['logits'])}",
        str(Exported(**facts["chat_template"])),
        f"checkpoint: {destination}",
    ]


def card(facts: dict[str, Any]) -> str:
    """The checkpoint's README.md, with the metadata that the hub reads (https://huggingface.co/docs/hub/model-cards)."""
    import transformers

    run, proof, plain = facts["run"], facts["proof"], hasattr(transformers, facts["class"])
    load = "Load it with `AutoModelForCausalLM.from_pretrained`" if plain else "Ask it with `generate.py --lora_dir`"
    settings = run["settings"]
    sources = "\n".join(
        f"| {source['name']} | {source['rows']:,} | {source['license'] or 'not stated'} | `{source['sha256']}` |"
        for source in run["sources"]
    )
    measured = "\n".join(f"- {line}" for line in result_lines(facts, Path("."))[:-1])
    tuned = f"fine-tuned on {'-'.join(settings['data'])}" if settings["data"] else "with an adapter"
    return f"""---
{hub.card_metadata(settings["model_name_or_path"], library="transformers", tags=["alpaca-cot"], relation="finetune")}
---

# {Path(settings["model_name_or_path"]).name}, {tuned}

An adapter merged into {WEIGHTS[facts["into"]]}, stored in {facts["precision"]}. The licence of the base goes with it.
{load}. The prompt must be the one it was trained with: template
`{settings["template"]}`, sha256 `{run["template_hash"][:16]}…`. An answer ends at the token ids
{run["stop_token_ids"]}.{f" {run['kept']}." if not settings["data"] else ""}

## Data

| source | rows | licence | sha256 |
| --- | --- | --- | --- |
{sources}

## Proof

The checkpoint was read back from disk and compared with base + adapter on {len(equivalence.QUESTIONS)} prompts,
computed in fp32; allowed are {proof["tolerance"]:.0e} of the largest logit. `{runinfo.MERGED}` has all figures and
the run.

{measured}
"""
