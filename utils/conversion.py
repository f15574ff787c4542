"""Raw files → one unified file: written whole or not at all, with every row accounted for and where it came from.

Knows: streaming outcomes to a file, the order of hash-sorted sets, counts, and the provenance file beside the output.
Does not know any format (`utils.converters` does), the catalogue, or people.

A rerun with the same inputs, options and code, and an output that is still as it was written, does nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils import cache, converters, cot, formats
from utils.converters import Dropped, Options, Record
from utils.outputs import atomic, require_ending, write_records


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What became of the rows: `read` = `written` + all of `dropped`."""

    read: int
    """Outcomes: one for each raw row, except that a task with several instances has one for each."""
    written: int
    dropped: Counter[str]
    """Rows by reason."""
    dialogues: int
    """How many of the written records are conversations."""
    sha256: str
    """Of the output."""
    seconds: float
    skipped: bool = False
    """Nothing was done: the output is already there."""


def convert_files(
    name: str,
    raws: Sequence[Path],
    out: Path,
    *,
    options: Options | None = None,
    on_row: Callable[[], object] = lambda: None,
) -> Conversion:
    """Converts `raws`, in their order, with the converter `name` into `out`; `on_row` is called after each row.

    `.json` becomes a JSON array, a row a line; `.jsonl` JSON Lines. Both are UTF-8.

    Raises:
        FileNotFoundError: a raw file is missing.
        ValueError: an unknown converter or ending, a row that is not in the format, or not one row to write.
        OSError: the output cannot be written.
    """
    options = options or Options()
    converter = converters.find(name)
    require_ending(out)
    if not raws:
        raise ValueError(f"{out}: no raw file was given to convert")
    for raw in raws:
        if not raw.exists():
            raise FileNotFoundError(f"there is no file {raw}")
        if raw.resolve() == out.resolve():
            raise ValueError(f"{out}: the output would replace the raw file; name another")
    start = time.perf_counter()
    source = {
        "converter": name,
        "options": asdict(options),
        "code": code_hash(),
        "inputs": [{"name": raw.name, "sha256": cache.content_hash(raw)} for raw in raws],
    }
    if done := _already_done(source, out):
        return done
    count = _Count(raws)
    rows = count.records(name, options, on_row)
    records = (
        (record for _, record in sorted(rows, key=lambda row: row[0]))
        if converter.sorted_by_hash
        else (record for _, record in rows)
    )
    with atomic(out) as file:
        count.written = write_records(records, file, array=out.suffix == ".json")
        count.prove()
    conversion = Conversion(
        read=count.read,
        written=count.written,
        dropped=count.dropped,
        dialogues=count.dialogues,
        sha256=cache.content_hash(out),
        seconds=time.perf_counter() - start,
    )
    _write_provenance(source, conversion, count.by_file, out)
    return conversion


class _Count:
    """Outcomes counted on their way from the raw files to the output."""

    def __init__(self, raws: Sequence[Path]) -> None:
        self.raws = raws
        self.read = self.written = self.dialogues = 0
        self.dropped: Counter[str] = Counter()
        self.by_file: list[int] = []

    def records(self, name: str, options: Options, on_row: Callable[[], object]) -> Iterator[tuple[bytes, Record]]:
        """The hash of the raw row where rows are sorted by it, and its record."""
        converter = converters.find(name)
        for raw_file in self.raws:
            self.by_file.append(0)
            set_name = converter.complete(raw_file, options).set_name
            for _, raw, outcome in converters.outcomes(name, raw_file, options):
                self.read += 1
                self.by_file[-1] += 1
                if isinstance(outcome, Dropped):
                    self.dropped[outcome.reason] += 1
                else:
                    self.dialogues += "conversation" in outcome
                    yield _row_hash(set_name, raw) if converter.sorted_by_hash else b"", outcome
                on_row()

    def prove(self) -> None:
        """No row was lost, and there is something to write."""
        assert self.read == self.written + self.dropped.total(), (self.read, self.written, self.dropped)
        files = ", ".join(map(str, self.raws))
        if not self.read:
            raise ValueError(f"{files}: there are no rows; nothing was written. Was the file fetched whole?")
        if not self.written:
            reasons = ", ".join(f"{reason}: {rows}" for reason, rows in self.dropped.most_common())
            raise ValueError(
                f"{files}: all {self.read} rows were dropped ({reasons}); nothing was written. Convert a file whose "
                "rows have what is missing, or choose another converter"
            )


def _row_hash(set_name: str, raw: Any) -> bytes:
    return hashlib.sha256(json.dumps([set_name, raw], default=repr).encode()).digest()


def provenance_path(out: Path) -> Path:
    """The file beside `out` that tells where it came from."""
    return out.with_name(out.name + formats.PROVENANCE)


def _write_provenance(source: Mapping[str, Any], conversion: Conversion, by_file: Sequence[int], out: Path) -> None:
    inputs = [{**given, "rows": rows} for given, rows in zip(source["inputs"], by_file, strict=True)]
    counts = {"read": conversion.read, "written": conversion.written, "dropped": dict(conversion.dropped.most_common())}
    document = {**source, "inputs": inputs, **counts, "dialogues": conversion.dialogues, "sha256": conversion.sha256}
    with atomic(provenance_path(out)) as file:
        file.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def _already_done(source: Mapping[str, Any], out: Path) -> Conversion | None:
    """The conversion that wrote `out`, if it had this source and `out` is still what it wrote."""
    try:
        found = json.loads(provenance_path(out).read_text(encoding="utf-8"))
        inputs = [{"name": given["name"], "sha256": given["sha256"]} for given in found["inputs"]]
        same = {**{key: found[key] for key in source}, "inputs": inputs} == source
        if not same or found["sha256"] != cache.content_hash(out):
            return None
        return Conversion(
            read=found["read"],
            written=found["written"],
            dropped=Counter(found["dropped"]),
            dialogues=found["dialogues"],
            sha256=found["sha256"],
            seconds=0.0,
            skipped=True,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no provenance, or not ours: convert again


def code_hash() -> str:
    """The sha256 of the code and the phrasings that decide what a conversion gives."""
    formats = [f"converters/{file.stem}" for file in sorted((cache.CODE / "converters").glob("*.py"))]
    code = cache.code_hash(["formats", "scoring", "cot", "conversion", "outputs", *formats])
    return hashlib.sha256(f"{code} {cache.content_hash(cot.PHRASINGS)}".encode()).hexdigest()
