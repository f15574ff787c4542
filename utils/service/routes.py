"""The routes: OpenAI's, the operator's, and the original's.

Knows: paths, and what stands in the OpenAPI document. Does not know how anything is answered.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from utils.assistant import BASE, Assistant
from utils.service import replies, schema
from utils.service.schema import ChatRequest, LegacyRequest, TextRequest
from utils.service.serving import Serving

_ERRORS = (400, 401, 403, 404, 408, 413, 429, 500, 503, 504)
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": schema.ErrorForm} for status in _ERRORS}
_EVENTS = {
    "text/event-stream": {"schema": {"type": "object", "description": "an event; its data is a chunk of the reply"}}
}


def openai(serving: Serving, opened: Assistant) -> APIRouter:
    """What OpenAI's clients ask for."""
    router, began = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERRORS), int(time.time())
    streams: dict[int | str, Any] = {200: {"content": _EVENTS}}

    @router.post("/chat/completions", response_model=schema.ChatCompletion, responses=streams)
    async def chat_completions(fields: ChatRequest, request: Request) -> Any:
        """Answers to a conversation, in the prompt that the model was trained with."""
        read = serving.reader.chat
        if fields.stream:
            return await serving.streamed(request, fields, read, is_chat=True, with_usage=_wants_usage(fields))
        return await serving.whole(request, fields, read, replies.chat)

    @router.post("/completions", response_model=schema.TextCompletion, responses=streams)
    async def completions(fields: TextRequest, request: Request) -> Any:
        """Continuations of prompts, as they are: no template is put around them."""
        read = serving.reader.text
        if fields.stream:
            return await serving.streamed(request, fields, read, is_chat=False, with_usage=_wants_usage(fields))
        return await serving.whole(request, fields, read, replies.text)

    def described(name: str) -> schema.Model:
        run = None if name == BASE else opened.origins[name].run
        created = int(datetime.fromisoformat(run.started).timestamp()) if run else began
        return schema.Model(id=name, created=created, owned_by="alpaca-cot")

    @router.get("/models")
    async def models() -> schema.ModelList:
        """Each adapter, and the base without one."""
        return schema.ModelList(data=[described(name) for name in serving.reader.models])

    @router.get("/models/{model}")
    async def model(model: str) -> schema.Model:
        """One of them."""
        return described(serving.reader.model(model))

    return router


def operation(serving: Serving) -> APIRouter:
    """What keeps the service running."""
    router = APIRouter(tags=["operation"])

    @router.get("/health")
    async def health() -> schema.Health:
        """Whether the process answers; needs no key, and does not ask the model."""
        return schema.Health()

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(serving.measures.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def legacy(serving: Serving) -> APIRouter:
    """The original's service, for those who still speak to it: the first adapter, with the original's decoding
    parameters."""
    router = APIRouter(tags=["legacy"], responses=ERRORS, deprecated=True)

    @router.get("/query/{query:path}")
    async def query(query: str, request: Request) -> schema.LegacyAnswer:
        """The answer to one question, which stands in the address: proxies log it."""
        began = time.perf_counter()
        answer = await serving.whole(request, query, serving.reader.legacy, lambda _, answers: answers[0].text)
        return schema.LegacyAnswer(query=query, answer=answer, time=time.perf_counter() - began)

    @router.post("/")
    async def post(fields: LegacyRequest, request: Request) -> schema.LegacyResponse:
        """The answer to one question."""
        began = time.perf_counter()
        answer = await serving.whole(request, fields.prompt, serving.reader.legacy, lambda _, answers: answers[0].text)
        return schema.LegacyResponse(response=answer, time=time.perf_counter() - began)

    return router


def others(known: APIRouter) -> APIRouter:
    """Refuses, in OpenAI's form, what is asked below /v1 and is not known; a page that is mounted at / would answer."""
    router = APIRouter(include_in_schema=False)

    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

    @router.api_route("/v1", methods=methods)
    @router.api_route("/v1/{rest:path}", methods=methods)
    async def nothing(request: Request) -> None:
        allowed = {
            method
            for route in known.routes
            if isinstance(route, APIRoute) and route.matches(request.scope)[0] == Match.PARTIAL
            for method in route.methods or ()
        }
        if allowed:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))})
        raise HTTPException(404)

    return router


def _wants_usage(fields: schema.Decoding) -> bool:
    return bool(fields.stream_options and fields.stream_options.include_usage)
