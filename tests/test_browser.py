"""The page in a real browser, on the application that web.py serves, with the real model and scheduler; what the model
would have to say for a test is said by a script in its place. No page writes an error to the console, asks another
machine for anything, or has a request fail.
"""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import browsing
import pytest
from browsing import CHROMIUM, PHONE, Opening, Scripted, Server, ask, bubbles, expect, go_to, picture, served

from utils import page, scheduling
from utils.clients import MOST
from utils.page.markup import harmless
from utils.page.texts import say

server, browser, opening = browsing.server, browsing.browser, browsing.opening

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser here: apt install chromium")
PARTS = {"chat": "chat", "instruction": "instruction-answer", "compare": "compare-plain-0"} | {
    "data": "data-mask",
    "runs": "runs-loss",
}
"""Something of each tab."""
HOSTILE = (
    "<img src=x onerror=alert(1)> <script>alert(2)</script> ![p](https://example.invalid/p.png) "
    "[link](javascript:alert(3)) `<b>` **bold** $x$"
)


def test_a_conversation_in_english_and_chinese_streams_token_by_token(
    server: Server, opening: Opening, tmp_path: Path
) -> None:
    tab = opening()
    answer = Scripted("To", more=True)
    server.scheduler.script.append(answer)
    ask(tab, "What is 3 + 4?")
    expect(bubbles(tab, "bot").last).to_have_text("To")
    expect(tab.locator("#chat-stop")).to_be_visible()
    expect(tab.locator("#chat-send")).to_be_hidden()
    answer.say(" begin with,\n\n1. **three**")
    expect(bubbles(tab, "bot").last).to_contain_text("begin with")
    expect(bubbles(tab, "bot").last.locator("strong")).to_have_text("three")
    tab.locator("#chat-question textarea").fill("the next one")
    answer.say(" again")
    answer.end()
    expect(tab.locator("#chat-status")).to_contain_text("tokens/s")
    expect(tab.locator("#chat-question textarea")).to_have_value("the next one")
    expect(tab.locator("#chat-send")).to_be_visible()

    server.scheduler.script.append(Scripted("三加四", "等于七。🌏"))
    ask(tab, "三加四等于几？")
    expect(bubbles(tab, "bot").last).to_have_text("三加四等于七。🌏")
    expect(bubbles(tab, "user")).to_have_count(2)
    picture(tab, "chat", tmp_path)
    ask(tab, "and now the model itself")  # a random model: what it says is not known, that it ends is
    expect(bubbles(tab, "user")).to_have_count(3)
    expect(tab.locator("#chat-send")).to_be_visible()
    expect(tab.locator("#chat-status")).to_contain_text("512")


def test_an_answer_is_stopped_and_what_was_said_stays(server: Server, opening: Opening) -> None:
    tab = opening()
    answer = Scripted("so far", more=True)
    server.scheduler.script.append(answer)
    ask(tab, "Go on for ever.")
    expect(bubbles(tab, "bot").last).to_have_text("so far")
    tab.locator("#chat-stop").click()
    assert answer.cancelled.wait(2)
    expect(tab.locator("#chat-status")).to_have_text(say("status.stopped", "en"))
    expect(bubbles(tab, "bot").last).to_have_text("so far")


def test_a_page_that_is_closed_frees_the_answers_place(server: Server, opening: Opening) -> None:
    tab = opening()
    answer = Scripted("so far", more=True)
    server.scheduler.script.append(answer)
    ask(tab, "Go on for ever.")
    expect(bubbles(tab, "bot").last).to_have_text("so far")
    tab.close()
    assert answer.cancelled.wait(1)


def test_a_question_is_edited_retried_undone_and_all_is_cleared(server: Server, opening: Opening) -> None:
    tab = opening()
    server.scheduler.script += [Scripted("one"), Scripted("two"), Scripted("three"), Scripted("four")]
    ask(tab, "first <b>")
    expect(bubbles(tab, "bot").last).to_have_text("one")
    ask(tab, "second")
    expect(bubbles(tab, "bot").last).to_have_text("two")
    tab.locator("#chat-retry").click()
    expect(bubbles(tab, "bot").last).to_have_text("three")
    expect(bubbles(tab, "bot")).to_have_count(2)
    tab.locator("#chat-undo").click()
    expect(bubbles(tab, "bot")).to_have_count(1)
    expect(tab.locator("#chat-question textarea")).to_have_value("second")
    tab.locator("#chat").get_by_label("Edit", exact=True).first.click()
    editor = tab.locator("#chat textarea")
    editor.fill(editor.input_value() + " and more")
    tab.locator("#chat").get_by_label("Submit", exact=True).click()
    expect(bubbles(tab, "bot").last).to_have_text("four")
    expect(bubbles(tab, "user").last).to_contain_text("and more")
    tab.locator("#chat-clear").click()
    expect(bubbles(tab, "user")).to_have_count(0)


