"""Every real raw file converted: rows in, rows out, rows dropped by reason.

    python3 benchmarks/conversions.py    # writes benchmarks/results/conversions.json and docs/conversions.md

Needs the real data (ALPACA_COT_REAL_DATA, default ../shared/data). A file that the converter refuses is shown with what
it said. Seconds are of one process, from the first byte to the renamed file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environment

from utils import converters
from utils.conversion import convert_files

DATA = Path(os.environ.get("ALPACA_COT_REAL_DATA", environment.REPOSITORY.parent / "shared" / "data"))
PAGE = environment.REPOSITORY / "docs" / "conversions.md"
FLAN = ("aqua", "creak", "ecqa", "gsm8k", "qasc", "sensemaking", "strategyqa")

# File, converter, catalogue key (none for files that belong to no dataset of the catalogue).
FILES = (
    *((f"raw/flan_cot_{name}_train.tsv", "flan_cot_tsv", f"cot_{name}") for name in FLAN),
    ("raw/gsm8k_train.jsonl", "gsm8k", ""),
    ("raw/code_alpaca_2k.json", "fields", "code_alpaca_2k"),
    ("raw/gpteacher_roleplay.json", "fields", "gpteacher_roleplay"),
    ("raw/gpteacher_toolformer.json", "fields", "gpteacher_toolformer"),
    ("raw/instructionwild_user_1.jsonl", "fields", ""),
    ("raw/instructionwild_user_2.jsonl", "fields", ""),
    ("raw/sharegpt_fastchat_dummy.json", "sharegpt", "sharegpt"),
    ("raw/hh_rlhf_harmless_test_200.jsonl", "dialogue_text", "hh_rlhf"),
    ("raw/belle_eval_set.json", "fields", ""),
    ("raw/belle_zh_seed_tasks.json", "self_instruct", ""),
    ("raw/self_instruct_seed_tasks.jsonl", "self_instruct", ""),
    ("raw/gaokao_2010-2022_Biology_MCQs.json", "gaokao", "gaokao"),
    ("raw/gaokao_2010-2022_Geography_Open-ended.json", "gaokao", "gaokao"),
    ("raw/gaokao_2010-2022_History_MCQs.json", "gaokao", "gaokao"),
    ("raw/gaokao_2010-2022_Math_II_MCQs.json", "gaokao", "gaokao"),
    ("raw/moss_calculator_1.json", "moss", "moss"),
    ("raw/moss_calculator_10.json", "moss", "moss"),
    ("raw/moss_calculator_100.json", "moss", "moss"),
    ("unified/cot_aqua_train.json", "fields", ""),
    ("unified/cot_qasc_train.json", "fields", ""),
    ("unified/cot_strategyqa_train.json", "fields", ""),
)


def command(files: Sequence[str], converter: str, key: str) -> str:
    """What a person types."""
    which = key or f"--converter {converter}"
    raws = " ".join(f"../shared/data/{file}" for file in files)
    return f"python3 prepare_data.py convert {which} {raws} -o {Path(files[0]).stem if len(files) == 1 else key}.json"


def measure(files: Sequence[str], converter: str, key: str) -> dict[str, Any]:
    """One conversion into a folder of its own."""
    name = files[0] if len(files) == 1 else f"all {len(files)} files of {key}, at once"
    row = {"file": name, "converter": converter, "command": command(files, converter, key)}
    with tempfile.TemporaryDirectory() as folder:
        raws = [DATA / file for file in files]
        try:
            done = convert_files(converter, raws, Path(folder) / "out.json")
        except ValueError as error:
            read = sum(1 for raw in raws for _ in raw.read_bytes().splitlines())
            said = str(error).replace(f"{DATA}{os.sep}", "")
            return {**row, "rows_in": read, "rows_out": 0, "refused": said}
        assert done.read == done.written + done.dropped.total()
        return {
            **row,
            "rows_in": done.read,
            "rows_out": done.written,
            "dropped": dict(done.dropped.most_common()),
            "dialogues": done.dialogues,
            "sha256": done.sha256,
            "seconds": round(done.seconds, 2),
        }


def page(rows: Sequence[dict[str, Any]]) -> str:
    """`docs/conversions.md`."""
    lines = [
        f"| {row['file']} | `{row['converter']}` | {row['rows_in']:,} | {row['rows_out']:,} "
        f"| {_dropped(row)} | {row.get('dialogues', 0):,} | {row.get('seconds', '')} |"
        for row in rows
    ]
    formats = [f"| `{name}` | {converter.what} |" for name, converter in converters.CONVERTERS.items()]
    return "\n".join(
        [
            "# Conversions",
            "",
            "Written by `benchmarks/conversions.py`, which converts every real raw file that the project is developed",
            "against; not by hand. Rows in = rows out + rows dropped, for each. A dialogue comes out as a",
            "`conversation` record, anything else as `instruction`, `input` and `output`.",
            "",
            "| file | converter | rows in | rows out | dropped | dialogues | seconds |",
            "| --- | --- | ---: | ---: | --- | ---: | ---: |",
            *lines,
            "",
            "Refused means that nothing is written and the command ends with what is quoted. The commands:",
            "",
            "```bash",
            *(row["command"] for row in rows),
            "```",
            "",
            "## Converters",
            "",
            "One for each upstream format; the opening of each module in `utils/converters/` says where the format is",
            "documented and whether it was checked on real files.",
            "",
            "| name | format |",
            "| --- | --- |",
            *formats,
            "",
        ]
    )


def _dropped(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"refused: {row['refused'].replace('|', chr(92) + '|')}"
    return ", ".join(f"{reason}: {rows:,}" for reason, rows in row["dropped"].items()) or "none"


def main() -> int:
    argparse.ArgumentParser(description="Every real raw file converted.").parse_args()
    if not DATA.is_dir():
        sys.exit(f"the real data is not here ({DATA}); set ALPACA_COT_REAL_DATA")
    present = {path.relative_to(DATA).as_posix() for part in ("raw", "unified") for path in (DATA / part).iterdir()}
    assert present == {file for file, _, _ in FILES}, present ^ {file for file, _, _ in FILES}
    rows = [measure([file], converter, key) for file, converter, key in FILES]
    rows.append(measure([f"raw/flan_cot_{name}_train.tsv" for name in FLAN], "flan_cot_tsv", "cot"))
    environment.write("conversions", ["python3 benchmarks/conversions.py"], {"files": rows})
    PAGE.write_text(page(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
