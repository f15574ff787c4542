import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import RECORDS
from transformers import TrainerCallback

from utils.adapters import attach_lora
from utils.batching import MicroBatchSize, pad
from utils.encode import encode_rows
from utils.loading import choose
from utils.models import get_model
from utils.progress import LOG_NAME, LogFile, Progress
from utils.proof import IGNORED, Encoded
from utils.readers import Row
from utils.schedule import Steps
from utils.step_guard import NotFiniteError, NothingTrainedError, StepGuard
from utils.target_loss import HeadAtTargets, token_loss
from utils.templates import TEMPLATES
from utils.trainer_arguments import training_arguments
from utils.training import SupervisedTrainer


@pytest.fixture(scope="module")
def encoded(tokenizer: Any) -> list[Encoded]:
    rows = [Row(record=record, origin=f"records row {i}") for i, record in enumerate(RECORDS, start=1)]
    return encode_rows(rows, TEMPLATES["alpaca"], tokenizer, cutoff_len=512, truncation="drop")[0]


def make_trainer(
    base: Path, rows: Any, output: Path, *, per_device: int = 4, accumulation: int = 1, **options: Any
) -> Any:
    torch.manual_seed(0)
    family = options.pop("family", "llama")
    model = attach_lora(
        choose(str(base), get_model(family)).load(), ["all-linear"], r=4, alpha=8, dropout=options.pop("dropout", 0.0)
    )
    total = options.pop("total", 6)
    steps = Steps(
        total=total, warmup=min(1, total - 1), logging=1, saving=options.pop("saving", total), evaluating=total
    )
    output.mkdir(exist_ok=True)
    arguments = training_arguments(
        output,
        steps,
        learning_rate=1e-2,
        precision="fp32",
        seed=0,
        validates=bool(options.get("validation")),
        gradient_checkpointing=options.pop("gradient_checkpointing", False),
        save_total_limit=3,
        report_to=["none"],
    )
    return SupervisedTrainer(
        model,
        arguments,
        train_rows=rows,
        validation_rows=options.pop("validation", []),
        pad_id=3,
        steps=steps,
        batch_size=per_device * accumulation,
        micro_batch=options.pop("micro_batch", MicroBatchSize(rows=per_device)),
        needs_mask=options.pop("needs_mask", False),
        callbacks=[Progress(), LogFile(output), *options.pop("callbacks", [])],
        guard=StepGuard(rows, most_in_a_row=options.pop("max_skipped_steps", 1)),
        **{name: options[name] for name in ("too_large",) if name in options},
    )


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def adapter(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.unwrapped.named_parameters() if "lora_" in name}


def relative_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    top = max(tensor.abs().max().item() for tensor in one.values())
    return max((one[name] - two[name]).abs().max().item() for name in one) / top


def test_the_loss_is_the_sum_over_trained_tokens() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    labels[0, :3] = labels[1, 4] = IGNORED
    expected = -sum(
        logits[row, at - 1].log_softmax(-1)[labels[row, at]]
        for row in range(2)
        for at in range(1, 5)
        if labels[row, at] >= 0
    )
    assert torch.allclose(token_loss(logits, labels), torch.as_tensor(expected), atol=1e-6)


