"""Ask a fine-tuned model: one instruction, a file of them, or a prompt loop.

    python3 generate.py --lora_dir saved_models/tiny_base_cot_sample --greedy \\
        --instruction "The dial shows 3. Turn it up 4. Turn it down 6. Which digit does the dial show now?"
    python3 generate.py --data alpaca-belle-cot --model_type llama        # finds the run that was trained so
    python3 generate.py --lora_dir my_run --prompts_file questions.json   # records, or one instruction a line (.txt)
    python3 generate.py --lora_dir my_run                                 # a loop; an empty line or Ctrl-D ends it
    python3 generate.py --lora_dir my_run other_run --compare             # the base and both, side by side

The run's directory says base, template and where an answer ends. Only new tokens are printed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import catalog, cli, questions
from utils.models import DEFAULT_MODEL, SIZED_MODEL, checkpoint_of, get_model
from utils.templates import to_messages

if TYPE_CHECKING:
    from utils.assistant import Assistant


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("run").add_argument
    cli.add_lora_flag(add, required=False, several=True)
    add("--data", nargs="+", metavar="D", help="find the run that was trained on this data (default: the family's)")
    add("--compare", action="store_true", help="the base's answer, too, and each adapter's, side by side")
    add = parser.add_argument_group("questions").add_argument
    add("--instruction", help="one question; without it and --prompts_file, a prompt loop")
    add("--input", default="", help="what the instruction is about, if it needs that")
    add(
        "--prompts_file",
        type=Path,
        help="records (.json, .jsonl, …; their outputs are ignored), or one instruction a line (.txt)",
    )
    cli.add_model_flags(parser, model_type=None)
    cli.add_generation_flags(parser)
    return parser


@cli.reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    flags = parser.parse_args(argv)
    if flags.instruction is not None and flags.prompts_file:
        parser.error("--instruction and --prompts_file are two sources of questions: give one")
    if flags.input and flags.instruction is None:
        parser.error("--input belongs to an --instruction")
    model_type = flags.model_type or (SIZED_MODEL if flags.size else DEFAULT_MODEL)
    try:
        data = flags.data or [get_model(model_type).training.data]
        catalog.parse_mixture(data)
        sized = (
            checkpoint_of(model_type, get_model(model_type), flags.size) if flags.size and not flags.lora_dir else None
        )
    except ValueError as error:
        parser.error(str(error))
    asked = questions.given(flags.instruction, flags.input, flags.prompts_file)

    from utils import assistant, distributed, identity, loading
    from utils.sampling import row_seeds

    loading.quiet_libraries()
    distributed.set_threads()
    places = flags.lora_dir or [identity.find_run(model_type, data, flags.model_name_or_path or sized)]
    opened = assistant.open_run(*places, **cli.loading_wishes(flags))
    for name, origin in opened.origins.items():
        print("\n".join(origin.lines(name)), file=sys.stderr)
    settings = opened.within_context(cli.generation_settings(flags))
    for number, record in enumerate(asked):
        if flags.prompts_file:
            print(f"{chr(10) if number else ''}### {to_messages(record)[-1]['content']}")
        (seed,) = row_seeds(flags.seed, 1, first=number)
        try:
            answer = compare if flags.compare else show
            answer(opened, record, settings, seed=seed, stop=flags.stop)
        except ValueError as error:
            if isinstance(asked, list):
                raise
            print(f"error: {error}", file=sys.stderr, flush=True)  # in the loop, the next question may fit
        print(flush=True)
    return 0


def show(opened: Assistant, record: Mapping[str, Any], settings: Mapping[str, Any], **options: Any) -> None:
    """Prints the first adapter's answer as it comes."""
    for piece in opened.stream(record, settings, **options):
        print(piece, end="", flush=True)


def compare(opened: Assistant, record: Mapping[str, Any], settings: Mapping[str, Any], **options: Any) -> None:
    """Prints the answers of the base and of every adapter to the same prompt, with the same seed, side by side."""
    from utils import side_by_side
    from utils.assistant import BASE

    answers = {
        name: "".join(opened.stream(record, settings, adapter=name, **options)) for name in (BASE, *opened.names)
    }
    print(side_by_side.table(answers))


if __name__ == "__main__":
    sys.exit(main())
