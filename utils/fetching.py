"""Files of data that lie elsewhere, brought into their places: resumed, checked, then renamed.

Knows: where a file gathers, when it is whole and the right one. Does not know how it travels (`utils.transfer`), nor
catalogue keys, nor what is in it.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import shutil
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from utils import disk, hub, transfer
from utils.transfer import OnProgress, Remote, Version


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file in its place."""

    path: Path
    bytes: int
    sha256: str
    skipped: bool
    """It was there already, whole."""
    checked: str
    """What it was compared with: the given sha256, the hub's sha256, the hub's git id, the size, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A file of a repository."""

    path: str
    bytes: int
    sha256: str
    """Empty for a small file, which the hub keeps in git."""


def fetch(
    repository: str,
    filename: str,
    target: Path,
    *,
    sha256: str = "",
    revision: str = "main",
    overwrite: bool = True,
    on_progress: OnProgress | None = None,
) -> Fetched:
    """Brings a file of the hub's dataset `repository` to `target`, which is replaced only by a whole and checked file.

    What came of an interrupted download stays beside the target in `.NAME.….part`, and the next call goes on from
    there. A target that is whole is left alone; with `sha256` (64 hex digits) no network is needed to know it.
    Honours `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT` (seconds).

    Args:
        overwrite: whether another file that is there is replaced.

    Raises:
        ConnectionError: the hub does not answer, is offline by the user's wish, or broke off.
        FileNotFoundError: no such repository, revision or file.
        PermissionError: a token is missing, wrong or not enough.
        ValueError: the file is not the one with `sha256`; another is there, and is not to be replaced.
        OSError: the disk is full, or the target cannot be written.
    """
    return _bring(transfer.on_hub(repository, filename, revision), target, sha256, on_progress, overwrite=overwrite)


def fetch_url(
    url: str, target: Path, *, sha256: str = "", overwrite: bool = True, on_progress: OnProgress | None = None
) -> Fetched:
    """`fetch` for `hf://datasets/OWNER/NAME/FILE` or an http(s) address; the hub's token is not sent to the latter."""
    if url.startswith("hf://"):
        repository, filename, revision = parse_hf(url)
        return fetch(
            repository,
            filename,
            target,
            sha256=sha256,
            revision=revision,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an address of a file: it must begin with https:// or hf://datasets/")
    return _bring(Remote(url=url, page=url, name=url), target, sha256, on_progress, overwrite=overwrite)


def parse_hf(address: str) -> tuple[str, str, str]:
    """`hf://datasets/OWNER/NAME[@REVISION]/FILE` → (`OWNER/NAME`, `FILE`, `REVISION` or `main`)."""
    match = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", address)
    if match is None:
        raise ValueError(f"{address!r} is not an address of a file: expected hf://datasets/OWNER/NAME/FILE")
    return match[1], match[3], match[2] or "main"


def raw_targets(urls: Sequence[str], folder: Path) -> list[Path]:
    """Where each of `urls` goes below `folder`: under its own name, with as much of its path as keeps them apart."""
    pieces = [[piece for piece in _path(url).split("/") if piece not in ("", ".", "..")] or ["file"] for url in urls]
    for depth in range(1, max(map(len, pieces), default=0) + 1):
        names = ["_".join(piece[-depth:]) for piece in pieces]
        if len(set(names)) == len(names):
            return [folder / name for name in names]
    if not urls:
        return []
    raise ValueError(f"two of the raw files have one name ({', '.join(urls)}): they cannot be told apart in {folder}")


def _path(url: str) -> str:
    if url.startswith("hf://"):
        return url  # as it is: # and ? may be in a file's name
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path)


def list_files(repository: str, folder: str = "", *, revision: str = "main") -> list[Listed]:
    """The files of a dataset repository in `folder` and below, by path. Raises as `fetch` does."""
    where = "/".join(("datasets", repository, "tree", urllib.parse.quote(revision), urllib.parse.quote(folder)))
    remote = Remote(
        url=hub.endpoint(),
        page=f"{hub.PUBLIC}/{where}".rstrip("/"),
        name=f"{folder!r} of {repository}" if folder else f"the files of {repository}",
        repository=repository,
        filename=folder,
        revision=revision,
    )
    hint = f"see what there is at {remote.page}"
    with transfer.explained(remote, hint):
        transfer.require_network(remote, hint)
        rows = transfer.persistently(lambda: transfer.tree(repository, folder, revision))
    listed = [Listed(path=row["path"], bytes=row["size"], sha256=(row.get("lfs") or {}).get("oid", "")) for row in rows]
    return sorted(listed, key=lambda file: file.path)


def by_hand(url: str, target: Path, *, sha256: str = "") -> str:
    """How to do without us: what to download, where it goes, and what it must be."""
    proof = f" (its sha256 must be {sha256})" if sha256 else ""
    return f"by hand: download {url}{proof} and save it as {target.absolute()}"


