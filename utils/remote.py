"""Answers from a model on a server (vLLM, SGLang, or any other with OpenAI's completions API), many rows at a time.

Knows: which row is asked when, which failures are a row's and which are everybody's, and the next step. Does not know
HTTP (`utils.api`), what is in a request or a reply (`utils.completions`), records, or what becomes of a failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx2

from utils.api import Api, Passing, Refusal
from utils.completions import PromptForm, as_text, read_answer, read_models, request_fields
from utils.generation import Answer, Failure
from utils.stopping import Ends
from utils.tokens import PROBE

_NEXT_STEP = {
    "ids": "a server that takes text only, or OpenAI's own fields only, is asked with --api_prompt text",
    "text": "it may not know a field: --top_k 0 and --repetition_penalty 1 leave out those that OpenAI's API has not",
}


@dataclass(frozen=True, kw_only=True)
class ServerFailure(Failure):
    """Why a row has no answer."""

    retry: bool
    """Whether it may go well another time; otherwise the row itself was refused."""


class _Row(NamedTuple):
    """What is asked."""

    prompt: Sequence[int]
    fields: Mapping[str, Any]


class _Reader(NamedTuple):
    """By what an answer is read."""

    tokenizer: Any
    ends: Ends


@dataclass(kw_only=True)
class Remote:
    """A model on a server.

    Args:
        model: its name there; None: the only one that the server has.
        api_key: None takes OPENAI_API_KEY, if it is set.
        concurrency: the most requests at a time.
        timeout: seconds until a row's answer must be there.
        max_retries: further attempts at a row, where the failure may pass by itself.
        sleep: how a further attempt is waited for.

    Raises:
        ValueError: an address or a key that cannot be one.
    """

    base_url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 16
    timeout: float = 600.0
    max_retries: int = 5
    prompt_form: PromptForm = "ids"
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep

    def __post_init__(self) -> None:
        self._api = Api(
            base_url=self.base_url,
            api_key=self.api_key,
            concurrency=self.concurrency,
            timeout=self.timeout,
            max_retries=self.max_retries,
            sleep=self.sleep,
        )
        self._name = self.model
        self._accepted: Mapping[str, Any] | None = None
        self._answered = 0

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Mapping[str, Any],
        *,
        tokenizer: Any,
        ends: Ends,
        seeds: Sequence[int] | None = None,
        on_done: Callable[[int], object] = lambda done: None,
    ) -> list[Answer | Failure]:
        """What the model says to each prompt, in order, or why there is no answer. Before the first of them a short
        text is sent, which finds out whether the server takes such requests, and reads text as the tokenizer does.

        Args:
            tokenizer: the run's; the server must have the same.
            settings: parameters of transformers' `generate`, as `utils.cli.generation_settings` gives them.
            seeds: of each row's sampling; None: the server draws.
            on_done: is told how many have an answer or a failure.

        Raises:
            ValueError: a parameter that the API does not have; a server that refuses these requests whatever the
                prompt, that has no such model, or that reads other tokens than were meant.
            ConnectionError: the server cannot be reached, or answers nobody any more.
            PermissionError: a key is missing or wrong.
        """
        fields = request_fields(settings, ends, self.prompt_form)
        seeded = seeds if seeds is not None and settings.get("do_sample") else [None] * len(prompts)
        rows = [
            _Row(prompt=prompt, fields=fields if seed is None else {**fields, "seed": seed})
            for prompt, seed in zip(prompts, seeded, strict=True)
        ]
        return asyncio.run(self._answers(rows, fields, _Reader(tokenizer, ends), on_done)) if rows else []

    async def _answers(
        self, rows: Sequence[_Row], fields: Mapping[str, Any], reader: _Reader, on_done: Callable[[int], object]
    ) -> list[Answer | Failure]:
        found: dict[int, Answer | Failure] = {}
        left = iter(range(len(rows)))

        async def work() -> None:
            for i in left:  # one iterator for all: whoever is free takes the next row
                found[i] = await self._answer(client, rows[i], reader)
                on_done(len(found))

        async with self._api.client() as client:
            if fields != self._accepted:
                await self._prove(client, fields, reader)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.concurrency, len(rows))):
                        group.create_task(work())
            except ExceptionGroup as errors:  # whichever came first has cancelled the others
                raise errors.exceptions[0] from errors.exceptions[0].__cause__
        return [found[i] for i in range(len(rows))]

    async def _answer(self, client: httpx2.AsyncClient, row: _Row, reader: _Reader) -> Answer | Failure:
        sent = as_text(row.prompt, reader.tokenizer) if self.prompt_form == "text" else list(row.prompt)
        if sent is None:
            return ServerFailure(
                message="as text it would be read as other tokens than training saw; send it with --api_prompt ids",
                retry=False,
            )
        before = self._answered
        try:
            answer = await self._complete(client, sent, row, reader)
        except Refusal as refusal:
            if error := await self._error_for_all(client, refusal):
                raise error from refusal
            return ServerFailure(message=f"the server refuses it ({refusal})", retry=False)
        except Passing as problem:
            if problem.busy and self._answered == before:  # not this row's fault, nor bad luck
                raise ConnectionError(
                    f"{self._api.base_url} answers nobody any more ({problem}): look into its log, and run the same "
                    "command again when it is back"
                ) from problem
            return ServerFailure(message=str(problem), retry=True)
        self._answered += 1
        return answer

    async def _prove(self, client: httpx2.AsyncClient, fields: Mapping[str, Any], reader: _Reader) -> None:
        """Asks for one token with the fields of the rows: whatever is refused now is refused to all of them, and a row
        that is refused later has itself to blame.

        Raises:
            Any error of `answers`.
        """
        base, ids = self._api.base_url, reader.tokenizer(PROBE)["input_ids"]
        probe = _Row(prompt=ids, fields={**fields, "max_tokens": 1})
        try:
            self._name = self._name or await self._only_model(client)
            await self._complete(client, PROBE if self.prompt_form == "text" else ids, probe, reader)
        except Refusal as refusal:
            if error := await self._error_for_all(client, refusal):
                raise error from refusal
            raise ValueError(
                f"{base} refuses such requests ({refusal}). They have the fields {', '.join(fields)}, and a prompt of "
                f"{self.prompt_form}; {_NEXT_STEP[self.prompt_form]}"
            ) from refusal
        except Passing as problem:
            if problem.unreachable:
                raise ConnectionError(
                    f"nothing answers at {base} ({problem}): start the server, wait until it has loaded the model, or "
                    "correct --api_base"
                ) from problem
            raise ConnectionError(f"{base} does not answer as it should ({problem}): look into its log") from problem
        self._accepted = fields

    async def _complete(self, client: httpx2.AsyncClient, sent: str | list[int], row: _Row, reader: _Reader) -> Answer:
        body = {"model": self._name, "prompt": sent, **row.fields}
        return await self._api.ask(
            client, "/completions", body, lambda reply: read_answer(reply, row.prompt, reader.tokenizer, reader.ends)
        )

    async def _only_model(self, client: httpx2.AsyncClient) -> str:
        try:
            names = await self._models(client)
        except Passing as problem:
            if problem.unreachable:
                raise
            raise ValueError(
                f"{self._api.base_url} does not say which models it has ({problem}): name one with --api_model"
            ) from problem
        if len(names) != 1:
            has = f"has {', '.join(names)}" if names else "names no model"
            raise ValueError(f"{self._api.base_url} {has}: say which with --api_model")
        return names[0]

    async def _models(self, client: httpx2.AsyncClient) -> list[str]:
        return await self._api.ask(client, "/models", read=read_models)

    async def _error_for_all(self, client: httpx2.AsyncClient, refusal: Refusal) -> Exception | None:
        """What a refusal means, if it is not about one row."""
        base, key = self._api.base_url, self._api.api_key
        if refusal.status in (401, 403):
            what = "does not accept the key" if key else "wants a key"
            return PermissionError(f"{base} {what} ({refusal}): give --api_key_file, or set OPENAI_API_KEY")
        if refusal.status in range(300, 400):
            return ValueError(f"{base} is the old address ({refusal}): give the new one as --api_base")
        if refusal.status not in (404, 405):
            return None
        try:
            names = await self._models(client)
        except (Passing, Refusal):
            names = []
        if names and self._name not in names:
            has = ", ".join(names)
            return ValueError(f"{base} has no model {self._name!r} but {has}: give --api_model one of these")
        return ValueError(
            f"{base} serves no completions ({refusal}): --api_base usually ends in /v1, as in http://127.0.0.1:8000/v1"
        )
