"""The page's parts, each by itself, with the real model and scheduler where they are asked."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastapi
import gradio
import pytest
from conftest import RECORDS
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from utils import assistant, catalog, cli, page, scheduling
from utils.conversation import Conversation, Exchange
from utils.generation import Answer
from utils.page import chat_tab, compare_tab, data_tab, markup, runs_tab, shared, texts
from utils.page.answering import Answering, Question, Reply, Visitor
from utils.page.gate import ADDRESSES
from utils.page.parameters import LARGEST_SEED, SLIDERS, Parameters, settings_of
from utils.page.texts import LANGUAGES, Trouble, say

NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a <b>b</b> <!-- c --> <?php ?>",
    "![pixel](https://example.invalid/x.png)",
    "![ref][1]\n\n[1]: https://example.invalid/x.png",
    "```\n<iframe src=//example.invalid>\n```",
    "",
    "1 < 2 且 3 > 2 🌏",
]


class FakeTicket:
    """Says its pieces one by one, and then fails or waits for ever, if told so."""

    def __init__(self, pieces: Sequence[str], error: BaseException | None = None, waits: bool = False) -> None:
        self._pieces, self._error, self._waits = pieces, error, waits
        self._cancelled = asyncio.Event()
        self.answer: Answer | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        self._cancelled.set()

    async def __aiter__(self) -> AsyncIterator[scheduling.Piece]:
        for number, text in enumerate(self._pieces):
            yield scheduling.Piece(text, [number])
        if self._waits:
            await self._cancelled.wait()
        elif self._error:
            raise self._error
        else:
            text = "".join(self._pieces)
            self.answer = Answer(text=text, finish_reason="stop", prompt_tokens=3, new_tokens=len(self._pieces))


class FakeScheduler:
    """Hands out the tickets that it was given, or raises."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes, self.asked, self.tickets = list(outcomes), [], []

    def submit(self, prompt: Sequence[int], settings: Mapping[str, Any], **options: Any) -> Any:
        self.asked.append({"prompt": list(prompt), "settings": dict(settings), **options})
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        ticket = FakeTicket(**outcome)
        self.tickets.append(ticket)
        return ticket


@pytest.fixture(scope="module")
def opened(finished: Path) -> Any:
    return assistant.open_run(finished)


@pytest.fixture
def parameters(opened: Any) -> Parameters:
    return Parameters.of(512)


def made(opened: Any, *outcomes: Any, parameters: Parameters | None = None) -> tuple[Any, FakeScheduler]:
    """(what the tabs share, without components; the scheduler that it asks)."""
    scheduler = FakeScheduler(*outcomes)
    around: Any = shared.Shared(
        answering=Answering(opened=opened, scheduler=scheduler),
        parameters=parameters or Parameters.of(512),
        labels=texts.Labels(),
        language=None,
        model=None,
        shows_prompt=None,
        sliders=[],
    )
    return around, scheduler


class Session:
    session_hash = "somebody"
    client = SimpleNamespace(host="127.0.0.1")


VISITOR = Visitor.of(Session)


def talk(around: Any, action: str, *given: Any, language: str = "en", prompt: bool = False, model: str = "run") -> list:
    """All that one of the chat's handlers yields."""
    values = [language, model, prompt, *around.parameters.defaults.values()]

    async def collect() -> list:
        return [state async for state in getattr(chat_tab.Talk(around), action)(Session, *given, *values)]

    return asyncio.run(collect())


# --- texts


def test_every_text_is_there_in_every_language_with_the_same_blanks() -> None:
    blanks = re.compile(r"\{(\w+)\}")
    for key, row in texts.read_texts().items():
        assert set(row) == set(LANGUAGES), key
        assert all(text.strip() for text in row.values()), key
        assert len({tuple(sorted(blanks.findall(text))) for text in row.values()}) == 1, key
    parameters = {key.partition(".")[2] for key in texts.read_texts() if key.startswith("parameter.")}
    assert parameters == set(cli.GENERATION)


