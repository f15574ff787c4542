"""One count of the answers that a client waits for, whether the API or the page was asked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx2
import pytest
from service_server import PIECES, Scripted, serving, until

from utils.assistant import Assistant
from utils.clients import Clients, TooMany, address_of
from utils.page.answering import Answering, Question, Reply, Visitor
from utils.page.texts import Trouble, say

QUESTION = Question(ids=[1, 5], settings={"max_new_tokens": 4}, adapter="run", seed=1)


def test_as_many_as_are_allowed_and_those_that_failed_do_not_count() -> None:
    clients = Clients(3)
    with clients.taking("甲", 2), clients.taking("乙", 3):
        pass
    message = "^甲 waits for 2 answers already, and asks for 2; at most 3 at the same time$"
    with pytest.raises(TooMany, match=message), clients.taking("甲", 2):
        pass
    with pytest.raises(KeyError), clients.taking("甲"):
        raise KeyError
    with clients.taking("甲"):
        pass
    clients.give_back("甲", 3)
    clients.give_back("乙", 3)
    with clients.taking("甲", 3):
        pass


def test_a_request_without_an_address_has_a_name_too() -> None:
    assert address_of(SimpleNamespace(client=SimpleNamespace(host="::1"))) == "::1"
    assert address_of(SimpleNamespace(client=None)) == "a client without an address"


def test_the_page_s_answers_and_the_api_s_are_counted_together(opened: Assistant) -> None:
    scheduler, clients = Scripted(), Clients(2)
    scheduler.goes_on.clear()
    page = Answering(opened=opened, scheduler=scheduler, clients=clients)
    here, elsewhere = (Visitor(session="s", address=address) for address in ("127.0.0.1", "192.0.2.7"))
    body = {"model": "run", "prompt": [5], "stream": True}

    async def asked(visitor: Visitor) -> list[Reply]:
        return [reply async for reply in page.replies(QUESTION, visitor, "chat")]

    async def both(address: str) -> None:
        shown = asyncio.create_task(asked(here))
        while not scheduler.running:
            await asyncio.sleep(0.005)
        async with httpx2.AsyncClient() as client:
            first = asyncio.create_task(client.post(f"{address}/v1/completions", json=body))
            while scheduler.running < 2:
                await asyncio.sleep(0.005)
            refused = await client.post(f"{address}/v1/completions", json=body)
            assert refused.status_code == 429
            assert "127.0.0.1 waits for 2 answers already" in refused.json()["error"]["message"]
            for language in ("en", "zh"):
                with pytest.raises(Trouble) as caught:
                    await asked(here)
                assert caught.value.said(language) == say("status.too_many", language, most=2)
            other = asyncio.create_task(asked(elsewhere))
            scheduler.goes_on.set()
            for replies in await asyncio.gather(shown, other):
                assert replies[-1].text == "".join(PIECES)
            assert (await first).status_code == 200

    with serving(opened, scheduler, clients=clients) as address:
        asyncio.run(asyncio.wait_for(both(address), 60))
        until(lambda: not clients._waiting, "all to be given back")
