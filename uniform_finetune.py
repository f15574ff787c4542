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
    python3 uniform_finetune.py --resume_from_checkpoint         # go on where a run was stopped, exactly

Flags left out come from the model's row in utils/models/rows.py; what they were resolved to is kept in run.json.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from utils import catalog, checkpoints, cli, disk, flags, hygiene, methods, settings
from utils.models import get_model
from utils.settings import Settings

if TYPE_CHECKING:
    from utils.course import Course
    from utils.dataset import TrainingData
    from utils.loading import Base


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    flags.add_finetuning_flags(parser)
    return parser


@cli.reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    started = time.time()
    parser = make_parser()
    values = parser.parse_args(argv)
    only_look = bool(values.dry_run or values.preview)
    try:
        chosen = settings.resolve(values)
        catalog.parse_mixture(chosen.data)
        hygiene.resolve(chosen.drop, chosen.keep)
    except ValueError as error:
        parser.error(str(error))
    if not only_look:
        kept = {"overwrite": values.overwrite, "resume": chosen.resume_from_checkpoint}
        settings.check_output(chosen.output_dir, chosen.model_name_or_path, **kept)

    from utils import dataset, distributed, loading, preflight, preview

    loading.quiet_libraries()
    if values.device_memory:
        elsewhere = preflight.Device.elsewhere(values.device_memory)
        for line in preflight.will_it_fit(chosen, elsewhere, world_size=values.world_size or 1):
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
    with cli.bar("encoding") as on_rows:
        data = dataset.of_settings(chosen, tokenizer, on_rows=on_rows)
    if values.preview:
        for row in data.train[: values.preview]:
            distributed.say(preview.marked(row, tokenizer, color=cli.use_color(sys.stdout)) + "\n")
        return 0
    course = planned(chosen, base, tokenizer, data)
    distributed.say(f"on {base.device}, {distributed.world_size()} process(es), {threads} of {cores} cores each")
    if values.dry_run:
        distributed.say("dry run: nothing was trained; the rows that were encoded are kept for the next run")
        return 0
    course.foreseen.require_memory()
    trainable = course.foreseen.trainable
    disk.require_space(chosen.output_dir, disk.run_bytes(trainable, chosen.save_total_limit))
    with (
        checkpoints.full_disk_explained(chosen.output_dir, disk.checkpoint_bytes(trainable)),
        distributed.lost_processes_explained(lambda: checkpoints.left_of(chosen.output_dir)),
    ):
        from utils import finetuning

        if chosen.method.method.trains_base:
            course = replace(course, base=replace(base, precision="fp32"))
        return finetuning.finetune(course, overwrite=values.overwrite, started=started)


def planned(chosen: Settings, base: Base, tokenizer: Any, data: TrainingData) -> Course:
    """What will be done, printed. No weights are loaded."""
    from utils import distributed, preflight, report
    from utils.course import Course

    batch = chosen.rows_a_step(distributed.world_size())
    steps = chosen.steps(len(data.train), rows_a_step=batch)
    chosen = replace(chosen, peft_options=dict(methods.schedule(chosen.method, steps.total).options))
    foreseen = preflight.foresee(chosen, base, data.train, preflight.Device.here(base.precision), steps.total)
    for line in report.plan_lines(chosen.as_dict(), data, steps, foreseen.lines(), rows_a_step=batch):
        distributed.say(line)
    return Course(chosen=chosen, base=base, tokenizer=tokenizer, data=data, steps=steps, foreseen=foreseen)


if __name__ == "__main__":
    sys.exit(main())
