"""One file of records becomes encoded rows on disk, once: the next run that wants the same finds them.

Knows: what encoded rows depend on (the cache's key), how the work is divided among processes, and the order of things:
read, examine, encode, prove, write. Does not know mixtures or what is dropped in the end.

Rows pass through in chunks, so memory does not grow with the file.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils import cache, catalog, hygiene, readers, records, store
from utils.encode import Encoder, Stages, Truncation, finish
from utils.formats import BAD_ROW, BadRow, RawRow, faults
from utils.overlap import EvaluationSets
from utils.proof import Outcome
from utils.readers import Row
from utils.templates import Template, fingerprint
from utils.tokens import Tokenizer, require_eos
from utils.tokens import fingerprint as tokenizer_fingerprint

if TYPE_CHECKING:
    import numpy

CODE = (
    "catalog",
    "encode",
    "encoding",
    "formats",
    "hygiene",
    "lookup",
    "overlap",
    "proof",
    "readers",
    "readings",
    "records",
    "scoring",
    "store",
    "tasks",
    "templates",
    "tokens",
)
"""The modules on which encoded rows depend."""

TOKENIZERS = ("byte_bpe", "pieces", "rust_pieces", "piece_tokenizer", "slow_tokenizers", "chatglm/tokenization")
"""The modules that are a tokenizer; encoding is handed one."""

LIBRARIES = ("tokenizers", "transformers", "jinja2", "ftfy", "pyarrow")
"""Those that read, render, examine or tokenise a row."""

WORTH_WORKERS = 64 * 1024 * 1024
"""Bytes of a file from which several processes are worth their start, some seconds each."""
WORTH_CORES = 4
MOST_WORKERS = 8
"""Beyond this the one process that reads cannot keep the others busy."""
CHUNKS_AHEAD = 3
"""Chunks in flight for each worker."""


@dataclass(frozen=True, kw_only=True)
class EncodedPart:
    """The encoded rows of a part, and what was read."""

    rows: store.EncodedFile
    read: int
    """Rows of the file."""
    left_out: int
    """Beyond `:N`."""
    split: int
    """Further rows of dialogues, where a row has one answer (`encode.Encoder.examples`)."""
    shape: str
    sha256: str
    bad_rows: list[str]
    """What is wrong with the first few rows that were dropped for each reason, where bad rows are dropped."""
    cached: bool
    """Whether they were there already."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How rows are examined and encoded; `start` gives the function that does it. It can be pickled."""

    template: Template
    tokenizer: Tokenizer
    cutoff_len: int
    truncation: Truncation
    overlap: EvaluationSets | None = None
    languages: tuple[str, ...] = ()
    bad_rows: Literal["error", "drop"] = "error"
    """What happens to a row that cannot be read: it is raised, or kept as dropped with its reason."""

    def start(self) -> Callable[[Batch], Stages[Chunk]]:
        """The function from a batch to a chunk, in stages, with all that is made once."""
        encoder = Encoder(self.template, self.tokenizer, cutoff_len=self.cutoff_len, truncation=self.truncation)
        examiner = hygiene.Examiner(self.overlap, self.languages)
        empty = hygiene.BITS["empty_answer"] | hygiene.BITS["empty_instruction"]

        def stages(batch: Batch) -> Stages[Chunk]:
            sound, examined, dropped, bad, shape = [], [], {}, [], ""
            for row in batch.outcomes():
                if isinstance(row, BadRow):
                    if self.bad_rows == "error":
                        raise row
                    bad.append(row)
                    dropped[len(examined)] = Outcome(encoded=None, what=row.counted_as)
                    examined.append(store.Examined(number=row.number, flags=0, prompt=0, record=0))
                    continue
                found, examples, shape = _examined(row, examiner), encoder.examples(row), row.shape
                if found.flags & empty:
                    places = range(len(examined), len(examined) + len(examples))
                    dropped |= dict.fromkeys(places, Outcome(encoded=None, what="empty"))
                else:
                    sound += examples
                # The rows of one dialogue share its prompt, so that they are held out together.
                examined += (
                    [found]
                    if len(examples) == 1
                    else [found._replace(record=hygiene.record_hash(each.record)) for each in examples]
                )
            encoded = iter((yield from encoder.stages(sound)))
            outcomes = [dropped[at] if at in dropped else next(encoded) for at in range(len(examined))]
            return Chunk(
                rows=store.chunk(outcomes, examined),
                read=len(batch.rows),
                shape=shape,
                unit=batch.rows[0][0].partition(" ")[0],
                bad_rows=faults.examples(bad),
            )

        return stages


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows on their way from a file to the process that encodes them, as raw as possible."""

    path: Path
    source: str
    rows: list[RawRow]
    """At least one."""

    def outcomes(self) -> Iterator[Row | BadRow]:
        """Each as its unified record, or as what is wrong with it."""
        return readers.outcomes(self.rows, self.path, source=self.source)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A batch, encoded."""

    rows: Any
    """A `pyarrow.RecordBatch`."""
    read: int
    """Rows of the batch; a dialogue may have become several."""
    shape: str
    """How its last row was written, a name of `readers.SHAPES`; empty where no row could be read."""
    unit: str
    """What its file counts: `row` or `line`."""
    bad_rows: faults.Examples


