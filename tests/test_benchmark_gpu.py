"""The GPU benchmark's code runs without a GPU, and what it draws is what it says."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from torch import nn

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import gpu
import random_base

from utils.adapters import attach_lora
from utils.quantised import _QUANTISED


def test_rows_are_as_long_as_those_of_the_mixture() -> None:
    rows = random_base.random_rows(4000, vocabulary=32000)
    lengths = sorted(len(row.input_ids) for row in rows)
    assert statistics.mean(lengths) == pytest.approx(151, rel=0.02)
    assert lengths[len(lengths) * 95 // 100] == pytest.approx(255, rel=0.03)
    assert (lengths[0], lengths[-1]) == (60, 512)
    assert sum(row.num_targets for row in rows) / sum(lengths) == pytest.approx(0.34, abs=0.01)
    assert rows == random_base.random_rows(4000, vocabulary=32000)


@pytest.mark.parametrize("bits", [8, 4, 16])
def test_a_drawn_base_trains_as_a_loaded_one_would(bits: int) -> None:
    base = gpu.make_base(gpu.Slice(size="tiny", bits=bits, variant="plain"), "fp32")
    model = base.load()
    inner = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]
    assert {type(layer).__name__ for layer in inner} == {{8: _QUANTISED[0], 4: _QUANTISED[1], 16: "Linear"}[bits]}
    assert type(model.lm_head) is nn.Linear
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model.model.norm.weight, torch.ones(64))
    adapted = attach_lora(model, ["q_proj", "v_proj"], r=2, alpha=4, dropout=0.0)
    adapted(input_ids=torch.arange(6)[None]).logits.sum().backward()
    assert all(p.grad.isfinite().all() for n, p in adapted.named_parameters() if "lora_B" in n and p.grad is not None)
    assert any(p.grad is not None and p.grad.any() for n, p in adapted.named_parameters() if "lora_B" in n)


def test_a_slice_goes_through_the_real_trainer_and_has_its_figures() -> None:
    work = gpu.Slice(size="tiny", bits=8, variant="extras")
    figures = gpu.train(work, "fp32", steps=3, seconds=60, batch_size=8)
    assert len(figures["step_seconds"]) == len(figures["step_tokens"]) == 2
    assert len(figures["losses"]) == 3
    assert figures["tokens_per_second"] > figures["trained_tokens_per_second"] > 0
    assert 0 < figures["share_of_measured_products"] < 1
    assert 0 <= figures["padding"] < 0.2
    assert figures["predicted_gb"] > 0
    assert figures["extras_on"] == []
    assert all(": OFF: " in note for note in figures["extras"])
    json.dumps(figures)


def test_results_are_kept_by_device_and_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results" / "gpu.json"
    gpu.write(path, {"7b-8": {"used_gb": 30.0}})
    gpu.write(path, {"7b-4": {"failed": "out of memory"}})
    monkeypatch.setattr(gpu, "device_name", lambda: "NVIDIA A100-SXM4-80GB")
    gpu.write(path, {"7b-8": {"used_gb": 31.0}})
    devices = json.loads(path.read_text())["devices"]
    assert devices["cpu"]["results"] == {"7b-8": {"used_gb": 30.0}, "7b-4": {"failed": "out of memory"}}
    assert devices["NVIDIA A100-SXM4-80GB"]["results"] == {"7b-8": {"used_gb": 31.0}}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L40S", 362.0),
        ("cpu", None),
    ],
)
def test_the_peak_is_that_of_the_device(name: str, peak: float | None) -> None:
    assert gpu.peak_tflops(name) == peak


def test_what_fails_is_told_in_its_last_line_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Done:
        def __init__(self, command: list[str]) -> None:
            self.returncode = int("4" in command)
            self.stdout = 'step 1/3\n{"tokens_per_second": 1234.5, "losses": []}\n'
            self.stderr = "Traceback\n  File\ntorch.OutOfMemoryError: CUDA out of memory.\n\n"

    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **_: Done(command))
    output = tmp_path / "gpu.json"
    assert gpu.main(["--only", "tiny", "--bits", "4", "8", "--output", str(output)]) == 1
    results: dict[str, Any] = json.loads(output.read_text())["devices"]["cpu"]["results"]
    assert results["tiny-4"] == {"failed": "torch.OutOfMemoryError: CUDA out of memory."}
    assert results["tiny-8"]["tokens_per_second"] == 1234.5
    assert "FAILED: torch.OutOfMemoryError" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_it_says_what_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--only", "7b"])
    assert "run it on one, or give --only tiny" in capsys.readouterr().err
