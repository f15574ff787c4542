"""Requests that nobody would think of, from the service's own OpenAPI document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from service_server import Scripted, serving, until

from utils.assistant import Assistant

SCHEDULER = Scripted()


@pytest.fixture(scope="module")
def url(opened: Assistant) -> Iterator[str]:
    with serving(opened, SCHEDULER) as address:
        yield address


@pytest.fixture(scope="module")
def document(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/query/{query}"),
    ("POST", "/"),
]
CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]


def test_every_operation_of_the_document_is_tried(document: Any) -> None:
    found = [(each.ok().method.upper(), each.ok().path) for each in document.get_all_operations()]
    assert sorted(found) == sorted(OPERATIONS)


WITH_BODIES = [operation for operation in OPERATIONS if operation[0] == "POST"]
TRIED = [(GenerationMode.POSITIVE, *each) for each in OPERATIONS] + [
    (GenerationMode.NEGATIVE, *each) for each in WITH_BODIES
]


@pytest.mark.parametrize(("mode", "method", "path"), TRIED, ids=lambda value: str(getattr(value, "value", value)))
def test_no_request_makes_the_service_fail(mode: GenerationMode, method: str, path: str, document: Any) -> None:
    seen: Counter[int] = Counter()

    @given(case=document[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    def answered(case: Any) -> None:
        response = case.call()
        seen[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)
        until(lambda: SCHEDULER.running == 0, "that its slots are free again")

    answered()
    if mode is GenerationMode.NEGATIVE:
        assert set(seen) == {400}, "what the document forbids is refused"
    else:
        assert set(seen) <= {200, 400, 404}
