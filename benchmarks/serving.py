"""web.py under load: many streaming clients on the loopback, for a bounded time.

    python3 benchmarks/serving.py                       # writes benchmarks/results/serving.json
    python3 benchmarks/serving.py --seconds 20          # shorter

`load`: 64 clients, each asking again as soon as it has its answer, for two minutes, of the bundled tiny base with an
adapter: errors other than 429, the time to the first token, memory at the beginning and at the end. `throughput`: new
tokens a second that 1 and 16 clients get of a random Llama of 21 million parameters, side by side in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environment
import httpx2
import psutil
from contestants import material

QUESTIONS = (
    "The dial shows 3. Turn it up 4. Turn it down 6. Which digit does the dial show now?",
    "小美坐在3号座位，座位从0到9围成一圈。小美向左走1个座位。再逆时针走6个座位。小美现在坐在几号？",
    "Take the number 0. Add 7. Then take it 9 times. Add 2. What is the last digit?",
)


@dataclass
class Seen:
    """What clients saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    """Seconds to the first piece of each answer."""
    tokens: int = 0


@contextmanager
def served(*arguments: object) -> Iterator[tuple[str, psutil.Process]]:
    """(address, process) of a web.py on the loopback; it must end well."""
    command = [sys.executable, str(environment.REPOSITORY / "web.py"), "--port", "0", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            sys.exit("web.py did not start")
        try:
            yield address, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(60):
                sys.exit(f"web.py ended with {process.returncode}")


def adapter_of(base: Path, folder: Path) -> Path:
    """A random adapter of rank 8 on `base`, as peft writes it."""
    import torch

    from utils import adapters, loading
    from utils.models import get_model

    torch.manual_seed(0)
    loaded = loading.choose(str(base), get_model("llama"), precision="fp32").load()
    model = adapters.attach_lora(loaded, material.TARGETS["20m"], r=8, alpha=16, dropout=0.0)
    model.save_pretrained(folder)
    return folder


async def client(address: str, number: int, until: float, longest: int, seen: Seen) -> None:
    """Asks, reads the stream to its end, and asks again, until the time is over."""
    asked = 0
    async with httpx2.AsyncClient(timeout=120) as http:
        while time.monotonic() < until:
            body = {
                "messages": [{"role": "user", "content": QUESTIONS[(number + asked) % len(QUESTIONS)]}],
                "max_tokens": longest,
                "temperature": 1.0,
                "seed": number * 10_000 + asked,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            asked += 1
            started = time.monotonic()
            try:
                async with http.stream("POST", f"{address}/v1/chat/completions", json=body) as reply:
                    await read(reply, started, seen)
            except httpx2.HTTPError as error:
                seen.statuses[type(error).__name__] += 1
                await asyncio.sleep(0.1)


async def read(reply: Any, started: float, seen: Seen) -> None:
    """One reply to its end."""
    if reply.status_code != 200:
        seen.statuses[str(reply.status_code)] += 1
        await asyncio.sleep(float(reply.headers.get("Retry-After", 1)))
        return
    is_first, is_whole = True, False
    async for line in reply.aiter_lines():
        if line == "data: [DONE]":
            is_whole = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            if "error" in event:
                seen.statuses["error event"] += 1
                return
            if is_first and any(choice["delta"].get("content") for choice in event["choices"]):
                seen.first.append(time.monotonic() - started)
                is_first = False
            seen.tokens += (event.get("usage") or {}).get("completion_tokens", 0)
    seen.statuses["200" if is_whole else "broken off"] += 1


async def clients(address: str, count: int, seconds: float, longest: int, seen: Seen) -> float:
    """`count` of them at the same time; returns how long it took."""
    started = time.monotonic()
    await asyncio.gather(*(client(address, n, started + seconds, longest, seen) for n in range(count)))
    return time.monotonic() - started


def load(run: Path, seconds: float) -> dict[str, Any]:
    """64 clients on the tiny model."""
    with served("--lora_dir", run, "--max_queue", 64) as (address, process):
        asyncio.run(clients(address, 64, seconds / 6, 48, Seen()))  # what grows once has grown by then
        before, seen = process.memory_info().rss, Seen()
        took = asyncio.run(clients(address, 64, seconds, 48, seen))
        after = process.memory_info().rss
    first = sorted(seen.first)
    p50, p99 = statistics.median(first), first[int(0.99 * len(first))]
    return {
        "clients": 64,
        "seconds": round(took, 1),
        "replies": dict(seen.statuses),
        "errors_but_429": sum(n for status, n in seen.statuses.items() if status not in ("200", "429")),
        "first_token_seconds": {"p50": round(p50, 3), "p99": round(p99, 3), "p99_by_p50": round(p99 / p50, 2)},
        "memory_mib": {"before": before >> 20, "after": after >> 20},
        "new_tokens_per_second": round(seen.tokens / took, 1),
    }


def throughput(base: Path, folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """1 and 16 clients in turn."""
    rates: dict[int, list[float]] = {1: [], 16: []}
    with served("--lora_dir", adapter_of(base, folder), "--model_type", "llama") as (address, _):
        for count in (1, 16):
            asyncio.run(clients(address, count, 2, 32, Seen()))
        for _ in range(rounds):
            for count, found in rates.items():
                seen = Seen()
                took = asyncio.run(clients(address, count, seconds, 64, seen))
                found.append(seen.tokens / took)
    one, sixteen = (statistics.median(rates[count]) for count in (1, 16))
    return {
        "new_tokens_per_second": {str(count): [round(rate, 1) for rate in found] for count, found in rates.items()},
        "16_clients_by_1": round(sixteen / one, 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="of the load")
    parser.add_argument("--rounds", type=int, default=5, help="of the throughput, 15 s each for 1 and 16 clients")
    parser.add_argument("--environments", type=Path, default=Path("~/.cache/alpaca_cot_benchmarks").expanduser())
    flags = parser.parse_args(argv)
    os.environ.pop("HF_ENDPOINT", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment.run("uniform_finetune.py", "--max_steps", 40, "--output_dir", folder / "run")
        results = {"load": load(folder / "run", flags.seconds)}
        print(json.dumps(results), flush=True)
        results["throughput"] = throughput(material.base(flags.environments, "20m"), folder / "peft", 15, flags.rounds)
    environment.write("serving", ["python3", *sys.argv], results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
