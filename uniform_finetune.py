"""Fine-tune a language model on instructions, and prove that what is saved is what was trained.

    python3 uniform_finetune.py                                  # the bundled tiny base on the bundled sample
    python3 uniform_finetune.py --dry_run                        # everything but training
    python3 uniform_finetune.py --data my.json --preview 3       # three rows, trained tokens marked
    python3 uniform_finetune.py --model_type llama --model_name_or_path decapoda-research/llama-7b-hf \\
        --data alpaca-belle-cot --lora_target_modules q_proj v_proj \\
        --per_gpu_train_batch_size 4 --learning_rate 3e-4 --epochs 1
    torchrun --nproc_per_node 4 uniform_finetune.py --model_type bloom --data alpaca-cot
    python3 uniform_finetune.py --peft_type dora                 # another method than LoRA; --help lists them
    python3 uniform_finetune.py --model_type llama --size 30b --dry_run --device_memory 80GB    # will it fit?

Flags left out come from the model's row in utils/models/rows.py; what they were resolved to is kept in run.json.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from utils import catalog, checkpoints, cli, disk, hygiene, methods, runinfo, settings
from utils.encode import stop_ids
from utils.models import DEFAULT_MODEL, REPOSITORY, get_model
from utils.settings import Settings
from utils.templates import fingerprint, get_template

if TYPE_CHECKING:
    import torch

    from utils.batching import Batch
    from utils.dataset import TrainingData
    from utils.loading import Base
    from utils.preflight import Preflight
    from utils.schedule import Steps


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    cli.add_model_flags(parser, model_type=DEFAULT_MODEL)
    settings.add_data_flags(parser)
    settings.add_method_flags(parser)
    settings.add_optimizer_flags(parser)
    settings.add_speed_flags(parser)
    settings.add_output_flags(parser)
    return parser


@cli.reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    flags = parser.parse_args(argv)
    only_look = bool(flags.dry_run or flags.preview)
    try:
        chosen = settings.resolve(flags)
        parts = catalog.parse_mixture(chosen.data)
        drop = hygiene.resolve(chosen.drop, chosen.keep)
        if not only_look:
            kept = {"overwrite": flags.overwrite, "resume": chosen.resume_from_checkpoint}
            settings.check_output(chosen.output_dir, chosen.model_name_or_path, **kept)
    except ValueError as error:
        parser.error(str(error))

    from utils import distributed, loading, preflight, preview

    loading.quiet_libraries()
    if flags.device_memory:
        elsewhere = preflight.Device.elsewhere(flags.device_memory)
        for line in preflight.will_it_fit(chosen, elsewhere, world_size=flags.world_size or 1):
            distributed.say(line)
        return 0
    threads, cores = distributed.start()
    base = loading.choose(
        chosen.model_name_or_path,
        get_model(chosen.model_type),
        precision=chosen.precision,
        quantization_bit=chosen.quantization_bit,
        revision=chosen.revision,
        trust_remote_code=chosen.trust_remote_code,
    )
    chosen = replace(chosen, precision=base.precision, quantization_bit=base.quantization_bit)
    tokenizer = base.tokenizer()
    data = encode(chosen, tokenizer, parts, drop)
    if flags.preview:
        for row in data.train[: flags.preview]:
            distributed.say(preview.marked(row, tokenizer, color=cli.use_color(sys.stdout)) + "\n")
        return 0
    chosen, steps, foreseen = plan(chosen, base, data)
    distributed.say(f"on {base.device}, {distributed.world_size()} process(es), {threads} of {cores} cores each")
    if flags.dry_run:
        distributed.say("dry run: nothing was trained or written")
        return 0
    foreseen.require_memory()
    disk.require_space(chosen.output_dir, disk.run_bytes(foreseen.trainable, chosen.save_total_limit))
    with (
        checkpoints.full_disk_explained(chosen.output_dir, disk.checkpoint_bytes(foreseen.trainable)),
        distributed.lost_processes_explained(lambda: checkpoints.left_of(chosen.output_dir)),
    ):
        if chosen.method.method.trains_base:
            base = replace(base, precision="fp32")
        trained = train(chosen, base, tokenizer, data, steps, foreseen, flags.overwrite)
        if not chosen.fsdp:
            distributed.leave()
        if distributed.is_main() or chosen.fsdp:
            finish(chosen, base, tokenizer, data, trained)
    return 0


def encode(chosen: Settings, tokenizer: Any, parts: Sequence[catalog.Part], drop: frozenset[str]) -> TrainingData:
    """The rows to train on, each proved."""
    from utils import dataset

    with cli.bar("encoding") as on_rows:
        return dataset.build(
            parts,
            get_template(chosen.template),
            tokenizer,
            cutoff_len=chosen.cutoff_len,
            truncation=chosen.truncation,
            val_set_size=chosen.val_set_size,
            seed=chosen.seed,
            drop=drop,
            overlap=hygiene.local_evaluation_sets() if "evaluation_overlap" in drop else None,
            workers=chosen.preprocessing_num_workers,
            on_rows=on_rows,
        )


def plan(chosen: Settings, base: Base, data: TrainingData) -> tuple[Settings, Steps, Preflight]:
    """Prints what will be done; returns the settings with nothing left open, the steps, and what was found out about
    memory. No weights are loaded."""
    from utils import distributed, preflight, report

    batch = chosen.rows_a_step(distributed.world_size())
    steps = chosen.steps(len(data.train), rows_a_step=batch)
    chosen = replace(chosen, peft_options=dict(methods.schedule(chosen.method, steps.total).options))
    foreseen = preflight.foresee(chosen, base, data.train, preflight.Device.here(base.precision), steps.total)
    for line in report.plan_lines(chosen.as_dict(), data, steps, foreseen.lines(), rows_a_step=batch):
        distributed.say(line)
    return chosen, steps, foreseen


class Trained(NamedTuple):
    """What is left of a training once its model is gone: the saved files are held against it."""

    metrics: dict[str, float]
    trained_tokens: int
    moved: int
    probe: Batch
    logits: torch.Tensor
    started: float
    seconds: float


def train(
    chosen: Settings, base: Base, tokenizer: Any, data: TrainingData, steps: Steps, foreseen: Preflight, overwrite: bool
) -> Trained:
    """Trains and saves. An old run is deleted only once all that can go wrong before has not."""
    from utils import assembly, batching, distributed, verification

    started = time.time()
    checkpoint = checkpoints.to_resume(chosen.output_dir, chosen.resume_from_checkpoint, chosen.plan())
    attached, trainer = assembly.make_trainer(chosen, base, tokenizer, data, steps, foreseen)
    before = verification.marks(attached.model)
    if distributed.is_main():
        checkpoints.begin(chosen.output_dir, chosen.plan(), overwrite=overwrite)
    distributed.barrier()
    with distributed.waits_at_most(distributed.LONGEST_STEP):
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    metrics = trainer.final_metrics()
    seconds = round(time.time() - started, 1)
    trainer.release()
    probe = batching.shortest(data.train, tokenizer.pad_token_id, most_tokens=2**24 // len(tokenizer))
    moved = verification.require_moved(attached.model, before, chosen.method.method)
    logits = verification.probe_logits(attached.model, probe)
    if distributed.is_main():
        attached.save(chosen.output_dir)
        base.save_tokenizer(tokenizer, chosen.output_dir)
    return Trained(metrics, trainer.trained_tokens, moved, probe, logits, started, seconds)


def finish(chosen: Settings, base: Base, tokenizer: Any, data: TrainingData, trained: Trained) -> None:
    """Reads what was saved back into a fresh base, which must answer alike, and reports."""
    from utils import adapter_files, assembly, distributed, report, verification

    gc.collect()  # the second base takes the place of the first
    method, template = chosen.method.method, get_template(chosen.template)
    facts: dict[str, Any] = {"precision": base.precision, "method": method, "moved": trained.moved}
    with distributed.everywhere(chosen.output_dir, adapter_files.NAMES if chosen.fsdp else ()) as saved:
        reloaded = assembly.reopen(chosen, base, saved)
        verified = verification.verify_adapter(saved, reloaded, trained.probe, trained.logits, **facts)
    distributed.leave()
    if not distributed.is_main():
        return
    run = runinfo.RunInfo(
        settings=chosen.as_dict(),
        base_fingerprint=base.fingerprint(),
        template_hash=fingerprint(template, tokenizer.chat_template),
        stop_token_ids=stop_ids(template, tokenizer),
        sources=data.sources,
        ledger=data.ledger.as_dict(),
        world_size=distributed.world_size(),
        metrics=trained.metrics,
        trained_tokens=trained.trained_tokens,
        verified=verified.as_dict(),
        versions=runinfo.versions(),
        commit=runinfo.commit(REPOSITORY),
        started=datetime.fromtimestamp(trained.started, UTC).isoformat(timespec="seconds"),
        seconds=trained.seconds,
    )
    for line in report.publish(run, chosen.output_dir):
        distributed.say(line)


if __name__ == "__main__":
    sys.exit(main())
