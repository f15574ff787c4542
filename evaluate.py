"""Accuracy on held-out records: does the answer that the model announces equal the reference's?

    python3 evaluate.py --lora_dir saved_models/tiny_base_cot_sample --data cot_sample_test
    python3 evaluate.py --lora_dir saved_models/tiny_base_cot_sample --data cot_sample_test --compare_base --show 4

Answers are decoded greedily, in the prompt that the run was trained with, and read out of the text ("the answer is …",
"答案是…"). The interval is Wilson's, at 95 %.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import catalog, cli, outputs, records
from utils.readers import Row
from utils.scoring import exact_match, extract_answer, language
from utils.templates import last_answer, to_messages, without_answer


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("evaluation").add_argument
    cli.add_lora_flag(add, required=True, several=False)
    add("--data", nargs="+", required=True, metavar="D", help="held-out records: keys of data/datasets.toml, or files")
    add("--compare_base", action="store_true", help="answer with the base alone, too")
    add("--show", type=cli.natural_int, default=0, metavar="N", help="print the first N questions with their answers")
    add("--output", type=Path, help="write every answer to this JSON Lines file")
    add("--batch_size", type=cli.positive_int, default=64, help="questions decoded together (default: 64)")
    add("--max_new_tokens", type=cli.positive_int, default=256, help="the longest answer, in tokens (default: 256)")
    cli.add_model_flags(parser, model_type=None)
    return parser


@cli.reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    flags = parser.parse_args(argv)
    try:
        parts = catalog.parse_mixture(flags.data)
    except ValueError as error:
        parser.error(str(error))
    rows = [row for part in parts for row in records.read_chosen(part, seed=0)]
    check_references(rows)
    if flags.output and (flags.output.exists() or not flags.output.parent.is_dir()):
        parser.error(f"--output {flags.output}: it exists already, or its folder does not; nothing was written over")

    from utils import assistant, distributed, loading

    loading.quiet_libraries()
    distributed.set_threads()
    opened = assistant.open_run(flags.lora_dir, **cli.loading_wishes(flags))
    settings = cli.greedy_settings(flags.max_new_tokens)
    questions = [without_answer(row.record) for row in rows]
    answers = {}
    for name, adapter in (("base", assistant.BASE), ("adapter", None))[not flags.compare_base :]:
        found = opened.answers(questions, settings, adapter=adapter, batch_size=flags.batch_size)
        answers[name] = [answer.text for answer in found]

    show(rows[: flags.show], answers)
    report(rows, answers)
    if flags.output:
        with outputs.atomic(flags.output) as file:
            outputs.write_records(transcripts(rows, answers), file, array=False)
        print(f"answers: {flags.output}")
    return 0


def check_references(rows: Sequence[Row]) -> None:
    """`ValueError` for a row whose own answer cannot be read; said before anything is decoded."""
    for row in rows:
        if extract_answer(last_answer(row.record)) is None:
            raise ValueError(
                f"{row.origin}: its answer announces nothing to compare with ('the answer is …' or '答案是…'): "
                f"{last_answer(row.record)[-80:]!r}"
            )


def question_of(row: Row) -> str:
    """What was asked last."""
    return to_messages(without_answer(row.record))[-1]["content"]


def show(rows: Sequence[Row], answers: Mapping[str, Sequence[str]]) -> None:
    """Prints questions with the reference and every answer."""
    for number, row in enumerate(rows):
        expected = extract_answer(last_answer(row.record))
        print(f"question: {question_of(row)}")
        for who, texts in answers.items():
            mark = "right" if extract_answer(texts[number]) == expected else f"wrong, it is {expected}"
            print(f"  {who:>8}: {texts[number]}  [{mark}]")
        print()


def report(rows: Sequence[Row], answers: Mapping[str, Sequence[str]]) -> None:
    """Prints the accuracy of each model, in all and by language."""
    languages = [language(question_of(row)) for row in rows]
    for chosen in [None, *sorted(set(languages))]:
        members = [i for i, found in enumerate(languages) if chosen in (None, found)]
        for who, texts in answers.items():
            accuracy = exact_match([texts[i] for i in members], [last_answer(rows[i].record) for i in members])
            print(f"{chosen or 'all':>4} {who:>8}: {accuracy}")


def transcripts(rows: Sequence[Row], answers: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """One entry a row: where it came from, the record, and every answer as text and as read."""
    return [
        {
            "origin": row.origin,
            **row.record,
            **{who: {"text": texts[i], "answer": extract_answer(texts[i])} for who, texts in answers.items()},
        }
        for i, row in enumerate(rows)
    ]


if __name__ == "__main__":
    sys.exit(main())
