"""A finished run, ready to answer: base, adapter, tokenizer and template behind one value.

Knows: how a run is opened and asked. Does not know flags or files of questions, nor how a run is checked against its
base (`utils.identity`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils import adapters, generation, loading, runinfo
from utils.encode import encode_prompt
from utils.identity import identify, place_of
from utils.methods import get_method
from utils.templates import Template


@dataclass(frozen=True, kw_only=True)
class Assistant:
    """A model that answers records in the prompt it was trained with."""

    model: Any
    """With its adapter; `base_answers` switches it off."""
    tokenizer: Any
    template: Template
    stop_ids: list[int]
    run: runinfo.RunInfo
    base: loading.Base
    """How the model was loaded."""

    def prompt_ids(self, record: Mapping[str, Any]) -> list[int]:
        """The ids that are sent for a record: those that training saw."""
        return encode_prompt(record, self.template, self.tokenizer)

    def stream(self, record: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
        """The answer to one record, piece by piece."""
        return generation.stream(
            self.model, self.tokenizer, self.prompt_ids(record), stop_ids=self.stop_ids, settings=settings
        )

    def answers(
        self,
        records: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        *,
        batch_size: int = 32,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> list[str]:
        """The answer to each record, in order."""
        prompts = [self.prompt_ids(record) for record in records]
        answers, before = [""] * len(prompts), 0
        for members in self._decoded_together(prompts):
            found = generation.generate(
                self.model,
                self.tokenizer,
                [prompts[i] for i in members],
                stop_ids=self.stop_ids,
                settings=settings,
                batch_size=batch_size,
                on_batch=lambda done, before=before: on_batch(before + done),
            )
            before += len(members)
            for i, answer in zip(members, found, strict=True):
                answers[i] = answer
        return answers

    def _decoded_together(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Prompts that may share a batch, by number. Padding would come between virtual tokens and a shorter prompt:
        further off than they were trained, they mean something else to it (rotary positions)."""
        if not adapters.virtual_tokens(self.model):
            return [list(range(len(prompts)))]
        lengths = sorted({len(ids) for ids in prompts})
        return [[i for i, ids in enumerate(prompts) if len(ids) == length] for length in lengths]

    def base_answers(
        self, records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], **options: Any
    ) -> list[str]:
        """What the base alone answers, to the same prompts. Where the run holds all weights, the base is loaded beside
        them."""
        if get_method(self.run.method).trains_base:
            base = replace(self.base, name=place_of(self.run), revision=self.run.settings["revision"])
            return replace(self, model=base.load().eval()).answers(records, settings, **options)
        with self.model.disable_adapter():
            return self.answers(records, settings, **options)


def open_run(directory: Path, **wishes: Any) -> Assistant:
    """The run in `directory`, on this process's device; `wishes` and errors are those of `identify`."""
    found = identify(directory, **wishes)
    return Assistant(
        model=adapters.reopen(found.base, get_method(found.run.method), directory),
        tokenizer=found.tokenizer,
        template=found.template,
        stop_ids=found.run.stop_token_ids,
        run=found.run,
        base=found.base,
    )
