"""Answers in the forms of OpenAI's API: whole, and as server-sent events.

Knows: which fields a reply and each of its pieces have. Does not know how answers are made or asked for.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from utils.generation import Answer
from utils.scheduling import Piece
from utils.service.answering import UnderWay
from utils.service.asked import Asked
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
    asked = under_way.asked
    choices = [
        ChatChoice(
            index=i,
            message=ChatMessage(content=answer.text),
            finish_reason=answer.finish_reason,
            token_ids=list(under_way.ids(i)) if asked.returns_ids else None,
        )
        for i, answer in enumerate(answers)
    ]
    return ChatCompletion(
        id=_name("chatcmpl"),
        created=int(time.time()),
        model=asked.model,
        choices=choices,
        usage=usage(asked.prompt_tokens, answers),
        prompt_token_ids=_prompt_ids(asked, 0),
    )


def text(under_way: UnderWay, answers: Sequence[Answer]) -> TextCompletion:
    """All continuations."""
    asked = under_way.asked
    choices = [
        TextChoice(
            index=i,
            text=answer.text,
            finish_reason=answer.finish_reason,
            token_ids=list(under_way.ids(i)) if asked.returns_ids else None,
            prompt_token_ids=_prompt_ids(asked, i),
        )
        for i, answer in enumerate(answers)
    ]
    return TextCompletion(
        id=_name("cmpl"),
        created=int(time.time()),
        model=asked.model,
        choices=choices,
        usage=usage(asked.prompt_tokens, answers),
    )


def _prompt_ids(asked: Asked, number: int) -> list[int] | None:
    return list(asked.prompts[number]) if asked.returns_ids else None


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
        self._given = Counter[int]()
        """By answer: ids that its pieces so far have had."""

    async def events(
        self,
        first: tuple[int, Piece | None],
        pieces: AsyncIterator[tuple[int, Piece | None]],
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
                    yield self._beginning(number)
            yield self._piece(*first)
            async for number, piece in pieces:
                yield self._piece(number, piece)
            answers = [self._under_way.answer(number) for number in range(count)]
            on_end(answers)
            if self._with_usage:
                yield self._event([], used=usage(self._under_way.asked.prompt_tokens, answers))
        except Problem as problem:
            yield _line(as_json(problem.form()))
            return
        yield _line(b"[DONE]")

    def _beginning(self, number: int) -> bytes:
        """Of a chat's answer: who speaks, and the prompt's ids if they are wanted."""
        asked = self._under_way.asked
        ids = {"prompt_token_ids": _prompt_ids(asked, number)} if asked.returns_ids else {}
        return self._event([self._choice(number, {"role": "assistant", "content": ""})], ids)

    def _piece(self, number: int, piece: Piece | None) -> bytes:
        if piece is None:
            reason = self._under_way.answer(number).finish_reason
            left = self._under_way.ids(number)[self._given[number] :]
            return self._event([self._choice(number, {} if self._is_chat else "", reason, **self._ids(number, left))])
        ids = self._ids(number, piece.ids)
        return self._event([self._choice(number, {"content": piece.text} if self._is_chat else piece.text, **ids)])

    def _ids(self, number: int, ids: Sequence[int]) -> dict[str, Any]:
        """What a piece says of ids, if they are wanted; a text's first piece has its prompt's, too."""
        asked = self._under_way.asked
        if not asked.returns_ids:
            return {}
        begins = number not in self._given and not self._is_chat
        self._given[number] += len(ids)
        return {"token_ids": list(ids), **({"prompt_token_ids": _prompt_ids(asked, number)} if begins else {})}

    def _choice(self, number: int, said: Any, reason: str | None = None, **ids: Any) -> dict[str, Any]:
        key = "delta" if self._is_chat else "text"
        return {"index": number, key: said, "logprobs": None, "finish_reason": reason, **ids}

    def _event(self, choices: Sequence[Any], ids: Mapping[str, Any] | None = None, used: Usage | None = None) -> bytes:
        counted = {"usage": used.model_dump() if used else None} if self._with_usage else {}
        return _line(as_json({**self._head, "choices": choices, **counted, **(ids or {})}))


def _line(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _name(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"
