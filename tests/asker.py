"""A client of `openai_server` that does not sleep, and what it is to get.

Knows: which answers that server gives. Does not know what a test asks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import RECORDS
from openai_server import Fault, ModelServer, serving

from utils import cli
from utils.encode import encode_prompt
from utils.generation import Answer
from utils.remote import Remote
from utils.stopping import Ends
from utils.templates import TEMPLATES

ENDS = Ends(ids=[2])
GREEDY = cli.greedy_settings(16)
KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def no_key_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [encode_prompt(record, TEMPLATES["alpaca"], tokenizer) for record in RECORDS]


@pytest.fixture
def server(tokenizer: Any) -> Iterator[ModelServer]:
    with serving(ModelServer(tokenizer=tokenizer)) as running:
        yield running


class Asker:
    """A `Remote` that does not sleep, and its waits."""

    def __init__(self, server: ModelServer, **options: Any) -> None:
        self.waits: list[float] = []
        options = {"base_url": server.url, "max_retries": 3, **options}
        self.remote = Remote(sleep=self._sleep, **options)
        self._tokenizer = server.tokenizer

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    def __call__(self, prompts: list[list[int]], settings: Any = GREEDY, **options: Any) -> list[Any]:
        return self.remote.answers(prompts, settings, **{"tokenizer": self._tokenizer, "ends": ENDS, **options})


def expected(server: ModelServer, prompts: list[list[int]]) -> list[Answer]:
    texts = [server.tokenizer.decode(ids[-server.answer :]) for ids in prompts]
    return [
        Answer(text=text, finish_reason="stop", prompt_tokens=len(ids), new_tokens=server.answer + 1)
        for ids, text in zip(prompts, texts, strict=True)
    ]


def error(status: int, message: str, **headers: str) -> Fault:
    return Fault(status=status, body=json.dumps({"error": {"message": message}}), headers=headers)


def raises(kind: type[Exception], message: str) -> Any:
    return pytest.raises(kind, match=f"^{re.escape(message)}$")
