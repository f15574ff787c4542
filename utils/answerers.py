"""Who answers a file of questions: a model in this process, or a server that speaks OpenAI's API.

Knows: how each is asked, and by what it is told from another. Does not know files, groups or flags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils import adapter_files, assistant, cache, runinfo
from utils.encode import encode_prompt
from utils.identity import Identified, identify
from utils.methods import get_method
from utils.prediction import Ask
from utils.stopping import Ends
from utils.templates import fingerprint, turn_marks

if TYPE_CHECKING:
    from utils.remote import Remote


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """What `prediction.Job` needs of one."""

    encode: Callable[[Mapping[str, Any]], tuple[list[int], int]]
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
    (origin,) = opened.origins.values()
    ends, settings = opened.ends(stop=stop), opened.within_context(settings)

    def encode(record: Mapping[str, Any]) -> tuple[list[int], int]:
        return opened.fitting_prompt(record, settings["max_new_tokens"], cut=cut)

    def ask(prompts: Any, seeds: Sequence[int], on_done: Callable[[int], object]) -> Any:
        how = {"adapter": adapter, "ends": ends, "batch_size": batch_size, "on_batch": on_done}
        return opened.answer_each(prompts, settings, seeds=seeds, **how)

    how = {"precision": opened.base.precision, "quantization_bit": opened.base.quantization_bit}
    is_merged = not hasattr(opened.model, "peft_config")
    return Answerer(
        encode=encode,
        ask=ask,
        identity=_identity(origin, ends)
        | how
        | {"merged": is_merged, "batch_size": batch_size}
        | ({"answers": assistant.BASE} if base else {}),
        said=origin.lines(origin.place),
    )


def at_server(
    place: str | None, settings: Mapping[str, Any], *, server: Remote, stop: Sequence[str], wishes: Mapping[str, Any]
) -> Answerer:
    """A server that has the model of the run in `place`: the prompts and their ends are that run's, and no weights are
    loaded here."""
    origin = identify(place, **wishes)
    ends = Ends(ids=origin.stop_token_ids, texts=(*turn_marks(origin.template), *stop))

    def encode(record: Mapping[str, Any]) -> tuple[list[int], int]:
        return encode_prompt(record, origin.template, origin.tokenizer), 0

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
