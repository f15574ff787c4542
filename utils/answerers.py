"""Who answers a file of questions: a model in this process, or a server that speaks OpenAI's API.

Knows: how each is asked, and by what it is told from another. Does not know files, groups or flags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils import adapter_files, assistant, cache, decoding_memory, runinfo
from utils.assistant import Assistant
from utils.encode import encode_answer, encode_prompt
from utils.generation import Answer
from utils.identity import Identified, identify
from utils.methods import get_method
from utils.prediction import Ask
from utils.questions import Question
from utils.stopping import Ends
from utils.templates import fingerprint, turn_marks
from utils.weighing import Continued, Scales

if TYPE_CHECKING:
    from utils.remote import Remote


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """What `prediction.Job` needs of one."""

    encode: Callable[[Question], tuple[Any, int]]
    ask: Ask
    identity: dict[str, Any]
    """By what its answers are told from another's."""
    said: list[str]
    """What it is, and what was assumed about it, for people."""


def asked_for(
    place: str | None,
    settings: Mapping[str, Any],
    *,
    stop: Sequence[str],
    batch_size: int,
    cut: bool,
    merge: bool,
    wishes: Mapping[str, Any],
    server: Mapping[str, Any] | None,
    base: bool = False,
) -> Answerer:
    """A model here, or a server (`cli.server_wishes`); the arguments and errors are those of `here` and `at_server`."""
    if server is None:
        how = {"batch_size": batch_size, "cut": cut, "merge": merge, "base": base}
        return here(place, settings, stop=stop, wishes=wishes, **how)
    from utils.remote import Remote

    return at_server(place, settings, server=Remote(**server), stop=stop, wishes=wishes)


def here(
    place: str | None,
    settings: Mapping[str, Any],
    *,
    stop: Sequence[str],
    batch_size: int,
    cut: bool,
    merge: bool,
    wishes: Mapping[str, Any],
    base: bool = False,
) -> Answerer:
    """The adapter in `place` on this process's device; arguments and errors are those of `assistant.open_run`.

    Args:
        base: the base answers, in the adapter's prompt.
    """
    opened = assistant.open_run(place, merge=merge and not base, **wishes)
    adapter = assistant.BASE if base else None
    ends, settings = opened.ends(stop=stop), opened.within_context(settings)

    def encode(question: Question) -> tuple[list[int], int]:
        assert question.record is not None
        return opened.fitting_prompt(question.record, settings["max_new_tokens"], cut=cut)

    def ask(prompts: Any, seeds: Sequence[int], on_done: Callable[[int], object]) -> Any:
        how = {"adapter": adapter, "ends": ends, "batch_size": batch_size, "on_batch": on_done}
        return opened.answer_each(prompts, settings, seeds=seeds, **how)

    return _of(opened, encode, ask, {"batch_size": batch_size}, ends, base=base)


def weighing(
    place: str | None, *, batch_size: int, merge: bool, wishes: Mapping[str, Any], base: bool = False
) -> Answerer:
    """The same model as `here`, for questions with `continuations`: nothing is decoded, and the likelihood of each
    continuation, as an answer in the trained prompt, is found instead. The answer is the likeliest one."""
    opened = assistant.open_run(place, merge=merge and not base, **wishes)
    adapter = assistant.BASE if base else None
    origin = opened.origin(adapter)
    with opened.speaking(adapter) as model:
        room, pad_id = decoding_memory.positions(model), origin.tokenizer.pad_token_id
        scales = Scales(model, pad_id=pad_id, batch_size=batch_size, most_positions=room)

    def encode(question: Question) -> tuple[list[tuple[str, Continued]], int]:
        record, found = question.record, []
        assert record is not None
        prompt = opened.prompt_ids(record, adapter)
        for text in question.raw["continuations"]:
            answer = encode_answer(record, text, origin.template, origin.tokenizer)
            found.append((text, Continued(prompt=prompt, continuation=answer)))
        return found, 0

    def ask(prompts: Any, seeds: Sequence[int], on_done: Callable[[int], object]) -> Any:
        def some(numbers: Sequence[int], told: Callable[[int], object]) -> list[Answer]:
            rows = [each for i in numbers for _, each in prompts[i]]
            with opened.speaking(adapter) as model:
                found = iter(scales.weigh(model, rows))
            told(len(numbers))
            return [_weighed(prompts[i], [next(found).total for _ in prompts[i]]) for i in numbers]

        return assistant.failing_alone(some, range(len(prompts)), on_done)

    return _of(opened, encode, ask, {"batch_size": batch_size}, opened.ends(), base=base)


def _weighed(options: Sequence[tuple[str, Continued]], totals: Sequence[float]) -> Answer:
    likeliest = max(range(len(options)), key=lambda i: totals[i])
    return Answer(
        text=options[likeliest][0],
        finish_reason="stop",
        prompt_tokens=len(options[0][1].prompt),
        new_tokens=sum(len(each.continuation) for _, each in options),
        beside={"loglikelihoods": totals},
    )


def _of(opened: Assistant, encode: Any, ask: Ask, more: Mapping[str, Any], ends: Ends, *, base: bool) -> Answerer:
    (origin,) = opened.origins.values()
    how = {"precision": opened.base.precision, "quantization_bit": opened.base.quantization_bit}
    is_merged = not hasattr(opened.model, "peft_config")
    said_of_base = {"answers": assistant.BASE} if base else {}
    return Answerer(
        encode=encode,
        ask=ask,
        identity={**_identity(origin, ends), **how, "merged": is_merged, **more, **said_of_base},
        said=origin.lines(origin.place),
    )


def at_server(
    place: str | None, settings: Mapping[str, Any], *, server: Remote, stop: Sequence[str], wishes: Mapping[str, Any]
) -> Answerer:
    """A server that has the model of the run in `place`: the prompts and their ends are that run's, and no weights are
    loaded here."""
    origin = identify(place, **wishes)
    ends = Ends(ids=origin.stop_token_ids, texts=(*turn_marks(origin.template), *stop))

    def encode(question: Question) -> tuple[list[int], int]:
        assert question.record is not None
        return encode_prompt(question.record, origin.template, origin.tokenizer), 0

    def ask(prompts: Any, seeds: Sequence[int], on_done: Callable[[int], object]) -> Any:
        return server.answers(prompts, settings, tokenizer=origin.tokenizer, ends=ends, seeds=seeds, on_done=on_done)

    return Answerer(
        encode=encode,
        ask=ask,
        # Not its address, which may be another tomorrow.
        identity=_identity(origin, ends) | {"model": server.model, "prompt_form": server.prompt_form},
        said=origin.lines(origin.place),
    )


def _identity(origin: Identified, ends: Ends) -> dict[str, Any]:
    return {
        **_weights(origin),
        "template_sha256": fingerprint(origin.template, origin.tokenizer.chat_template),
        "stop_token_ids": list(ends.ids),
        "stop": list(ends.texts),
    }


def _weights(origin: Identified) -> dict[str, Any]:
    base = {"base": origin.base.name}
    if origin.is_alone and not origin.directory.is_dir():
        return base | {"revision": origin.base.revision}
    if origin.is_alone:
        return base | {"base_sha256": cache.content_hash(origin.directory)}
    # A run that holds all weights is told by its run.json, which has the date and all settings.
    is_whole = get_method(origin.method).trains_base
    file = origin.directory / runinfo.NAME if is_whole else adapter_files.weights_file(origin.directory)
    return {"adapter_sha256": cache.content_hash(file)} | base
