"""What `prepare_data.py` does, each action as lines for people that appear as they come true.

Knows: the order of things for one action. Does not know flags; how a file is fetched, converted or examined is below.
"""

from __future__ import annotations

import fnmatch
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from utils import cache, catalog, cli, collection, conversion, fetching, hygiene, lookup, outputs, survey
from utils.catalog import DATA_DIR, HUB_REPOSITORY, DatasetSpec, Part
from utils.converters import Options

WHOLE = 1 << 62
"""A cutoff that no row reaches."""


def fetch(
    key: str, spec: DatasetSpec, *, raw: bool, files: Sequence[str], revision: str, overwrite: bool
) -> Iterator[str]:
    """Downloads a dataset: its unified file, some files of its folder on the hub, or its upstream files.

    Raises:
        ValueError: there is nothing to download; it is a folder, and `files` names none of it; another file is in the
            way.
        OSError: as `fetching.fetch`.
    """
    folder = DATA_DIR / "raw" / key
    if raw:
        if not spec.raw:
            raise ValueError(f"{key}: the catalogue knows no upstream file. Look at {spec.source}")
        for url, target in zip(spec.raw, fetching.raw_targets(spec.raw, folder), strict=True):
            yield from _bring(url, target, "", overwrite=overwrite)
        yield f"then: python3 prepare_data.py convert {key} {folder}/* -o {DATA_DIR / spec.path}"
    elif not spec.hub:
        raise ValueError(
            f"{key}: its unified file is not on the hub. python3 prepare_data.py fetch {key} --raw brings its upstream "
            f"files"
            if spec.raw
            else f"{key}: it is not on the hub. Look at {spec.source}"
        )
    elif catalog.is_path(spec.hub):
        address = f"hf://datasets/{HUB_REPOSITORY}@{revision}/{spec.hub}"
        yield from _bring(address, DATA_DIR / spec.path, spec.sha256, overwrite=overwrite)
        yield f"then: --data {key}"
    else:
        listed = fetching.list_files(HUB_REPOSITORY, spec.hub, revision=revision)
        names = [each.path for each in listed if any(fnmatch.fnmatch(each.path.rsplit("/", 1)[-1], f) for f in files)]
        if not names:
            found = ", ".join(f"{each.path.rsplit('/', 1)[-1]} ({each.bytes / 1e6:,.1f} MB)" for each in listed)
            raise ValueError(f"{key} is a folder on the hub: choose some of its files with --files. It has: {found}")
        urls = [f"hf://datasets/{HUB_REPOSITORY}@{revision}/{name}" for name in names]
        targets = fetching.raw_targets(urls, folder)
        for url, target in zip(urls, targets, strict=True):
            yield from _bring(url, target, "", overwrite=overwrite)
        yield f"then: python3 prepare_data.py mix {' '.join(map(str, targets))} -o {DATA_DIR / spec.path}"


def _bring(url: str, target: Path, sha256: str, *, overwrite: bool) -> Iterator[str]:
    """One file; beside it, in `….source.json`, where it came from."""
    note = conversion.provenance_path(target)
    if target.exists() and not overwrite:
        known = {sha256, _noted(note)} - {""}
        if cache.content_hash(target) in known:
            yield f"{target}: here already, and whole"
            return
        raise ValueError(
            f"{target} is there, and is not what was fetched from {url}: --overwrite replaces it, or move it away"
        )
    with cli.bar(target.name, unit="B") as more:
        seen = 0

        def progress(here: int, whole: int | None) -> None:
            nonlocal seen
            more(here - seen)
            seen = here

        fetched = fetching.fetch_url(url, target, sha256=sha256, on_progress=progress)
    with outputs.atomic(note) as file:
        file.write(json.dumps({"url": url, "sha256": fetched.sha256, "checked": fetched.checked}, indent=2) + "\n")
    yield f"{target}: {fetched.bytes:,} bytes, checked against {fetched.checked}"
    yield f"  sha256 {fetched.sha256}"


