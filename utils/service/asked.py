"""What a request asks of a model: prompts as ids, settings, what ends the answers, and a seed for each of them.

Knows: how OpenAI's fields are understood, and what cannot be asked of the model that is loaded. Does not know HTTP, or
how answers are made.
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils import adapters, cli, generation, lookup
from utils.assistant import BASE, Assistant
from utils.conversation import Conversation, Exchange, asks_instructions
from utils.formats import BadRow
from utils.readers import check_record
from utils.sampling import row_seeds
from utils.service.limits import Limits
from utils.service.problems import Problem
from utils.service.schema import (
    MOST_STOPS,
    Answering,
    Asking,
    ChatRequest,
    Content,
    Decoding,
    TextRequest,
)
from utils.templates import Record
from utils.tokens import Codec, prefix_ids, suffix_ids

GREEDY_BELOW = 1e-3
"""A temperature that is as good as none; logits divided by less overflow."""
TEXT_ANSWER = 16
"""Tokens of a text completion without `max_tokens`, as OpenAI's API has it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be answered; those to the first prompt come first."""

    model: str
    """An adapter, or `BASE`."""
    prompts: Sequence[Sequence[int]]
    """One for each answer."""
    seeds: Sequence[int]
    settings: Mapping[str, Any]
    stop: Sequence[str]
    prompt_tokens: int
    """Of all prompts, each counted once."""
    returns_ids: bool = False
    """Whether the ids of prompts and answers are wanted, too."""
    texts: Sequence[str]
    """The prompts as they were asked, for a log."""


