"""How a file comes over HTTP: what its server says of it, its bytes, further attempts, and what to say when it fails.

Knows: the hub's repositories and plain addresses. Does not know where a file goes, nor when it is the right
one; that is `utils.fetching`.

The hub's protocol is huggingface_hub's business: addresses, redirects, tokens, headers. The bytes are taken here over
plain HTTP, which every mirror speaks: `hf_hub_download` (huggingface_hub 2.4) deletes what came when it is interrupted,
and the client's own lists have no time limit.
"""

from __future__ import annotations

import difflib
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal, TypeVar

from utils import disk, hub

WAITS = (1.0, 2.0, 4.0)
"""Seconds before each further attempt."""
LONGEST_WAIT = 30.0
"""Seconds that a server may ask us to wait; one that wants more is reported."""
SHOWN = 8
"""File names in a message."""
OnProgress = Callable[[int, int | None], None]
"""Called with the bytes that are here and the bytes of the whole file, None where the server does not say."""
Value = TypeVar("Value")
_OFFLINE = "cannot fetch {}: HF_HUB_OFFLINE is set. Unset it"
_NO_HUB = "{} answers, but not as the hub does: check HF_ENDPOINT, and whether this network wants you to log in first"


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file that can be asked for; without a repository it is a plain address."""

    url: str
    page: str
    """Where a person can get it."""
    name: str
    """In messages."""
    repository: str = ""
    filename: str = ""
    revision: str = "main"
    kind: Literal["dataset", "model"] = "dataset"
    """Of the repository."""

    @property
    def home(self) -> str:
        """The repository's page."""
        return f"{hub.PUBLIC}/{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"


@dataclass(frozen=True, kw_only=True)
class Version:
    """What a server says of a file as it is now."""

    url: str
    size: int | None
    tag: str
    """Its ETag (on the hub the file's sha256 or its git id, without quotes), else its date, else empty."""


class Cut(Exception):
    """The file did not come whole; the next attempt goes on."""


def on_hub(repository: str, filename: str, revision: str) -> Remote:
    """The file at the user's endpoint; a person is sent to the public hub."""
    from huggingface_hub import hf_hub_url

    url, page = (
        hf_hub_url(repository, filename, repo_type="dataset", revision=revision, endpoint=endpoint)
        for endpoint in (hub.endpoint(), hub.PUBLIC)
    )
    name = f"{filename!r} of {repository}"
    return Remote(url=url, page=page, name=name, repository=repository, filename=filename, revision=revision)


def require_network(remote: Remote, by_hand: str) -> None:
    """`ConnectionError` if the user forbids the network, or the server says nothing within five seconds."""
    if hub.is_offline():
        raise ConnectionError(f"{_OFFLINE.format(remote.name)}; or {by_hand}")
    address = hub.endpoint() if remote.repository else urllib.parse.urljoin(remote.url, "/")
    if not hub.answers(address):
        mirror = "name a mirror with HF_ENDPOINT=https://…; or " if remote.repository else ""
        raise ConnectionError(f"cannot fetch {remote.name}: {address} does not answer from here; {mirror}{by_hand}")


def describe(remote: Remote) -> Version:
    """What the server says of a file, without its bytes."""
    if not remote.repository:
        with _stream(remote, remote.url, {}) as response:
            if "html" in response.headers.get("Content-Type", "") and not re.search(r"\.html?$", remote.url):
                raise ValueError(f"{remote.url} is a web page, not a file: open it in a browser and look for the file")
            size = response.headers.get("Content-Length", "")
            tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            return Version(url=remote.url, size=int(size) if size.isdigit() else None, tag=tag)
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    endpoint = hub.endpoint()
    timeout = _seconds("HF_HUB_ETAG_TIMEOUT")
    found = get_hf_file_metadata(remote.url, token=_token() or False, timeout=timeout, endpoint=endpoint)
    if found.commit_hash is None or found.etag is None:
        raise ConnectionError(f"{_NO_HUB.format(endpoint)} (it sends no X-Repo-Commit or no ETag)")
    # The commit, so that a push between this answer and the bytes changes nothing.
    url = hf_hub_url(
        remote.repository, remote.filename, repo_type="dataset", revision=found.commit_hash, endpoint=endpoint
    )
    return Version(url=url, size=found.size, tag=found.etag)


