"""evaluate.py's flags, and what they mean together.

Knows: which of them go together, and the exam that they describe. Does not know models, or what is done with an exam.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils import asking, cli, lookup, tasks
from utils.exam import Exam

HOW = ("style", "shots", "choice_by", "num_samples", "seed")
"""Flags that are fields of an `Exam`."""
OF_TASKS = (*HOW, "task_file", "result_dir", "temperature", "retry_failed", "lm_eval", "api_base")
"""Flags that mean nothing to --data."""


def make_parser(doc: str | None) -> cli.Parser:
    """The script's parser."""
    parser = cli.Parser(doc)
    add = parser.add_argument_group("evaluation").add_argument
    cli.add_lora_flag(add, required=False, several=False)
    add("--data", nargs="+", metavar="D", help="held-out records: keys of data/datasets.toml, or files")
    add("--compare_base", action="store_true", help="answer with the base alone, too")
    add("--show", type=cli.natural_int, default=0, metavar="N", help="print the first N questions with their answers")
    add("--output", type=Path, help="with --data: write every answer to this JSON Lines file")
    add("--max_new_tokens", type=cli.positive_int, default=256, help="the longest answer, in tokens (default: 256)")
    add = parser.add_argument_group("task", "in the place of --data; see docs/evaluation.md").add_argument
    add("--task", metavar="NAME", help="a row of data/tasks.toml")
    add("--task_file", type=Path, metavar="FILE", help="its file (default: where its row says)")
    add("--result_dir", "--output_dir", type=Path, metavar="DIR", help="where questions, answers and scores go")
    add("--style", choices=asking.STYLES, default=asking.PLAIN, help="how it is asked (default: plain, as it is)")
    add("--shots", type=cli.natural_int, default=0, metavar="N", help="worked examples before it (default: 0)")
    add(
        "--choice_by",
        choices=asking.CHOICE_BY,
        default=asking.TEXT,
        help="the chosen option: read in what is written (default), or the likeliest by its letter, or by its own "
        "words, with no options listed (cloze)",
    )
    cli.add_job_flags(add, batch_size=64)
    add("--temperature", type=cli.positive_float, default=0.7, help="of several samples, of which most count (0.7)")
    add("--seed", type=int, default=42, help="of several samples (default: 42)")
    add(
        "--lm_eval",
        action="store_true",
        help="let EleutherAI's harness ask: its own task of that kind, or, with --task_file or where it has none, the "
        "same rows",
    )
    cli.add_server_flags(parser)
    cli.add_model_flags(parser, model_type=None)
    return parser


def require_sensible(parser: cli.Parser, flags: argparse.Namespace) -> None:
    """Ends with the parser's error where flags do not go together."""
    if bool(flags.data) == bool(flags.task):
        parser.error("say what is asked: either --data or --task")
    if not flags.lora_dir and not flags.model_name_or_path:
        parser.error("say who answers: a run with --lora_dir, or a model by itself with --model_name_or_path")
    if flags.compare_base and (flags.api_base or not flags.lora_dir):
        parser.error("--compare_base needs a --lora_dir, and its base here: a server answers for one model")
    of_tasks = [f"--{name}" for name in OF_TASKS if getattr(flags, name) != parser.get_default(name)]
    if flags.data and of_tasks:
        parser.error(f"{', '.join(of_tasks)}: for --task alone")
    if flags.task and (flags.output or not flags.result_dir):
        parser.error("--task writes into a directory: --result_dir DIR, and no --output")
    if flags.output and (flags.output.exists() or not flags.output.parent.is_dir()):
        parser.error(f"--output {flags.output}: it exists already, or its folder does not; nothing was written over")
    if flags.choice_by != asking.TEXT and (flags.api_base or flags.num_samples > 1):
        parser.error(f"--choice_by {flags.choice_by}: options are weighed here, without --api_base and --num_samples")
    if flags.lm_eval and (flags.api_base or flags.num_samples > 1 or flags.compare_base):
        parser.error("--lm_eval takes a --task, without --api_base, --num_samples and --compare_base")


def exam_of(parser: cli.Parser, flags: argparse.Namespace) -> Exam:
    """The rows of the task, and how they are asked; without rows where the harness asks its own (`by_harness`).

    Raises:
        FileNotFoundError, ValueError: as `tasks.items`.
    """
    try:
        spec = lookup.find("task", flags.task, tasks.read_tasks(), "--task")
        exam = Exam(spec=spec, items=(), **{name: getattr(flags, name) for name in HOW})
    except ValueError as error:
        parser.error(str(error))
    if not by_harness(flags, exam):
        return replace(exam, items=tuple(tasks.items(spec, flags.task_file)))
    if flags.style != asking.PLAIN or exam.is_weighed:
        parser.error(
            "--lm_eval asks its own task in its own way: leave --style and --choice_by out, or name a --task_file"
        )
    return exam


def by_harness(flags: argparse.Namespace, exam: Exam) -> str:
    """The task of the harness that is asked in the place of the exam; empty: none."""
    return exam.spec.harness if flags.lm_eval and not flags.task_file else ""


def decoding_of(flags: argparse.Namespace) -> dict[str, Any]:
    """How answers are decoded; empty where options are weighed."""
    if flags.choice_by != asking.TEXT:
        return {}
    settings = cli.greedy_settings(flags.max_new_tokens)
    if flags.num_samples > 1:
        settings |= {"do_sample": True, "temperature": flags.temperature, "top_p": 1.0, "top_k": 0}
    return settings


def about(flags: argparse.Namespace) -> dict[str, Any]:
    """What is written down with the scores, for people."""
    return {name: getattr(flags, name) for name in ("task", "lora_dir", "model_name_or_path", "max_new_tokens", *HOW)}