def test_every_text_is_used_and_every_text_that_is_used_exists() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in Path(texts.__file__).parent.glob("*.py"))
    named = set(re.findall(r"""["']([a-z]+\.[a-z_]+)["']""", source)) & {
        f"{group}.{name}" for group, name in (key.split(".") for key in texts.read_texts())
    }
    built = {key for key in texts.read_texts() if re.match(r"(tab|parameter|data|runs|compare)\.", key)}
    assert set(texts.read_texts()) <= named | built
    with pytest.raises(ValueError, match=r"unknown text.*do\.send"):
        say("do.sent", "en")


@pytest.mark.parametrize(
    ("accepted", "asked", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", None, "zh"),
        ("de-DE,en-GB;q=0.5", None, "en"),
        ("fr", None, "en"),
        (None, None, "en"),
        ("en", "zh", "zh"),
        ("zh", "../../etc/passwd", "zh"),
        ("", "", "en"),
    ],
)
def test_the_language_is_the_address_s_or_the_browser_s_first(accepted: Any, asked: Any, language: str) -> None:
    assert texts.preferred(accepted, asked) == language


def test_a_language_that_a_request_makes_up_is_english() -> None:
    assert say("do.stop", "<script>") == "Stop"
    assert say("do.stop", ["zh"]) == "Stop"  # pyright: ignore[reportArgumentType]


# --- markup


@pytest.mark.parametrize("text", NASTY)
def test_what_is_shown_has_no_tag_and_no_picture_and_comes_back_as_it_was(text: str) -> None:
    shown = markup.harmless(text)
    assert not re.search(r"<[A-Za-z/!?]|!\[", shown)
    assert shown.replace(markup.JOINER, "") == text
    assert markup.as_written(shown) == text
    assert "<" not in markup.literal(text).replace("<br>", "")


