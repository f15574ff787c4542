"""Fine-tune a language model on instructions, and prove that what is saved is what was trained.

    python3 uniform_finetune.py                                  # the bundled tiny base on the bundled sample
    python3 uniform_finetune.py --dry_run                        # everything but training
    python3 uniform_finetune.py --data my.json --preview 3       # three rows, trained tokens marked
    python3 uniform_finetune.py --model_type llama --model_name_or_path decapoda-research/llama-7b-hf \\
        --data alpaca-belle-cot --lora_target_modules q_proj v_proj \\
        --per_gpu_train_batch_size 4 --learning_rate 3e-4 --epochs 1
    torchrun --nproc_per_node 4 uniform_finetune.py --model_type bloom --data alpaca-cot
    python3 uniform_finetune.py --peft_type dora                 # another method than LoRA; --help lists them

Flags left out come from the model's row in utils/models/rows.py; what they were resolved to is kept in run.json.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from utils import catalog, checkpoints, cli, hygiene, methods, preflight, runinfo, settings
from utils.encode import stop_ids
from utils.models import DEFAULT_MODEL, REPOSITORY, get_model
from utils.settings import Settings
from utils.templates import fingerprint, get_template

if TYPE_CHECKING:
    from utils.adapters import Attached
    from utils.dataset import TrainingData
    from utils.loading import Base
    from utils.schedule import Steps
    from utils.training import SupervisedTrainer


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    cli.add_model_flags(parser, model_type=DEFAULT_MODEL)
    settings.add_data_flags(parser)
    settings.add_method_flags(parser)
    settings.add_optimizer_flags(parser)
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

    from utils import dataset, distributed, loading, preview

    loading.quiet_libraries()
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
    with cli.bar("encoding") as on_rows:
        data = dataset.build(
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
    if flags.preview:
        for row in data.train[: flags.preview]:
            distributed.say(preview.marked(row, tokenizer, color=cli.use_color(sys.stdout)) + "\n")
        return 0
    chosen, steps, trainable = plan(chosen, base, data)
    distributed.say(f"on {base.device}, {distributed.world_size()} process(es), {threads} of {cores} cores each")
    if flags.dry_run:
        distributed.say("dry run: nothing was trained or written")
        return 0
    preflight.require_space(chosen.output_dir, preflight.run_bytes(trainable, chosen.save_total_limit))
    with checkpoints.full_disk_explained(chosen.output_dir, preflight.checkpoint_bytes(trainable)):
        return train(chosen, base, tokenizer, data, steps, overwrite=flags.overwrite)


def plan(chosen: Settings, base: Base, data: TrainingData) -> tuple[Settings, Steps, int]:
    """Prints what will be done; returns the settings with nothing left open, the steps and the number of trainable
    parameters. No weights are loaded."""
    from utils import adapters, distributed, report

    batch = chosen.per_gpu_train_batch_size * chosen.gradient_accumulation_steps * distributed.world_size()
    steps = chosen.steps(len(data.train), rows_a_step=batch)
    method = methods.schedule(chosen.method, steps.total)
    chosen = replace(chosen, peft_options=dict(method.options))
    trainable, total = adapters.count_parameters(adapters.attach(base.empty(), method, total_steps=steps.total).model)
    for line in report.plan_lines(chosen.as_dict(), data, steps, rows_a_step=batch, trainable=trainable, total=total):
        distributed.say(line)
    return chosen, steps, trainable


def train(chosen: Settings, base: Base, tokenizer: Any, data: TrainingData, steps: Steps, *, overwrite: bool) -> int:
    """Trains, saves, verifies and reports. An old run is deleted only once all that can go wrong before has not."""
    from utils import adapters, batching, distributed, report, verification

    started, clock, method = datetime.now(UTC), time.perf_counter(), chosen.method.method
    if method.trains_base:
        base = replace(base, precision="fp32")
    checkpoint = checkpoints.to_resume(chosen.output_dir, chosen.resume_from_checkpoint, chosen.plan())
    attached, trainer = make_trainer(chosen, base, tokenizer, data, steps)
    before = verification.marks(attached.model)
    if distributed.is_main():
        if overwrite:
            runinfo.clear(chosen.output_dir)
        checkpoints.keep_plan(chosen.output_dir, chosen.plan())
    distributed.barrier()
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    metrics, trained_tokens = trainer.final_metrics(), trainer.trained_tokens
    seconds = round(time.perf_counter() - clock, 1)
    distributed.barrier()
    distributed.leave()
    if not distributed.is_main():
        return 0

    trainer.release()
    probe = batching.shortest(data.train, tokenizer.pad_token_id)
    moved = verification.require_moved(attached.model, before, method)
    expected = verification.probe_logits(attached.model, probe)
    attached.save(chosen.output_dir)
    base.save_tokenizer(tokenizer, chosen.output_dir)
    del trainer, attached  # the second base takes the place of the first
    gc.collect()
    reloaded = adapters.reopen(base, method, chosen.output_dir)
    verified = verification.verify_adapter(
        chosen.output_dir, reloaded, probe, expected, precision=base.precision, method=method, moved=moved
    )
    template = get_template(chosen.template)
    run = runinfo.RunInfo(
        settings=chosen.as_dict(),
        base_fingerprint=base.fingerprint(),
        template_hash=fingerprint(template, tokenizer.chat_template),
        stop_token_ids=stop_ids(template, tokenizer),
        sources=data.sources,
        ledger=data.ledger.as_dict(),
        world_size=distributed.world_size(),
        metrics=metrics,
        trained_tokens=trained_tokens,
        verified=verified.as_dict(),
        versions=runinfo.versions(),
        commit=runinfo.commit(REPOSITORY),
        started=started.isoformat(timespec="seconds"),
        seconds=seconds,
    )
    for line in report.publish(run, chosen.output_dir):
        distributed.say(line)
    return 0


def make_trainer(
    chosen: Settings, base: Base, tokenizer: Any, data: TrainingData, steps: Steps
) -> tuple[Attached, SupervisedTrainer]:
    """The base with what is trained in it, fresh, and its trainer."""
    from utils import adapters, distributed, loading, progress, training

    chosen.output_dir.mkdir(parents=True, exist_ok=True)
    distributed.seed(chosen.seed)  # the adapter starts alike in every process
    attached = adapters.attach(base.load(), chosen.method, total_steps=steps.total)
    longest = int(data.train.lengths.max()) + adapters.virtual_tokens(attached.model)
    activations = preflight.activation_bytes(chosen.per_gpu_train_batch_size * longest, **loading.shape(attached.model))
    fits = not preflight.needs_checkpointing(distributed.free_memory(), activations)
    checkpointing = chosen.computes_twice(fits=fits)
    arguments = training.training_arguments(
        chosen.output_dir,
        steps,
        per_device_batch_size=chosen.per_gpu_train_batch_size,
        accumulation=chosen.gradient_accumulation_steps,
        learning_rate=chosen.learning_rate,
        precision=chosen.precision or base.precision,
        seed=chosen.seed,
        validates=bool(data.validation),
        gradient_checkpointing=checkpointing,
        save_total_limit=chosen.save_total_limit,
        report_to=chosen.report_to,
    )
    return attached, training.SupervisedTrainer(
        attached.model,
        arguments,
        train_rows=data.train,
        validation_rows=data.validation,
        pad_id=tokenizer.pad_token_id,
        steps=steps,
        callbacks=[progress.Progress(), progress.LogFile(chosen.output_dir)],
        processing_class=tokenizer,
        attached=attached,
    )


if __name__ == "__main__":
    sys.exit(main())