def encode_part(
    part: catalog.Part,
    recipe: Recipe,
    *,
    seed: int,
    workers: int | None = None,
    on_rows: Callable[[int], object] = lambda count: None,
) -> EncodedPart:
    """The encoded rows of `part`, from the cache where they are there.

    Args:
        seed: of the draw of a part with `:N`.
        workers: processes that encode; None for one, or for a large file as many as there are cores, up to 8.
        on_rows: told how many rows were encoded, chunk by chunk.

    Raises:
        FileNotFoundError, ValueError: as `records.read_part`, but for a `BadRow` that the recipe drops; nothing is kept
            then.
        MaskError: a row failed its proof.
        OSError: the cache cannot be written.
    """
    if not part.path.exists():
        raise FileNotFoundError(catalog.missing_file(part))
    require_eos(recipe.tokenizer)
    stamp = cache.stamp(part.path)
    content = cache.content_hash(part.path)
    key = cache.key_of(_made_from(part, recipe, content, seed))
    made = []

    def make(folder: Path) -> None:
        made.append(True)
        from utils import distributed  # brings torch, for which a worker need not wait

        processes = workers or workers_for(part.path, distributed.usable_cores())
        _write(folder, part, recipe, seed=seed, workers=processes, on_rows=on_rows)
        if cache.stamp(part.path) != stamp:
            raise ValueError(f"{part.path} changed while it was read: run the command again once it is at rest")

    try:
        rows, about = _opened(cache.entry(key, make), part)
    except (ValueError, KeyError):
        if made:
            raise
        cache.discard(cache.directory() / key)  # a disk may have damaged it
        rows, about = _opened(cache.entry(key, make), part)
    return EncodedPart(
        rows=rows,
        read=about["read"],
        left_out=about["left_out"],
        split=about["split"],
        shape=about["shape"],
        sha256=content,
        bad_rows=[
            f"{BAD_ROW}: {part.path} {about['unit']} {number}: {problem}"
            for named in about["bad_rows"].values()
            for number, problem in named
        ],
        cached=not made,
    )


def _opened(folder: Path, part: catalog.Part) -> tuple[store.EncodedFile, dict[str, Any]]:
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    origin = f"{part.path} {about['unit']}"
    return store.EncodedFile(folder / "rows.arrow", origin=origin, source=part.name), about


def _made_from(part: catalog.Part, recipe: Recipe, content: str, seed: int) -> dict[str, Any]:
    return {
        "content": content,
        "format": "".join(part.path.suffixes[-2:]).lower(),
        "draw": [part.max_rows, seed, part.name] if part.max_rows else None,
        "template": fingerprint(recipe.template, recipe.tokenizer.chat_template),
        "tokenizer": tokenizer_fingerprint(recipe.tokenizer),
        "cutoff_len": recipe.cutoff_len,
        "truncation": recipe.truncation,
        "evaluation sets": recipe.overlap.fingerprint if recipe.overlap else None,
        "languages": sorted(recipe.languages),
        "bad rows": recipe.bad_rows,
        "code": cache.code_hash((*CODE, *TOKENIZERS)),
        "libraries": [importlib.metadata.version(name) for name in LIBRARIES],
    }


