"""What the service counts, for Prometheus and for a log.

Knows: requests by route and status, their times, and the scheduler's figures. Does not know what was asked: no text is
in a label.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.scheduling import Scheduler
from utils.service.access import is_api
from utils.service.problems import GONE

log = logging.getLogger("utils.service")
BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds."""
_GAUGES = {"waiting": "Answers that wait for a slot.", "running": "Answers that are being decoded."}
_COUNTERS = {
    "answered": "Answers that came to their end.",
    "cancelled": "Answers that were given up.",
    "failed": "Answers that failed.",
    "refused": "Answers that found the queue full.",
    "prompt_tokens": "Tokens of prompts.",
    "new_tokens": "Tokens that were decoded.",
}


class Measures:
    """Figures of one application, in a registry of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_OfScheduler(scheduler))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter("alpaca_cot_requests", "Requests.", ("route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "alpaca_cot_request_seconds",
            "Time until a reply is complete.",
            ("route",),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "alpaca_cot_first_token_seconds",
            "Time until the first piece of a streamed answer.",
            buckets=BUCKETS,
            registry=self.registry,
        )


class _OfScheduler(Collector):
    """The scheduler's own figures, asked for when they are read."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        figures = self._scheduler.figures()
        for name, what in _GAUGES.items():
            yield GaugeMetricFamily(f"alpaca_cot_{name}", what, value=figures[name])
        for name, what in _COUNTERS.items():
            yield CounterMetricFamily(f"alpaca_cot_{name}", what, value=figures[name])


class Measured:
    """Counts every request, and logs those of the API and those that were refused, by the route's pattern: a path may
    hold what was asked. An ASGI middleware."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self._app, self._measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = GONE, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            self._measures.requests.labels(route, str(status)).inc()
            self._measures.seconds.labels(route).observe(seconds)
            if is_api(scope["path"]) or status >= 400:  # a page asks for seventy files
                log.info("%s %s %d %.3f s", scope["method"], route, status, seconds)
