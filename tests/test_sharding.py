"""Two processes that share a base out train what two processes with a base each train."""

from __future__ import annotations

import gc
import math
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_base
from torch.multiprocessing.spawn import start_processes

from utils import adapters, distributed, loading, methods, sharding
from utils.attached import Attached
from utils.models import get_model

ROWS = 43
"""Width of the feed-forward block here: no other size of the model has it, and two processes cannot halve it."""
CASES: Mapping[str, tuple[str, int, str, bool]] = {
    "lora": ("llama", 16, "lora", False),
    "recomputed": ("llama", 16, "lora", True),
    "tied": ("bloom", 16, "lora", False),
    "prefix": ("llama", 16, "prefix", False),
    "adalora": ("llama", 16, "adalora", False),
    "dora": ("llama", 16, "dora", False),
    "8 bits": ("llama", 8, "lora", False),
    "8 bits recomputed": ("llama", 8, "ia3", True),
    "4 bits": ("llama", 4, "lora", False),
    "4 bits dora": ("llama", 4, "dora", True),
}
"""Name → family, bits, method, gradient checkpointing."""
LOOKED_INTO = ("lora", "8 bits", "4 bits")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def attached(folder: Path, family: str, bits: int, method: str) -> Attached:
    base = loading.choose(str(folder / family), get_model(family), quantization_bit=bits, precision="fp32")
    given = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_modules": ["all-linear"]}
    choice = methods.schedule(methods.choose(method, {}, given), 2400)
    torch.manual_seed(1)
    return adapters.attach(base.load(), choice, total_steps=2400)


def trained(made: Attached, *, recompute: bool) -> dict[str, Any]:
    """Losses, adapter and logits after two steps of two micro-batches, each process with its own rows."""
    model, rank = made.model.train(), distributed.rank()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    generator, losses = torch.Generator().manual_seed(3), []
    for step in range(1, 3):
        rows, total = torch.randint(5, 400, (4, 12), generator=generator), 0.0
        for row in rows[2 * rank : 2 * rank + 2]:
            logits = model(input_ids=row[None]).logits[0, -12:-1]
            loss = torch.nn.functional.cross_entropy(logits, row[1:])
            loss.backward()
            total += loss.item()
        distributed.average_gradients(parameters)
        losses.append(sum(distributed.gather(total)))
        optimizer.step()
        made.after_step(step)
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(5, 25)[None]).logits
    tensors = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return {"losses": losses, "tensors": tensors, "logits": logits}


def whole_weights(case: str) -> int | None:
    """Feed-forward weights, in numbers or in bits, that lie whole in this process; looked for in some cases alone."""
    if case not in LOOKED_INTO:
        return None
    gc.collect()
    every = (thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter))
    matrices = [t for t in every if t.shape in ((ROWS, 16), (16, ROWS), (math.ceil(ROWS * 16 / 2), 1))]
    return sum(t.untyped_storage().nbytes() > 0 for t in matrices if not t.requires_grad)


