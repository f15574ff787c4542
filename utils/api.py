"""A model server's HTTP API: what is asked of it, again where that may help, and what to say when it refuses.

Knows: addresses, keys, time limits, and which failures pass by themselves. Does not know what the questions mean; that
is `utils.remote`.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import itertools
import os
import random
import urllib.parse
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx2

KEY = "OPENAI_API_KEY"
"""The environment's key, under the name that OpenAI's own client reads."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts; a server that asks for more is reported."""
CONNECT_SECONDS = 10.0
SHOWN = 300
"""Characters of a server's message."""
_BUSY = (429, 502, 503, 504)
"""What a server, or what stands before it, says whatever it was asked."""
Value = TypeVar("Value")


class Passing(Exception):
    """A failure that may pass by itself.

    Args:
        what: for people.
        busy: whether it is the server's state; otherwise what was asked may be the reason.
        unreachable: whether there was no connection at all.
        asked: seconds that the server wants us to wait.
    """

    def __init__(self, what: str, *, busy: bool = False, unreachable: bool = False, asked: float = 0.0) -> None:
        super().__init__(what)
        self.busy, self.unreachable, self.asked = busy, unreachable, asked
        self.attempts = 1

    def __str__(self) -> str:
        wait = f"; it wants us to wait {self.asked:g} seconds" if self.asked > LONGEST_WAIT else ""
        return super().__str__() + wait + (f", {self.attempts} times" if self.attempts > 1 else "")


class Refusal(Exception):
    """The server's no, which another attempt does not change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status


@dataclass(kw_only=True)
class Api:
    """An API below `base_url`.

    Args:
        api_key: None takes the environment's, if it has one.
        timeout: seconds until an answer must be there.
        max_retries: further attempts at what may pass by itself.
        sleep: how a further attempt is waited for.

    Raises:
        ValueError: an address or a key that cannot be one.
    """

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    concurrency: int
    timeout: float
    max_retries: int
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
    is_met: bool = False
    """Whether it has ever answered; until then an address that does not is taken to be the wrong one."""

    def __post_init__(self) -> None:
        self.base_url, self._host = _checked(self.base_url)
        if self.api_key == "":
            raise ValueError("--api_key_file is empty: write the key into it, or leave the flag out")
        key = os.environ.get(KEY, "").strip() if self.api_key is None else self.api_key
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError(f"the API's key (--api_key_file, or {KEY}) must be one word of plain characters")
        self.api_key = key or None

    def client(self) -> httpx2.AsyncClient:
        """Connections, no more than `concurrency`; to be closed."""
        is_here = _is_loopback(self._host)
        return httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            timeout=httpx2.Timeout(self.timeout, connect=min(CONNECT_SECONDS, self.timeout)),
            limits=httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
            trust_env=not is_here,  # a proxy cannot reach this machine's own ports
            # Without TLS there is nothing to verify, and to read the certificates for it takes a fifth of a second.
            verify=not (is_here and self.base_url.startswith("http:")),
        )

    async def ask(
        self,
        client: httpx2.AsyncClient,
        path: str,
        body: dict[str, Any] | None = None,
        read: Callable[[Any], Value] = lambda reply: reply,
    ) -> Value:
        """What `read` makes of the JSON that the server answers; GET without a body, POST with one. What may pass by
        itself, and `read` may raise it, too, is tried again: each time after twice as long, and of that a random half,
        so that many who failed together do not come back together.

        Raises:
            Passing: it did not pass, or a server that never answered cannot be reached.
            Refusal: any other status that is not success.
        """
        for failures in itertools.count():
            try:
                return read(await self._once(client, path, body))
            except Passing as problem:
                problem.attempts = failures + 1
                is_absent = problem.unreachable and not self.is_met
                if is_absent or failures >= self.max_retries or problem.asked > LONGEST_WAIT:
                    raise
                wait = max(problem.asked, min(LONGEST_WAIT, 2.0**failures) * random.uniform(0.5, 1))
            await self.sleep(wait)
        raise AssertionError("counting has no end")

    async def _once(self, client: httpx2.AsyncClient, path: str, body: dict[str, Any] | None) -> Any:
        method = "GET" if body is None else "POST"
        try:
            response = await client.request(method, f"{self.base_url}{path}", json=body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Passing(_reason(error), busy=True, unreachable=True) from error
        except httpx2.TimeoutException as error:
            raise Passing(f"no answer within {self.timeout:g} seconds") from error
        except httpx2.RequestError as error:
            raise Passing(f"the connection broke ({_reason(error)})") from error
        self.is_met = True
        status = response.status_code
        if status in (408, 429) or status >= 500:
            what = f"HTTP {status}: {self._said(response)}"
            raise Passing(what, busy=status in _BUSY, asked=_asked_wait(response))
        if status >= 300:
            raise Refusal(status, self._said(response))
        try:
            return response.json()
        except ValueError as error:
            raise Passing(f"what it sent is not JSON: {self._shown(response.text)}") from error

    def _said(self, response: httpx2.Response) -> str:
        """The server's own words, in the shapes that OpenAI, vLLM, SGLang and FastAPI give them."""
        if "Location" in response.headers:
            return f"moved to {response.headers['Location']}"
        try:
            body = response.json()
        except ValueError:
            return self._shown(response.text) or response.reason_phrase
        while isinstance(body, dict):
            body = next((body[name] for name in ("error", "message", "detail") if body.get(name)), str(body))
        return self._shown(str(body))

    def _shown(self, text: str) -> str:
        """One line of a server's text, without the key, which some send back."""
        line = " ".join(text.split())
        line = line.replace(self.api_key, "…") if self.api_key else line
        return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"


def _checked(base_url: str) -> tuple[str, str]:
    """The address without a slash at its end, and its host."""
    flag = f"--api_base {base_url!r}"
    parts = urllib.parse.urlsplit(base_url)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error
    if parts.username or parts.password:
        raise ValueError("--api_base holds a user or a password: put the key into a file and give it as --api_key_file")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ValueError(f"{flag} is not an address such as http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/")
    for end in ("/chat/completions", "/completions", "/models"):
        if path.endswith(end):
            raise ValueError(f"{flag}: leave out {end}, which is added where it belongs")
    return f"{parts.scheme}://{parts.netloc}{path}", host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _asked_wait(response: httpx2.Response) -> float:
    """Seconds that the server asks for, as a number or as a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
