"""OpenAI's completions API, as vLLM, SGLang and others extend it: what a request says, and what its reply means.

Knows: their names for the decoding parameters; prompts and answers as ids and as text. Does not know HTTP, rows or
records.

A prompt goes out as the ids that training saw (`ids`); a chat endpoint would write another. vLLM and SGLang send back
the ids of the answer, which are read here as our own engine's are: their text is decoded as a continuation of the
prompt, and with SentencePiece begins with a blank that training's answers have not. To a server that takes text only
(`text`), a prompt is sent as the text that the run's tokenizer reads as those ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from utils.api import Passing
from utils.generation import Answer
from utils.stopping import Ends, decoded
from utils.tokens import prefix_ids, suffix_ids

PromptForm = Literal["ids", "text"]
WITHOUT_FIELD: Mapping[str, int] = {"no_repeat_ngram_size": 0, "num_beams": 1}
"""Parameters that the API does not have, with the value that switches each off."""


def request_fields(settings: Mapping[str, Any], ends: Ends, form: PromptForm) -> dict[str, Any]:
    """The API's names for the decoding parameters. With ids, all that vLLM and SGLang know is said, for what is
    left out they take from the model's generation_config.json; with text, what OpenAI's API lacks is said if it is on.

    Raises:
        ValueError: a parameter that is on and has no field, by its flag.
    """
    lacking = [name for name, off in WITHOUT_FIELD.items() if settings.get(name, off) != off]
    if lacking:
        given = " and ".join(f"--{name} {settings[name]}" for name in lacking)
        off = " ".join(f"--{name} {WITHOUT_FIELD[name]}" for name in lacking)
        raise ValueError(f"{given}: a server's API has no such parameter; with --api_base give {off}, or --greedy")
    draws = bool(settings.get("do_sample"))
    fields = {"max_tokens": settings["max_new_tokens"], "temperature": settings["temperature"] if draws else 0.0}
    if draws:
        fields["top_p"] = settings["top_p"]
    if ends.texts:
        fields["stop"] = list(ends.texts)
    top_k = (draws and settings["top_k"]) or -1  # SGLang does not take 0 for "all"
    penalty = settings.get("repetition_penalty", 1.0)
    if form == "ids" or top_k > 0:
        fields["top_k"] = top_k
    if form == "ids" or penalty != 1:
        fields["repetition_penalty"] = penalty
    if form == "ids":
        fields |= {"stop_token_ids": list(ends.ids), "return_token_ids": True}
    return fields


def as_text(prompt: Sequence[int], tokenizer: Any) -> str | None:
    """The text that the tokenizer, called as servers call it, reads as these ids; None: there is none, as where a
    control token stands in the prompt as plain text."""
    before, after = prefix_ids(tokenizer), suffix_ids(tokenizer)
    inside = list(prompt[len(before) : len(prompt) - len(after)])
    text = tokenizer.decode(inside, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text if tokenizer(text)["input_ids"] == list(prompt) else None


def read_answer(reply: Any, prompt: Sequence[int], tokenizer: Any, ends: Ends) -> Answer:
    """The answer in a reply. Where the server does not count its tokens, they are counted by tokenizing it anew.

    Raises:
        Passing: it holds none.
        ValueError: the server read another prompt than these ids.
    """
    try:
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        text, reason, ids = str(choice["text"]), choice["finish_reason"], choice.get("token_ids")
        read = usage.get("prompt_tokens") or len(prompt)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Passing(f"what it sent is no completion: {str(reply)[:100]}") from error
    if reason not in ("stop", "length"):
        raise Passing(f"it ended the answer for the reason {reason!r}")
    if read != len(prompt):
        raise ValueError(
            f"the server read {read} tokens where the prompt has {len(prompt)}: its tokenizer is not the run's. Serve "
            "the directory that merge.py wrote, with the tokenizer in it"
        )
    end = None
    if ids is not None:
        end = ends.end_of(ids)
        text, count = decoded(tokenizer, ids[:end]), len(ids) if end is None else end + 1
    else:
        count = usage.get("completion_tokens")
        if count is None:
            count = len(tokenizer(text, add_special_tokens=False)["input_ids"]) + (reason == "stop")
    text, cut = ends.cut(text)
    finish = "stop" if cut or end is not None else reason
    return Answer(text=text, finish_reason=finish, prompt_tokens=len(prompt), new_tokens=count)


def read_models(reply: Any) -> list[str]:
    """The names in a list of models.

    Raises:
        Passing: it is none.
    """
    try:
        return [str(row["id"]) for row in reply["data"]]
    except (KeyError, TypeError) as error:
        raise Passing(f"what it sent is no list of models: {str(reply)[:100]}") from error
