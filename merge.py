"""Merge a base and the adapter of a run into one checkpoint, and prove by its logits that it is both.

    python3 merge.py --lora_dir saved_models/tiny_base_cot_sample --merged_dir saved_models/merged
    python3 merge.py --model_type llama --size 7b --lora_dir my_run --merged_dir my_model --max_shard_size 2GB
    python3 merge.py --lora_dir my_4_bit_run --merged_dir my_model --into trained

The run's directory says which base. The checkpoint is read back from disk before it takes its place; where it is not
base + adapter, nothing is kept. What transformers, vLLM and others then load: docs/merging.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from utils import cli, runinfo
from utils.models import MODELS, checkpoint_of, get_model


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("run").add_argument
    add("--lora_dir", type=Path, required=True, help="a directory that uniform_finetune.py wrote")
    add("--model_type", choices=list(MODELS), help="family that is expected (default: as the run says)")
    add("--model_name_or_path", metavar="ID", help="another place of the run's base (default: where it was trained)")
    add("--size", help="size of the family's model, such as 7b (or 7), where the run's base is gone from its place")
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
    try:
        run = runinfo.read(flags.lora_dir)
        model_type = flags.model_type or run.model_type
        sized = checkpoint_of(model_type, get_model(model_type), flags.size) if flags.size else None
    except ValueError as error:
        parser.error(str(error))
    is_gone = Path(run.base).is_absolute() and not Path(run.base).is_dir()
    directory = Path(os.path.abspath(flags.lora_dir))  # "." has no name
    destination = flags.merged_dir or directory.with_name(f"{directory.name}_merged")

    from utils import distributed, identity, loading, merging

    loading.quiet_libraries()
    distributed.set_threads()
    merging.require_mergeable(flags.lora_dir, run.method)
    merging.require_room(destination, overwrite=flags.overwrite)
    found = identity.identify(
        flags.lora_dir,
        model_type=flags.model_type,
        base=flags.model_name_or_path or (sized if is_gone else None),
        precision=run.settings["precision"],
        revision=flags.revision,
        trust_remote_code=flags.trust_remote_code,
    )
    origin = merging.Origin(
        directory=flags.lora_dir, run=run, base=found.base, tokenizer=found.tokenizer, template=found.template
    )
    facts = merging.merge(
        origin,
        destination,
        precision=flags.precision,
        into=flags.into,
        max_shard_size=flags.max_shard_size,
        overwrite=flags.overwrite,
    )
    for line in merging.result_lines(facts, destination):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
