"""Does it help? Variants trained at one budget, asked the same held-out questions, and compared on one page.

    python3 study.py examples/studies/cot.toml                   # with and without chain-of-thought and Chinese data
    python3 study.py examples/studies/cot.toml --dry_run         # what it would do
    python3 study.py my_study.toml --output_dir my_study --jobs 1

Every variant is trained by uniform_finetune.py for the same steps and the same number of trained tokens, with several
seeds, and asked by evaluate.py. The same command goes on where it was stopped; what is done is not done again. In the
end STUDY/report.html, report.md and report.json say what was found, with intervals and paired tests (docs/studies.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from utils import cli

STUDIES = Path("saved_studies")


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("study").add_argument
    add("experiment", type=Path, metavar="FILE", help="a TOML file such as examples/studies/cot.toml")
    add("--output_dir", type=Path, metavar="DIR", help=f"where all goes (default: {STUDIES}/<name of the file>)")
    add(
        "--jobs",
        type=cli.positive_int,
        metavar="N",
        help="runs at a time (default: one a GPU; without one as many as cores and memory allow)",
    )
    add("--dry_run", action="store_true", help="check everything and say what would be done; nothing is trained")
    return parser


@cli.reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    flags = make_parser().parse_args(argv)
    directory = flags.output_dir or STUDIES / flags.experiment.stem

    from utils import distributed, loading, machine, outputs, run_lock

    loading.quiet_libraries()  # first: what is imported next brings libraries that talk
    from utils.studies import carrying_out, experiment, findings, pages, plan, tables

    read = experiment.read(flags.experiment)
    with outputs.gone_if_empty(directory), run_lock.held(directory, distributed.say):
        planned = plan.make(read, flags.experiment, directory)
        distributed.say("\n".join([read.title, *planned.lines_for_people()]))
        if flags.dry_run:
            distributed.say("\n".join(planned.commands_for_people()))
            return 0
        slots = carrying_out.slots(flags.jobs, planned.base_bytes)
        carrying_out.Workers(slots, distributed.say).carry_out(planned)
        found = findings.collect(planned, machine.described())
        written = pages.publish(found, directory)
    for answer in tables.answers(found):
        print(f"{answer['asks']} {answer['cells']}:")
        for line in answer["lines"]:
            print(f"  {line['says']}: {line['verdict']}")
    print("report: " + ", ".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
