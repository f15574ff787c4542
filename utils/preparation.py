"""What `prepare_data.py` does, each action as lines for people that appear as they come true.

Knows: the order of things for one action. Does not know flags; how a file is fetched, converted or examined is below.
"""

from __future__ import annotations

import fnmatch
import json
import shlex
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from utils import cache, catalog, cli, collection, conversion, fetching, formats, hygiene, lookup, outputs, survey
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
    is_folder = not formats.has_known_ending(spec.hub)
    if files and (raw or not is_folder):
        raise ValueError(f"--files chooses among the files of a folder on the hub; {key} {'--raw ' * raw}is none")
    if raw:
        if not spec.raw:
            raise ValueError(f"{key}: the catalogue knows no upstream file. Look at {spec.source}")
        targets = fetching.raw_targets(spec.raw, DATA_DIR / "raw" / key)
        for url, target in zip(spec.raw, targets, strict=True):
            yield from _bring(url, target, "", overwrite=overwrite)
        packed = [target.name for target in targets if target.name.endswith((".zip", ".tar.gz", ".tgz"))]
        yield from ([f"unpack {', '.join(packed)} first"] if packed else [])
        yield from ([f"mind: {spec.note}"] if spec.note else [])
        yield f"then: {_command('convert', key, *targets, '-o', DATA_DIR / spec.path)}"
    elif not spec.hub:
        raw_way = f"python3 prepare_data.py fetch {key} --raw brings its upstream files"
        raise ValueError(
            f"{key}: its unified file is not on the hub. {raw_way if spec.raw else f'Look at {spec.source}'}"
        )
    elif is_folder:
        urls = _chosen_of_folder(key, spec, files, revision)
        targets = fetching.raw_targets(urls, DATA_DIR / "raw" / key / "hub")
        for url, target in zip(urls, targets, strict=True):
            yield from _bring(url, target, "", overwrite=overwrite)
        yield from ([f"mind: {spec.note}"] if spec.note else [])
        yield f"then: {_command('mix', *targets, '-o', DATA_DIR / spec.path)}"
    else:
        yield from _bring(_address(spec.hub, revision), DATA_DIR / spec.path, spec.sha256, overwrite=overwrite)
        yield f"then: --data {key}"


def _command(*words: object) -> str:
    return shlex.join(["python3", "prepare_data.py", *map(str, words)])


def _address(file: str, revision: str) -> str:
    return f"hf://datasets/{HUB_REPOSITORY}@{revision}/{file}"


def _chosen_of_folder(key: str, spec: DatasetSpec, files: Sequence[str], revision: str) -> list[str]:
    """The addresses of the files of a folder on the hub that match one of the patterns `files`."""
    listed = {
        each.path.removeprefix(f"{spec.hub}/"): each
        for each in fetching.list_files(HUB_REPOSITORY, spec.hub, revision=revision)
    }
    idle = [pattern for pattern in files if not any(fnmatch.fnmatch(name, pattern) for name in listed)]
    if idle or not files:
        has = ", ".join(f"{name} ({each.bytes / 1e6:,.1f} MB)" for name, each in listed.items())
        wrong = f"--files {' '.join(idle)}: no such file" if idle else "choose some of its files with --files"
        raise ValueError(f"{key} is a folder on the hub: {wrong}. It has: {has}")
    return [
        _address(each.path, revision)
        for name, each in listed.items()
        if any(fnmatch.fnmatch(name, pattern) for pattern in files)
    ]


