"""How many answers each client waits for, wherever it asks: one count for the API and the page.

Knows: addresses, and the most answers at the same time. Does not know what an answer is, or how a refusal is said. To
be used from one thread, as an event loop is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MOST = 64
"""Answers of one address at the same time."""


class TooMany(Exception):
    """A client asks for more answers than it may wait for.

    Args:
        waiting: those that it waits for already.
        most: that it may wait for.
    """

    def __init__(self, client: str, waiting: int, count: int, most: int) -> None:
        super().__init__(
            f"{client} waits for {waiting} answers already, and asks for {count}; at most {most} at the same time"
        )
        self.waiting, self.most = waiting, most


class Clients:
    """How many answers each client waits for."""

    def __init__(self, most: int = MOST) -> None:
        self._most, self._waiting = most, Counter[str]()

    @contextmanager
    def taking(self, client: str, count: int = 1) -> Iterator[None]:
        """Counts answers as waited for, unless the block fails.

        Raises:
            TooMany: they would be too many.
        """
        waiting = self._waiting[client]
        if waiting + count > self._most:
            raise TooMany(client, waiting, count, self._most)
        self._waiting[client] = waiting + count
        try:
            yield
        except BaseException:
            self.give_back(client, count)
            raise

    def give_back(self, client: str, count: int = 1) -> None:
        """They are there, or no longer wanted."""
        self._waiting[client] -= count
        if self._waiting[client] <= 0:
            del self._waiting[client]


def address_of(request: Any) -> str:
    """Where a request comes from, one of starlette's or of Gradio's."""
    return request.client.host if request.client else "a client without an address"
