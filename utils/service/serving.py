"""One request from its fields to its answers: read, submitted, waited for, noted.

Knows: the order of these, and which thread does what. Does not know routes, or the form of a reply.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from utils.assistant import Assistant
from utils.clients import Clients, address_of
from utils.generation import Answer
from utils.scheduling import Scheduler
from utils.service.answering import Events, UnderWay, unless_gone
from utils.service.asked import Asked, Reader
from utils.service.limits import Limits
from utils.service.measures import Measures
from utils.service.replies import Pieces

log = logging.getLogger("utils.service")
Fields = TypeVar("Fields")
Reply = TypeVar("Reply")


class Serving:
    """What the routes of one application share.

    Args:
        log_prompts: whether what is asked and answered goes into the log; else only how much.
    """

    def __init__(
        self, opened: Assistant, scheduler: Scheduler, limits: Limits, clients: Clients, *, log_prompts: bool
    ) -> None:
        self.reader, self.measures = Reader(opened, limits), Measures(scheduler)
        self._scheduler, self._clients, self._log_prompts = scheduler, clients, log_prompts
        # Tokenizing a long prompt takes a while, which the others' pieces do not wait for.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizing")

    async def whole(
        self,
        request: Request,
        fields: Fields,
        read: Callable[[Fields], Asked],
        reply: Callable[[UnderWay, Sequence[Answer]], Reply],
    ) -> Reply:
        """The reply once all answers are complete.

        Args:
            read: what the fields ask.
            reply: what is made of the answers.

        Raises:
            Problem: it cannot be asked, or answered; the client has gone.
        """
        under_way = await self._begin(request, fields, read)
        try:
            answers = await unless_gone(request, under_way.answers())
            self._note(under_way, answers)
            return reply(under_way, answers)
        finally:
            under_way.close()

    async def streamed(
        self,
        request: Request,
        fields: Fields,
        read: Callable[[Fields], Asked],
        *,
        is_chat: bool,
        with_usage: bool,
    ) -> Response:
        """The reply in pieces; what fails before the first of them still has a status of its own.

        Raises:
            Problem: as `whole`.
        """
        under_way = await self._begin(request, fields, read)
        try:
            pieces = under_way.pieces()
            first = await unless_gone(request, anext(pieces))
        except BaseException:
            under_way.close()
            raise
        self.measures.first_token_seconds.observe(time.perf_counter() - under_way.began)
        form = Pieces(under_way, is_chat=is_chat, with_usage=with_usage)
        return Events(form.events(first, pieces, lambda answers: self._note(under_way, answers)), under_way)

    def close(self) -> None:
        """Ends its thread."""
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    async def _begin(self, request: Request, fields: Fields, read: Callable[[Fields], Asked]) -> UnderWay:
        asked = await asyncio.get_running_loop().run_in_executor(self._tokenizing, read, fields)
        return UnderWay(self._scheduler, asked, self._clients, address_of(request))

    def _note(self, under_way: UnderWay, answers: Sequence[Answer]) -> None:
        asked, seconds = under_way.asked, time.perf_counter() - under_way.began
        new = sum(answer.new_tokens for answer in answers)
        log.info("%s: %d + %d tokens in %.3f s", asked.model, asked.prompt_tokens, new, seconds)
        if self._log_prompts:  # as JSON, so that no text can pretend to be a line of the log
            said = {"prompts": list(asked.texts), "answers": [answer.text for answer in answers]}
            log.info("%s", json.dumps(said, ensure_ascii=False))