def _bring(url: str, target: Path, sha256: str, *, overwrite: bool) -> Iterator[str]:
    """One file; beside it, in `….source.json`, where it came from."""
    note = conversion.provenance_path(target)
    if target.exists() and cache.content_hash(target) in {sha256 or _noted(note, url)}:
        yield f"{target}: here already, and whole"
        return
    with cli.bar(target.name, unit="B") as more:
        seen = 0

        def progress(here: int, whole: int | None) -> None:
            nonlocal seen
            more(here - seen)
            seen = here

        fetched = fetching.fetch_url(url, target, sha256=sha256, overwrite=overwrite, on_progress=progress)
    with outputs.atomic(note) as file:
        file.write(json.dumps({"url": url, "sha256": fetched.sha256, "checked": fetched.checked}, indent=2) + "\n")
    already = "here already, " if fetched.skipped else ""
    yield f"{target}: {already}{fetched.bytes:,} bytes, checked against {fetched.checked}"
    yield f"  sha256 {fetched.sha256}"


def _noted(note: Path, url: str) -> str | None:
    """The sha256 of what was fetched from `url`, as its note says; None without one."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        return str(found["sha256"]) if found["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def convert(given: Sequence[str], out: Path, *, converter: str | None, options: Options) -> Iterator[str]:
    """Converts upstream files: a key of the catalogue and files, or files alone, and `converter` says what they are."""
    rows = catalog.read_catalog()
    names = list(given)
    if not converter and names[0] not in rows and Path(names[0]).exists():
        raise ValueError(
            f"convert {names[0]}: that is a file; before it comes a key of the catalogue, or --converter NAME"
        )
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
    """Reads and examines every row; a row that is no record ends it with an error that names the row. Near duplicates
    are sought where `drop` names them, for that takes memory for every row."""
    overlap = hygiene.local_evaluation_sets()
    for part in parts:
        with cli.bar(part.name) as on_rows:
            found = survey.survey(part, seed=seed, overlap=overlap, on_rows=on_rows)
        yield f"{part.name}: {len(found):,} rows are valid records ({', '.join(found.shapes)})"
        counts = found.counts()
        if "near_duplicate" in drop:
            with cli.bar("near duplicates", total=len(found)) as on_rows:
                counts["near_duplicate"] = survey.near_repeats([part], seed, on_rows)
        yield from collection.finding_lines(counts, found.examples, drop)
    yield overlap.described()
    if "near_duplicate" not in drop:
        yield "near duplicates were not sought; --drop near_duplicate does"


def statistics(
    parts: Sequence[Part], *, seed: int, tokenizer: Any, template: Any, cutoff_len: int, plot: Path | None
) -> Iterator[str]:
    """What each part holds; with a tokenizer (None: without), its tokens too."""
    from utils import plots

    if plot is not None and (plot.suffix != ".png" or not plot.absolute().parent.is_dir()):
        raise ValueError(f"--plot {plot}: it must end in .png, in a folder that exists")
    overlap = hygiene.local_evaluation_sets()
    lengths: dict[str, Any] = {}
    surveys = []
    for number, part in enumerate(parts, start=1):
        with cli.bar(part.name) as on_rows:
            found = survey.survey(part, seed=seed, overlap=overlap, on_rows=on_rows)
        surveys.append(found)
        yield from collection.survey_lines(part.name, found)
        name = part.name if part.name not in lengths else f"{part.name} ({number})"
        lengths[name] = found.column("characters")
        if tokenizer is not None:
            rows = _encoded(part, tokenizer, template, seed)
            yield from collection.token_lines(rows, cutoff_len)
            lengths[name] = rows.column("length")[rows.column("kept")]
        yield from collection.finding_lines(found.counts(), found.examples, hygiene.resolve())
    if len(parts) > 1:
        yield f"all parts: {sum(map(len, surveys)):,} rows, {survey.repeats(surveys):,} of them repeat another exactly"
    yield overlap.described()
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
    overlap = hygiene.local_evaluation_sets() if "evaluation_overlap" in drop else None
    source = survey.mixture_source(parts, seed=seed, drop=drop, overlap=overlap)
    if survey.is_written(source, out):
        yield f"{out}: here already, from the same rows"
        return
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists, and is another mixture: --overwrite replaces it, -o names another")
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