def transfer(remote: Remote, version: Version, file: IO[bytes], on_progress: OnProgress) -> None:
    """Appends to `file` what it lacks; raises when the connection ends before it is whole."""
    here = file.seek(0, os.SEEK_END)
    if here and here == version.size:
        return
    headers = {}
    if here:
        headers["Range"] = f"bytes={here}-"
        if version.tag and not remote.repository:  # the hub's address names the commit, and its storage has other tags
            headers["If-Range"] = version.tag
    with _stream(remote, version.url, headers) as response:
        span = response.headers.get("Content-Range", "")
        if here and not (response.status_code == 206 and span.startswith(f"bytes {here}-")):
            file.truncate(0)
            if response.status_code != 200:
                raise Cut(f"the server was asked for the bytes from {here} on and sent {span or 'others'}")
            here = 0
        on_progress(here, version.size)
        for chunk in response.iter_raw():
            file.write(chunk)
            here += len(chunk)
            on_progress(here, version.size)
    if version.size is not None and here < version.size:
        raise Cut("the server ended early")


def tree(repository: str, folder: str, revision: str) -> list[dict[str, Any]]:
    """The hub's rows for the files of a folder and below: `path`, `size`, and `lfs` with `oid` for a large one
    (https://huggingface.co/docs/hub/api#get-apidatasetsrepoidtreerevisionpath)."""
    quoted = [urllib.parse.quote(piece, safe="") for piece in (revision, folder) if piece]
    url = f"{hub.endpoint()}/api/datasets/{repository}/tree/{'/'.join(quoted)}?recursive=true"
    rows: list[dict[str, Any]] = []
    while url:
        response = _get(url)
        try:
            rows += [row for row in response.json() if row["type"] == "file"]
        except (ValueError, TypeError, KeyError) as error:
            raise ConnectionError(f"{_NO_HUB.format(hub.endpoint())} (its list of files is not one)") from error
        # A mirror may pass on the hub's own address for the next page.
        url = response.links.get("next", {}).get("url", "").replace(hub.PUBLIC, hub.endpoint())
    return rows


def persistently(attempt: Callable[[], Value], measure: Callable[[], int] = lambda: 0) -> Value:
    """`attempt`, and again after what may pass by itself; a megabyte more in `measure` earns all attempts anew."""
    failures = 0
    while True:
        before = measure()
        try:
            return attempt()
        except Exception as error:
            if measure() - before >= disk.MEGABYTE:
                failures = 0
            wait = _wait(error, failures)
            if wait is None:
                raise
        failures += 1
        time.sleep(wait)


