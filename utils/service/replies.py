"""Answers in the forms of OpenAI's API: whole, and as server-sent events.

Knows: which fields a reply and each of its pieces have. Does not know how answers are made or asked for.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from utils.generation import Answer
from utils.service.answering import UnderWay
from utils.service.problems import Problem, as_json
from utils.service.schema import (
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    TextChoice,
    TextCompletion,
    Usage,
)


def usage(prompt_tokens: int, answers: Sequence[Answer]) -> Usage:
    """How many tokens there were."""
    new = sum(answer.new_tokens for answer in answers)
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=new, total_tokens=prompt_tokens + new)


def chat(under_way: UnderWay, answers: Sequence[Answer]) -> ChatCompletion:
    """All answers of a chat."""
    choices = [
        ChatChoice(index=i, message=ChatMessage(content=answer.text), finish_reason=answer.finish_reason)
        for i, answer in enumerate(answers)
    ]
    asked = under_way.asked
    return ChatCompletion(
        id=_name("chatcmpl"),
        created=int(time.time()),
        model=asked.model,
        choices=choices,
        usage=usage(asked.prompt_tokens, answers),
    )


def text(under_way: UnderWay, answers: Sequence[Answer]) -> TextCompletion:
    """All continuations."""
    choices = [
        TextChoice(index=i, text=answer.text, finish_reason=answer.finish_reason) for i, answer in enumerate(answers)
    ]
    asked = under_way.asked
    return TextCompletion(
        id=_name("cmpl"),
        created=int(time.time()),
        model=asked.model,
        choices=choices,
        usage=usage(asked.prompt_tokens, answers),
    )


class Pieces:
    """The events of a streamed reply.

    Args:
        is_chat: which of the two forms.
        with_usage: whether the numbers of tokens come last.
    """

    def __init__(self, under_way: UnderWay, *, is_chat: bool, with_usage: bool) -> None:
        self._under_way, self._is_chat, self._with_usage = under_way, is_chat, with_usage
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        self._head = {
            "id": _name("chatcmpl" if is_chat else "cmpl"),
            "object": kind,
            "created": int(time.time()),
            "model": under_way.asked.model,
        }

    async def events(
        self,
        first: tuple[int, str | None] | None,
        pieces: AsyncIterator[tuple[int, str | None]],
        on_end: Callable[[Sequence[Answer]], object],
    ) -> AsyncIterator[bytes]:
        """Each as a line of `data:`; a failure on the way is one, too.

        Args:
            first: the one of the pieces that was read already.
            on_end: is told all answers.
        """
        count = len(self._under_way.asked.prompts)
        try:
            if self._is_chat:
                for number in range(count):
                    yield self._event([self._choice(number, {"role": "assistant", "content": ""})])
            if first is not None:
                yield self._piece(*first)
            async for number, piece in pieces:
                yield self._piece(number, piece)
            answers = [self._under_way.answer(number) for number in range(count)]
            on_end(answers)
            if self._with_usage:
                yield self._event([], usage(self._under_way.asked.prompt_tokens, answers))
        except Problem as problem:
            yield _line(as_json(problem.form()))
            return
        yield _line(b"[DONE]")

    def _piece(self, number: int, piece: str | None) -> bytes:
        if piece is None:
            reason = self._under_way.answer(number).finish_reason
            return self._event([self._choice(number, {} if self._is_chat else "", reason)])
        return self._event([self._choice(number, {"content": piece} if self._is_chat else piece)])

    def _choice(self, number: int, said: Any, reason: str | None = None) -> dict[str, Any]:
        key = "delta" if self._is_chat else "text"
        return {"index": number, key: said, "logprobs": None, "finish_reason": reason}

    def _event(self, choices: Sequence[Any], used: Usage | None = None) -> bytes:
        counted = {"usage": used.model_dump() if used else None} if self._with_usage else {}
        return _line(as_json({**self._head, "choices": choices, **counted}))


def _line(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _name(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"
