"""A real server, `transformers serve`, with a merged run behind it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asker
import httpx
import pytest
from asker import ENDS, GREEDY
from conftest import RECORDS

import merge
from utils import generation
from utils.encode import encode_prompt
from utils.remote import Remote
from utils.stopping import Ends
from utils.templates import TEMPLATES

no_key_and_no_proxy = asker.no_key_and_no_proxy


@pytest.fixture(scope="module")
def merged(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run as one checkpoint, by our script."""
    folder = tmp_path_factory.mktemp("merged") / "模型"
    assert merge.main(["--lora_dir", str(finished), "--merged_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def transformers_serve(merged: Path) -> Iterator[str]:
    """The address of `transformers serve`, which serves the merged run."""
    for name in ("fastapi", "uvicorn", "openai", "pydantic"):
        pytest.importorskip(name, reason="of transformers[serving], which requirements-dev.txt installs")
    command = [Path(sys.executable).with_name("transformers"), "serve", merged, "--host", "127.0.0.1", "--port", "0"]
    log = ""
    with subprocess.Popen(
        [*map(str, command), "--device", "cpu", "--dtype", "float32"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    ) as process:
        try:
            assert process.stdout
            for line in process.stdout:
                log += line
                if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    threading.Thread(target=process.stdout.read, daemon=True).start()  # or it would block on its log
                    yield f"{found[1]}/v1"
                    return
            raise AssertionError(f"transformers serve did not start:\n{log}")
        finally:
            process.terminate()


def test_a_real_server_answers_as_we_do(transformers_serve: str, merged: Path, tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    records = [record for record in RECORDS if "</s>" not in record["instruction"]]
    assert any("🌏" in record["input"] for record in records)
    prompts = [encode_prompt(record, TEMPLATES["alpaca"], tokenizer) for record in records]
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert str(model.dtype) == "torch.float32"
    here = generation.generate(model.eval(), tokenizer, prompts, ends=ENDS, settings=GREEDY)
    remote = Remote(base_url=transformers_serve, model=str(merged), prompt_form="text", concurrency=4)
    assert remote.answers(prompts, GREEDY, tokenizer=tokenizer, ends=ENDS) == here
    assert len({answer.text for answer in here}) > 1
    # What ends an answer of ours ends one of theirs.
    mark = next(answer.text for answer in here if len(answer.text) > 4)[2:4]
    ends = Ends(ids=[2], texts=[mark])
    cut = generation.generate(model, tokenizer, prompts, ends=ends, settings=GREEDY)
    found = remote.answers(prompts, GREEDY, tokenizer=tokenizer, ends=ends)
    assert found == cut
    assert any(len(one.text) < len(other.text) for one, other in zip(cut, here, strict=True))


def test_a_real_server_s_chat_is_asked_in_the_trained_prompt(
    transformers_serve: str, merged: Path, tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    first = [{"role": "user", "content": "把这句话翻译成英文。你好，世界 🌏"}]
    later = [*first, {"role": "assistant", "content": "Hello. 蓝色"}, {"role": "user", "content": " Why? "}]
    chats = [first, later, [{"role": "system", "content": "Be brief."}, *later]]
    records = [{"instruction": first[0]["content"], "input": ""}, *({"conversation": chat} for chat in chats[1:])]
    prompts = [encode_prompt(record, TEMPLATES["alpaca"], tokenizer) for record in records]
    model: Any = AutoModelForCausalLM.from_pretrained(merged).eval()
    here = generation.generate(model, tokenizer, prompts, ends=ENDS, settings=GREEDY)
    for messages, answer in zip(chats, here, strict=True):
        asked = {"model": str(merged), "messages": messages, "max_tokens": 16, "temperature": 0}
        found = httpx.post(f"{transformers_serve}/chat/completions", json=asked, timeout=60).json()
        assert found["choices"][0]["message"]["content"] == answer.text
        assert found["usage"]["prompt_tokens"] == answer.prompt_tokens


def test_a_real_server_that_takes_text_only_says_so(transformers_serve: str, merged: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="HTTP 422: Unexpected fields in the request: .*--api_prompt text$"):
        Remote(base_url=transformers_serve, model=str(merged)).answers([[1, 5]], GREEDY, tokenizer=tokenizer, ends=ENDS)
    with pytest.raises(ValueError, match="refuses such requests .HTTP 400: Server is pinned to .*; requested 'other'"):
        Remote(base_url=transformers_serve, model="other", prompt_form="text").answers(
            [[1, 5]], GREEDY, tokenizer=tokenizer, ends=ENDS
        )
