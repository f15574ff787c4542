"""Ask a fine-tuned model: one instruction, a file of them, or a prompt loop.

    python3 generate.py --lora_dir saved_models/tiny_base_cot_sample --greedy \\
        --instruction "The dial shows 3. Turn it up 4. Turn it down 6. Which digit does the dial show now?"
    python3 generate.py --data alpaca-belle-cot --model_type llama        # finds the run that was trained so
    python3 generate.py --lora_dir my_run --prompts_file questions.json   # records, or one instruction a line (.txt)
    python3 generate.py --lora_dir my_run                                 # a loop; an empty line or Ctrl-D ends it

The run's directory says base, template and where an answer ends. Only new tokens are printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import catalog, cli, runinfo
from utils.models import DEFAULT_MODEL, SIZED_MODEL, checkpoint_of, get_model
from utils.readers import read_rows
from utils.templates import to_messages, without_answer


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("run").add_argument
    add("--lora_dir", type=Path, help="a directory that uniform_finetune.py wrote")
    add("--data", nargs="+", metavar="D", help="find the run that was trained on this data (default: the family's)")
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
    try:
        run = runinfo.read(flags.lora_dir) if flags.lora_dir else None
        model_type = flags.model_type or (run.model_type if run else SIZED_MODEL if flags.size else DEFAULT_MODEL)
        sized = checkpoint_of(model_type, get_model(model_type), flags.size) if flags.size else None
        data = flags.data or [get_model(model_type).training.data]
        catalog.parse_mixture(data)
    except ValueError as error:
        parser.error(str(error))
    checkpoint = flags.model_name_or_path or sized
    questions = read_questions(flags.instruction, flags.input, flags.prompts_file)

    from utils import assistant, distributed, identity, loading

    loading.quiet_libraries()
    distributed.set_threads()
    directory = flags.lora_dir or identity.find_run(model_type, data, checkpoint)
    opened = assistant.open_run(
        directory,
        model_type=flags.model_type,
        base=checkpoint,
        template=flags.template,
        precision=flags.precision,
        quantization_bit=flags.quantization_bit,
        revision=flags.revision,
        trust_remote_code=flags.trust_remote_code,
    )
    print(f"{directory}: {opened.run.model_type} on {' '.join(opened.run.data)}", file=sys.stderr)
    settings = cli.generation_settings(flags)
    distributed.seed(flags.seed)
    for number, record in enumerate(questions):
        if flags.prompts_file:
            print(f"{chr(10) if number else ''}### {to_messages(record)[-1]['content']}")
        try:
            for piece in opened.stream(record, settings):
                print(piece, end="", flush=True)
        except ValueError as error:
            if isinstance(questions, list):
                raise
            print(f"error: {error}", file=sys.stderr, flush=True)  # in the loop, the next question may fit
        print(flush=True)
    return 0


def read_questions(
    instruction: str | None, text: str, file: Path | None
) -> Iterator[Mapping[str, Any]] | list[Mapping[str, Any]]:
    """The questions as records; a loop asks for them one at a time."""
    if instruction is not None:
        return [{"instruction": instruction, "input": text}]
    if file is None:
        return ask()
    if file.suffix == ".txt":
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        return [{"instruction": line, "input": ""} for line in lines if line.strip()]
    return [without_answer(row.record) for row in read_rows(file, answered=False)]


def ask() -> Iterator[Mapping[str, Any]]:
    """Questions typed on the terminal (or piped in, one a line) until an empty line or the end of input."""
    prompt = "instruction> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if not line:
            return
        yield {"instruction": line, "input": ""}


if __name__ == "__main__":
    sys.exit(main())