class Reader:
    """Requests, as this model and these limits let them be asked. By one thread at a time: a tokenizer's settings are
    the tokenizer's, whoever asks."""

    def __init__(self, opened: Assistant, limits: Limits) -> None:
        self._opened, self._limits = opened, limits

    @property
    def models(self) -> tuple[str, ...]:
        """What can be asked; the first where a request names none."""
        return (*self._opened.names, BASE)

    def model(self, name: str | None) -> str:
        """The model of that name.

        Raises:
            Problem: 404, there is none.
        """
        if name is None:
            return self.models[0]
        if name not in self.models:
            message = lookup.unknown_name("model", name, self.models)
            raise Problem(404, message, param="model", code="model_not_found")
        return name

    def chat(self, request: ChatRequest) -> Asked:
        """Raises:
        Problem: it cannot be asked.
        """
        if request.max_tokens is not None and request.max_completion_tokens is not None:
            message = "max_completion_tokens is max_tokens by its newer name: give one of them"
            raise Problem(400, message, param="max_tokens", code="invalid_value")
        model, longest = self.model(request.model), request.max_completion_tokens or request.max_tokens
        record = self._record(request.messages, model)
        prompt = self._prompt_ids(record, model)
        settings = settings_of(request, self._room([prompt], longest, self._limits.answer, "messages"))
        return self._asked(request, model, [prompt], settings, [str(record)])

    def text(self, request: TextRequest) -> Asked:
        """Raises:
        Problem: it cannot be asked.
        """
        if request.best_of is not None and request.best_of != (request.n or 1):
            message = "best_of other than n is not supported: leave it out"
            raise Problem(400, message, param="best_of", code="unsupported_parameter")
        model, given = self.model(request.model), request.prompt
        each: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
        self._require_few(len(each) * (request.n or 1))
        has_control = not request.split_special_tokens
        prompts = [self._text_ids(prompt, model, has_control=has_control) for prompt in each]
        settings = settings_of(request, self._room(prompts, request.max_tokens, TEXT_ANSWER, "prompt"))
        return self._asked(request, model, prompts, settings, [str(prompt) for prompt in each])

    def legacy(self, question: str) -> Asked:
        """A question as the original's routes take it, with the original's decoding parameters.

        Raises:
            Problem: it cannot be asked.
        """
        model = self.model(None)
        prompt = self._prompt_ids(self._record([Asking(role="user", content=question)], model), model)
        longest = self._room([prompt], None, cli.GENERATION["max_new_tokens"][0], "prompt")
        values = argparse.Namespace(**{name: row[0] for name, row in cli.GENERATION.items()}, greedy=False)
        return Asked(
            model=model,
            prompts=[prompt],
            seeds=[generation.SEED],
            settings={**cli.generation_settings(values), "max_new_tokens": longest},
            stop=(),
            prompt_tokens=len(prompt),
            texts=[question],
        )

    def _asked(
        self,
        request: Decoding,
        model: str,
        prompts: Sequence[Sequence[int]],
        settings: Mapping[str, Any],
        texts: Sequence[str],
    ) -> Asked:
        count = request.n or 1
        self._require_few(len(prompts) * count)
        seed = secrets.randbits(63) if request.seed is None else request.seed
        repeated = [prompt for prompt in prompts for _ in range(count)]
        return Asked(
            model=model,
            prompts=repeated,
            seeds=[seed] if len(repeated) == 1 else row_seeds(seed, len(repeated)),
            settings=settings,
            stop=self._stop(request, model),
            prompt_tokens=sum(map(len, prompts)),
            returns_ids=bool(request.return_token_ids),
            texts=texts,
        )

    def _require_few(self, answers: int) -> None:
        if answers > self._limits.answers:
            message = f"{answers} answers (prompts times n); at most {self._limits.answers} in a request"
            raise Problem(400, message, param="n", code="invalid_value")

    def _record(self, messages: Sequence[Asking | Answering], model: str) -> Record:
        """A conversation as the model's training has it: a question that nothing precedes is an instruction, unless
        the run saw dialogues alone."""
        turns = [{"role": _role(each.role), "content": _text(each.content)} for each in messages]
        try:
            check_record({"conversation": turns}, "messages", answered=False)
        except BadRow as bad:
            raise Problem(400, str(bad), param="messages", code="invalid_value") from bad
        *earlier, last = turns
        if last["role"] != "user":
            message = "messages: the last one must be the user's; an answer is not gone on with"
            raise Problem(400, message, param="messages", code="invalid_value")
        system = earlier.pop(0)["content"] if earlier and earlier[0]["role"] == "system" else ""
        said = [turn["content"] for turn in earlier]
        talk = Conversation(
            system=system,
            exchanges=[Exchange(question=q, answer=a) for q, a in zip(said[::2], said[1::2], strict=True)],
            asks_instructions=self._asks_instructions(model),
        )
        return talk.record(last["content"], 0)

    def _asks_instructions(self, model: str) -> bool:
        run = self._origin(model).run
        return asks_instructions(run.sources if run else [])

    def _origin(self, model: str) -> Any:
        """The base is asked in the first adapter's prompt, and has its tokenizer."""
        return self._opened.origins[self._opened.names[0] if model == BASE else model]

    def _prompt_ids(self, record: Record, model: str) -> list[int]:
        try:
            return self._opened.prompt_ids(record, model)
        except ValueError as error:  # a chat template that does not take such a conversation
            raise Problem(400, f"messages: {error}", param="messages", code="invalid_value") from error

    def _text_ids(self, prompt: str | Sequence[int], model: str, *, has_control: bool) -> list[int]:
        """Ids as they are; a text as the tokenizer reads it, with control tokens in it if they are meant."""
        tokenizer = self._origin(model).tokenizer
        if isinstance(prompt, str):
            try:
                check_record({"prompt": prompt}, "the request", answered=False)
            except BadRow as bad:
                raise Problem(400, bad.problem, param="prompt", code="invalid_value") from bad
            (ids,) = Codec(tokenizer).ids([prompt], has_control=has_control) if prompt else [[]]
            ids = [*prefix_ids(tokenizer), *ids, *suffix_ids(tokenizer)]
        else:
            ids = list(prompt)
        if not ids:
            raise Problem(400, "prompt: an empty one cannot be continued", param="prompt", code="invalid_value")
        known = min(len(tokenizer), self._opened.model.get_input_embeddings().num_embeddings)
        if (highest := max(ids)) >= known:
            message = f"prompt: there is no token {highest}; this model has {known}, from 0 on"
            raise Problem(400, message, param="prompt", code="invalid_value")
        return ids

    def _room(self, prompts: Sequence[Sequence[int]], longest: int | None, default: int, param: str) -> int:
        """Tokens of the longest answer."""
        context = adapters.context_length(self._opened.model)
        free = min(context or self._limits.context, self._limits.context)
        free -= adapters.virtual_tokens(self._opened.model)
        tokens = max(map(len, prompts))
        left = free - tokens
        if left < (longest or 1):
            asked = f" and its answer may have {longest}" if longest else ""
            advice = f", or lower max_tokens to {left}" if longest and left > 0 else ""
            message = f"the prompt has {tokens} tokens{asked}; together they may have {free}: shorten it{advice}"
            raise Problem(400, message, param=param, code="context_length_exceeded")
        return longest or min(default, left)

    def _stop(self, request: Decoding, model: str) -> tuple[str, ...]:
        given = [request.stop] if isinstance(request.stop, str) else list(request.stop or ())
        ends = self._opened.ends(model)
        stop = [text for text in dict.fromkeys(given) if text not in ends.texts]
        if len(stop) > MOST_STOPS:
            message = f"stop: {len(stop)} texts; at most {MOST_STOPS}"
            raise Problem(400, message, param="stop", code="invalid_value")
        if other := set(request.stop_token_ids or ()) - set(ends.ids):
            message = f"stop_token_ids: answers end at {list(ends.ids)}, not at {sorted(other)}: give a text as stop"
            raise Problem(400, message, param="stop_token_ids", code="unsupported_value")
        return tuple(stop)


def settings_of(request: Decoding, longest: int) -> dict[str, Any]:
    """The decoding parameters; what is left out is as OpenAI's API documents it, and without penalties."""
    penalties = {
        "repetition_penalty": float(request.repetition_penalty or 1),
        "no_repeat_ngram_size": request.no_repeat_ngram_size or 0,
    }
    greedy = {**cli.greedy_settings(longest), **penalties}
    temperature = 1.0 if request.temperature is None else float(request.temperature)
    if temperature < GREEDY_BELOW:
        return greedy
    top_p = 1.0 if request.top_p is None else float(request.top_p)
    top_k = max(request.top_k or 0, 0)
    return {**greedy, "do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