def test_no_trained_token_is_no_loss_but_has_a_gradient() -> None:
    logits = torch.randn(1, 3, 5, requires_grad=True)
    loss = token_loss(logits, torch.full((1, 3), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_bf16_logits_give_a_float32_loss() -> None:
    assert token_loss(torch.randn(1, 3, 5).bfloat16(), torch.ones(1, 3, dtype=torch.long)).dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_training_changes_the_adapter_and_nothing_else(family: str, encoded: Any, tmp_path: Path, request: Any) -> None:
    base = request.getfixturevalue(f"{family}_base")
    trainer = make_trainer(base, encoded, tmp_path / "run", family=family, total=12)
    before = {name: p.detach().clone() for name, p in trainer.unwrapped.named_parameters()}
    trainer.train()
    for name, parameter in trainer.unwrapped.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert trainer.trained_tokens == 6 * sum(row.num_targets for row in encoded)


def test_accumulation_and_batch_shape_do_not_change_the_run(llama_base: Path, encoded: Any, tmp_path: Path) -> None:
    runs = []
    for per_device, accumulation in ((4, 1), (1, 4), (2, 2)):
        trainer = make_trainer(
            llama_base, encoded[:7], tmp_path / f"{per_device}", per_device=per_device, accumulation=accumulation
        )
        trainer.train()
        runs.append((losses(trainer), adapter(trainer)))
    for found, weights in runs[1:]:
        assert found == pytest.approx(runs[0][0], abs=1e-5)
        assert relative_difference(runs[0][1], weights) < 1e-4


def test_the_logged_loss_is_the_mean_over_the_global_batch(llama_base: Path, encoded: Any, tmp_path: Path) -> None:
    trainer = make_trainer(llama_base, encoded, tmp_path / "run", per_device=8, total=1)
    batch = pad(encoded, 3)
    with torch.no_grad():
        logits = trainer.unwrapped(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = token_loss(logits, batch["labels"]).item() / sum(row.num_targets for row in encoded)
    trainer.train()
    assert losses(trainer) == pytest.approx([expected], abs=1e-5)


def test_gradient_checkpointing_gives_the_same_adapter(llama_base: Path, encoded: Any, tmp_path: Path) -> None:
    runs = []
    for name in ("on", "off"):
        trainer = make_trainer(llama_base, encoded, tmp_path / name, gradient_checkpointing=name == "on", total=3)
        trainer.train()
        runs.append(adapter(trainer))
    assert relative_difference(*runs) < 1e-5


def test_resuming_gives_what_an_uninterrupted_run_gives(llama_base: Path, encoded: Any, tmp_path: Path) -> None:
    whole = make_trainer(llama_base, encoded[:7], tmp_path / "whole", dropout=0.1, saving=3)
    whole.train()
    resumed = make_trainer(llama_base, encoded[:7], tmp_path / "whole", dropout=0.1, saving=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert losses(resumed) == losses(whole)
    assert relative_difference(adapter(whole), adapter(resumed)) == 0
    assert resumed.trained_tokens == whole.trained_tokens
    log = [json.loads(line) for line in (tmp_path / "whole" / LOG_NAME).read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6]


class SteppedAt(TrainerCallback):
    """Notes the learning rate that each optimizer step really takes."""

    rates: ClassVar[list[float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.rates.append(others["optimizer"].param_groups[0]["lr"])


def test_a_longer_run_goes_on_with_its_own_rate_and_intervals(llama_base: Path, encoded: Any, tmp_path: Path) -> None:
    make_trainer(llama_base, encoded[:7], tmp_path / "run", total=4, saving=2).train()
    SteppedAt.rates.clear()
    longer = make_trainer(llama_base, encoded[:7], tmp_path / "run", total=8, saving=1, callbacks=[SteppedAt()])
    longer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    rates = {entry["step"]: entry["learning_rate"] for entry in longer.state.log_history if "loss" in entry}
    assert all(rates[step] > 0 for step in (5, 6, 7, 8)), "a resumed run does not begin where the shorter one ended"
    assert rates[5] > rates[6] > rates[7] > rates[8]
    assert (tmp_path / "run" / "checkpoint-7").is_dir()
    assert longer.optimizer.param_groups[0]["lr"] == 0, "the schedule has ended"
    first = SteppedAt.rates[0]
    assert first == pytest.approx(rates[5]), "the first resumed step was taken at the rate that was logged"
    assert longer.trained_tokens == 4 * sum(row.num_targets for row in encoded[:7])


def test_a_scaler_that_cannot_scale_any_more_stops(encoded: Any) -> None:
    class Scaler:
        def get_scale(self) -> float:
            return 0.5

    guard = StepGuard(encoded, most_in_a_row=1)
    guard.see(torch.tensor(1.0), [0], 1)
    with pytest.raises(NotFiniteError, match="the gradient is not finite"):
        guard.judge(1, [], Scaler())


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_the_head_at_the_targets_gives_the_full_loss_and_gradients(family: str, encoded: Any, request: Any) -> None:
    base = choose(str(request.getfixturevalue(f"{family}_base")), get_model(family)).load()
    model = attach_lora(base, ["all-linear"], r=2, alpha=4, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch, head = pad(encoded, 3), HeadAtTargets(model)
    full = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses, gradients = [], []
    for loss in (token_loss(full, batch["labels"]), head.loss(model, batch)):
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert relative_difference(*gradients) < 1e-5


def test_validation_is_the_mean_over_trained_tokens(llama_base: Path, encoded: Any, tmp_path: Path) -> None:
    trainer = make_trainer(llama_base, encoded[:5], tmp_path / "run", validation=encoded[5:], per_device=2)
    trainer.train()
    batch = pad(encoded[5:], 3)
    with torch.no_grad():
        logits = trainer.unwrapped(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    tokens = sum(row.num_targets for row in encoded[5:])
    expected = token_loss(logits, batch["labels"]).item() / tokens
    metrics = trainer.final_metrics()
    assert metrics["validation_loss"] == pytest.approx(expected, abs=1e-5)
    assert metrics["train_loss"] == losses(trainer)[-1]


def poison(trainer: Any, origin: str) -> None:
    """Makes the loss of the row from `origin` NaN."""
    compute = trainer.compute_loss

    def poisoned(model: Any, inputs: Any, **options: Any) -> Any:
        loss = compute(model, inputs, **options)
        bad = any(trainer.train_rows[row].origin == origin for row in inputs["rows"].tolist())
        return loss * float("nan") if bad else loss

    trainer.compute_loss = poisoned


def test_a_loss_that_is_not_finite_skips_the_step_and_after_several_the_run_stops(
    llama_base: Path, encoded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(llama_base, encoded, tmp_path / "run", per_device=1, accumulation=8, max_skipped_steps=2)
    poison(trainer, "records row 4")
    before = adapter(trainer)
    with pytest.raises(
        NotFiniteError,
        match=r"step 2: the loss is not finite.*, for 2 steps running\..*\n  records row 4\nLook at these",
    ):
        trainer.train()
    assert relative_difference(before, adapter(trainer)) == 0
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert "step 1: the loss is not finite (NaN or infinity). It is skipped, 1 of 2 running" in capsys.readouterr().out


def test_a_skipped_step_changes_neither_the_adapter_nor_the_mean_that_is_logged(
    llama_base: Path, encoded: Any, tmp_path: Path
) -> None:
    class Watch(TrainerCallback):
        weights: ClassVar[list[dict[str, torch.Tensor]]] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.weights.append(adapter(trainer))

    trainer = make_trainer(
        llama_base, encoded, tmp_path / "run", per_device=1, accumulation=4, max_skipped_steps=2, total=4,
        callbacks=[Watch()],
    )  # fmt: skip
    poison(trainer, "records row 4")
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    skipped = [i for i, entry in enumerate(steps) if "loss" not in entry]
    assert len(skipped) == 2, "the row is in one step of each of the two epochs"
    for i in skipped:
        before = Watch.weights[i - 1] if i else None
        assert before is None or relative_difference(before, Watch.weights[i]) == 0
    taken = next(i for i in range(4) if i not in skipped and i)
    assert relative_difference(Watch.weights[taken - 1], Watch.weights[taken]) > 0
    assert trainer.final_metrics()["not_finite_steps"] == 2
    assert all(entry["loss"] > 0 for entry in steps if "loss" in entry)


def test_a_gradient_that_is_not_finite_stops_too(llama_base: Path, encoded: Any, tmp_path: Path) -> None:
    trainer = make_trainer(llama_base, encoded, tmp_path / "run", per_device=4)
    weight = next(p for name, p in trainer.unwrapped.named_parameters() if "lora_B" in name)
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NotFiniteError, match="step 1: the gradient is not finite"):
        trainer.train()


def test_a_loss_of_exactly_zero_stops(llama_base: Path, encoded: Any, tmp_path: Path) -> None:
    trainer = make_trainer(llama_base, encoded, tmp_path / "run", per_device=4, max_skipped_steps=2)
    compute = trainer.compute_loss
    trainer.compute_loss = lambda *values, **named: compute(*values, **named) * 0
    with pytest.raises(NothingTrainedError, match="step 2: the loss is exactly 0: nothing is trained by it"):
        trainer.train()


def test_a_step_that_does_not_fit_is_done_again_in_smaller_micro_batches(
    llama_base: Path, encoded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, most: int | None) -> Any:
        trainer = make_trainer(llama_base, encoded, tmp_path / name, per_device=8, total=3)
        compute = trainer.compute_loss

        def limited(model: Any, inputs: Any, **options: Any) -> Any:
            if most is not None and inputs["input_ids"].shape[0] > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
            return compute(model, inputs, **options)

        trainer.compute_loss = limited
        trainer.train()
        return trainer

    whole, halved = run("whole", None), run("halved", 2)
    said = capsys.readouterr().out
    assert "step 1: memory ran out; from here on micro-batches have at most 4 rows instead of 8 rows" in said
    assert "at most 2 rows instead of 4 rows" in said
    assert said.count("memory ran out") == 2, "later steps begin with what fits"
    assert losses(halved) == pytest.approx(losses(whole), rel=1e-5)
    assert relative_difference(adapter(whole), adapter(halved)) < 1e-4


def test_a_single_row_that_does_not_fit_says_what_would(llama_base: Path, encoded: Any, tmp_path: Path) -> None:
    trainer = make_trainer(
        llama_base, encoded, tmp_path / "run", per_device=2, too_large=lambda: "3 GB with --cutoff_len 8"
    )

    def never(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

    trainer.compute_loss = never
    with pytest.raises(
        OSError,
        match=r"not even one row of the longest fits into memory \(CUDA out of memory.*3 GB with --cutoff_len 8",
    ):
        trainer.train()


def test_other_errors_are_not_taken_for_memory(llama_base: Path, encoded: Any, tmp_path: Path) -> None:
    trainer = make_trainer(llama_base, encoded, tmp_path / "run")

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a shape is wrong")

    trainer.compute_loss = broken
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        trainer.train()


def test_the_log_has_what_people_watch(
    llama_base: Path, encoded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(llama_base, encoded[:6], tmp_path / "run", validation=encoded[6:], total=2).train()
    printed = capsys.readouterr().out
    assert "step 1/2  loss " in printed
    assert "trained tokens/s  " in printed
    assert "step 2/2  validation loss " in printed
    log = [json.loads(line) for line in (tmp_path / "run" / LOG_NAME).read_text().splitlines()]
    assert {"loss", "learning_rate", "grad_norm", "trained_tokens", "step"} <= log[0].keys()
    assert any("eval_loss" in entry for entry in log)