def test_html_in_questions_and_answers_is_text_and_is_copied_as_it_was(server: Server, opening: Opening) -> None:
    tab = opening()
    server.scheduler.script.append(Scripted(HOSTILE))
    ask(tab, HOSTILE)
    for role in ("user", "bot"):
        shown = bubbles(tab, role).last
        expect(shown).to_contain_text(harmless("<script>alert(2)</script>"))
        expect(shown).to_contain_text("onerror=alert(1)>")
        expect(shown.locator("img, script, b")).to_have_count(0)
        expect(shown.locator("a[href^='javascript']")).to_have_count(0)
    expect(bubbles(tab, "bot").last.locator("strong")).to_have_text("bold")
    tab.locator("#chat").get_by_label("Copy message", exact=True).last.click()
    assert tab.evaluate("navigator.clipboard.readText()") == HOSTILE

    go_to(tab, "instruction")
    server.scheduler.script.append(Scripted(HOSTILE))
    tab.locator("#shows-prompt input").check()
    tab.locator("#instruction-instruction textarea").fill(f"</s> {HOSTILE}")
    tab.locator("#instruction-input textarea").fill("你好，世界 🌏")
    tab.locator("#instruction-send").click()
    expect(tab.locator("#instruction-answer")).to_contain_text(harmless("<script>alert(2)</script>"))
    expect(tab.locator("#instruction-answer").locator("img, script, b")).to_have_count(0)
    prompt = tab.locator("#instruction-prompt")
    expect(prompt.locator("kbd")).to_have_text(["<s>"])  # what a person wrote is no control token
    expect(prompt).to_contain_text("</s> <img src=x")
    expect(prompt).to_contain_text("### Input:")
    expect(prompt.locator("img, script")).to_have_count(0)


