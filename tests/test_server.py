"""server.py in a real terminal (a pseudo-terminal that `pyte` draws), through pipes, and for the families of the seeds."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pyte
import pytest
from conftest import RECORDS, REPOSITORY, TINY_BASE, finetune
from tiny_families import make_family

import server
from utils import cli, readers, terminal
from utils.assistant import Assistant, open_run
from utils.generation import Answer
from utils.terminal import PROMPT

COLUMNS, LINES = 250, 300
CONTEXT = 16384
PASTED = "\x1b[200~{}\x1b[201~"
LEFT, END, BACKSPACE, CTRL_C = "\x1b[D", "\x1b[F", "\x7f", "\x03"


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose base has a context of 16,384 tokens, heeds what was said before, and rarely ends an answer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("long")
    tokenizer = AutoTokenizer.from_pretrained(TINY_BASE)
    torch.manual_seed(3)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "vocab_size": len(tokenizer)}
    config = LlamaConfig(**shape, **ids, num_attention_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.4)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    data = folder / "records.json"
    data.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    assert finetune(folder / "base", data, folder / "run", "--max_steps", 1, "--val_set_size", 0) == 0
    return folder / "run"


class Window:
    """server.py in a terminal window, as a person sees it."""

    def __init__(self, *arguments: object) -> None:
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "NO_COLOR": ""}
        self.child: Any = pexpect.spawn(
            sys.executable,
            [str(REPOSITORY / "server.py"), *map(str, arguments)],
            dimensions=(LINES, COLUMNS),
            env=environment,
            timeout=120,
        )
        self.screen.write_process_input = self.child.send  # answers what the program asks the terminal

    def lines(self) -> list[str]:
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip("\n").split("\n")

    def wait(self, until: Callable[[list[str]], bool]) -> list[str]:
        """The screen, once it is as awaited."""
        deadline = time.monotonic() + 120
        while not until(self.lines()):
            assert time.monotonic() < deadline, "\n".join(self.lines())
            try:
                self._stream.feed(self.child.read_nonblocking(65536, timeout=1))
            except pexpect.TIMEOUT:
                continue
        return self.lines()

    def type(self, keys: str) -> list[str]:
        """Types a line and Enter; the screen once the program waits again."""
        self.wait(lambda lines: lines[-1] == PROMPT.rstrip())
        count = len(self.lines())
        self.child.send(f"{keys}\r")
        return self.wait(lambda lines: len(lines) > count and lines[-1] == PROMPT.rstrip())[count - 1 :]


def dialogue(turns: Sequence[str]) -> Mapping[str, Any]:
    """Questions and answers by turns as what is sent for the last one."""
    if len(turns) == 1:
        return {"instruction": turns[0], "input": ""}
    roles = ["user", "assistant"] * len(turns)
    return {"conversation": [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]}


def greedy(opened: Assistant, *turns: str, length: int = 8) -> Answer:
    """The answer to the last of these turns."""
    (answer,) = opened.answers([dialogue(turns)], cli.greedy_settings(length))
    return answer


def shown(answer: Answer) -> list[str]:
    """How a screen shows an answer."""
    text = answer.text.translate(terminal._SHOWN)
    assert "\t" not in text
    lines = [line.rstrip() for line in text.split("\n")]
    tokens = answer.prompt_tokens + answer.new_tokens
    cut = "; cut off" if answer.finish_reason == "length" else ""
    return [*lines, f"N tokens, X tokens/s; {tokens} of {CONTEXT} in the context{cut}"]


def test_a_conversation_in_a_real_terminal(long_run: Path, tmp_path: Path) -> None:
    opened = open_run(long_run)
    window = Window("--lora_dir", long_run, "--greedy", "--max_new_tokens", 8)
    before = termios.tcgetattr(window.child.child_fd)
    window.wait(lambda lines: lines[-1] == PROMPT.rstrip())
    assert 2004 << 5 in window.screen.mode, "pastes are marked"
    assert psutil.Process(window.child.pid).net_connections() == []
    start = len(window.lines()) - 1
    expected = [
        f"run: {opened.origins['run'].description}",
        "/help lists the commands; Ctrl-C stops an answer, Ctrl-D or stop ends the chat",
    ]
    assert window.lines()[start - 2 : start] == expected

    window.type("你好吗" + BACKSPACE + LEFT + "们" + END + " 👋")
    first = greedy(opened, "你们好 👋")
    window.type("And then?")
    second = greedy(opened, "你们好 👋", first.text, "And then?")
    window.type("clear")
    window.type("And then?")
    third = greedy(opened, "And then?")
    assert second.text != third.text, "what was said before is heeded"
    expected = ["> 你们好 👋", *shown(first), "> And then?", *shown(second)]
    expected += ["> clear", "the conversation is forgotten", "> And then?", *shown(third)]

    pasted = "\n".join(f"{number}: {'line of 你 text ' * 7}"[:99] for number in range(100)) + "!"
    assert len(pasted) == 10_000
    window.type(PASTED.format(pasted))
    fourth = greedy(opened, "And then?", third.text, pasted)
    expected += [f"{'  ' if number else PROMPT}{line}".rstrip() for number, line in enumerate(pasted.split("\n"))]
    expected += shown(fourth)

    window.type(PASTED.format("长" * 10_000))
    wide = (COLUMNS - len(PROMPT)) // 2
    expected += [f"{'  ' if at else PROMPT}{'长' * min(wide, 10_000 - at)}" for at in range(0, 10_000, wide)]
    tokens = len(opened.prompt_ids(dialogue(["长" * 10_000])))
    assert tokens > CONTEXT
    expected.append(
        f"error: the question takes {tokens} tokens with the prompt around it, and 8 are kept for the answer: "
        f"together more than the model's context of {CONTEXT}. Shorten it"
    )
    window.type("/undo")
    expected += ["> /undo", f"taken back: {pasted[:59]}…"]
    window.type("/set max_new_tokens 8000")
    expected += ["> /set max_new_tokens 8000", f"max_new_tokens  8000   {cli.GENERATION['max_new_tokens'][2]}"]
    assert seen(window, start) == expected

    interrupted(window, f"/save {tmp_path}/chat.json")
    window.child.send(CTRL_C)
    window.wait(lambda lines: lines[-2:] == ["Ctrl-D or stop ends the chat", ">"])
    window.child.send("stop\r")
    window.child.expect(pexpect.EOF)
    assert termios.tcgetattr(window.child.child_fd) == before
    window.child.close()
    assert window.child.exitstatus == 0

    (row,) = readers.read_rows(tmp_path / "chat.json")
    *earlier, partial = [turn["content"] for turn in row.record["conversation"]]
    assert earlier == ["And then?", third.text, "Count. 数。"]
    whole = ""
    for piece in opened.stream(dialogue(earlier), cli.greedy_settings(8000)):
        whole += piece
        if len(whole) > len(partial):
            break
    assert partial
    assert whole.startswith(partial)


def seen(window: Window, start: int) -> list[str]:
    """What is on the screen from that line on, without speeds and the last prompt."""
    return [re.sub(r"^\d+ tokens, [\d.]+ tokens/s", "N tokens, X tokens/s", line) for line in window.lines()[start:-1]]


def interrupted(window: Window, command: str) -> None:
    """Asks for a very long answer, types a command meanwhile, and stops the answer."""
    count = len(window.lines())
    window.child.send("Count. 数。\r")
    window.wait(lambda lines: len(lines) > count and len("".join(lines[count:])) > 20)
    window.child.send(command[:5])
    window.child.send(CTRL_C)
    lines = window.wait(lambda lines: lines[-1] == f"> {command[:5]}")
    assert lines[-2] == "stopped: what was said so far is kept; /undo takes it back"
    assert command[:5] not in "".join(lines[count:-1]), "what is typed meanwhile does not stand in the answer"
    window.child.send(f"{command[5:]}\r")
    lines = window.wait(lambda lines: lines[-1] == ">")
    assert lines[-3:-1] == [
        f"{command[6:]}: 2 exchanges",
        "answers that were cut off: 2; trained on, they teach to break off",
    ]


def chat(text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *flags: object) -> Any:
    """Exit code, answers and notes of server.py in this process, with this text piped into it."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogateescape"))))
    capsys.readouterr()
    code = server.main([str(flag) for flag in flags])
    out, err = capsys.readouterr()
    return code, out, err


