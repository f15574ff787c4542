"""The training loop: transformers' Trainer with our batches, our loss and our guard.

Knows: optimizer steps, the loss, and when a run must stop. Does not know records, prompts or files of its own.

The loss of a step is the sum over its trained tokens divided by their number in the whole global batch, so
accumulation, batch shape and the number of processes do not change it. The stock Trainer logs a NaN as 0.0 and
goes on (measured in 5.23); here a loss or gradient that is not finite stops the run before the optimizer steps, with
the rows named.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import extract_model_from_parallel
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from utils import distributed, extras, store
from utils.adapters import Attached
from utils.batching import MicroBatchSize, StepBatches, endings, evaluation_batches, only_item, shortest
from utils.proof import Encoded
from utils.schedule import Steps, learning_rate_factor
from utils.target_loss import HeadAtTargets, trained_positions

LOSS_TOLERANCE: Mapping[distributed.Precision, float] = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 5e-3}
"""How far the loss at the targets may lie from that of the model's own logits, relative; both are sums over many tokens
and round less than a logit does (`verification.TOLERANCE`)."""


def training_arguments(
    output_dir: Path,
    steps: Steps,
    *,
    learning_rate: float,
    precision: distributed.Precision,
    seed: int,
    validates: bool,
    gradient_checkpointing: bool,
    save_total_limit: int,
    report_to: Sequence[str],
) -> TrainingArguments:
    """Trainer's arguments: ours, and what we switch off because we do it ourselves."""
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps.total,
        # An item of our loader is a whole step: how many micro-batches that is, only we know.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=learning_rate,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=distributed.device().type == "cpu",
        seed=seed,
        logging_steps=steps.logging,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validates else "no",
        eval_steps=steps.evaluating,
        save_strategy="steps",
        save_steps=steps.saving,
        save_total_limit=save_total_limit,
        gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        report_to=list(report_to),
        disable_tqdm=True,
    )
    # One process uses one device. On a box with several GPUs Trainer would wrap the model in DataParallel, which splits
    # batches behind our back; several GPUs are what torchrun is for.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class NotFiniteError(ValueError):
    """A loss or gradient is NaN or infinite; the step was not taken."""


