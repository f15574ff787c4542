"""What goes wrong with a request, in the form in which OpenAI's API says it.

Knows: statuses, OpenAI's names for kinds of errors, and how a fault of validation is said in a line. Does not know
which route was asked, or models. Nothing of the server's inside (tracebacks, paths) is in a reply.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils import lookup
from utils.service.schema import is_off, known_fields

log = logging.getLogger("utils.service")
GONE = 499
"""The status under which a request is counted whose client has gone; nobody receives it."""
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}
"""OpenAI's `type`; others are an `invalid_request_error` below 500, and a `server_error` from there on."""


class Problem(Exception):
    """A refusal, or a failure that can be told.

    Args:
        message: for people, with the next step.
        param: the field at fault.
        code: OpenAI's short name for it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    def form(self) -> dict[str, Any]:
        """OpenAI's form."""
        other = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = KINDS.get(self.status, other)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The same over HTTP."""
        return Response(as_json(self.form()), self.status, self.headers, media_type="application/json")


def as_json(value: Any) -> bytes:
    """JSON in UTF-8. Half a character (a lone surrogate, which UTF-8 has not) stays as JSON escapes it."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def failed() -> Problem:
    """What is said of a failure that is nobody's business but the log's."""
    return Problem(500, "the server failed at this request; its log says why", code="internal_error")


class Caught:
    """What nobody expected becomes a 500 that says nothing of the inside; the log has it all. An ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            log.exception("a request failed")
            if scope["type"] == "http" and not started:
                await failed().response()(scope, receive, send)


def install(app: FastAPI) -> None:
    """Makes every error of the application one of OpenAI's form."""

    @app.exception_handler(Problem)
    async def told(request: Request, problem: Problem) -> Response:
        return problem.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return of_validation(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return of_status(error.status_code, str(error.detail), request, error.headers).response()


def of_status(status: int, detail: str, request: Request, headers: Mapping[str, str] | None = None) -> Problem:
    """What the router, or the reading of a body, refused."""
    if status == 404:
        return Problem(404, f"there is no {request.method} {request.url.path}; /docs lists what there is")
    if status == 405:
        allowed = (headers or {}).get("Allow", "")
        words = f", but {allowed}" if allowed else ""
        return Problem(405, f"{request.url.path} does not take {request.method}{words}", headers=headers)
    if status == 400:
        detail = "the body cannot be read: send JSON in UTF-8, not nested too deeply"
    return Problem(status, detail, headers=headers)


def of_validation(faults: Sequence[Any]) -> Problem:
    """The first of pydantic's faults in words; those of a union's members are one fault of its field."""
    fault = faults[0]
    place = [str(each) for each in fault["loc"][1:]]
    if fault["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON: {fault['ctx']['error']}, at character {place[0]}")
    if fault["type"] == "string_unicode":
        return Problem(400, "the body holds half a character (a lone surrogate)", code="invalid_value")
    if not place:
        return Problem(400, "the body must be a JSON object, sent as Content-Type: application/json")
    name = place[0]
    if fault["type"] == "extra_forbidden":
        problem = f"unknown field {'.'.join(place)}"
        if len(place) == 1:
            problem = lookup.unknown_name("field", name, known_fields())
        return Problem(400, problem, param=".".join(place), code="unknown_parameter")
    if is_off(name):
        message = f"{name} is not supported here, and without it the answer would be another: leave it out"
        return Problem(400, message, param=name, code="unsupported_parameter")
    if expected := _of_several_types(name, faults):
        return Problem(400, f"{name}: expected {expected}", param=name, code="invalid_value")
    path = ".".join(each for each in place if each.replace("_", "").isalnum())
    return Problem(400, f"{path}: {_lower(fault['msg'])}", param=path, code="invalid_value")


def _of_several_types(name: str, faults: Sequence[Any]) -> str:
    """What the field may hold, if it has several types, each of which pydantic found a fault with; else nothing."""
    places = [fault["loc"] for fault in faults if fault["loc"][1:2] == (name,) and fault["loc"][2:]]
    types = {place[2] for place in places if isinstance(place[2], str)}
    return known_fields()[name] if len(types) > 1 else ""


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
