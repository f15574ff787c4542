"""A file of questions, answered into a directory, by one process or several, from the start or from where it stopped.

Knows: the order of a job: the directory is held, the questions are read, who answers is opened, what is done already is
compared, the rest is answered, and the file is put in order. Does not know flags, or what the answers are for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from utils import catalog, distributed, prediction, questions, result_rows, run_lock
from utils.answerers import Answerer


def carry_out(
    directory: Path,
    parts: list[catalog.Part],
    opened: Callable[[], Answerer],
    settings: Mapping[str, Any],
    *,
    seed: int,
    num_samples: int,
    long_prompts: str,
    about: Mapping[str, Any],
    retry_failed: bool,
) -> prediction.Tally | None:
    """Answers the rows of `parts` into `directory`; every process calls it, and the main one gets the tally.

    Args:
        opened: opens who answers; called once the questions are known to be readable.
        settings: of the decoding, as `cli.generation_settings` gives them; empty where nothing is decoded.
        long_prompts: `fail` or `cut`: part of what makes the job this one; the answerer does it.
        about: what is written down with the job, for people.

    Raises:
        FileNotFoundError, ValueError: as `questions.survey`, `opened` and `prediction.prepare`.
        OSError: the directory cannot be written to.
    """
    with ExitStack() as held:
        if distributed.is_main():
            held.enter_context(result_rows.writable(directory))
            held.enter_context(run_lock.held(directory, distributed.say))
        asked = distributed.decided_by_main(lambda: questions.survey(parts))
        if asked.unreadable:
            distributed.say(
                f"{asked.unreadable:,} of {asked.rows:,} rows cannot be asked, and fail: {asked.fault}. To mend them "
                "first, stop here: a file that has changed is another job"
            )
        answerer = opened()
        for line in answerer.said:
            distributed.say(line)
        identity = {
            "input_sha256": asked.sha256,
            "seed": seed,
            "num_samples": num_samples,
            "long_prompts": long_prompts,
            **settings,
            **answerer.identity,
        }
        found = distributed.decided_by_main(
            lambda: prediction.prepare(directory, asked, identity, about=about, retry_failed=retry_failed)
        )
        distributed.say(f"{directory}: {len(found.places):,} of {asked.rows:,} rows are done")
        job = prediction.Job(
            encode=answerer.encode,
            ask=answerer.ask,
            seed=seed,
            num_samples=num_samples,
            same_for_same=not settings.get("do_sample", True),
        )
        prediction.run(directory, asked, job, found)
        distributed.barrier()
        return prediction.finish(directory) if distributed.is_main() else None