class SupervisedTrainer(Trainer):
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
    ) -> None:
        """
        Args:
            batch_size: rows of an optimizer step, in all processes together.
            micro_batch: how many of them go through the model at once.
            needs_mask: see `HeadAtTargets`.
            attached: what `model` belongs to, where its method wants more than gradients.
        """
        self._attached, self._penalty, self._micro_batches = attached, None, 1
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self.trained_tokens = 0
        self._tokens, self._positions, self._extras = 0, 0, extras.Enabled()
        self._session = (time.perf_counter(), 0)
        self.unwrapped = model
        self._head = HeadAtTargets(model, needs_mask=needs_mask)
        self._pad_id, self._steps, self._micro_batch, self._needs_mask = pad_id, steps, micro_batch, needs_mask
        self._lengths = store.lengths(train_rows)
        self._batches = StepBatches(
            train_rows,
            pad_id,
            micro_batch,
            batch_size=batch_size,
            seed=args.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []
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
        """Forward and backward of a step's micro-batches, whose gradients the processes share after the last; remembers
        losses and rows for the guard."""
        batches = inputs["micro_batches"]
        self._micro_batches = len(batches)
        for i, batch in enumerate(batches):
            rows = batch["rows"]
            self._tokens += sum(int(self._lengths[row]) for row in rows.tolist())
            self._positions += batch["input_ids"].numel()
            with nullcontext() if i == len(batches) - 1 else self.accelerator.no_sync(model):
                loss = super().training_step(model, batch | {"num_targets": inputs["num_targets"]}, num_items_in_batch)
            if self._penalty is not None:
                loss, self._penalty = loss - self._penalty, None  # what is logged compares with other methods
            self._seen.append((loss, rows))
        if self._sharded:
            distributed.average_gradients(self.unwrapped.parameters())
        return torch.stack([loss for loss, _ in self._seen]).sum()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The micro-batch's share of the step's loss. DDP averages gradients over the processes, hence the factor."""
        loss = self._head.loss(model, inputs) / inputs["num_targets"] * distributed.world_size()
        penalty = self._attached.penalty() if self._attached else None
        if penalty is not None:  # once a step: every process has the whole of it, in equal parts by micro-batch
            share = penalty / self._micro_batches
            loss, self._penalty = loss + share, share.detach()
        return (loss, None) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> Any:
        """Trainer's, with the groups of a method that has its own."""
        groups = self._attached.parameter_groups(self.args.learning_rate) if self._attached else None
        if groups is None or self.optimizer is not None:
            return super().create_optimizer(model)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def after_step(self) -> None:
        """The method's own work between an optimizer step and the end of its gradients."""
        if self._attached and not self.accelerator.optimizer_step_was_skipped:
            self._attached.after_step(self.state.global_step + 1)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self._attached is None or output_dir is None:
            super()._save(output_dir, state_dict)
            return
        with self._attached.as_trained():
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._attached.write_state(Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._attached:
            self._attached.read_state(Path(resume_from_checkpoint))

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
            self._micro_batch,
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
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to every log line the trained tokens so far, their rate since this process began, and the share of
        padding among the positions that this process has computed since the line before."""
        started, tokens = self._session
        rate = (self.trained_tokens - tokens) / (time.perf_counter() - started)
        figures = {"trained_tokens": self.trained_tokens, "trained_tokens_per_second": round(rate, 1)}
        if self._positions:
            figures["padding"] = round(1 - self._tokens / self._positions, 4)
            self._tokens, self._positions = 0, 0
        super().log({**logs, **figures}, start_time)

    def final_metrics(self) -> dict[str, float]:
        """Loss of the last logged steps, and of the validation rows where there are any."""
        log = self.state.log_history
        metrics = {"train_loss": next(entry["loss"] for entry in reversed(log) if "loss" in entry)}
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
        groups = self._attached.parameter_groups(self.args.learning_rate) if self._attached else None
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

    def require_finite(self) -> None:
        """`NotFiniteError` in every process if the loss of any micro-batch of this step, in any process, or any
        gradient is not finite. Called before the optimizer steps."""
        losses = [loss for loss, _ in self._seen]
        finite = torch.isfinite(torch.stack(losses)).all()
        scaler = self.accelerator.scaler
        if scaler is not None:
            # fp16's scaler meets infinite gradients by design: it skips that step and halves its scale. Below 1 the
            # gradients overflow whatever it does.
            finite = finite & (scaler.get_scale() >= 1.0)
        else:
            gradients = [p.grad for p in self.unwrapped.parameters() if p.grad is not None]
            finite = finite & torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all()
        flag = finite.float()
        if dist.is_initialized():
            dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        seen, self._seen = self._seen, []
        if flag.item() == 1.0:
            return
        bad = [rows for loss, rows in seen if not torch.isfinite(loss)] or [rows for _, rows in seen]
        origins = [self.train_rows[row].origin for rows in bad for row in rows.tolist()]
        every = [origin for part in distributed.gather(origins) for origin in part]
        what = "loss" if any(distributed.gather(any(not torch.isfinite(loss) for loss in losses))) else "gradient"
        named = "\n".join(f"  {origin}" for origin in every[:8]) + (
            f"\n  and {len(every) - 8} more" if len(every) > 8 else ""
        )
        raise NotFiniteError(
            f"step {self.state.global_step + 1}: the {what} is not finite (NaN or infinity). The step was not taken "
            f"and nothing was saved from it. Its rows:\n{named}\nLook at these rows, lower --learning_rate, or choose "
            "--precision bf16 or fp32"
        )


class _Guard(TrainerCallback):
    """Calls the trainer where it must look before going on."""

    def __init__(self, trainer: SupervisedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.prove_loss()
        self._trainer.catch_up(state)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # accelerate drops set_epoch from a loader that skips to a resumed step; the step tells the epoch just as well.
        self._trainer.set_epoch(state.global_step // self._trainer.steps_per_epoch)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.require_finite()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.after_step()
