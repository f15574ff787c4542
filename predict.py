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

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import catalog, cli

if TYPE_CHECKING:
    from utils import answerers, prediction


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("prediction").add_argument
    cli.add_lora_flag(add, required=True, several=False)
    add("--data", nargs="+", required=True, metavar="D", help="questions: keys of data/datasets.toml, or files")
    add("--result_dir", type=Path, required=True, help="where predictions.jsonl goes")
    add("--num_samples", type=cli.positive_int, default=1, metavar="K", help="answers to each question (default: 1)")
    add("--batch_size", type=cli.positive_int, default=32, help="the most answers decoded together (default: 32)")
    add(
        "--long_prompts",
        choices=("fail", "cut"),
        default="fail",
        help="what becomes of a prompt that does not fit into the context with its answer: its row fails, or its "
        "beginning is cut and counted (default: fail)",
    )
    add("--retry_failed", action="store_true", help="ask the rows again that failed")
    add("--merge_adapter", choices=("auto", "off"), default="auto", help="auto: in fp32, which is faster and exact")
    add = parser.add_argument_group("server", "instead of a model here; see docs/beyond-one-machine.md").add_argument
    add("--api_base", metavar="URL", help="an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    add("--api_model", metavar="NAME", help="the model's name there (default: the only one it has)")
    add("--api_key_file", type=Path, metavar="FILE", help="holds the key (default: the environment's OPENAI_API_KEY)")
    add("--api_concurrency", type=cli.positive_int, default=16, metavar="N", help="requests at a time (default: 16)")
    add("--api_prompt", choices=("ids", "text"), default="ids", help="how a prompt is sent (default: ids)")
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

    from utils import distributed, loading, prediction, questions, result_rows, run_lock

    loading.quiet_libraries()
    distributed.start()
    with ExitStack() as held:
        if distributed.is_main():
            held.enter_context(result_rows.writable(flags.result_dir))
            held.enter_context(run_lock.held(flags.result_dir, distributed.say))
        asked = distributed.decided_by_main(lambda: questions.survey(parts))
        answerer = who_answers(flags, settings)
        for line in answerer.said:
            distributed.say(line)
        identity = {
            "input_sha256": asked.sha256,
            "seed": flags.seed,
            "num_samples": flags.num_samples,
            "long_prompts": flags.long_prompts,
            **settings,
            **answerer.identity,
        }
        found = distributed.decided_by_main(
            lambda: prediction.prepare(
                flags.result_dir,
                asked,
                identity,
                about={"data": flags.data, "lora_dir": flags.lora_dir},
                retry_failed=flags.retry_failed,
            )
        )
        distributed.say(f"{flags.result_dir}: {len(found.places):,} of {asked.rows:,} rows are done")
        job = prediction.Job(
            encode=answerer.encode,
            ask=answerer.ask,
            seed=flags.seed,
            num_samples=flags.num_samples,
            same_for_same=not settings["do_sample"],
        )
        prediction.run(flags.result_dir, asked, job, found)
        distributed.barrier()
        if distributed.is_main():
            report(prediction.finish(flags.result_dir), flags.result_dir)
        distributed.leave()
    return 0


def who_answers(flags: argparse.Namespace, settings: Mapping[str, Any]) -> answerers.Answerer:
    """A model here, or a server."""
    from utils import answerers

    wishes = cli.loading_wishes(flags)
    if not flags.api_base:
        return answerers.here(
            flags.lora_dir,
            settings,
            stop=flags.stop,
            batch_size=flags.batch_size,
            cut=flags.long_prompts == "cut",
            merge=flags.merge_adapter == "auto",
            wishes=wishes,
        )
    from utils.remote import Remote

    server = Remote(
        base_url=flags.api_base,
        model=flags.api_model,
        api_key=flags.api_key_file.read_text(encoding="utf-8").strip() if flags.api_key_file else None,
        concurrency=flags.api_concurrency,
        prompt_form=flags.api_prompt,
    )
    return answerers.at_server(flags.lora_dir, settings, server=server, stop=flags.stop, wishes=wishes)


def report(done: prediction.Tally, directory: Path) -> None:
    """Prints what was done, and what to do about rows that failed."""
    print(f"{directory / 'predictions.jsonl'}: {done.rows:,} rows, {done.new_tokens:,} new tokens")
    if done.cut:
        print(f"{done.cut:,} prompts were cut at their beginning to fit (cut_tokens says by how much)")
    if done.failed:
        print(f"{done.failed:,} rows failed; --retry_failed asks them again. The first: {done.errors[0]}")


if __name__ == "__main__":
    sys.exit(main())