def _write(
    folder: Path, part: catalog.Part, recipe: Recipe, *, seed: int, workers: int, on_rows: Callable[[int], object]
) -> None:
    count, chosen = records.choose(part, seed)
    about: dict[str, Any] = {"read": 0, "left_out": 0, "split": 0, "shape": "", "unit": "row", "bad_rows": {}}

    def rows() -> Iterator[Any]:
        for made in _chunks(_batches(part, chosen), recipe, workers):
            about["read"] += made.read
            about["split"] += made.rows.num_rows - made.read
            about["shape"] = made.shape or about["shape"]
            about["unit"] = made.unit
            for reason, named in made.bad_rows.items():
                about["bad_rows"][reason] = [*about["bad_rows"].get(reason, []), *named][: faults.EXAMPLES]
            on_rows(made.read)
            yield made.rows

    with _without_garbage_collection():
        store.write(folder / "rows.arrow", rows())
    if not about["read"]:
        raise ValueError(f"{part.path} holds no records: the file is empty")
    if count is not None:
        about["left_out"] = count - about["read"]
        about["read"] = count
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _batches(part: catalog.Part, chosen: numpy.ndarray | None) -> Iterator[Batch]:
    """The rows of a part, or those among them where `chosen` (bool) is true."""
    raws = records.scan(part, chosen)
    while rows := list(islice(raws, store.CHUNK_ROWS)):
        yield Batch(path=part.path, source=part.name, rows=rows)


def _chunks(batches: Iterator[Batch], recipe: Recipe, workers: int) -> Iterator[Chunk]:
    """The chunks of all batches, in order, made here or by `workers` processes."""
    if workers == 1:
        yield from _overlapped(map(recipe.start(), batches))
        return
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # Not by fork: torch's and the tokenizer's threads would be missing in the copy.
    context = multiprocessing.get_context("spawn")
    waiting: deque[Future[Chunk]] = deque()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(recipe,)) as pool:
        try:
            for batch in batches:
                waiting.append(pool.submit(_make, batch))
                if len(waiting) > CHUNKS_AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise OSError(
                "a process that encodes has died, of too little memory perhaps: give fewer with "
                "--preprocessing_num_workers, or 1"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _overlapped(chunks: Iterator[Stages[Chunk]]) -> Iterator[Chunk]:
    """The results of stages, in order. While a thread is at the tokenizer's work for one chunk, which needs no
    interpreter, this one is at the work of its neighbours: each turn begins a chunk and takes the older ones one stage
    on."""
    from concurrent.futures import Future, ThreadPoolExecutor

    going: list[tuple[Stages[Chunk], Future[Any]]] = []
    with ThreadPoolExecutor(1) as pool:
        while True:
            begun = next(chunks, None)
            older, going = going, []
            if begun is not None:
                going.append((begun, pool.submit(next(begun))))
            elif not older:
                return
            for stages, work in older:
                try:
                    going.append((stages, pool.submit(stages.send(work.result()))))
                except StopIteration as end:
                    yield end.value


_MADE: list[Callable[[Batch], Stages[Chunk]]] = []
"""In a worker: what its recipe started."""


def _start(recipe: Recipe) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    gc.disable()
    _MADE[:] = [recipe.start()]


def _make(batch: Batch) -> Chunk:
    return finish(_MADE[0](batch))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Nothing that is made of a row refers to itself, and looking for what does took a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def workers_for(path: Path, cores: int) -> int:
    """How many processes encode a file on a machine with so many cores: one, unless it is large and the cores are
    enough for one that reads and several that encode (two gained nothing on two cores, benchmarks/encode.py)."""
    files = path.rglob("*") if path.is_dir() else [path]
    small = sum(file.stat().st_size for file in files) < WORTH_WORKERS
    return 1 if small or cores < WORTH_CORES else min(MOST_WORKERS, cores)


def _examined(row: Row, examiner: hygiene.Examiner) -> store.Examined:
    return store.Examined(
        number=int(row.origin.rpartition(" ")[2]),
        flags=examiner.examine(row.record),
        prompt=hygiene.prompt_hash(row.record),
        record=hygiene.record_hash(row.record),
    )