def test_marked_ids_show_every_token_once_and_keep_what_a_person_wrote_apart(tokenizer: Any) -> None:
    words = tokenizer("什么是 </s>? 🌏\n\n<b>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    shown = markup.marked_ids([1, *words, 2], tokenizer, {1, 2}, [False] + [True] * (len(words) + 1))
    assert shown.count("<kbd>") == 2
    assert shown.count("\n") == 0
    assert "<kbd>&lt;s&gt;</kbd>" in shown
    assert "<kbd>&lt;/s&gt;</kbd></mark>" in shown
    assert "什么是 &lt;/s&gt;? 🌏<br><br>&lt;b&gt;" in shown
    assert markup.marked_ids([], tokenizer, {1}) == "<div class='exact'></div>"


# --- parameters


def test_the_defaults_are_the_scripts_and_lie_within_their_sliders() -> None:
    found = Parameters.of(None)
    assert {name: found.defaults[name] for name in cli.GENERATION} == {k: v[0] for k, v in cli.GENERATION.items()}
    small = Parameters.of(64)
    assert small.bounds["max_new_tokens"][1] == 63
    assert small.defaults["max_new_tokens"] == 32
    flags = argparse.Namespace(temperature=0.5, greedy=True, max_new_tokens=9, seed=7)
    greedy = Parameters.of(512, flags).defaults
    assert (greedy["do_sample"], greedy["max_new_tokens"], greedy["seed"]) == (False, 9, 7)


def test_a_link_brings_the_settings_back(parameters: Parameters) -> None:
    from urllib.parse import parse_qsl

    changed = dict(parameters.defaults) | {"temperature": 0.35, "do_sample": False, "top_k": 0, "seed": 2**53 - 1}
    query = parameters.query(changed, lang="zh", model="模型 a&b")
    assert set(dict(parse_qsl(query))) == {"lang", "model", "temperature", "do_sample", "top_k", "seed"}
    assert parameters.from_query(dict(parse_qsl(query))) == (changed, [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", "nan"),
        ("temperature", "-1"),
        ("temperature", "1e999"),
        ("top_p", "7"),
        ("num_beams", "1000000000"),
        ("max_new_tokens", "512"),
        ("top_k", "🌏"),
        ("seed", "-1"),
        ("seed", str(LARGEST_SEED + 1)),
        ("do_sample", "<script>"),
        ("no_repeat_ngram_size", ""),
    ],
)
def test_what_a_link_or_a_request_cannot_have_is_left_at_its_default(
    parameters: Parameters, name: str, text: str
) -> None:
    found, refused = parameters.from_query({name: text, "unknown": "1"})
    assert found == parameters.defaults
    assert len(refused) == 1
    assert name in refused[0]
    values = {**parameters.defaults, name: text}
    with pytest.raises(Trouble) as caught:
        parameters.taken(list(values.values()))
    assert name in caught.value.said("zh")
    assert "无法" in caught.value.said("zh")


def test_the_sliders_values_are_what_the_scripts_ask_for(parameters: Parameters) -> None:
    values = parameters.taken([float(v) if isinstance(v, int) and name != "do_sample" else v
                               for name, v in parameters.defaults.items()])  # fmt: skip
    assert values == parameters.defaults
    expected = argparse.Namespace(**parameters.defaults, greedy=False)
    assert settings_of(values) == cli.generation_settings(expected)
    assert set(SLIDERS) == {name for name in cli.GENERATION if name != "do_sample"}


# --- chat


def test_an_answer_grows_and_is_kept_with_the_conversation(opened: Any) -> None:
    around, scheduler = made(opened, {"pieces": ["你", "好", " <b>"]}, {"pieces": ["4"]})
    states = talk(around, "send", Conversation(exchanges=[]), "", " 你好？ ", prompt=True)
    assert states[0][2] == "waiting for its turn …"
    assert states[0][1] == ""
    assert states[0][5:] == chat_tab.buttons(True)
    assert states[-1][5:] == chat_tab.buttons(False)
    kept = states[-1][3]
    assert [(each.question, each.answer) for each in kept.exchanges] == [("你好？", "你好 <b>")]
    assert [turn["content"] for turn in states[-1][0]] == ["你好？", markup.harmless("你好 <b>")]
    assert "3 tokens" in states[-1][2]
    assert "of 512 in the context" in states[-1][2]
    assert "<kbd>&lt;s&gt;</kbd>" in states[-1][4]
    assert "你好？" in states[-1][4]

    states = talk(around, "send", kept, "Be brief.", "And 2+2?", language="zh")
    first, second = scheduler.asked
    assert first["prompt"] == opened.prompt_ids({"instruction": "你好？", "input": ""})
    turns = [("system", "Be brief."), ("user", "你好？"), ("assistant", "你好 <b>"), ("user", "And 2+2?")]
    record = {"conversation": [{"role": role, "content": content} for role, content in turns]}
    assert second["prompt"] == opened.prompt_ids(record)
    assert second["settings"]["max_new_tokens"] <= 512 - len(second["prompt"])
    assert second["adapter"] == "run"
    assert "每秒" in states[-1][2]
    assert states[-1][4] == ""


def test_a_chat_can_be_undone_retried_edited_and_cleared(opened: Any) -> None:
    pieces: dict[str, Any] = {"pieces": ["x"]}
    around, scheduler = made(opened, pieces, pieces, pieces)
    state = Conversation(exchanges=[Exchange(question=q, answer=a, seed=42) for q, a in (("q1", "a1"), ("q2", "a2"))])
    states = talk(around, "retry", state, "")
    assert scheduler.asked[0]["seed"] == 43
    assert [each.answer for each in states[-1][3].exchanges] == ["a1", "x"]
    assert states[-1][3].exchanges[-1].seed == 43

    event = gradio.EditData(None, {"index": 0, "previous_value": "q1", "value": markup.harmless("<b> q1!")})
    states = talk(around, "edit", event, state, "")
    assert [each.question for each in states[-1][3].exchanges] == ["<b> q1!"]
    for index, value in ((9, "x"), (-1, "x"), ("0", "x"), (0, {"path": "/etc/passwd"})):
        event = gradio.EditData(None, {"index": index, "previous_value": "", "value": value})
        assert talk(around, "edit", event, state, "")[-1][2] == say("status.nothing", "en")

    chat = chat_tab.Talk(around)
    undone = chat.undo(state, "en")
    assert undone[1] == "q2"
    assert [each.question for each in undone[3].exchanges] == ["q1"]
    assert chat.undo(Conversation(exchanges=[]), "zh")[2] == say("status.nothing", "zh")
    assert chat.clear(state, Session)[3].exchanges == []  # pyright: ignore[reportArgumentType]
    assert talk(around, "retry", Conversation(exchanges=[]), "")[-1][2] == say("status.nothing", "en")


@pytest.mark.parametrize("language", list(LANGUAGES))
@pytest.mark.parametrize(
    ("outcome", "key", "kept"),
    [
        (scheduling.Full(7), "status.full", ""),
        (scheduling.Closed(), "status.closed", ""),
        ({"pieces": [], "error": scheduling.TimedOut(3)}, "status.timed_out", ""),
        ({"pieces": ["half"], "error": scheduling.TimedOut(3)}, "status.timed_out", "half"),
        ({"pieces": ["half"], "error": RuntimeError("a secret path")}, "status.failed", "half"),
        ({"pieces": [], "error": scheduling.Closed()}, "status.closed", ""),
    ],
)
def test_what_goes_wrong_is_said_in_the_reader_s_language_and_nothing_is_lost(
    opened: Any, outcome: Any, key: str, kept: str, language: str
) -> None:
    around, _ = made(opened, outcome)
    state = Conversation(exchanges=[Exchange(question="q", answer="a")])
    messages, box, status, new, _, *shown = talk(around, "send", state, "", "还在吗？", language=language)[-1]
    assert status == say(key, language, **({"seconds": 7} if key == "status.full" else {}))
    assert "secret" not in status
    assert tuple(shown) == chat_tab.buttons(False)
    if kept:
        assert new.exchanges[-1].answer == "half"
        assert new.exchanges[-1].ended == "interrupted"
        assert box == gradio.skip()  # emptied when the answer began
    else:
        assert box == "还在吗？"
        assert [turn["content"] for turn in messages] == ["q", "a"]


def test_a_question_that_cannot_be_asked_stays_in_its_field(opened: Any) -> None:
    around, scheduler = made(opened)
    state = Conversation(exchanges=[])
    for question, words in (("  ", "先写下"), ("长" * 2000, "上下文"), ("a\0b", "NUL"), ("\ud800", "surrogate")):
        shown = talk(around, "send", state, "", question, language="zh")[-1]
        assert words in shown[2]
        assert shown[1] == question.strip()
    shown = talk(around, "send", state, "", "q", model="../../etc/passwd")[-1]
    assert "run, base" in shown[2]
    assert not scheduler.asked
    values = ["en", "run", False, *Parameters.of(512).defaults.values()]
    values[3] = 99  # top_p
    assert "top_p" in asyncio.run(first(chat_tab.Talk(around).send(Session, state, "", "q", *values)))[2]  # pyright: ignore[reportArgumentType]


async def first(states: AsyncIterator[Any]) -> Any:
    return await anext(states)


def test_a_long_conversation_is_sent_as_far_as_whole_turns_fit(opened: Any) -> None:
    around, scheduler = made(opened, {"pieces": ["x"]})
    state = Conversation(exchanges=[Exchange(question=f"第{i}个问题", answer="很长" * 20) for i in range(12)])
    states = talk(around, "send", state, "", "现在呢？", language="zh")
    gone = states[-1][3].forgotten
    assert 0 < gone < 12
    assert say("chat.forgotten", "zh", count=gone) in states[-1][2]
    assert len(states[-1][3].exchanges) == 13
    assert len(scheduler.asked[0]["prompt"]) < 512


def test_stop_and_a_page_that_closes_free_the_answers_place(opened: Any) -> None:
    around, scheduler = made(opened, *[{"pieces": ["some"], "waits": True} for _ in range(3)])
    answering, chat = around.answering, chat_tab.Talk(around)
    values = ["en", "run", False, *around.parameters.defaults.values()]
    state = Conversation(exchanges=[])

    async def stopped() -> list:
        states = []
        async for shown in chat.send(Session, state, "", "q", *values):  # pyright: ignore[reportArgumentType]
            states.append(shown)
            if len(states) == 2:
                assert answering.is_busy(VISITOR, "chat")
                again = await first(chat.send(Session, state, "", "q", *values))  # pyright: ignore[reportArgumentType]
                assert again[2] == say("status.busy", "en")
                answering.interrupt(dataclasses.replace(VISITOR, session="somebody else"))
                assert not scheduler.tickets[0].is_cancelled
                chat.stop(Session)  # pyright: ignore[reportArgumentType]
        return states

    assert asyncio.run(stopped())[-1][3].exchanges[0].answer == "some"
    assert scheduler.tickets[0].is_cancelled
    assert not answering.is_busy(VISITOR, "chat")

    async def closed() -> None:
        states = chat.send(Session, state, "", "q", *values)  # pyright: ignore[reportArgumentType]
        await anext(states)
        await states.aclose()

    asyncio.run(closed())
    assert scheduler.tickets[1].is_cancelled
    assert not answering.is_busy(VISITOR, "chat")

    async def cancelled() -> None:
        task = asyncio.create_task(stopped())
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert all(ticket.is_cancelled for ticket in scheduler.tickets)


# --- compare


def test_the_cue_is_in_the_question_s_language() -> None:
    assert compare_tab.wordings_of("3+4?", False) == ["3+4?"]
    assert compare_tab.wordings_of("3+4?", True) == ["3+4?", "3+4?\nLet's think step by step."]
    assert compare_tab.wordings_of("三加四？", True)[1] == "三加四？\n让我们一步一步地思考。"
    assert compare_tab.wordings_of("", True) == [""]


def test_all_answers_of_a_comparison_are_under_way_together_or_none(opened: Any) -> None:
    question = Question(ids=[1, 5], settings={"max_new_tokens": 4}, adapter="run", seed=1)

    async def collect(answering: Answering) -> list[list[Reply]]:
        return [replies async for replies in answering.all_replies([question] * 2, VISITOR, "compare")]

    around, _ = made(opened, {"pieces": ["a", "b"]}, {"pieces": ["c"]})
    assert [reply.text for reply in asyncio.run(collect(around.answering))[-1]] == ["ab", "c"]
    around, scheduler = made(opened, {"pieces": ["a"], "waits": True}, scheduling.Full(3))
    with pytest.raises(Trouble) as caught:
        asyncio.run(collect(around.answering))
    assert "3 s" in caught.value.said("en")
    assert scheduler.tickets[0].is_cancelled
    assert not around.answering.is_busy(VISITOR, "compare")


# --- data and runs


def test_a_row_is_shown_as_it_is_trained(opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*RECORDS, {"instruction": "长" * 900, "input": "", "output": "x"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    spec = next(iter(catalog.read_catalog().values()))
    datasets = {"ours": dataclasses.replace(spec, path="rows.json")}
    monkeypatch.setattr(catalog, "DATA_DIR", tmp_path)
    around, _ = made(opened)
    browser = data_tab.Browser(around, datasets)
    tags, figures, number, told, mask = browser.about("ours", "run", "zh")
    assert spec.license in tags
    assert number == 1
    assert "参与训练" in told
    assert "<mark>1+2→3. So the answer is 3.<kbd>&lt;/s&gt;</kbd></mark>" in mask
    assert f"<td>{len(rows)}</td>" in figures
    assert "不参与训练的行数</th><td>1</td>" in figures
    assert "<mark>It ends a text: &lt;/s&gt; is EOS.<kbd>" in browser.row(0)("ours", 3, "run", "en")[2]
    assert browser.row(+1)("ours", 99, "base", "en")[0] == len(rows)
    assert browser.row(-1)("ours", 1, "run", "en")[0] == 1
    _, told, shown = browser.row(0)("ours", len(rows), "run", "en")
    assert "longer than --cutoff_len" in told
    assert "长长" in shown
    with pytest.raises(ValueError, match="unknown dataset"):
        browser.about("../../etc/passwd", "run", "en")


def test_a_run_s_loss_and_evaluation_come_from_its_directory(finished: Path, tmp_path: Path) -> None:
    assert "data:image/png;base64,iVBOR" in runs_tab.loss_of(finished, "en")
    assert runs_tab.loss_of(tmp_path, "zh") == say("runs.no_loss", "zh")
    (tmp_path / "training_log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    assert "data:image/png;base64,iVBOR" in runs_tab.loss_of(tmp_path, "zh")
    assert runs_tab.evaluation_of(tmp_path, "en") == say("runs.no_evaluation", "en")
    row = {"instruction": "1+2?", "input": "", "output": "The answer is 3."}
    answers = [{**row, "origin": "x", "adapter": {"text": f"所以答案是{n}。", "answer": str(n)}} for n in (3, 4)]
    lines = "\n".join(json.dumps(each, ensure_ascii=False) for each in answers)
    (tmp_path / "eval.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n[]\n')
    shown = runs_tab.evaluation_of(tmp_path, "zh")
    assert "eval.jsonl" in shown
    assert "50" in shown
    assert "other" not in shown


# --- the whole page


@pytest.fixture(scope="module")
def client(opened: Any) -> Iterator[TestClient]:
    scheduler = scheduling.Scheduler(opened)
    application = fastapi.FastAPI()

    @application.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    page.mount(application, page.blocks(opened, scheduler))
    with TestClient(application) as client:
        yield client
    scheduler.close(wait=1)


def test_the_page_is_there_beside_other_routes_and_needs_nothing_from_elsewhere(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/").status_code == 200
    theme = client.get("/theme.css")
    assert theme.status_code == 200
    assert not re.search(r"url\(['\"]?(?!['\"]?data:)", theme.text)
    assert "@import" not in theme.text
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["title"] == "Alpaca-CoT"
    kinds = {component["type"] for component in config["components"]}
    assert not kinds & {"file", "uploadbutton", "image", "audio", "video", "multimodaltextbox", "gallery", "code"}
    assert not [dependency for dependency in config["dependencies"] if dependency.get("js")]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/upload?upload_id=1",
        "/gradio_api/upload_progress",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=..%2f..%2fetc%2fpasswd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://example.invalid/",
        "/gradio_api/stream/x",
        "/gradio_api/call/send",
        "/gradio_api/openapi.json",
        "/gradio_api/component_server",
        "/gradio_api/vibe-edit",
        "/gradio_api/deep_link",
        "/gradio_api/mcp/",
        "/gradio_api/runs",
        "/gradio_api/custom_component/x/client/component/index.js",
        "/assets/..%2f..%2f..%2fetc/passwd",
        "/static/%2e%2e/%2e%2e/config",
        "/monitoring",
        "/login",
        "/token",
        "/docs/../gradio_api/upload",
    ],
)
def test_what_the_page_does_not_need_of_gradio_is_not_there(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code in (404, 405)
    assert "root:" not in answer.text


def test_the_gate_lets_no_address_through_that_goes_up(client: TestClient) -> None:
    assert ADDRESSES.fullmatch("/assets/index-a1.js")
    assert ADDRESSES.fullmatch("/gradio_api/heartbeat/abc")
    for path in ("/assets/", "//", "/gradio_api/heartbeat/a/b", "/gradio_api/queue/join/x", "/config\n"):
        assert not ADDRESSES.fullmatch(path), path
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/gradio_api/queue/join"):
        pass
