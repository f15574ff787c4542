"""The service: a model that answers, over HTTP, in the words of OpenAI's API.

Knows: how the application is put together. Does not know addresses, ports or flags (`web.py`), pages, or how a batch is
decoded (`utils.scheduling`). Each module has one job:

- `schema`: what requests and replies hold; `asked`: what a request asks of the model
- `answering`: answers on their way; `serving`: one request from beginning to end; `replies`: the form of a reply
- `routes`: paths
- `access`, `limits`, `problems`, `measures`: who may ask, how much, what is said when not, and what is counted
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from utils.assistant import Assistant
from utils.clients import Clients
from utils.scheduling import Scheduler
from utils.service import problems, routes
from utils.service.access import Access, Gate, SafeHeaders
from utils.service.limits import Limits, WholeBodies
from utils.service.measures import Measured
from utils.service.serving import Serving

__all__ = ["Access", "Limits", "application"]

_ABOUT = """Fine-tuned models in the words of [OpenAI's API](https://platform.openai.com/docs/api-reference).
A conversation is put into the prompt that the model was trained with. A field that is not supported is refused, never
passed over."""


def application(
    opened: Assistant,
    scheduler: Scheduler,
    *,
    access: Access | None = None,
    limits: Limits | None = None,
    clients: Clients | None = None,
    log_prompts: bool = False,
) -> FastAPI:
    """The service as an ASGI application; a page may be mounted at `/` behind it.

    When it ends (ASGI's lifespan), the scheduler is closed. Requests and answers are logged under `utils.service`: how
    many, not what. A server's own access log holds addresses, and with them what GET /query asks: leave it off.

    Args:
        access: None: without a key, to this machine's own names alone.
        clients: counts what each waits for; a page beside it counts there, too.
        log_prompts: whether what is asked and answered is logged, too.
    """
    limits = limits or Limits()
    serving = Serving(opened, scheduler, limits, clients or Clients(), log_prompts=log_prompts)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.to_thread(scheduler.close)
            serving.close()

    app = FastAPIOffline(
        redoc_url=None,
        title="Alpaca-CoT",
        version="1",
        description=_ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,
        swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
    )
    openai = routes.openai(serving, opened)
    for router in (openai, routes.operation(serving), routes.legacy(serving), routes.others(openai)):
        app.include_router(router)
    problems.install(app)
    # The last one is the outermost: what any of the others refuses is counted, too, and has its headers.
    app.add_middleware(Gate, access=access or Access())
    app.add_middleware(WholeBodies, limits=limits)
    app.add_middleware(problems.Caught)
    app.add_middleware(SafeHeaders)
    app.add_middleware(Measured, measures=serving.measures)
    return app
