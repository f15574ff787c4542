"""The data collection: find a dataset, fetch it, convert it, look at it, mix it.

    python3 prepare_data.py list --lang CN --task MT             # what there is; also --json
    python3 prepare_data.py show cot                             # all that is known of a dataset
    python3 prepare_data.py fetch belle                          # into data/, resumed and checked
    python3 prepare_data.py fetch cot_gsm8k --raw                # the upstream file, into data/raw/cot_gsm8k/
    python3 prepare_data.py convert cot_gsm8k data/raw/cot_gsm8k/gsm8k_train.tsv -o data/cot_gsm8k.json
    python3 prepare_data.py check my.json                        # every row read and examined
    python3 prepare_data.py stats cot_sample-answer_sample --tokenizer assets/tiny_base --plot lengths.png
    python3 prepare_data.py mix cot_sample:1000-answer_sample*2 -o mixed.jsonl
    python3 prepare_data.py preview cot_sample --rows 2          # the trained tokens marked

Everything that is written is written whole or not at all; what is done already is not done again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from utils import catalog, cli, collection, hygiene, lookup
from utils.catalog import DatasetSpec
from utils.converters import CONVERTERS, Options
from utils.cot import STYLES
from utils.flags import add_hygiene_flags
from utils.models import DEFAULT_MODEL, MODELS, checkpoint_of, get_model
from utils.templates import TEMPLATES, get_template


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__, usage="%(prog)s COMMAND [flags]")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog=parser.prog)

    def command(name: str, doc: str, positional: str = "", nargs: str | None = None) -> Any:
        made = commands.add_parser(name, doc=doc, help=doc, usage=f"%(prog)s {positional} [flags]")
        if positional:
            made.add_argument("given", metavar=positional, nargs=nargs)
        return made.add_argument

    add = command("list", "the catalogue, all of it or some")
    collection.add_filter_flags(add)
    add("--json", action="store_true", help="as JSON")
    add = command("show", "all that is known of a dataset, and its first rows if it is here", "KEY")
    add("--json", action="store_true", help="as JSON")
    add = command("fetch", "download datasets into data/", "KEY", nargs="+")
    add("--raw", action="store_true", help="the upstream files, into data/raw/KEY/, instead of the unified one")
    add(
        "--files",
        nargs="+",
        default=[],
        metavar="F",
        help="of a dataset that is a folder on the hub: these of its files",
    )
    add("--overwrite", action="store_true", help="replace a file that is there and is another")
    add("--revision", default="main", help="branch, tag or commit of the hub's repository (default: main)")
    add = command(
        "convert", "upstream files to one unified file: KEY RAW..., or RAW... with --converter", "KEY RAW", "+"
    )
    add("-o", "--output", type=Path, metavar="OUT", required=True, help="a .json or .jsonl file")
    add("--converter", choices=list(CONVERTERS), help="the upstream format, for files of no KEY (default: the key's)")
    add("--style", choices=STYLES, default="cot", help="chains of thought: with their steps, or the answer alone")
    add("--set", default="", help="chains of thought: the set of the phrasings (default: as the file's name says)")
    add("--answer_source", choices=("chatgpt", "human"), default="chatgpt", help="HC3: whose answers are taken")
    add("--seed", type=int, default=0, help="chooses the phrasings (default: 0)")
    for name, doc in ACTIONS_ON_DATA.items():
        add = command(name, doc, "DATA", nargs="+")
        add("--seed", type=int, default=42, help="of the draw of a part with :N (default: 42)")
        if name in ("check", "mix"):
            add_hygiene_flags(add)
        if name == "mix":
            add("-o", "--output", type=Path, metavar="OUT", required=True, help="a .json or .jsonl file")
            add("--overwrite", action="store_true", help="replace OUT")
        if name in ("stats", "preview"):
            add("--tokenizer", metavar="P", help="the model whose tokens are meant: hub id or directory")
            add("--model_type", choices=list(MODELS), default="auto", help="its family (default: auto)")
            add("--template", choices=list(TEMPLATES), default="alpaca", help="prompt (default: alpaca)")
            long = 512 if name == "stats" else 2048
            add("--cutoff_len", type=cli.positive_int, default=long, help=f"tokens of a row (default: {long})")
        if name == "stats":
            add("--plot", type=Path, metavar="PNG", help="draw the lengths of the rows")
        if name == "preview":
            add("--rows", type=cli.positive_int, default=3, metavar="N", help="how many of each part (default: 3)")
    return parser


ACTIONS_ON_DATA = {
    "check": "read every row, and say what is wrong with which",
    "stats": "rows, languages, lengths and tokens, by source",
    "mix": "write a mixture as one file",
    "preview": "rows as the model will see them, the trained tokens marked",
}


@cli.reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    flags = parser.parse_args(argv)
    rows = catalog.read_catalog()
    if flags.command in ("list", "show"):
        look(flags.command, rows, flags)
        return 0
    specs, parts, drop = dict[str, DatasetSpec](), list[catalog.Part](), frozenset[str]()
    try:
        if flags.command == "fetch":
            specs = {key: lookup.find("dataset", key, rows, "fetch") for key in flags.given}
        elif flags.command != "convert":
            parts = catalog.parse_mixture(flags.given, rows)
            drop = hygiene.resolve(getattr(flags, "drop", ()), getattr(flags, "keep", ()))
    except ValueError as error:
        parser.error(str(error))

    from utils import preparation

    match flags.command:
        case "fetch":
            chosen = {name: getattr(flags, name) for name in ("raw", "files", "revision", "overwrite")}
            lines = chain.from_iterable(preparation.fetch(key, spec, **chosen) for key, spec in specs.items())
        case "convert":
            options = Options(style=flags.style, seed=flags.seed, set_name=flags.set, answer_source=flags.answer_source)
            lines = preparation.convert(flags.given, flags.output, converter=flags.converter, options=options)
        case "check":
            lines = preparation.check(parts, seed=flags.seed, drop=drop)
        case "mix":
            lines = preparation.mix(parts, flags.output, seed=flags.seed, drop=drop, overwrite=flags.overwrite)
        case "stats":
            lines = preparation.statistics(parts, plot=flags.plot, **tokens(flags, flags.tokenizer))
        case _:
            given = tokens(flags, flags.tokenizer or checkpoint_of(DEFAULT_MODEL, get_model(DEFAULT_MODEL), None))
            lines = preparation.preview(parts, rows=flags.rows, color=cli.use_color(sys.stdout), **given)
    for line in lines:
        print(line, flush=True)
    return 0


def look(command: str, rows: Mapping[str, DatasetSpec], flags: Any) -> None:
    """Prints rows of the catalogue."""
    if command == "show":
        spec = lookup.find("dataset", flags.given, rows, "show")
        parts = [key for key, other in rows.items() if other.part_of == flags.given]
        found: Any = collection.as_dict(spec)
        lines = [] if flags.json else collection.show_lines(flags.given, spec, parts)
    else:
        chosen = collection.chosen(rows, **{name: getattr(flags, name) for name in collection.FILTERS})
        found = {key: collection.as_dict(spec) for key, spec in chosen.items()}
        lines = [] if flags.json else collection.list_lines(chosen)
    print(json.dumps(found, ensure_ascii=False, indent=2) if flags.json else "\n".join(lines))


def tokens(flags: Any, name: str | None) -> dict[str, Any]:
    """The tokenizer called `name` (None: none), and what goes with it."""
    tokenizer = None
    if name is not None:
        from utils import loading

        loading.quiet_libraries()
        tokenizer = loading.choose(name, get_model(flags.model_type)).tokenizer()
    template = get_template(flags.template)
    return {"tokenizer": tokenizer, "template": template, "seed": flags.seed, "cutoff_len": flags.cutoff_len}


if __name__ == "__main__":
    sys.exit(main())
