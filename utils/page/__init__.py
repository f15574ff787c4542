"""The page of `web.py`: chat, instructions, comparison, data and runs, in English and Chinese.

Knows: how the tabs stand together, and how the page is put into an application. Does not know models, the API beside it
or who may see it. No file can be brought to it or taken from it, and it asks nothing of any other machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio

from utils.catalog import DatasetSpec
from utils.clients import Clients
from utils.page import appearance, chat_tab, compare_tab, data_tab, instruction_tab, runs_tab
from utils.page.answering import Answering, Scheduler, Visitor
from utils.page.gate import Gate
from utils.page.markup import harmless
from utils.page.parameters import Parameters
from utils.page.shared import Shared
from utils.page.texts import LANGUAGES, Labels, Text, Trouble, known, preferred, say

LARGEST_QUEUE = 256
"""Events of all open pages that wait at once; answers wait in the scheduler's queue, which is shorter."""


def blocks(
    opened: Any,
    scheduler: Scheduler,
    *,
    clients: Clients | None = None,
    flags: argparse.Namespace | None = None,
    datasets: Mapping[str, DatasetSpec] | None = None,
    runs: Mapping[str, Path] | None = None,
) -> gradio.Blocks:
    """The page.

    Args:
        opened: an `utils.assistant.Assistant`.
        scheduler: answers what is asked.
        clients: counts what each waits for; an API beside it counts there, too.
        flags: of `utils.cli.add_generation_flags`: the sliders begin there, and `stop` holds for every answer.
        datasets: that can be browsed; None: those of the catalogue that are on this machine.
        runs: that can be looked at, by name; None: the loaded ones, and those below `saved_models/`.
    """
    answering = Answering(
        opened=opened, scheduler=scheduler, clients=clients or Clients(), stop=tuple(getattr(flags, "stop", ()))
    )

    def leave(request: gradio.Request) -> None:
        answering.interrupt(Visitor.of(request))

    with gradio.Blocks(title=say("page.title", "en"), analytics_enabled=False, fill_width=True) as made:
        with gradio.Column(visible=False) as everything:  # until it speaks the browser's language
            page, tabs, beside = _frame(answering, Parameters.of(answering.context, flags))
        with tabs:
            for tab in (chat_tab, instruction_tab, compare_tab):
                with page.labels.put(gradio.Tab, label=Text(f"tab.{tab.PLACE}"), id=tab.PLACE):
                    tab.build(page)
            with page.labels.put(gradio.Tab, label=Text("tab.data"), id="data"):
                data_tab.build(page, data_tab.here() if datasets is None else datasets)
            with page.labels.put(gradio.Tab, label=Text("tab.runs"), id="runs"):
                runs_tab.build(page, runs_tab.listed(answering) if runs is None else runs)
        _connect(made, page, everything, *beside)
        made.unload(leave)
    made.queue(api_open=False, max_size=LARGEST_QUEUE, default_concurrency_limit=8)
    return made


def mount(application: Any, made: gradio.Blocks, path: str = "/") -> Gate:
    """Puts the page into a FastAPI application, behind all routes that it has by then; nothing of Gradio but what the
    page needs can be reached. Before the server ends, call the result's `close`."""
    gradio.mount_gradio_app(
        application,
        made,
        path,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=appearance.theme(),
        css=appearance.CSS,
        head=appearance.HEAD,
    )
    route = application.router.routes[-1]
    route.app = Gate(route.app)
    return route.app


def _frame(answering: Answering, parameters: Parameters) -> tuple[Shared, Any, tuple[Any, ...]]:
    """(what the tabs share, where they go, the components of the link to the settings)."""
    labels = Labels()
    put = labels.put
    with gradio.Row(elem_id="head"):
        with gradio.Column(scale=4, min_width=220):
            put(gradio.Markdown, Text("page.head"))
        language = put(
            gradio.Radio,
            [(name, code) for code, name in LANGUAGES.items()],
            value="en",
            label=Text("page.language"),
            show_label=False,
            container=False,
            elem_id="language",
        )
    notice = gradio.Markdown(elem_id="notice", visible=False, latex_delimiters=[])
    with gradio.Row():
        with gradio.Column(scale=3, min_width=320):
            tabs = gradio.Tabs(elem_id="tabs")
        with gradio.Column(scale=1, min_width=300, elem_id="beside"):
            model = put(
                gradio.Dropdown,
                list(answering.models),
                value=answering.models[0],
                label=Text("page.model"),
                info=Text("page.model_info"),
                elem_id="model",
            )
            shows_prompt = put(gradio.Checkbox, False, label=Text("page.prompt_wanted"), elem_id="shows-prompt")
            with put(gradio.Accordion, label=Text("page.settings"), open=False, elem_id="settings"):
                sliders = parameters.components(labels)
                reset = put(gradio.Button, Text("page.reset"), size="sm", elem_id="reset")
                share = put(gradio.Button, Text("page.share"), size="sm", elem_id="share")
                link = put(
                    gradio.Textbox,
                    label=Text("page.link"),
                    visible=False,
                    interactive=False,
                    buttons=["copy"],
                    elem_id="link",
                )
    page = Shared(
        answering=answering,
        parameters=parameters,
        labels=labels,
        language=language,
        model=model,
        shows_prompt=shows_prompt,
        sliders=sliders,
    )
    return page, tabs, (notice, reset, share, link)


def _connect(
    made: gradio.Blocks, page: Shared, everything: Any, notice: Any, reset: Any, share: Any, link: Any
) -> None:
    """What happens when the page opens, and what the components beside the tabs do."""
    labels, parameters = page.labels, page.parameters

    def opened(request: gradio.Request) -> tuple[Any, ...]:
        """The language of the browser, and what the address asks for."""
        query = {name: str(value) for name, value in dict(request.query_params).items()}
        language = preferred(request.headers.get("accept-language"), query.get("lang"))
        values, refused = parameters.from_query(query)
        model = query.get("model", page.answering.models[0])
        if model not in page.answering.models:
            refused.append(f"model {model[:80]!r}")
            model = page.answering.models[0]
        told = say("page.refused", language, what=harmless("; ".join(refused))) if refused else ""
        shown = gradio.update(value=told, visible=bool(told))
        return (gradio.update(visible=True), language, model, shown, *values.values(), *labels.updates(language))

    def address(request: gradio.Request, *values: Any) -> Any:
        """A link to this page with these settings."""
        wish = page.wish(values)
        try:
            taken = parameters.taken(wish.values)
        except Trouble as trouble:
            return gradio.update(value=trouble.said(wish.language), visible=True)
        model = wish.model if wish.model in page.answering.models else page.answering.models[0]
        query = parameters.query(taken, lang=known(wish.language), model=model)
        place = (made.custom_mount_path or "/").rstrip("/")
        return gradio.update(value=f"{request.headers.get('origin', '')}{place}/?{query}", visible=True)

    quietly: dict[str, Any] = {"show_progress": "hidden", "queue": False}
    start = made.load(
        opened, None, [everything, page.language, page.model, notice, *page.sliders, *labels.components], **quietly
    )
    for show, inputs, outputs in page.on_open:
        start.then(show, inputs, outputs, show_progress="minimal")
    page.language.input(labels.updates, page.language, labels.components, **quietly)
    reset.click(lambda: list(parameters.defaults.values()), None, list(page.sliders), **quietly)
    share.click(address, page.inputs, link, **quietly)
