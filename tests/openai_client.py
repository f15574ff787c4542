"""The official client before a service of two adapters that wants a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from service_server import KEY

from utils.assistant import Assistant, open_run
from utils.service import Access


@pytest.fixture(scope="module")
def opened(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    second = tmp_path_factory.mktemp("places") / "另一个.run"
    second.symlink_to(finished)
    return open_run(finished, second)


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    return {"access": Access(api_key=KEY)}


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=30) as made:
        yield made


def ask(client: openai.OpenAI, content: Any = "Why?", **fields: Any) -> Any:
    return client.chat.completions.create(model="run", messages=[{"role": "user", "content": content}], **fields)
