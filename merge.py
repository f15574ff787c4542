"""Merge a base and the adapter of a run into one checkpoint, and prove by its logits that it is both.

    python3 merge.py --lora_dir saved_models/tiny_base_cot_sample --merged_dir saved_models/merged
    python3 merge.py --model_type llama --size 7b --lora_dir my_run --merged_dir my_model --max_shard_size 2GB
    python3 merge.py --lora_dir my_4_bit_run --merged_dir my_model --into trained

The run's directory says which base; of an adapter without a run.json the flags do, or it is assumed and said. The
checkpoint is read back from disk before it takes its place; where it is not base + adapter, nothing is kept. What
transformers, vLLM and others then load: docs/merging.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from utils import cli, runinfo
from utils.models import MODELS
from utils.templates import TEMPLATES


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("run").add_argument
    add(
        "--lora_dir", required=True, metavar="DIR", help="a run, any adapter of peft's, or OWNER/NAME/FOLDER on the hub"
    )
    add("--model_type", choices=list(MODELS), help="family that is expected (default: as the run says)")
    add("--model_name_or_path", metavar="ID", help="another place of the run's base (default: where it was trained)")
    add("--size", help="size of the family's model, such as 7b (or 7), where the run's base is gone from its place")
    add("--template", choices=list(TEMPLATES), help="prompt of an adapter without run.json (default: the family's)")
    add("--revision", help="branch, tag or commit of the hub model (default: the run's)")
    add("--trust_remote_code", action="store_true", help="run Python code that the model's repository brings (off)")
    add("--local_rank", "--local-rank", type=int, default=-1, help=argparse.SUPPRESS)
    add = parser.add_argument_group("checkpoint").add_argument
    add("--merged_dir", type=Path, help="where it goes (default: the run's directory with _merged)")
    add(
        "--into",
        choices=("base", "trained"),
        default="base",
        help="which weights, where the base was quantised: those of its checkpoint, or those that the adapter was "
        "trained on, dequantised; the difference of both is printed (default: base)",
    )
    add("--precision", choices=("bf16", "fp16", "fp32"), help="of the stored weights (default: the base's own)")
    add("--max_shard_size", type=shard_size, default="4GB", help="of one file of weights (default: 4GB)")
    add("--overwrite", action="store_true", help="replace the merged checkpoint that --merged_dir holds")
    return parser


def shard_size(text: str) -> str:
    """A size such as 4GB or 500MB."""
    number = text.upper().removesuffix("GB").removesuffix("MB")
    if number == text.upper() or not number.isdigit() or not int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4GB or 500MB")
    return text.upper()


@cli.reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    flags = parser.parse_args(argv)
    from utils import adapter_files, assumptions, distributed, identity, loading, merged_card, merging, places

    loading.quiet_libraries()
    distributed.set_threads()
    if not flags.merged_dir and places.on_hub(flags.lora_dir):
        parser.error(f"--lora_dir {flags.lora_dir} is on the hub: say with --merged_dir where its checkpoint goes")
    adapter = places.find(flags.lora_dir)
    directory = Path(os.path.abspath(adapter))  # "." has no name
    destination = flags.merged_dir or directory.with_name(f"{directory.name}_merged")
    run = runinfo.read(adapter) if (adapter / runinfo.NAME).is_file() else None
    if run and flags.template:
        parser.error(
            f"--template {flags.template}: {flags.lora_dir} has a run.json, which says its prompt: leave it out"
        )
    method = run.method if run else assumptions.method_of(adapter_files.facts(adapter), adapter)[0]
    merging.require_mergeable(adapter, method)
    merging.require_room(destination, overwrite=flags.overwrite)
    wishes = ("model_type", "size", "template", "revision", "trust_remote_code")
    found = identity.identify(
        flags.lora_dir,
        base=flags.model_name_or_path,
        precision=run.settings["precision"] if run else None,
        quantization_bit=None if run else 16,
        **{name: getattr(flags, name) for name in wishes},
    )
    for sentence in found.assumed:
        print(f"assumed: {sentence}", file=sys.stderr)
    kept = {name: getattr(found, name) for name in ("directory", "base", "tokenizer", "template")}
    facts = merging.merge(
        merging.Origin(run=identity.as_run(found), **kept),
        destination,
        precision=flags.precision,
        into=flags.into,
        max_shard_size=flags.max_shard_size,
        overwrite=flags.overwrite,
    )
    for line in merged_card.result_lines(facts, destination):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
