"""A Trainer whose checkpoints are whole or absent, and from which a run goes on exactly.

Knows: what of a Trainer must be kept so that a resumed run is the uninterrupted one: trained weights, optimizer, rate,
every process's random numbers, the log, and the sums between two log lines. Does not know rows, losses or batches.

What Trainer writes and reads keeps its names, so that stock Trainer can go on from these folders too; beside it lies
`progress.json` with what only this project has.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState

from utils import checkpoints, distributed, outputs, progress
from utils.attached import Attached
from utils.batching import MicroBatchSize
from utils.best import Best

PROGRESS, STATE = "progress.json", "trainer_state.json"


class ResumableTrainer(Trainer):
    """Saves, and goes on. `attached`, `about` and `best` are set before `train`."""

    attached: Attached | None = None
    about: Mapping[str, Any]
    """What checkpoints are of (`resumption.identity`), under `identity`."""
    best: Best
    _from: Path | None = None

    def run(self, checkpoint: Path | None) -> None:
        """Trains to the end, from `checkpoint` on if there is one. One of the end is taken as it is."""
        self._from = checkpoint
        if checkpoint is None or not self._is_end(checkpoint):
            self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            return
        self.take(checkpoint)
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self._bring_best(checkpoint.parent)
        self.restore(_progress(checkpoint))
        if distributed.is_main():
            progress.rewrite(self._directory, self.state.log_history)

    def _is_end(self, checkpoint: Path) -> bool:
        """Whether the run has nothing to do after `checkpoint`."""
        known = Best(patience=self.best.patience)
        known.restore(_progress(checkpoint)["best"])
        return checkpoints.step_of(checkpoint) >= self.args.max_steps or known.should_stop

    def take(self, checkpoint: Path) -> None:
        """What was trained becomes that of `checkpoint`."""
        self._load_from_checkpoint(str(checkpoint))

    @property
    def _directory(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def sums(self) -> list[float]:
        """What this process adds up between two log lines."""
        return []

    def restore_sums(self, sums: list[float]) -> None:
        """Takes back what `sums` gave."""

    def progress(self) -> dict[str, Any]:
        """What a checkpoint must hold beside what Trainer keeps, as JSON. Called in all processes."""
        # Trainer adds losses up between two log lines, and begins at zero when it goes on.
        mine = [float(self._tr_loss), *self.sums()]
        return {
            "best": self.best.state(),
            "logged": self._globalstep_last_logged,
            "processes": distributed.gather_numbers(mine, self.args.device),
        }

    def restore(self, progress: Mapping[str, Any]) -> None:
        """Takes back what `progress` gave, but for the sums."""
        self.best.restore(progress["best"])

    def go_on(self) -> None:
        """Called when training begins: puts back what Trainer does not."""
        if self._from is None:
            return
        kept = _progress(self._from)
        self._bring_best(self._from.parent)
        self.restore(kept)
        self._globalstep_last_logged = kept["logged"]
        every = kept["processes"]
        same = len(every) == distributed.world_size()
        mean = [sum(column) / len(every) for column in zip(*every, strict=True)]
        loss, *sums = every[distributed.rank()] if same else mean
        self._tr_loss += loss
        self.restore_sums(sums)

    def _bring_best(self, folder: Path) -> None:
        """The best checkpoint of a run that goes on in another directory comes along."""
        assert self._from is not None
        known = Best()
        known.restore(_progress(self._from)["best"])
        if known.step is None or not self.best.wanted or not distributed.is_main():
            return
        there, here = (checkpoints.path_of(place, known.step) for place in (folder, self._directory))
        if not here.exists() and there.exists() and checkpoints.fault(there) is None:
            with outputs.atomic_directory(here) as copy:
                shutil.copytree(there, copy, dirs_exist_ok=True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """In place of Trainer's, which writes into the place itself, in every process."""
        generators = distributed.gather(self._generators())
        kept = self.progress()
        directory, step = self._directory, self.state.global_step
        if distributed.is_main():
            with checkpoints.writing(directory, step, self.about) as folder:
                self.save_model(str(folder), _internal_call=True)
                (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing here reads
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                for file, content in (item for each in generators for item in each.items()):
                    (folder / file).write_bytes(content)
                self.state.save_to_json(str(folder / STATE))
                (folder / PROGRESS).write_text(json.dumps(kept) + "\n", encoding="utf-8")
            best = (
                [checkpoints.path_of(directory, self.best.step)]
                if self.best.wanted and self.best.step is not None
                else []
            )
            limit = self.args.save_total_limit or len(checkpoints.found(directory))
            checkpoints.thin_out(directory, limit, checkpoints.path_of(directory, step), best)
        distributed.barrier()

    def _generators(self) -> dict[str, bytes]:
        """This process's files of random numbers: name → content."""
        with tempfile.TemporaryDirectory() as name:
            self._save_rng_state(name)
            return {path.name: path.read_bytes() for path in Path(name).iterdir()}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.attached is None or output_dir is None:
            super()._save(output_dir, state_dict)
            return
        with self.attached.as_trained():
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.attached.write_state(Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.attached:
            self.attached.read_state(Path(resume_from_checkpoint))


def _progress(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))


def micro_batch_of(checkpoint: Path) -> tuple[MicroBatchSize, bool]:
    """The size of the micro-batches that the run had come to, and whether it computes activations twice."""
    kept = dict(_progress(checkpoint)["micro_batch"])
    checkpointing = kept.pop("checkpointing")
    return MicroBatchSize(**kept), checkpointing
