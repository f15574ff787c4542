"""Every family of the registry, from its published form to a merged checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECORDS
from tiny_families import CASES, make_family

from utils.adapters import attach_lora
from utils.loading import choose
from utils.models import MODELS, get_model
from utils.target_loss import HeadAtTargets

CASE_NAMES = [f"{name}-{number}" if number else name for name, number in CASES]
ANSWER = {"instruction": "把这句话翻译成英文。", "input": "你好 🌏 </s>", "output": "Hello"}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, int]], Path]:
    """A case's checkpoint, made once."""
    root = tmp_path_factory.mktemp("families")
    return cache(lambda case: make_family(case[0], root / f"{case[0]}-{case[1]}", case[1]))


def test_every_family_that_runs_natively_is_here() -> None:
    assert {name for name, _ in CASES} == {name for name, spec in MODELS.items() if not spec.remote_code}


@pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
def test_train_save_reload_generate_merge(
    case: tuple[str, int], base_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import generate
    import merge
    import uniform_finetune

    name, _ = case
    (tmp_path / "records.json").write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    run, merged = tmp_path / "run", tmp_path / "merged"
    settings = [
        "--max_steps",
        1,
        "--per_gpu_train_batch_size",
        4,
        "--gradient_accumulation_steps",
        2,
        "--precision",
        "fp32",
    ]
    train = [
        "--model_type",
        name,
        "--model_name_or_path",
        base_of(case),
        "--data",
        tmp_path / "records.json",
        *settings,
    ]
    train += [
        "--val_set_size",
        0,
        "--cutoff_len",
        1024,
        "--learning_rate",
        1e-2,
        "--warmup_steps",
        0,
        "--output_dir",
        run,
    ]
    assert uniform_finetune.main([str(word) for word in train]) == 0
    assert "adapter verified" in capsys.readouterr().out
    saved = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    if MODELS[name].lora_target_modules != ("all-linear",):
        assert set(saved["target_modules"]) == set(MODELS[name].lora_target_modules)
    ask = ["--lora_dir", run, "--instruction", "你好 🌏", "--greedy", "--max_new_tokens", 3]
    assert generate.main([str(word) for word in ask]) == 0
    assert merge.main(["--lora_dir", str(run), "--merged_dir", str(merged)]) == 0
    model = choose(str(merged), get_model(name), precision="fp32").load()
    assert type(model).__name__ in (MODELS[name].native or (type(model).__name__,))


@pytest.mark.parametrize("name", ["llama", "chatglm", "chatglm3", "baichuan2", "qwen"])
def test_in_bf16_too_what_is_read_back_is_what_was_trained(name: str, base_of: Any, tmp_path: Path) -> None:
    """The autocast that training puts around a model would change its logits by percents."""
    import uniform_finetune

    (tmp_path / "records.json").write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    train = ["--model_type", name, "--model_name_or_path", base_of((name, 0)), "--data", tmp_path / "records.json"]
    train += [
        "--max_steps",
        1,
        "--precision",
        "bf16",
        "--val_set_size",
        0,
        "--cutoff_len",
        1024,
        "--learning_rate",
        1e-2,
    ]
    assert uniform_finetune.main([str(word) for word in [*train, "--output_dir", tmp_path / "run"]]) == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert run["verified"]["max_logit_difference"] == 0.0


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
def test_every_adapter_learns_in_all_bits_also_after_an_evaluation(
    case: tuple[str, int], bits: int, base_of: Any
) -> None:
    """On CPUs with AVX512-BF16 an evaluation would leave 4-bit adapters without gradients (docs/footguns.md)."""
    name, _ = case
    base = choose(str(base_of(case)), get_model(name), precision="fp32", quantization_bit=bits)
    model = attach_lora(base.load(), get_model(name).lora_target_modules, r=2, alpha=4, dropout=0.0)
    batch = batch_of(base)
    head = HeadAtTargets(model)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        before = model.eval()(**inputs).logits
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        loss = head.loss(model.train(), batch)
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if "lora_B" in n}
        assert gradients
        assert all(g is not None and g.any() and g.isfinite().all() for g in gradients.values())
        assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
        optimizer.step()
    with torch.no_grad():
        assert not torch.equal(model.eval()(**inputs).logits, before)


def batch_of(base: Any) -> dict[str, torch.Tensor]:
    """Two rows of the family's own prompt, of unequal length."""
    from utils.batching import pad
    from utils.encode import encode_rows
    from utils.readers import Row
    from utils.templates import get_template

    tokenizer, rows = base.tokenizer(), [Row(record=record, origin="row") for record in (ANSWER, RECORDS[5])]
    encoded, _, _ = encode_rows(rows, get_template(base.spec.template), tokenizer, cutoff_len=1024, truncation="drop")
    assert len(encoded) == 2
    return pad(encoded, tokenizer.pad_token_id)
