"""A base with its adapters, ready to answer: each adapter in the prompt that it was trained with.

Knows: how adapters are opened and asked, one or several over one base. Does not know flags or files of questions, nor
how an adapter is checked against its base (`utils.identity`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils import adapters, cli, decoding_memory, equivalence, folding, generation, lookup
from utils.encode import cut_prompt, encode_prompt
from utils.generation import Answer, Failure
from utils.identity import Identified, base_place, identify, require_same_base
from utils.methods import get_method
from utils.stopping import Ends
from utils.templates import turn_marks

BASE = "base"
"""The name under which the base answers without any adapter."""
MERGED_WITHIN = 1e-4
"""How far the logits of a base with its adapter merged in may lie from those of the two side by side, as a share of the
largest: fp32's rounding over a model's layers is a tenth of that (benchmarks/merge.py)."""


@dataclass(frozen=True, kw_only=True)
class Assistant:
    """A model that answers records. `adapter`, in its methods, is one of `names` or `BASE`; None is the first."""

    model: Any
    """With its adapters; one of them is on at a time."""
    origins: Mapping[str, Identified]
    """Each adapter by its name: where it comes from, its template and tokenizer."""
    base: Any
    """How the base was loaded, a `loading.Base`."""
    _plain: list[Any] = field(default_factory=list)
    """The base by itself, where an origin holds all weights and was asked to be compared with it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters; the first one answers unless another is asked for."""
        return tuple(self.origins)

    @property
    def tokenizer(self) -> Any:
        """The first adapter's."""
        return self.origin(None).tokenizer

    def prompt_ids(self, record: Mapping[str, Any], adapter: str | None = None) -> list[int]:
        """The ids that are sent for a record: those that training saw."""
        origin = self.origin(adapter)
        return encode_prompt(record, origin.template, origin.tokenizer)

    def within_context(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings, with the default of `max_new_tokens` lowered to half of the context where that is less: who
        chose nothing is not told to choose less."""
        context, longest = adapters.context_length(self.model), settings["max_new_tokens"]
        if context is not None and longest == cli.GENERATION["max_new_tokens"][0]:
            longest = min(longest, context // 2)
        return {**settings, "max_new_tokens": longest}

    def fitting_prompt(
        self, record: Mapping[str, Any], max_new_tokens: int, *, cut: bool, adapter: str | None = None
    ) -> tuple[list[int], int]:
        """(`prompt_ids`, how many tokens were cut from them so that the longest answer fits behind).

        Args:
            cut: whether a longer prompt is cut from the left (`encode.cut_prompt`); else it is refused.

        Raises:
            ValueError: it does not fit.
        """
        ids, origin = self.prompt_ids(record, adapter), self.origin(adapter)
        context = adapters.context_length(self.model)
        kept = ids
        if cut and context is not None:
            longest = context - adapters.virtual_tokens(self.model) - max_new_tokens
            kept = cut_prompt(ids, longest, origin.template, origin.tokenizer)
        generation.check_length(self.model, kept, max_new_tokens)
        return kept, len(ids) - len(kept)

    def ends(self, adapter: str | None = None, stop: Sequence[str] = ()) -> Ends:
        """What ends an answer: the ids that training ended answers with, the template's mark of a next question, and
        the texts in `stop`."""
        origin = self.origin(adapter)
        return Ends(ids=origin.stop_token_ids, texts=(*turn_marks(origin.template), *stop))

    def stream(
        self,
        record: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        adapter: str | None = None,
        seed: int = generation.SEED,
        stop: Sequence[str] = (),
    ) -> Generator[str, None, Answer]:
        """The answer to one record, piece by piece; see `generation.stream`."""
        prompt, ends = self.prompt_ids(record, adapter), self.ends(adapter, stop)
        with self.speaking(adapter) as model:
            tokenizer = self.origin(adapter).tokenizer
            return (yield from generation.stream(model, tokenizer, prompt, ends=ends, settings=settings, seed=seed))

    def answers(
        self,
        records: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        *,
        adapter: str | None = None,
        stop: Sequence[str] = (),
        **options: Any,
    ) -> list[Answer]:
        """The answer to each record, in order; `options` are those of `answer_ids`."""
        prompts = [self.prompt_ids(record, adapter) for record in records]
        return self.answer_ids(prompts, settings, adapter=adapter, ends=self.ends(adapter, stop), **options)

    def answer_ids(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Mapping[str, Any],
        *,
        ends: Ends,
        adapter: str | None = None,
        seeds: Sequence[int] | None = None,
        batch_size: int = 32,
        on_batch: Callable[[int], object] = lambda done: None,
    ) -> list[Answer]:
        """The answer to each prompt, in order. As many are decoded together as memory has room for, and at most
        `batch_size`; the rest is as in `generation.generate`."""
        seeds = [generation.SEED] * len(prompts) if seeds is None else seeds
        answers: dict[int, Answer] = {}
        with self.speaking(adapter) as model:
            room = decoding_memory.positions(model)
            for members in _decoded_together(model, prompts):
                before = len(answers)
                found = generation.generate(
                    model,
                    self.origin(adapter).tokenizer,
                    [prompts[i] for i in members],
                    ends=ends,
                    settings=settings,
                    seeds=[seeds[i] for i in members],
                    batch_size=batch_size,
                    max_tokens_per_batch=room,
                    on_batch=lambda done, before=before: on_batch(before + done),
                )
                answers.update(zip(members, found, strict=True))
        return [answers[i] for i in range(len(prompts))]

    def answer_each(
        self, prompts: Sequence[Sequence[int]], settings: Mapping[str, Any], **options: Any
    ) -> list[Answer | Failure]:
        """As `answer_ids`, but `failing_alone`."""
        seeds, on_batch = options.pop("seeds", None), options.pop("on_batch", lambda done: None)

        def ask(numbers: Sequence[int], told: Callable[[int], object]) -> list[Answer]:
            options["seeds"] = [seeds[i] for i in numbers] if seeds else None
            return self.answer_ids([prompts[i] for i in numbers], settings, on_batch=told, **options)

        return failing_alone(ask, range(len(prompts)), on_batch)

    def origin(self, adapter: str | None) -> Identified:
        """Where an adapter comes from, with its template and tokenizer. The base is asked in the first one's prompt."""
        if adapter in (None, BASE):
            return next(iter(self.origins.values()))
        return lookup.find("adapter", adapter, self.origins, "what is loaded")

    @contextmanager
    def speaking(self, adapter: str | None) -> Iterator[Any]:
        """The model while that adapter is on; for one thread at a time."""
        origin = self.origin(adapter)
        if adapter != BASE:
            if len(self.origins) > 1:
                name = _peft_name(self.names.index(adapter) if adapter else 0)
                self.model.set_adapter(name, inference_mode=True)  # else peft would make it trainable
            yield self.model
        elif get_method(origin.method).trains_base:
            if not self._plain:
                self._plain.append(replace(self.base, **base_place(origin)).load().eval())
            yield self._plain[0]
        elif not hasattr(self.model, "peft_config"):
            raise ValueError("the adapter was merged into the base, which cannot answer any more: --merge_adapter off")
        else:
            with self.model.disable_adapter():
                yield self.model


def failing_alone(
    ask: Callable[[Sequence[int], Callable[[int], object]], Sequence[Answer]],
    numbers: Sequence[int],
    on_done: Callable[[int], object],
) -> list[Answer | Failure]:
    """What `ask` answers to these numbers; but what fails, fails alone, and where memory runs out, fewer are asked
    together: they are halved until what cannot be answered is by itself.

    Args:
        ask: numbers, and whom to tell how many are done → their answers.
    """
    try:
        return list(ask(numbers, on_done))
    except (ValueError, RuntimeError, MemoryError) as error:
        if len(numbers) == 1:
            return [Failure(message=" ".join(str(error).split()) or type(error).__name__)]
    half = len(numbers) // 2
    found = failing_alone(ask, numbers[:half], on_done)
    return [*found, *failing_alone(ask, numbers[half:], lambda done: on_done(half + done))]


def _decoded_together(model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Prompts that may share a batch, by number. Padding would come between virtual tokens and a shorter prompt:
    further off than they were trained, they mean something else to it (rotary positions)."""
    if not adapters.virtual_tokens(model):
        return [list(range(len(prompts)))]
    lengths = sorted({len(ids) for ids in prompts})
    return [[i for i, ids in enumerate(prompts) if len(ids) == length] for length in lengths]


def open_run(place: str | Path | None, *more: str | Path, merge: bool = False, **wishes: Any) -> Assistant:
    """The adapter in `place`, and others over the same base, on this process's device; `place`, `wishes` and errors are
    those of `identify`.

    Args:
        merge: put the adapter's change into the base's weights where they are in fp32, which answers faster; then the
            base can no longer be asked. In 16 bits the weights would be rounded once more, and in fewer the layers
            could not hold it: there the adapter stays beside them.

    Raises:
        ValueError: an adapter of another base; weights that do not fit into memory.
    """
    found = [identify(each, **wishes) for each in (place, *more)]
    first = found[0]
    for other in found[1:]:
        require_same_base(first, other)
    decoding_memory.require(first.base)
    if first.is_alone:
        model = first.base.load().eval()
    else:
        model = adapters.reopen(first.base, get_method(first.method), first.directory)
    for number, other in enumerate(found[1:], start=1):
        adapters.load_more(model, _peft_name(number), other.directory)
    if merge and not more and first.base.precision == "fp32" and first.base.quantization_bit == 16:
        model = _merged(model, first)
    return Assistant(model=model, origins=_named(found), base=first.base)


def _merged(model: Any, origin: Identified) -> Any:
    """The base with its adapter merged in, in place, and held against the two side by side. As it is, where there is
    nothing that fits into its layers: all weights were trained, or virtual tokens."""
    if not folding.adapted_layers(model) or adapters.virtual_tokens(model):
        return model
    prompts = equivalence.probe_prompts(origin.template, origin.tokenizer)
    before = equivalence.probe_logits(model, prompts)
    merged = folding.merge_layers(model)
    found = equivalence.divergence(before, equivalence.probe_logits(merged, prompts))
    if found.max_logit_difference > MERGED_WITHIN * found.max_logit:
        raise ValueError(
            f"{origin.directory}: merged into its base it answers otherwise ({found}): --merge_adapter off"
        )
    return merged


def _peft_name(number: int) -> str:
    """peft's own name for the adapter; a directory's name may hold a dot, which peft's may not."""
    return f"adapter_{number}" if number else "default"


def _named(found: Sequence[Identified]) -> dict[str, Identified]:
    """By the last part of their places' names, told apart by a number where two are the same."""
    named: dict[str, Identified] = {}
    for each in found:
        name = each.place.rstrip("/").rpartition("/")[2] or each.directory.resolve().name
        name = each.directory.resolve().name if name in (".", "..") else name
        same = sum(1 for known in named if known == name or known.rpartition("-")[0] == name)
        taken = name in named or name == BASE
        named[f"{name}-{same + 1}" if taken else name] = each
    return named
