"""Whether the hub can be had, what to say of a model that cannot, and what a model's card tells the hub.

Knows: local directories, the hub's cache, whether the hub answers, and its metadata. Does not know what is in a model,
nor how a file of data is fetched; that is `utils.fetching`.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

PUBLIC = "https://huggingface.co"
PROBE_SECONDS = 5.0


def endpoint() -> str:
    """The hub's address: `HF_ENDPOINT`, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")


def is_offline() -> bool:
    """Whether the user forbids the network: `HF_HUB_OFFLINE` is set to anything but 0."""
    return os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")


def is_path(name: str) -> bool:
    """Whether `name` can only be a place in a file system, for no model's id has this form."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def card_metadata(base: str, *, library: str, tags: Sequence[str], relation: str = "") -> str:
    """What stands between the `---` of a model's card (https://huggingface.co/docs/hub/model-cards).

    Args:
        base: hub id or path of the model that this one was made from; a path is left out, for the hub takes ids alone.
        relation: to it, such as `finetune`; empty where the hub sees it by itself.
    """
    made_from = [] if is_path(base) else [f"base_model: {json.dumps(base)}"]
    if made_from and relation:
        made_from.append(f"base_model_relation: {relation}")
    return "\n".join(
        [*made_from, f"library_name: {library}", "pipeline_tag: text-generation", f"tags: [{', '.join(tags)}]"]
    )


def cache() -> Path:
    """Where the hub's client keeps what it fetched."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def require_reachable(name: str) -> bool:
    """Returns if `name` is a directory with a model, is cached, or its hub answers; True if only the cache is left, so
    that the hub's client need not be asked: it would retry for half a minute before it says that there is no network.
    Asks once, within five seconds.

    Raises:
        FileNotFoundError: `name` is a path, and nothing is there.
        ConnectionError: the hub does not answer, and nothing is cached.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{name} is a directory without a config.json, so it is not a model that transformers can load"
            )
        return False
    if is_path(name):
        raise FileNotFoundError(f"there is no model directory {name}")
    offline = is_offline()
    if offline or not answers(endpoint()):
        if not _is_cached(name):
            reason = "HF_HUB_OFFLINE is set" if offline else f"{endpoint()} does not answer from here"
            raise ConnectionError(advice(name, f"{reason}, and it is not in the cache"))
        return True
    return False


def advice(name: str, reason: str, flag: str = "--model_name_or_path") -> str:
    """The message for a model, or what else `flag` names, that cannot be loaded: the reason, and what can be done. Of a
    local directory, no hub knows more: what transformers says of the hub's files is left out of the reason."""
    if Path(name).expanduser().is_dir():
        reason = re.sub(r"\.?\s*Checkout '.*' for available files", "", reason).rstrip(".")
        return f"cannot load {name!r}: {reason}. Its files are not whole: download them again"
    if Path(name).parent.name and Path(name).parent.is_dir():
        reason = f"there is no directory {name} here, and {reason}"
    return (
        f"cannot load {name!r}: {reason}. Give a local directory to {flag}; or name a mirror with "
        "HF_ENDPOINT=https://…; or, if it is private or gated, log in with `hf auth login` or set HF_TOKEN"
    )


@functools.cache
def answers(address: str) -> bool:
    """Whether `address` says anything within five seconds. Asked once a process: many files want to know.

    In a thread, for a socket's timeout holds for each address of a host by itself, and for no look-up of its name.
    """
    heard: list[bool] = []
    probe = threading.Thread(target=lambda: heard.append(_probe(address)), daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return heard == [True]


def _probe(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # it answers, if only to refuse this page
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def _is_cached(name: str) -> bool:
    """The cache's layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache."""
    return any((cache() / f"models--{name.replace('/', '--')}").glob("snapshots/*/config.json"))