def test_the_base_and_the_adapter_are_compared_with_and_without_steps(opening: Opening, tmp_path: Path) -> None:
    tab = opening(query="?max_new_tokens=24&seed=3")
    go_to(tab, "compare")
    tab.locator("#compare-question textarea").fill("小明有12颗糖，给了妹妹5颗，现在有几颗？")
    tab.locator("#compare-steps input").check()
    tab.locator("#compare-send").click()
    for name in ("plain-0", "plain-1", "with_cue-0", "with_cue-1"):
        expect(tab.locator(f"#compare-{name}-status")).to_contain_text("tokens/s")
    left, right = (tab.locator(f"#compare-plain-{n}").bounding_box() for n in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    picture(tab, "compare", tmp_path)


def test_the_language_is_the_browser_s_and_can_be_switched_without_losing_anything(
    server: Server, opening: Opening, tmp_path: Path
) -> None:
    tab = opening(locale="zh-CN")
    expect(tab.get_by_role("tab", name="指令")).to_be_visible()
    server.scheduler.script.append(Scripted("你好。"))
    ask(tab, "你好")
    expect(tab.locator("#chat-status")).to_contain_text("每秒")
    picture(tab, "chinese", tmp_path)
    tab.locator("#language").get_by_text("English").click()
    expect(tab.locator("#chat-send")).to_have_text("Send")
    expect(tab.get_by_role("tab", name="Instruction")).to_be_visible()
    expect(bubbles(tab, "bot").last).to_have_text("你好。")
    server.scheduler.script.append(scheduling.Full(7))
    ask(tab, "full?")
    expect(tab.locator("#chat-status")).to_have_text(say("status.full", "en", seconds=7))
    expect(tab.locator("#chat-question textarea")).to_have_value("full?")
    with server.clients.taking("127.0.0.1", MOST):
        ask(tab, "too many?")
        expect(tab.locator("#chat-status")).to_have_text(say("status.too_many", "en", most=MOST))
        server.clients.give_back("127.0.0.1", MOST)
    tab.locator("#language").get_by_text("中文").click()
    expect(tab.locator("#chat-send")).to_have_text("发送")
    server.scheduler.script.append(scheduling.Closed())
    ask(tab, "关了吗？")
    expect(tab.locator("#chat-status")).to_have_text(say("status.closed", "zh"))


def test_a_dataset_s_trained_tokens_and_a_run_s_loss_are_shown(opening: Opening, tmp_path: Path) -> None:
    tab = opening()
    go_to(tab, "data")
    mask = tab.locator("#data-mask")
    expect(mask.locator("mark")).to_be_visible()
    first = mask.inner_text()
    assert "### Response:" in first
    assert "### Response:" not in mask.locator("mark").inner_text()
    expect(mask.locator("mark kbd")).to_have_text("</s>")
    tab.locator("#data-after").click()
    expect(tab.locator("#data-figures")).to_contain_text("row 2:")
    assert mask.inner_text() != first
    expect(tab.locator("#data-tags")).to_contain_text("Apache-2.0")
    picture(tab, "data", tmp_path)
    go_to(tab, "runs")
    loss = tab.locator("#runs-loss img")
    expect(loss).to_be_visible()
    assert loss.evaluate("image => image.naturalWidth") > 300
    expect(tab.locator("#runs-ledger")).to_contain_text("records.json")
    picture(tab, "runs", tmp_path)


def test_settings_travel_in_a_link_and_what_it_cannot_ask_for_is_said(server: Server, opening: Opening) -> None:
    tab = opening()
    tab.locator("#settings").get_by_role("button", name="Settings").click()
    number = tab.locator("#parameter-temperature input[type=number]")
    link = tab.locator("#link textarea, #link input")
    wanted = f"{server.address}?lang=en&model=run&temperature=0.35"
    for _ in range(20):  # a number reaches the server a moment after it was typed; one typed while they unfold, never
        number.fill("0.35")
        number.press("Tab")
        tab.locator("#share").click()
        link.wait_for()
        if link.input_value() == wanted:
            break
        tab.wait_for_timeout(500)
    expect(link).to_have_value(wanted)
    query = link.input_value().partition("?")[2].replace("lang=en", "lang=zh")
    other = opening(query=f"?{query}&num_beams=1000000000&model=..%2Fetc%2Fpasswd&top_p=%3Cscript%3E")
    expect(other.locator("#notice")).to_contain_text("num_beams")
    expect(other.locator("#notice")).to_contain_text(harmless("top_p = '<script>' (0.05 … 1.0)"))
    other.locator("#settings").get_by_role("button", name="设置").click()
    expect(other.locator("#parameter-temperature input[type=number]")).to_have_value("0.35")
    expect(other.locator("#parameter-num_beams input[type=number]")).to_have_value("1")
    expect(other.locator("#parameter-temperature")).to_contain_text("贪心")


@pytest.mark.parametrize(("locale", "language"), [("zh-CN", "zh"), ("en-GB", "en")])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(
    server: Server, opening: Opening, tmp_path: Path, locale: str, language: str
) -> None:
    tab = opening(locale=locale, viewport=PHONE, phone=True)
    server.scheduler.script.append(Scripted("很长的回答，" * 20 + "x" * 300))
    ask(tab, "在手机上也能用吗？" + "y" * 200)
    expect(bubbles(tab, "bot").last).to_contain_text("xxx")
    for name in PARTS:
        go_to(tab, name, language)
        expect(tab.locator(f"#{PARTS[name]}")).to_be_visible()
        picture(tab, f"phone-{name}", tmp_path)
        wide, viewport = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= viewport == PHONE["width"], name
        for part in (*tab.locator("#language label, #tabs [role=tab]:visible").all(), tab.locator(f"#{PARTS[name]}")):
            box = part.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE["width"], name


def test_a_server_that_ends_does_not_wait_for_open_pages(opened: Any) -> None:
    import fastapi

    application = fastapi.FastAPI()
    scheduler = scheduling.Scheduler(opened)
    gate = page.mount(application, page.blocks(opened, scheduler))
    gate.close()  # nobody has come yet
    with served(application) as (address, end):
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        connection.request("GET", "/gradio_api/heartbeat/somebody")
        assert b"ALIVE" in connection.getresponse().readline()  # an open page holds this connection
        gate.close()
        assert end()
    scheduler.close(wait=1)
