"""Accuracy, with its interval: on an evaluation task, or on held-out records.

    python3 evaluate.py --lora_dir my_run --task gsm8k --style cot --shots 4 --result_dir my_gsm8k
    python3 evaluate.py --lora_dir my_run --task aqua --task_file my_aqua.json --num_samples 8 --result_dir my_aqua
    python3 evaluate.py --model_name_or_path my_base --model_type llama --task cot_sample_test --result_dir base_alone
    python3 evaluate.py --lora_dir saved_models/tiny_base_cot_sample --data cot_sample_test --compare_base --show 4

--task: rows of data/tasks.toml, asked in a style and read by the task's type; the same command goes on where it was
stopped. --data: does the answer that the model announces ("the answer is …", "答案是…") equal the record's? Answers
are decoded greedily, but for --num_samples, in the prompt that the run was trained with. Intervals are at 95 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils import asking, catalog, cli, held_out, lookup, outputs, records, tasks
from utils.templates import without_answer


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("evaluation").add_argument
    cli.add_lora_flag(add, required=False, several=False)
    add("--data", nargs="+", metavar="D", help="held-out records: keys of data/datasets.toml, or files")
    add("--compare_base", action="store_true", help="answer with the base alone, too")
    add("--show", type=cli.natural_int, default=0, metavar="N", help="print the first N questions with their answers")
    add("--output", type=Path, help="with --data: write every answer to this JSON Lines file")
    add("--batch_size", type=cli.positive_int, default=64, help="questions decoded together (default: 64)")
    add("--max_new_tokens", type=cli.positive_int, default=256, help="the longest answer, in tokens (default: 256)")
    add = parser.add_argument_group("task", "in the place of --data; see docs/evaluation.md").add_argument
    add("--task", metavar="NAME", help="a row of data/tasks.toml")
    add("--task_file", type=Path, metavar="FILE", help="its file (default: where its row says)")
    add("--result_dir", "--output_dir", type=Path, metavar="DIR", help="where questions, answers and scores go")
    add("--style", choices=asking.STYLES, default=asking.PLAIN, help="how it is asked (default: plain, as it is)")
    add("--shots", type=cli.natural_int, default=0, metavar="N", help="worked examples before it (default: 0)")
    add("--num_samples", type=cli.positive_int, default=1, metavar="K", help="answers drawn, of which most count")
    add("--temperature", type=cli.positive_float, default=0.7, help="of the drawing (default: 0.7)")
    add("--seed", type=int, default=42, help="of the drawing (default: 42)")
    add("--retry_failed", action="store_true", help="ask the rows again that failed")
    cli.add_server_flags(parser)
    cli.add_model_flags(parser, model_type=None)
    return parser


@cli.reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    flags = parser.parse_args(argv)
    if bool(flags.data) == bool(flags.task):
        parser.error("say what is asked: either --data or --task")
    if not flags.lora_dir and not flags.model_name_or_path:
        parser.error("say who answers: a run with --lora_dir, or a model by itself with --model_name_or_path")
    if flags.compare_base and not flags.lora_dir:
        parser.error("--compare_base: a model by itself has no base beside it; it goes with --lora_dir")
    return on_task(parser, flags) if flags.task else on_records(parser, flags)


def on_records(parser: cli.Parser, flags: argparse.Namespace) -> int:
    """Records with answers of their own."""
    if flags.api_base or flags.task_file or flags.result_dir:
        parser.error("--api_base, --task_file and --result_dir are for --task")
    try:
        parts = catalog.parse_mixture(flags.data)
    except ValueError as error:
        parser.error(str(error))
    rows = [row for part in parts for row in records.read_chosen(part, seed=0)]
    held_out.check_references(rows)
    if flags.output and (flags.output.exists() or not flags.output.parent.is_dir()):
        parser.error(f"--output {flags.output}: it exists already, or its folder does not; nothing was written over")

    from utils import assistant, distributed, loading

    loading.quiet_libraries()
    distributed.set_threads()
    opened = assistant.open_run(flags.lora_dir, **cli.loading_wishes(flags))
    settings = cli.greedy_settings(flags.max_new_tokens)
    questions = [without_answer(row.record) for row in rows]
    answers = {}
    for name, adapter in (("base", assistant.BASE), (named(flags), None))[not flags.compare_base :]:
        found = opened.answers(questions, settings, adapter=adapter, batch_size=flags.batch_size)
        answers[name] = [answer.text for answer in found]
    print("\n".join([*held_out.shown(rows[: flags.show], answers), *held_out.report(rows, answers)]))
    if flags.output:
        with outputs.atomic(flags.output) as file:
            outputs.write_records(held_out.transcripts(rows, answers), file, array=False)
        print(f"answers: {flags.output}")
    return 0


def named(flags: argparse.Namespace) -> str:
    """Who answers, in a word."""
    return "server" if flags.api_base else "adapter" if flags.lora_dir else "model"


def on_task(parser: cli.Parser, flags: argparse.Namespace) -> int:
    """Rows of a task, answered by predict's engine."""
    if flags.output or not flags.result_dir:
        parser.error("--task writes into a directory: --result_dir DIR, and no --output")
    if flags.compare_base and flags.api_base:
        parser.error("--compare_base needs the base here: a server answers for one model; leave --api_base out")
    try:
        spec = lookup.find("task", flags.task, tasks.read_tasks(), "--task")
        asking.chosen_shots(spec, flags.shots)
    except ValueError as error:
        parser.error(str(error))
    items = list(tasks.items(spec, flags.task_file))

    from utils import answerers, distributed, evaluation, examination, loading

    loading.quiet_libraries()
    distributed.start()
    how: dict[str, Any] = {name: getattr(flags, name) for name in ("style", "shots", "num_samples", "seed")}
    exam = examination.Exam(spec=spec, items=items, **how)
    settings = cli.greedy_settings(flags.max_new_tokens)
    if flags.num_samples > 1:
        settings |= {"do_sample": True, "temperature": flags.temperature, "top_p": 1.0, "top_k": 0}
    about = {name: getattr(flags, name) for name in ("task", "lora_dir", "model_name_or_path", *how, "max_new_tokens")}
    directories = {"base": flags.result_dir / "base"} if flags.compare_base else {}
    directories[named(flags)] = flags.result_dir
    wishes = {"batch_size": flags.batch_size, "wishes": cli.loading_wishes(flags), "server": cli.server_wishes(flags)}
    lines = []
    for who, directory in directories.items():
        lines += examination.examine(
            directory,
            exam,
            lambda who=who: answerers.asked_for(
                flags.lora_dir, settings, stop=[], cut=False, merge=True, base=who == "base", **wishes
            ),
            settings,
            who=who,
            about=about | {"who": who},
            retry_failed=flags.retry_failed,
        )
    if distributed.is_main():
        lines += [f"{exam.left_out:,} rows without a reference were left out"] if exam.left_out else []
        print("\n".join([*evaluation.shown(directories, flags.show, spec.kind), *lines]))
        print(f"answers and scores: {flags.result_dir}")
    distributed.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