def as_process(rank: int, port: int, folder: str) -> None:
    """One of two processes: every case whole and shared out."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    loading.quiet_libraries()
    distributed.join()
    device, results = torch.device("cpu"), {}
    for name, (family, bits, method, recompute) in CASES.items():
        alone = attached(Path(folder), family, bits, method)
        whole, there = trained(alone, recompute=recompute), whole_weights(name)
        del alone

        sizes: list[int] = []

        def load(family: str = family, bits: int = bits, method: str = method) -> Attached:
            made = attached(Path(folder), family, bits, method)
            sizes.append(sharding.resident_bytes(made.model))  # noqa: B023 — called before the next case
            return made

        made = sharding.load_in_turn(load, device, model_of=lambda made: made.model)
        sizes.append(sharding.resident_bytes(made.model))
        shared = trained(made, recompute=recompute)
        results[name] = {"whole": whole, "shared": shared, "bytes": sizes, "left": [there, whole_weights(name)]}
        assert sharding.resident_bytes(made.model) == sizes[1], "what was put together was taken apart again"
        del made, whole, shared
    torch.save(results, Path(folder) / f"{rank}.pt")
    distributed.leave()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes found, by rank and case."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("sharding")
    make_base(folder / "bloom", "bloom")
    model: Any = AutoModelForCausalLM.from_pretrained(make_base(folder / "llama"))
    config = model.config
    config.intermediate_size = ROWS
    type(model)(config).save_pretrained(folder / "llama")
    # A fork has all that is imported here; elsewhere than on Linux it is not safe.
    start = "fork" if sys.platform == "linux" else "spawn"
    start_processes(as_process, (free_port(), str(folder)), nprocs=2, start_method=start)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_sharing_a_base_out_changes_nothing(case: str, results: list[dict[str, Any]]) -> None:
    for found in (result[case] for result in results):
        whole, shared = found["whole"], found["shared"]
        assert whole["losses"][0] != whole["losses"][-1]
        assert shared["losses"] == pytest.approx(whole["losses"], rel=1e-6)
        assert shared["tensors"].keys() == whole["tensors"].keys()
        for name, tensor in whole["tensors"].items():
            torch.testing.assert_close(shared["tensors"][name], tensor, rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(shared["logits"], whole["logits"], rtol=1e-5, atol=1e-6)
    first, second = (result[case]["shared"]["tensors"] for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first), "every process has the same adapter"


@pytest.mark.parametrize(("case", "values"), [("lora", 4), ("8 bits", 1), ("4 bits", 0.5)])
def test_a_process_keeps_half_of_the_layers_matrices(case: str, values: float, results: list[dict[str, Any]]) -> None:
    matrices = 2 * (4 * 16 * 16 + 3 * 16 * ROWS)  # two layers: queries, keys, values and output; three of feed-forward
    saved = [before - after for before, after in (result[case]["bytes"] for result in results)]
    assert sum(saved) == pytest.approx(matrices * values, rel=0.03), "together they keep each matrix once"
    assert min(saved) == pytest.approx(max(saved), rel=0.1)


def test_no_whole_matrix_is_left_between_steps(results: list[dict[str, Any]]) -> None:
    for result in results:
        left = {case: found["left"] for case, found in result.items()}
        assert left["lora"] == [6, 0], (
            "three feed-forward matrices in each of two layers, and none where they are shared"
        )
        assert [left[case][1] for case in LOOKED_INTO] == [0, 0, 0]


@pytest.mark.parametrize(
    ("method", "bits", "world_size", "said"),
    [
        ("lora", 16, 1, "there is one: start several (torchrun)"),
        ("full", 16, 2, "full fine-tuning freezes nothing: choose --peft_type lora"),
        ("dora", 8, 2, "DoRA does not find the scales of 8-bit weights: choose --quantization_bit 4 or 16"),
        ("dora", 4, 2, None),
        ("lora", 8, 2, None),
    ],
)
def test_what_cannot_be_shared_out_is_refused(method: str, bits: int, world_size: int, said: str | None) -> None:
    refusal = sharding.refusal(methods.METHODS[method], quantization_bit=bits, world_size=world_size)
    assert (refusal is None) if said is None else (refusal or "").startswith("--fsdp") and said in (refusal or "")


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="has no list of layers: leave --fsdp out"):
        sharding.shard(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.device("cpu"), None)


@pytest.mark.parametrize(
    ("machines", "shape"),
    [([4, 4], (2, 4)), ([8], (1, 8)), ([1, 1, 1], (1, 3)), ([2, 1], (1, 3))],
    ids=["two of four", "one", "three of one", "unlike"],
)
def test_a_base_is_shared_out_within_a_machine_where_all_are_alike(
    machines: list[int], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [size for size in machines for _ in range(size)]
    monkeypatch.setenv("WORLD_SIZE", str(len(sizes)))
    monkeypatch.setattr(distributed, "gather", lambda _: sizes)
    asked: list[Any] = []
    made: Callable[..., Any] = lambda *given, **named: asked.append(given) or {"pieces": "these"}  # noqa: E731
    monkeypatch.setattr(torch.distributed.device_mesh, "init_device_mesh", made)
    assert sharding.pieces(torch.device("cpu")) == "these"
    assert asked == [("cpu", shape)]