def _bring(remote: Remote, target: Path, sha256: str, on_progress: OnProgress | None, *, overwrite: bool) -> Fetched:
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder, where {remote.name} would be saved: move it away")
    sha256 = sha256.lower()
    if sha256 and target.is_file() and _digest(target, "sha256") == sha256:
        return _fetched(target, sha256, "the given sha256", skipped=True)
    hint = by_hand(remote.page, target, sha256=sha256)
    with transfer.explained(remote, hint):
        transfer.require_network(remote, hint)
        version = transfer.persistently(lambda: transfer.describe(remote))
    hubs = _hubs_sha256(remote, version)
    if sha256 and hubs and hubs != sha256:
        raise ValueError(
            f"{remote.name} has changed: its sha256 should be {sha256}, and on the hub it is {hubs}; nothing was "
            f"downloaded. If {remote.page} can be trusted, correct the sha256 in data/datasets.toml"
        )
    if target.is_file() and version.size == target.stat().st_size:
        try:
            return _fetched(target, *_check(target, remote, version, sha256), skipped=True)
        except ValueError:
            pass  # another file of this size: it stays until a checked one takes its place
    if target.exists() and not overwrite:
        raise ValueError(
            f"{target} is there, and is not the file that {remote.page} has: --overwrite replaces it, or move it away"
        )
    return _download(remote, version, target, sha256, on_progress or (lambda here, whole: None))


def _download(remote: Remote, version: Version, target: Path, sha256: str, on_progress: OnProgress) -> Fetched:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(remote, version, target, sha256)
    _require_space(part, remote, version)

    def attempt() -> None:
        transfer.transfer(remote, version, file, on_progress)

    with _full_disk_explained(part, remote, version), _claimed(part, remote) as file:
        with transfer.explained(remote, by_hand(remote.page, target, sha256=sha256), lambda: _kept(part, version)):
            transfer.persistently(attempt, lambda: file.seek(0, os.SEEK_END))
        file.flush()
        try:
            found, checked = _check(part, remote, version, sha256)
        except ValueError:
            part.unlink()
            raise
        os.replace(part, target)
    return _fetched(target, found, checked, skipped=False)


def _part(remote: Remote, version: Version, target: Path, sha256: str) -> Path:
    """Where this version gathers. What cannot become it goes: other versions, too many bytes, and bytes of a file whose
    server does not tell versions apart."""
    tag = hashlib.sha256(f"{remote.url}\n{version.tag}\n{version.size}".encode()).hexdigest()[:12]
    part = target.with_name(f".{target.name}.{tag}.part")
    for found in target.parent.glob(f".{glob.escape(target.name)}.{'?' * 12}.part"):
        too_long = version.size is not None and found.stat().st_size > version.size
        if found != part or too_long or not (version.tag or sha256):
            found.unlink()
    return part


@contextmanager
def _claimed(part: Path, remote: Remote) -> Iterator[IO[bytes]]:
    """`part`, open for appending, and closed to other processes until it has its name."""
    import fcntl

    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"another process is fetching {remote.name} into {part}: let it finish") from error
        except OSError:
            pass  # a file system without locks: the check at the end must do
        if not part.exists() or not os.path.samestat(os.fstat(file.fileno()), part.stat()):
            raise OSError(f"another process has just fetched {remote.name}: run the same command again")
        yield file


def _require_space(part: Path, remote: Remote, version: Version) -> None:
    needed = (version.size or 0) - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(
            f"{remote.name} takes {disk.megabytes(needed)} more in {part.parent}, where "
            f"{disk.megabytes(free)} are free: make room, then run the same command again"
        )


@contextmanager
def _full_disk_explained(part: Path, remote: Remote, version: Version) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = disk.megabytes(shutil.disk_usage(part.parent).free)
        raise OSError(
            f"the disk of {part.parent} is full ({free} free) while {remote.name} is fetched; {_kept(part, version)}"
            "make room, then run the same command again"
        ) from error


def _kept(part: Path, version: Version) -> str:
    here = part.stat().st_size if part.exists() else 0
    if not here:
        return ""
    whole = "" if version.size is None else f" of {version.size:,}"
    return f"{here:,}{whole} bytes are kept; "


def _check(path: Path, remote: Remote, version: Version, sha256: str) -> tuple[str, str]:
    """The sha256 of a whole file, and what it was compared with; `ValueError` if it is another file."""
    size = path.stat().st_size
    found = _digest(path, "sha256")
    hubs = _hubs_sha256(remote, version)
    checked, expected, actual = "nothing", "", ""
    if sha256:
        checked, expected, actual = "the given sha256", sha256, found
    elif hubs:
        checked, expected, actual = "the hub's sha256", hubs, found
    elif remote.repository and re.fullmatch(r"[0-9a-f]{40}", version.tag):
        # A small file's tag is its id in git: sha1 of a header and the bytes (git-scm.com/book, Git Objects).
        checked, expected, actual = "the hub's git id", version.tag, _digest(path, "sha1", b"blob %d\0" % size)
    elif version.size is not None:
        checked, expected, actual = "its size", str(version.size), str(size)
    if expected != actual:
        step = "name another mirror with HF_ENDPOINT" if remote.repository else "the source has changed"
        raise ValueError(
            f"{remote.name} is broken: {checked} is {expected}, what came has {actual}; it was not kept. Run the same "
            f"command again; if it stays so, {step}, or look at {remote.page}"
        )
    return found, checked


def _hubs_sha256(remote: Remote, version: Version) -> str:
    """A large file's tag is its sha256 (https://huggingface.co/docs/huggingface_hub/package_reference/file_download)."""
    return version.tag if remote.repository and re.fullmatch(r"[0-9a-f]{64}", version.tag) else ""


def _digest(path: Path, name: str, prefix: bytes = b"") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(name, prefix)).hexdigest()


def _fetched(path: Path, sha256: str, checked: str, *, skipped: bool) -> Fetched:
    return Fetched(path=path, bytes=path.stat().st_size, sha256=sha256, checked=checked, skipped=skipped)