def test_through_a_pipe_answers_alone_come_out(
    long_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = open_run(long_run)
    flags = ["--lora_dir", long_run, "--greedy", "--max_new_tokens", 8]
    first = greedy(opened, "你好 👋").text
    second = greedy(opened, "你好 👋", first, "two\nlines").text
    text = f"你好 👋\n\ntwo\\\nlines\n/save {tmp_path}/a.json\nclear\n你好 👋\nstop\nnever asked\n"
    code, out, err = chat(text, capsys, monkeypatch, *flags)
    assert (code, out) == (0, f"{first}\n{second}\n{first}\n")
    notes = [
        f"{tmp_path}/a.json: 2 exchanges",
        "answers that were cut off: 2; trained on, they teach to break off",
        "the conversation is forgotten",
    ]
    assert err.splitlines()[-3:] == notes
    assert ">" not in err.splitlines()
    text = f"/load {tmp_path}/a.json\n/undo\ntwo\\\nlines\n/nope\n\udce9\n/compare 你好 👋"
    code, out, err = chat(text, capsys, monkeypatch, *flags)
    assert code == 1, "two of the lines failed, and the ones after them were read"
    assert out.startswith(f"{second}\nbase:\n")
    assert "\nerror: unknown command '/nope'. " in err
    assert "error: line 6 of the input: not UTF-8" in err


def test_a_reader_that_goes_away_ends_it_quietly(long_run: Path) -> None:
    words = [sys.executable, str(REPOSITORY / "server.py"), "--lora_dir", str(long_run), "--max_new_tokens", "4"]
    line = f"yes 你好 | head -50 | {shlex.join(words)} | head -1; echo ${{PIPESTATUS[@]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=300)
    *answer, codes = done.stdout.decode().splitlines()
    assert len(answer) <= 1
    assert codes.split()[2:] == ["0", "0"]
    assert "Broken" not in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


class Typed:
    """A terminal at which these things happen in turn."""

    def __init__(self, *happens: Any, has_person: bool = True) -> None:
        self._happens, self.has_person, self.noted = iter(happens), has_person, []
        self.note = self.noted.append

    def read(self) -> str:
        match next(self._happens, EOFError()):
            case BaseException() as error:
                raise error
            case line:
                return line

    def busy(self) -> Any:
        return nullcontext()


def test_a_person_is_told_how_to_leave_and_what_went_wrong() -> None:
    asked: list[str] = []

    def respond(line: str) -> bool:
        asked.append(line)
        if line == "bad":
            raise ValueError("mend it")
        return line != "stop"

    typed: Any = Typed(KeyboardInterrupt(), "你好", "bad", "more")
    assert server.converse(respond, typed) == 0
    assert asked == ["你好", "bad", "more"]
    assert typed.noted == ["Ctrl-D or stop ends the chat", "error: mend it"]
    piped: Any = Typed("bad", "stop", "more", has_person=False)
    assert server.converse(respond, piped) == 1
    assert asked[3:] == ["bad", "stop"]
    for happens in (KeyboardInterrupt(), BrokenPipeError()):
        piped = Typed(happens, "more", has_person=False)
        with pytest.raises(type(happens)):
            server.converse(respond, piped)


@pytest.mark.parametrize("family", ["llama", "bloom", "chatglm"])
def test_the_command_of_the_seeds(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, data = make_family(family, tmp_path / "base"), tmp_path / "records.json"
    data.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    short = ["--model_type", family, "--max_steps", 1, "--val_set_size", 0]
    assert finetune(base, data, tmp_path / "xxx", *short) == 0
    monkeypatch.chdir(tmp_path)
    command = ["--model_type", family, "--lora_dir", "xxx"]
    code, out, err = chat("你好\nAnd then?\n", capsys, monkeypatch, *command, "--greedy", "--max_new_tokens", 8)
    assert code == 0, err
    opened = open_run(tmp_path / "xxx")
    first = greedy(opened, "你好").text
    assert out == f"{first}\n{greedy(opened, '你好', first, 'And then?').text}\n"
    if family == "chatglm":
        sent = opened.tokenizer.decode(opened.prompt_ids(dialogue(["你好", "好", "And then?"])))
        assert re.search(r"Round 0.*问.*你好.*答.*好.*Round 1.*问.*And then.*答", sent.replace("\n", " ")), sent