def _noted(note: Path) -> str:
    try:
        return str(json.loads(note.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def convert(given: Sequence[str], out: Path, *, converter: str | None, options: Options) -> Iterator[str]:
    """Converts upstream files: a key of the catalogue and files, or files alone, and `converter` says what they are."""
    rows = catalog.read_catalog()
    names = list(given)
    if not converter or (names[0] in rows and not Path(names[0]).exists()):
        spec = lookup.find("dataset", names.pop(0), rows, "convert KEY RAW...")
        converter = converter or spec.converter
    if not converter:
        raise ValueError(f"{given[0]}: nothing is to be converted, its file on the hub is unified: fetch it")
    if not names:
        raise ValueError(f"convert {given[0]}: name its upstream files, too; fetch {given[0]} --raw brings them")
    with cli.bar("converting") as more:
        done = conversion.convert_files(
            converter, [Path(name) for name in names], out, options=options, on_row=lambda: more(1)
        )
    already = "here already, from the same files; " if done.skipped else ""
    yield f"{out}: {already}{done.written:,} rows of {done.read:,}"
    yield from (f"  dropped {count:,}: {reason}" for reason, count in done.dropped.most_common())
    yield f"  {done.dialogues:,} dialogues · sha256 {done.sha256}"
    yield f"  where it came from: {conversion.provenance_path(out)}"


def check(parts: Sequence[Part], *, seed: int, drop: frozenset[str]) -> Iterator[str]:
    """Reads and examines every row; a row that is no record ends it with an error that names the row."""
    overlap = hygiene.local_evaluation_sets()
    for part in parts:
        with cli.bar(part.name) as on_rows:
            found = survey.survey(part, seed=seed, overlap=overlap, on_rows=on_rows)
        yield f"{part.name}: {len(found):,} rows are valid records ({', '.join(found.shapes)})"
        counts = found.counts()
        with cli.bar("near duplicates", total=len(found)) as on_rows:
            counts["near_duplicate"] = survey.near_repeats([part], seed, on_rows)
        yield from collection.finding_lines(counts, found.examples, drop)
    yield overlap.described()


def statistics(
    parts: Sequence[Part], *, seed: int, tokenizer: Any, template: Any, cutoff_len: int, plot: Path | None
) -> Iterator[str]:
    """What each part holds; with a tokenizer (None: without), its tokens too."""
    from utils import plots

    lengths: dict[str, Any] = {}
    findings: Counter[str] = Counter()
    for part in parts:
        with cli.bar(part.name) as on_rows:
            found = survey.survey(part, seed=seed, on_rows=on_rows)
        yield from collection.survey_lines(part.name, found)
        findings += found.counts()
        lengths[part.name] = found.column("characters")
        if tokenizer is not None:
            rows = _encoded(part, tokenizer, template, seed)
            yield from collection.token_lines(rows, cutoff_len)
            lengths[part.name] = rows.column("length")[rows.column("kept")]
        yield from collection.finding_lines(found.counts(), found.examples, hygiene.resolve())
    if plot is not None:
        unit, mark = ("tokens", cutoff_len) if tokenizer is not None else ("characters", None)
        plots.lengths(lengths, plot, unit=unit, mark=mark)
        yield f"lengths: {plot}"


def _encoded(part: Part, tokenizer: Any, template: Any, seed: int) -> Any:
    from utils.encoding import Recipe, encode_part

    recipe = Recipe(template=template, tokenizer=tokenizer, cutoff_len=WHOLE, truncation="drop")
    with cli.bar(f"{part.name}: tokens") as on_rows:
        return encode_part(part, recipe, seed=seed, on_rows=on_rows).rows


def mix(parts: Sequence[Part], out: Path, *, seed: int, drop: frozenset[str], overwrite: bool) -> Iterator[str]:
    """Writes a mixture as one file."""
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists: --overwrite replaces it, -o names another")
    overlap = hygiene.local_evaluation_sets() if "evaluation_overlap" in drop else None
    with cli.bar("reading") as on_rows:
        ledger = survey.write_mixture(parts, out, seed=seed, drop=drop, overlap=overlap, on_rows=on_rows)
    columns = ("read", "left_out", "dropped", "repeated")
    yield f"{out}: {ledger.total.trained:,} rows"
    for name, account in ledger.sources.items():
        counts = account.as_dict() | {"dropped": account.dropped.total()}
        yield f"  {name}: " + ", ".join(f"{column.replace('_', ' ')} {counts[column]:,}" for column in columns)
        yield from (f"    dropped {count:,}: {reason}" for reason, count in account.dropped.most_common())
        yield from (f"    noticed {count:,}: {reason}" for reason, count in account.reported.most_common())
    if overlap is not None:
        yield overlap.described()


def preview(
    parts: Sequence[Part], *, rows: int, seed: int, tokenizer: Any, template: Any, cutoff_len: int, color: bool
) -> Iterator[str]:
    """The first rows of each part as the model will see them."""
    from utils import records
    from utils.encode import Encoder
    from utils.preview import marked

    encoder = Encoder(template, tokenizer, cutoff_len=cutoff_len, truncation="drop")
    for part in parts:
        chosen = list(islice(records.read_chosen(part, seed), rows))
        for row, outcome in zip(chosen, encoder(chosen), strict=True):
            if outcome.encoded is None:
                yield f"── {row.origin} · dropped: {outcome.what}\n"
            else:
                yield marked(outcome.encoded, tokenizer, color=color) + "\n"
