"""The training loop: transformers' Trainer with our batches, our loss and our guard.

Knows: optimizer steps, the loss, micro-batches and what to do when one is too large. Does not know records, prompts or
files of its own.

The loss of a step is the sum over its trained tokens divided by their number in the whole global batch, so
accumulation, batch shape and the number of processes do not change it. A step that memory runs out in is done again in
micro-batches of half the size: the same rows, the same loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from accelerate.utils.memory import should_reduce_batch_size
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from utils import distributed, extras, store
from utils.attached import Attached
from utils.batching import MicroBatchSize, StepBatches, endings, evaluation_batches, only_item, shortest
from utils.best import Best
from utils.proof import Encoded
from utils.resumable import ResumableTrainer
from utils.schedule import Steps, learning_rate_factor
from utils.step_guard import StepGuard
from utils.target_loss import HeadAtTargets, trained_positions

LOSS_TOLERANCE: Mapping[distributed.Precision, float] = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 5e-3}
"""How far the loss at the targets may lie from that of the model's own logits, relative; both are sums over many tokens
and round less than a logit does (`verification.TOLERANCE`)."""


class SupervisedTrainer(ResumableTrainer):
    """Trainer on `Encoded` rows; see the module for what it changes."""

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        train_rows: Sequence[Encoded],
        validation_rows: Sequence[Encoded],
        pad_id: int,
        steps: Steps,
        batch_size: int,
        micro_batch: MicroBatchSize,
        needs_mask: bool = True,
        callbacks: Sequence[TrainerCallback] = (),
        processing_class: Any = None,
        attached: Attached | None = None,
        sharded: bool = False,
        guard: StepGuard | None = None,
        too_large: Callable[[], str] = lambda: "choose a lower --cutoff_len",
    ) -> None:
        """
        Args:
            batch_size: rows of an optimizer step, in all processes together.
            micro_batch: how many of them go through the model at once.
            needs_mask: see `HeadAtTargets`.
            attached: what `model` belongs to, where its method wants more than gradients.
            guard: of `train_rows`.
            too_large: asked for what would fit, when not even one row does.
        """
        self.attached, self._penalty, self._micro_batches = attached, None, 1
        self.about, self.best, self._too_large = {}, Best(), too_large
        self.guard = guard or StepGuard(train_rows)
        self.members: list[int] = []
        """Row numbers of the last step's global batch."""
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self.trained_tokens = 0
        self._tokens, self._positions, self._extras = 0, 0, extras.Enabled()
        self._session, self._logged_before, self._why = (time.perf_counter(), 0), 0, None
        self.unwrapped = model
        self._head = HeadAtTargets(model, needs_mask=needs_mask)
        self._pad_id, self._steps, self._needs_mask = pad_id, steps, needs_mask
        self._lengths = store.lengths(train_rows)
        self._batches = StepBatches(train_rows, pad_id, micro_batch, batch_size=batch_size, seed=args.seed)
        super().__init__(
            model=model,
            args=args,
            train_dataset=self._batches,
            eval_dataset=validation_rows if len(validation_rows) else None,  # pyright: ignore[reportArgumentType]
            callbacks=[_Guard(self), *callbacks],
            processing_class=processing_class,
        )
        self._sharded = sharded
        if sharded:  # accelerate refuses DistributedDataParallel around it; what is marked as prepared it leaves alone
            self.accelerator.prepare_model(model, evaluation_mode=True)
        self.remove_callback(PrinterCallback)  # it would print each log entry as a dictionary
        # The loss that compute_loss returns is divided already; without these, Trainer would divide it once more.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This rank's own share of each step: accelerate must not deal it again."""
        return DataLoader(self._batches, batch_size=1, collate_fn=only_item)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """This rank's share of one step and the trained tokens of its global batch."""
        shares = list(islice(epoch_iterator, num_batches))
        num_targets = shares[0]["num_targets"] if shares else None
        self.trained_tokens += int(num_targets) if num_targets is not None else 0
        return shares, num_targets

    def floating_point_ops(self, inputs: Any) -> int:
        """0: Trainer's estimate counts weight gradients that are not computed, and warns where it finds no ids."""
        return 0

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of `learning_rate_factor`."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,  # pyright: ignore[reportArgumentType]
                lambda step: learning_rate_factor(step, self._steps),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of a step's micro-batches, whose gradients the processes share once all went well;
        returns this process's loss, 0 where the guard does not let the step be taken."""
        self.members, batches = inputs["members"], inputs["micro_batches"]
        while not self._went_well(model, batches, inputs["num_targets"], num_items_in_batch):
            self._halve()
            batches = self._batches.share(self.members)
        distributed.average_gradients(self.unwrapped.parameters())
        loss = self._loss
        scaler, trained = self.accelerator.scaler, list(self.unwrapped.parameters())
        if not self.guard.judge(self.state.global_step + 1, trained, scaler):
            loss = torch.zeros_like(loss)
            if scaler is None:  # which skips by itself, and wants to see why
                for parameter in trained:
                    parameter.grad = None
        return loss

    def _went_well(self, model: Any, batches: Sequence[Any], num_targets: torch.Tensor, num_items: Any) -> bool:
        """Computes the gradients of this process's micro-batches; False where memory ran out, in any process."""
        self._micro_batches, error = len(batches), None
        self._loss = torch.zeros((), device=self.args.device)
        tokens = positions = 0
        try:
            with self.accelerator.no_sync(model):
                for batch in batches:
                    rows = batch["rows"].tolist()
                    loss = super().training_step(model, batch | {"num_targets": num_targets}, num_items)
                    if self._penalty is not None:
                        loss, self._penalty = loss - self._penalty, None  # what is logged compares with other methods
                    self.guard.see(loss, rows, int((batch["labels"] >= 0).sum()))
                    self._loss += loss
                    tokens += sum(int(self._lengths[row]) for row in rows)
                    positions += batch["input_ids"].numel()
        except (RuntimeError, MemoryError) as caught:
            # Where the base is shared out, the others are waiting inside the model, and cannot be told.
            if self._sharded or not (isinstance(caught, MemoryError) or should_reduce_batch_size(caught)):
                raise
            error = caught
        if not any(each[0] for each in distributed.gather_numbers([float(error is not None)], self.args.device)):
            self._tokens, self._positions = self._tokens + tokens, self._positions + positions
            return True
        self._why = error and " ".join(str(error).split())[:200]
        return False

    def _halve(self) -> None:
        """Micro-batches of half the size from here on, for the same global batches. Raises `OSError` where they are
        single rows already."""
        self.unwrapped.zero_grad(set_to_none=True)
        self.guard.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        before, smaller = self._batches.size, self._batches.size.halved(self._batches.longest)
        if smaller is None:
            raise OSError(
                f"step {self.state.global_step + 1}: not even one row of the longest fits into memory "
                f"({self._why or 'in another process'}): {self._too_large()}"
            )
        self._batches.size = smaller
        distributed.say(
            f"step {self.state.global_step + 1}: memory ran out; from here on micro-batches have at most "
            f"{smaller.said()} instead of {before.said()}, and there are more of them in a step: the rows of a step "
            "stay the same"
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The micro-batch's share of the step's loss. DDP averages gradients over the processes, hence the factor."""
        loss = self._head.loss(model, inputs) / inputs["num_targets"] * distributed.world_size()
        penalty = self.attached.penalty() if self.attached else None
        if penalty is not None:  # once a step: every process has the whole of it, in equal parts by micro-batch
            share = penalty / self._micro_batches
            loss, self._penalty = loss + share, share.detach()
        return (loss, None) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> Any:
        """Trainer's, with the groups of a method that has its own."""
        groups = self.attached.parameter_groups(self.args.learning_rate) if self.attached else None
        if groups is None or self.optimizer is not None:
            return super().create_optimizer(model)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def after_step(self) -> None:
        """The method's own work between an optimizer step and the end of its gradients."""
        skipped = self.guard.watch.in_a_row or self.accelerator.optimizer_step_was_skipped
        if self.attached and not skipped:
            self.attached.after_step(self.state.global_step + 1)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss over the trained tokens of the validation rows, the same for any number of processes."""
        self.unwrapped.eval()
        totals = torch.zeros(2, dtype=torch.float64)
        batches = evaluation_batches(
            self.validation_rows,
            self._pad_id,
            self._batches.size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        for batch in batches:
            batch = self._prepare_inputs(batch)
            with self.accelerator.autocast():
                loss = self._head.loss(self.unwrapped, batch)
            totals += torch.tensor([loss.item(), int(trained_positions(batch["labels"]).sum())])
        loss, tokens = torch.stack(distributed.gather(totals)).sum(0).tolist()
        metrics = {f"{metric_key_prefix}_loss": loss / tokens, f"{metric_key_prefix}_tokens": int(tokens)}
        self.log(metrics)
        better = self.best.see(self.state.global_step, metrics[f"{metric_key_prefix}_loss"])
        self.control.should_save |= self.best.wanted and (better or self.best.should_stop)  # or it cannot be kept
        self.control.should_training_stop |= self.best.should_stop
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to every log line the trained tokens so far, their rate since this process began, and the share of
        padding among the positions that this process has computed since the line before; the loss is the mean of the
        steps that were taken."""
        started, tokens = self._session
        rate = (self.trained_tokens - tokens) / (time.perf_counter() - started)
        figures = {"trained_tokens": self.trained_tokens, "trained_tokens_per_second": round(rate, 1)}
        if self._positions:
            figures["padding"] = round(1 - self._tokens / self._positions, 4)
            self._tokens, self._positions = 0, 0
        if "loss" in logs:
            steps = self.state.global_step - self._logged_before
            logs = self._without_skips(logs, steps)
        counts = {f"{kind.replace(' ', '_')}_steps": n for kind, n in self.guard.watch.counts.items() if n}
        super().log({**logs, **figures, **counts}, start_time)

    def _without_skips(self, logs: dict[str, float], steps: int) -> dict[str, float]:
        """Trainer divides by all steps since the line before, among them those that were not taken."""
        self._logged_before, skipped, self.guard.skips = self.state.global_step, self.guard.skips, 0
        if skipped < steps:
            return {**logs, "loss": logs["loss"] * steps / (steps - skipped)}
        return {name: value for name, value in logs.items() if name != "loss"}

    def final_metrics(self) -> dict[str, float]:
        """Loss of the last logged steps, and of the validation rows where there are any."""
        log = self.state.log_history
        losses = [entry["loss"] for entry in log if "loss" in entry]
        metrics = {"train_loss": losses[-1]} if losses else {}
        metrics |= {f"{kind.replace(' ', '_')}_steps": n for kind, n in self.guard.watch.counts.items() if n}
        if self.validation_rows:
            done = [
                entry["eval_loss"] for entry in log if "eval_loss" in entry and entry["step"] == self.state.global_step
            ]
            metrics["validation_loss"] = done[-1] if done else self.evaluate()["eval_loss"]
        return metrics

    def accelerate(self, wanted: Sequence[str], *, attention: str | None = None) -> None:
        """Switches on those of `utils.extras` with which the model's loss and gradients stay what they are; says so."""
        probe = self._prepare_inputs(shortest(self.train_rows, self._pad_id))

        def loss(model: Any, batch: Any) -> torch.Tensor:
            with self.accelerator.autocast():
                return self._head.loss(model, batch)

        self._extras = extras.enable(
            self.unwrapped, wanted, probe, loss, precision=self._precision, attention=attention
        )
        for note in self._extras.notes:
            distributed.say(note)

    def release(self) -> None:
        """Takes off what accelerate put around the model's forward pass (with its autocast a bf16 model computes other
        logits than the same weights read back: tests/test_families.py), and the extras."""
        extract_model_from_parallel(self.unwrapped, keep_fp32_wrapper=False)
        self._extras.switch_off()

    def prove_loss(self) -> None:
        """Says so where the loss has to be computed in a dearer way; `ValueError` where it cannot be."""
        # All logits of a few tokens: of more, they would take more memory than training does.
        # A prompt with marks must be whole.
        few = shortest(self.train_rows, self._pad_id, most_rows=1) if self._needs_mask else None
        probe = self._prepare_inputs(few or endings(self.train_rows, self._pad_id))
        with self.accelerator.autocast():
            note = self._head.prove(self.unwrapped, probe, tolerance=LOSS_TOLERANCE[self._precision])
        if note:
            distributed.say(note)

    @property
    def _precision(self) -> distributed.Precision:
        return "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32"

    def set_epoch(self, epoch: int) -> None:
        """Draws the batches of `epoch`."""
        self._batches.set_epoch(epoch)

    def catch_up(self, state: Any) -> None:
        """Puts a resumed run where this plan has its step: the checkpoint brings back the learning rate and the
        intervals of the plan it was saved under, which may have been a shorter one."""
        self.trained_tokens = self._batches.targets_before(state.global_step)
        self._session = (time.perf_counter(), self.trained_tokens)
        state.compute_steps(self.args, state.max_steps)
        scheduler: Any = self.lr_scheduler
        # The rates of the flags, which may be others than those that the checkpoint was saved under.
        groups = self.attached.parameter_groups(self.args.learning_rate) if self.attached else None
        scheduler.base_lrs = (
            [group["lr"] for group in groups] if groups else [self.args.learning_rate] * len(scheduler.base_lrs)
        )
        rates = [peak * learning_rate_factor(state.global_step, self._steps) for peak in scheduler.base_lrs]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return self._batches.steps_per_epoch

    def sums(self) -> list[float]:
        """Tokens and positions since the last log line."""
        return [self._tokens, self._positions]

    def restore_sums(self, sums: list[float]) -> None:
        """Takes back what `sums` gave."""
        self._tokens, self._positions = map(int, sums)

    def progress(self) -> dict[str, Any]:
        """What a checkpoint must hold beside what Trainer keeps, as JSON."""
        checkpointing = self.args.gradient_checkpointing
        return super().progress() | {
            "guard": self.guard.state(),
            "micro_batch": {**asdict(self._batches.size), "checkpointing": checkpointing},
        }

    def restore(self, progress: Mapping[str, Any]) -> None:
        """Takes back what `progress` gave."""
        super().restore(progress)
        self.guard.restore(progress["guard"])
        self._logged_before = progress["logged"]
        self.trained_tokens = self._batches.targets_before(self.state.global_step)


class _Guard(TrainerCallback):
    """Calls the trainer where it must look before going on."""

    def __init__(self, trainer: SupervisedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.prove_loss()
        self._trainer.catch_up(state)
        self._trainer.go_on()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # accelerate drops set_epoch from a loader that skips to a resumed step; the step tells the epoch just as well.
        self._trainer.set_epoch(state.global_step // self._trainer.steps_per_epoch)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.after_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.guard.interruption.code:
            control.should_save = control.should_training_stop = True
