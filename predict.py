"""Answers to a whole file of questions, in order, one line each; the same command goes on where it was stopped.

    python3 predict.py --model_type chatglm --data for_dict_data --lora_dir xxx --result_dir yyy
    python3 predict.py --lora_dir my_run --data questions.jsonl --result_dir yyy --greedy
    python3 predict.py --lora_dir my_run --data questions.csv --result_dir yyy --num_samples 5    # lists of five
    torchrun --nproc_per_node 4 predict.py --lora_dir my_run --data questions.parquet --result_dir yyy
    python3 predict.py --lora_dir my_run --data big.jsonl --result_dir yyy --api_base http://127.0.0.1:8000/v1

yyy/predictions.jsonl has each record unchanged, and beside it `generate`, `finish_reason` (stop, length or error),
`prompt_tokens`, `new_tokens` and `row_id`. A row that fails is recorded with its error; --retry_failed asks it again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import catalog, cli

if TYPE_CHECKING:
    from utils import prediction


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("prediction").add_argument
    cli.add_lora_flag(add, required=True, several=False)
    add("--data", nargs="+", required=True, metavar="D", help="questions: keys of data/datasets.toml, or files")
    add("--result_dir", type=Path, required=True, help="where predictions.jsonl goes")
    cli.add_job_flags(add, batch_size=32)
    add(
        "--long_prompts",
        choices=("fail", "cut"),
        default="fail",
        help="what becomes of a prompt that does not fit into the context with its answer: its row fails, or its "
        "beginning is cut and counted (default: fail)",
    )
    add("--merge_adapter", choices=("auto", "off"), default="auto", help="auto: in fp32, which is faster and exact")
    cli.add_server_flags(parser)
    cli.add_model_flags(parser, model_type=None)
    cli.add_generation_flags(parser)
    return parser


@cli.reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    flags = parser.parse_args(argv)
    try:
        parts = catalog.parse_mixture(flags.data)
    except ValueError as error:
        parser.error(str(error))
    settings = cli.generation_settings(flags)

    from utils import answerers, distributed, jobs, loading

    loading.quiet_libraries()
    distributed.start()
    done = jobs.carry_out(
        flags.result_dir,
        parts,
        lambda: answerers.asked_for(
            flags.lora_dir,
            settings,
            stop=flags.stop,
            batch_size=flags.batch_size,
            cut=flags.long_prompts == "cut",
            merge=flags.merge_adapter == "auto",
            wishes=cli.loading_wishes(flags),
            server=cli.server_wishes(flags),
        ),
        settings,
        seed=flags.seed,
        num_samples=flags.num_samples,
        long_prompts=flags.long_prompts,
        about={"data": flags.data, "lora_dir": flags.lora_dir},
        retry_failed=flags.retry_failed,
    )
    if done:
        report(done, flags.result_dir)
    distributed.leave()
    return 0


def report(done: prediction.Tally, directory: Path) -> None:
    """Prints what was done, and what to do about rows that failed."""
    print(f"{directory / 'predictions.jsonl'}: {done.rows:,} rows, {done.new_tokens:,} new tokens")
    if done.cut:
        print(f"{done.cut:,} prompts were cut at their beginning to fit (cut_tokens says by how much)")
    if done.failed:
        print(f"{done.failed:,} rows failed; --retry_failed asks them again. The first: {done.errors[0]}")


if __name__ == "__main__":
    sys.exit(main())
