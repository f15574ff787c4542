"""Raw files → one unified file: written whole or not at all, with every row accounted for and where it came from.

Knows: streaming outcomes to a file, the order of hash-sorted sets, counts, and the provenance file beside the output.
Does not know any format (`utils.converters` does), the catalogue, or people.

The output is written beside its place and moved there at the end, so an error or Ctrl-C leaves what was there before. A
rerun with the same inputs, options and code, and an output that is still as it was written, does nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from utils import converters
from utils.converters import Dropped, Options, Record

ENDINGS = (".json", ".jsonl")
PROVENANCE = ".source.json"
"""Follows the output's name."""
CODE = Path(__file__).resolve().parent
PHRASINGS = CODE.parent / "data" / "cot_phrasings.toml"
BLOCK = 1 << 20


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
    on_row: Callable[[], None] = lambda: None,
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
    if out.suffix not in ENDINGS:
        raise ValueError(f"{out}: the ending {out.suffix!r} is not one of {', '.join(ENDINGS)}")
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
        "inputs": [{"name": raw.name, "sha256": hash_path(raw)} for raw in raws],
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
    out.parent.mkdir(parents=True, exist_ok=True)
    with _atomic(out) as file:
        count.written = _write(records, file, array=out.suffix == ".json")
        count.prove()
    conversion = Conversion(
        read=count.read,
        written=count.written,
        dropped=count.dropped,
        dialogues=count.dialogues,
        sha256=hash_path(out),
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

    def records(self, name: str, options: Options, on_row: Callable[[], None]) -> Iterator[tuple[bytes, Record]]:
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


def _write(records: Iterable[Record], file: TextIO, *, array: bool) -> int:
    written = 0
    for written, record in enumerate(records, start=1):
        if array:
            file.write("[\n" if written == 1 else ",\n")
        file.write(json.dumps(record, ensure_ascii=False))
        if not array:
            file.write("\n")
    if array:
        file.write("\n]\n")
    return written


@contextmanager
def _atomic(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path` where the block ends well, and is gone where it does not."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are their owner's alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def provenance_path(out: Path) -> Path:
    """The file beside `out` that tells where it came from."""
    return out.with_name(out.name + PROVENANCE)


def _write_provenance(source: Mapping[str, Any], conversion: Conversion, by_file: Sequence[int], out: Path) -> None:
    inputs = [{**given, "rows": rows} for given, rows in zip(source["inputs"], by_file, strict=True)]
    counts = {"read": conversion.read, "written": conversion.written, "dropped": dict(conversion.dropped.most_common())}
    document = {**source, "inputs": inputs, **counts, "dialogues": conversion.dialogues, "sha256": conversion.sha256}
    with _atomic(provenance_path(out)) as file:
        file.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def _already_done(source: Mapping[str, Any], out: Path) -> Conversion | None:
    """The conversion that wrote `out`, if it had this source and `out` is still what it wrote."""
    try:
        found = json.loads(provenance_path(out).read_text(encoding="utf-8"))
        inputs = [{"name": given["name"], "sha256": given["sha256"]} for given in found["inputs"]]
        same = {**{key: found[key] for key in source}, "inputs": inputs} == source
        if not same or found["sha256"] != hash_path(out):
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
    files = [CODE / f"{stem}.py" for stem in ("formats", "scoring", "cot", "conversion")]
    digest = hashlib.sha256()
    for file in [*files, *sorted((CODE / "converters").glob("*.py")), PHRASINGS]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def hash_path(path: Path) -> str:
    """The sha256 of a file, or of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
