"""What `--lora_dir` names: a directory here, or a folder of a repository on the hub, brought here.

Knows: which files a run or an adapter may consist of, and that no others are fetched. Does not know what is in them.
"""

from __future__ import annotations

import difflib
import glob
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from utils import hub, runinfo, transfer
from utils.adapter_files import CONFIG, PICKLED, WEIGHTS

MARKS = (runinfo.NAME, CONFIG)
"""One of them is in every directory that can be served."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "ice_text.model", "*.tiktoken")
"""One of them is in every directory that has a tokenizer."""
_OF_TOKENIZERS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)
_WHOLE = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.*",
)
"""Of a run that holds all weights of its model."""
_SHOWN = 8
"""Folders in a message."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """A folder of a model repository."""

    repository: str
    folder: str
    """Empty: the repository itself."""
    revision: str | None
    """Branch, tag or commit; None: the default branch."""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.repository, self.folder))) + (f"@{self.revision}" if self.revision else "")


def find(place: str | Path) -> Path:
    """The directory that `place` names: its own, or that of the files of `OWNER/NAME[/FOLDER…][@REVISION]`, from the
    hub or its cache. No code is among the files.

    A place is asked for at the hub only if nothing here has its first name: a mistyped path is nobody else's business.
    Honours `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` and the places of the cache.

    Raises:
        FileNotFoundError: no such directory, repository, revision or folder; or no adapter in it.
        ConnectionError: the hub does not answer, or is offline by the user's wish, and the cache lacks it.
        PermissionError: a token is missing, wrong or not enough.
    """
    address = on_hub(place)
    if address is not None:
        return _bring(address)
    path = Path(place).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no directory {place}{_some(_near(path))}")
    _require_mark(path)
    return path


def on_hub(place: str | Path) -> Address | None:
    """The folder on the hub that `place` can name; None for what is here, or can only be a path."""
    place = str(place)
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)/([\w.-]+)((?:/[^/@]+)*)/?(?:@([^/@]+))?", place, flags=re.ASCII)
    if match is None or ".." in place.split("/") or Path(match[1]).exists():
        return None
    return Address(repository=f"{match[1]}/{match[2]}", folder=match[3][1:], revision=match[4])


def _require_mark(directory: Path) -> None:
    if not any((directory / mark).is_file() for mark in MARKS):
        below = sorted({path.parent.name for mark in MARKS for path in directory.glob(f"*/{mark}")})
        raise FileNotFoundError(
            f"{directory} holds no {runinfo.NAME} and no {CONFIG}: it is not a run of uniform_finetune.py, or the run "
            f"did not finish, and it is no adapter{_some(below, '; in it are {}')}"
        )


def _near(path: Path) -> list[str]:
    """The directories beside `path` that are called nearly the same."""
    beside = [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, beside)]


def _some(names: Sequence[str], frame: str = ": did you mean {}?") -> str:
    """`frame` with the first of `names`; empty without any."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return frame.format(", ".join(names[:_SHOWN]) + more) if names else ""


def _bring(address: Address) -> Path:
    """The folder at `address`, out of the cache where the hub cannot be asked."""
    page = f"{hub.PUBLIC}/{address.repository}/tree/{address.revision or 'main'}/{address.folder}".rstrip("/")
    remote = transfer.Remote(
        url=hub.endpoint(),
        page=page,
        name=str(address),
        repository=address.repository,
        filename=address.folder,
        revision=address.revision or "main",
        kind="model",
    )
    by_hand = f"copy {page} by hand, and give its place here to --lora_dir"
    only_cached = hub.is_offline() or not hub.answers(hub.endpoint())
    with _both_places(address), transfer.explained(remote, by_hand), _uncached(address):
        return transfer.persistently(lambda: _fetched(address, only_cached))


@contextmanager
def _both_places(address: Address) -> Iterator[None]:
    """Says of a repository that is not there, or hidden, that its name is no directory either."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        cause = error.__cause__
        if not isinstance(cause, RepositoryNotFoundError) or isinstance(cause, GatedRepoError):
            raise
        raise type(error)(f"there is no directory {address} here; {error}") from error


@contextmanager
def _uncached(address: Address) -> Iterator[None]:
    """Says why the hub was not asked, where the client says only that something is not in its cache."""
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError, RevisionResolutionError

    try:
        yield
    except (LocalEntryNotFoundError, RevisionResolutionError, CachedRepoTreeNotFoundError) as error:
        reason = "HF_HUB_OFFLINE is set" if hub.is_offline() else f"{hub.endpoint()} does not answer from here"
        reason = f"it is no directory here, {reason}, and it is not, or not whole, in the hub's cache"
        raise ConnectionError(hub.advice(str(address), reason, "--lora_dir")) from error


def _fetched(address: Address, only_cached: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api, where = HfApi(endpoint=hub.endpoint()), {"cache_dir": hub.cache(), "local_files_only": only_cached}
    with _causes():
        revision = api.resolve_revision(address.repository, revision=address.revision, **where)
        wanted = _wanted(_names(api, address, revision, only_cached), address)
        patterns = [glob.escape(name) for name in wanted]
        snapshot = snapshot_download(
            address.repository, revision=revision, allow_patterns=patterns, endpoint=hub.endpoint(), **where
        )
    return Path(snapshot) / address.folder


@contextmanager
def _causes() -> Iterator[None]:
    """Raises what the hub said or how it broke off, where the client says only that the cache does not help."""
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionResolutionError

    try:
        yield
    except (LocalEntryNotFoundError, RevisionResolutionError) as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from error


def _names(api: Any, address: Address, revision: str, only_cached: bool) -> list[str]:
    """All files of the repository at a commit."""
    from huggingface_hub import RepoFile, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        found = get_cached_repo_tree(address.repository, revision=revision, cache_dir=hub.cache())
    except CachedRepoTreeNotFoundError:
        if only_cached:
            raise
        found = api.list_repo_tree(address.repository, recursive=True, revision=revision)
    return [file.path for file in found if isinstance(file, RepoFile)]


def _wanted(names: Sequence[str], address: Address) -> list[str]:
    """The files that are fetched. Raises `FileNotFoundError` where they are no run and no adapter."""
    inside = {name for name in names if name.rpartition("/")[0] == address.folder}
    files = {name.rpartition("/")[2]: name for name in inside}
    if not any(mark in files for mark in MARKS):
        raise FileNotFoundError(_no_adapter(names, files, address))
    weights = [name for name in (WEIGHTS, PICKLED) if name in files][:1]
    if not weights and runinfo.NAME not in files:
        raise FileNotFoundError(f"{address} has neither {WEIGHTS} nor {PICKLED}: ask its owner for the weights")
    patterns = (*MARKS, *weights, *VOCABULARIES, *_OF_TOKENIZERS, *(_WHOLE if runinfo.NAME in files else ()))
    return sorted(path for name, path in files.items() if any(fnmatch(name, pattern) for pattern in patterns))


def _no_adapter(names: Sequence[str], files: dict[str, str], address: Address) -> str:
    folders = sorted({name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in MARKS})
    if "config.json" in files:
        return f"{address} is a whole model and no adapter: give it to --model_name_or_path"
    below = [folder for folder in folders if folder.startswith(f"{address.folder}/" if address.folder else "")]
    near = difflib.get_close_matches(address.folder, folders)
    what = f"{address.repository} has no adapter {address.folder!r}" if address.folder else f"{address} is no adapter"
    shown = _some(near) if near and not below else _some(below or folders, ": it has {}")
    return what + (shown or f" and no folder with one: see {hub.PUBLIC}/{address.repository}")
