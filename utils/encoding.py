"""One file of records becomes encoded rows on disk, once: the next run that wants the same finds them.

Knows: what encoded rows depend on (the cache's key), how the work is divided among processes, and the order of things:
read, examine, encode, prove, write. Does not know mixtures or what is dropped in the end.

Rows pass through in chunks, so memory does not grow with the file.
"""

from __future__ import annotations

import gc
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from utils import cache, catalog, hygiene, records, store
from utils.encode import Encoder, Outcome, Stages, Truncation, finish
from utils.overlap import EvaluationSets
from utils.readers import Row
from utils.templates import Template, fingerprint
from utils.tokens import Tokenizer
from utils.tokens import fingerprint as tokenizer_fingerprint

CODE = (
    "catalog",
    "encode",
    "encoding",
    "formats",
    "hygiene",
    "lookup",
    "overlap",
    "readers",
    "records",
    "store",
    "tasks",
    "templates",
    "tokens",
)
"""The modules on which encoded rows depend."""

WORTH_WORKERS = 64 * 1024 * 1024
"""Bytes of a file from which several processes are worth their start, some seconds each."""
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
    shape: str
    sha256: str
    cached: bool
    """Whether they were there already."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How rows are examined and encoded; called with rows, it makes a chunk of the store. It can be pickled."""

    template: Template
    tokenizer: Tokenizer
    cutoff_len: int
    truncation: Truncation
    overlap: EvaluationSets | None = None
    languages: tuple[str, ...] = ()

    def start(self) -> Callable[[list[Row]], Stages[Any]]:
        """The function from rows to a chunk, in stages, with all that is made once."""
        encoder = Encoder(self.template, self.tokenizer, cutoff_len=self.cutoff_len, truncation=self.truncation)
        examiner = hygiene.Examiner(self.overlap, self.languages)
        empty = hygiene.BITS["empty_answer"] | hygiene.BITS["empty_instruction"]

        def stages(rows: list[Row]) -> Stages[Any]:
            examined = [_examined(row, examiner) for row in rows]
            sound = [row for row, each in zip(rows, examined, strict=True) if not each.flags & empty]
            encoded = iter((yield from encoder.stages(sound)))
            nothing = Outcome(encoded=None, what="empty")
            return store.chunk([nothing if each.flags & empty else next(encoded) for each in examined], examined)

        return stages


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
        FileNotFoundError, ValueError: as `records.read_part`; nothing is kept then.
        MaskError: a row failed its proof.
        OSError: the cache cannot be written.
    """
    if not part.path.exists():
        raise FileNotFoundError(catalog.missing_file(part))
    content = cache.content_hash(part.path)
    key = cache.key_of(_made_from(part, recipe, content, seed))
    made = []

    def make(folder: Path) -> None:
        made.append(True)
        _write(folder, part, recipe, seed=seed, workers=workers or workers_for(part.path, _cores()), on_rows=on_rows)

    folder = cache.entry(key, make)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    return EncodedPart(
        rows=store.EncodedFile(folder / "rows.arrow", origin=f"{part.path} {about['unit']}", source=part.name),
        read=about["read"],
        left_out=about["left_out"],
        shape=about["shape"],
        sha256=content,
        cached=not made,
    )


def _made_from(part: catalog.Part, recipe: Recipe, content: str, seed: int) -> dict[str, Any]:
    import tokenizers
    import transformers

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
        "code": cache.code_hash(CODE),
        "libraries": [tokenizers.__version__, transformers.__version__],
    }


def _write(
    folder: Path, part: catalog.Part, recipe: Recipe, *, seed: int, workers: int, on_rows: Callable[[int], object]
) -> None:
    count, chosen = records.choose(part, seed)
    about = {"read": 0, "left_out": 0, "shape": "", "unit": "row"}

    def rows() -> Iterator[Row]:
        row = None
        for row in records.read_part(part, chosen):
            about["read"] += 1
            yield row
        if row is not None:
            about["shape"] = row.shape
            about["unit"] = row.origin.removeprefix(f"{part.path} ").split()[0]

    def counted(chunks: Iterable[Any]) -> Iterator[Any]:
        for made in chunks:
            on_rows(made.num_rows)
            yield made

    with _without_garbage_collection():
        store.write(folder / "rows.arrow", counted(_chunks(rows(), recipe, workers)))
    if count is not None:
        about["left_out"] = count - about["read"]
        about["read"] = count
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _chunks(rows: Iterator[Row], recipe: Recipe, workers: int) -> Iterator[Any]:
    """The chunks of all rows, in order, made here or by `workers` processes."""
    if workers == 1:
        yield from _overlapped(map(recipe.start(), _batches(rows)))
        return
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor

    # Not by fork: torch's and the tokenizer's threads would be missing in the copy.
    context = multiprocessing.get_context("spawn")
    waiting: deque[Future[Any]] = deque()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(recipe,)) as pool:
        try:
            for batch in _batches(rows):
                waiting.append(pool.submit(_make, batch))
                if len(waiting) > CHUNKS_AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _overlapped(chunks: Iterator[Stages[Any]]) -> Iterator[Any]:
    """The results of stages, in order. While a thread is at the tokenizer's work for one chunk, which needs no
    interpreter, this one is at the work of its neighbours: each turn begins a chunk and takes the older ones one stage
    on."""
    from concurrent.futures import Future, ThreadPoolExecutor

    going: list[tuple[Stages[Any], Future[Any]]] = []
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


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, store.CHUNK_ROWS)):
        yield batch


_MADE: list[Callable[[list[Row]], Stages[Any]]] = []
"""In a worker: what its recipe started."""


def _start(recipe: Recipe) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    gc.disable()
    _MADE[:] = [recipe.start()]


def _make(rows: list[Row]) -> Any:
    return finish(_MADE[0](rows))


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
    """How many processes encode a file on a machine with so many cores: one, unless it is large."""
    if path.is_dir() or path.stat().st_size < WORTH_WORKERS:
        return 1
    return min(MOST_WORKERS, cores)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _examined(row: Row, examiner: hygiene.Examiner) -> store.Examined:
    return store.Examined(
        number=int(row.origin.rpartition(" ")[2]),
        flags=examiner.examine(row.record),
        prompt=hygiene.prompt_hash(row.record),
        record=hygiene.record_hash(row.record),
    )