@contextmanager
def explained(remote: Remote, by_hand: str, kept: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turns what the client raises into one line with the next step.

    Args:
        by_hand: how to do without us.
        kept: what is on disk already and will not be asked for again.

    Raises:
        ConnectionError: offline, silent, or broken off.
        FileNotFoundError: no such repository, revision or file, with those that are near.
        PermissionError: a token is missing, wrong or not enough.
        OSError: any other refusal.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConnectionError(f"{_OFFLINE.format(remote.name)}; or {by_hand}") from error
    except HfHubHTTPError as error:
        raise _refusal(remote, error.response, by_hand, kept()) from error
    except (httpx2.HTTPError, Cut) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConnectionError(
            f"the connection to {_host(remote)} broke while {remote.name} was fetched ({reason}); {kept()}run the same "
            f"command again; or {by_hand}"
        ) from error


def _refusal(remote: Remote, response: Any, by_hand: str, kept: str) -> OSError:
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    what = f"{_host(remote)} refuses {remote.name} ({status})"
    if status in (408, 429) or status >= 500:
        asked = _asked_wait(response)
        tried = "" if asked > LONGEST_WAIT else f" after {len(WAITS) + 1} attempts"
        when = f"in {asked} seconds" if asked else "later"
        return ConnectionError(f"{what}{tried}; {kept}run the same command again {when}")
    if not remote.repository:
        if status == 404:
            return FileNotFoundError(f"there is no file at {remote.url} (404): the source has moved; look for it there")
        return PermissionError(f"{what}; if a browser may have it, {by_hand}")
    if code == "GatedRepo":
        return PermissionError(
            f"{what}: the repository is gated. Accept its conditions at {remote.home}, "
            "then set HF_TOKEN to a token of that account, or run `hf auth login`"
        )
    if status == 401 and not _token():
        return PermissionError(
            f"{what}: no token was sent, and the repository is private, gated or does not exist. Check its name; then "
            f"set HF_TOKEN or run `hf auth login`; or {by_hand}"
        )
    if status in (401, 403):
        return PermissionError(
            f"{what}: the token of HF_TOKEN or `hf auth login` is not accepted for it. Make one that may read it at "
            f"{hub.PUBLIC}/settings/tokens; or {by_hand}"
        )
    if status == 404 and not code:
        return ConnectionError(f"{_NO_HUB.format(hub.endpoint())} (404 without X-Error-Code); or {by_hand}")
    if status == 404:
        return FileNotFoundError(f"{_absent(remote, code)}; see {remote.home}")
    return OSError(f"{what}; {by_hand}")


def _absent(remote: Remote, code: str) -> str:
    """What is not there, and what is near it."""
    if code == "RevisionNotFound":
        names = _quietly(lambda: _revisions(remote))
        return f"{remote.repository} has no revision {remote.revision!r}" + _some(names, "; it has {}")
    if code != "EntryNotFound":
        return f"there is no {remote.kind} repository {remote.repository} at {_host(remote)}: check its name"
    paths = _quietly(lambda: [row["path"] for row in tree(remote.repository, "", remote.revision)])
    below = [path for path in paths if path.startswith(remote.filename.rstrip("/") + "/")]
    if below:
        return f"{remote.name} is a folder" + _some(below, ": name one of its files, {}")
    near = difflib.get_close_matches(remote.filename, paths, n=3, cutoff=0.6)
    return f"there is no {remote.name}" + (
        _some(near, "; did you mean {}?") or _some(paths, "; its files are {}") if paths else ""
    )


def _revisions(remote: Remote) -> list[str]:
    found = _get(f"{hub.endpoint()}/api/{remote.kind}s/{remote.repository}/refs").json()
    return [ref["name"] for kind in ("branches", "tags") for ref in found[kind]]


def _quietly(ask: Callable[[], list[str]]) -> list[str]:
    """A list that would help a message; none if it cannot be had, for the message matters more."""
    import httpx2

    try:
        return ask()
    except (httpx2.HTTPError, OSError, ValueError, KeyError):
        return []


def _some(names: list[str], frame: str) -> str:
    """`frame` with the first of `names`; empty without any."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return frame.format(", ".join(names[:SHOWN]) + more) if names else ""


@contextmanager
def _stream(remote: Remote, url: str, headers: dict[str, str]) -> Iterator[Any]:
    """An answer whose body is yet to be read; an error raises, but not 416 (nothing is left to send). The client drops
    the token where another host takes over."""
    from huggingface_hub import get_session, hf_raise_for_status

    headers = {"Accept-Encoding": "identity", **headers}  # so that sizes and ranges are the file's
    if remote.repository:
        headers |= _authorization()
    timeout = _seconds("HF_HUB_DOWNLOAD_TIMEOUT")
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        if response.status_code != 416:
            hf_raise_for_status(response)
        packed = response.headers.get("Content-Encoding", "identity")
        if packed != "identity":
            raise ConnectionError(f"{url} comes packed as {packed}, which was not asked for: try another mirror")
        yield response


def _get(url: str) -> Any:
    from huggingface_hub import get_session, hf_raise_for_status

    timeout = _seconds("HF_HUB_ETAG_TIMEOUT")
    response = get_session().get(url, headers=_authorization(), timeout=timeout, follow_redirects=True)
    hf_raise_for_status(response)
    return response


def _authorization() -> dict[str, str]:
    token = _token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _token() -> str | None:
    """`HF_TOKEN`, or what `hf auth login` left."""
    from huggingface_hub import get_token

    return get_token()


def _seconds(name: str) -> float:
    """A time limit from the environment; the client's own default is ten seconds."""
    value = os.environ.get(name) or "10"
    if not re.fullmatch(r"[1-9]\d*", value):  # the client takes whole numbers only
        raise ValueError(f"{name}={value!r} must be a whole number of seconds, 1 or more")
    return float(value)


def _wait(error: Exception, failures: int) -> float | None:
    """Seconds until another attempt is worth it, None if it is not."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if failures >= len(WAITS):
        return None
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in (408, 429) and error.response.status_code < 500:
            return None
        asked = _asked_wait(error.response)
        return None if asked > LONGEST_WAIT else max(asked, WAITS[failures])
    return WAITS[failures] if isinstance(error, (httpx2.TransportError, Cut)) else None


def _asked_wait(response: Any) -> int:
    """Seconds that the server asks for (RFC 9110, 10.2.3; a date is not understood)."""
    value = response.headers.get("Retry-After", "")
    return int(value) if value.isdigit() else 0


def _host(remote: Remote) -> str:
    return urllib.parse.urlsplit(remote.url).netloc
