from pathlib import Path
from typing import Any

import pytest
from test_converters import exchange, outcomes

from utils.converters import Dropped


def talk(*said: str, system: str = "") -> dict[str, Any]:
    """A conversation that the user begins."""
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    return {"conversation": [{"role": "system", "content": system}] * bool(system) + turns}


def sharegpt(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"id": "x", "conversations": [{"from": speaker, "value": said} for speaker, said in turns]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (sharegpt(("human", "你好"), ("gpt", "好 🙂")), talk("你好", "好 🙂")),
        (sharegpt(("user", "a"), ("chatgpt", "b"), ("Human", "c"), ("bing", "d")), talk("a", "b", "c", "d")),
        (sharegpt(("system", "S"), ("human", "a"), ("bard", "b")), talk("a", "b", system="S")),
        (sharegpt(("human", "Human: who?"), ("gpt", "Assistant: me")), talk("Human: who?", "Assistant: me")),
        (sharegpt(), Dropped("no turns")),
        (sharegpt(("system", "S")), Dropped("no turns")),
        (sharegpt(("gpt", "a"), ("human", "b"), ("gpt", "c")), Dropped("does not begin with the user")),
        (sharegpt(("human", "a"), ("human", "b"), ("gpt", "c")), Dropped("two turns of one side in a row")),
        (sharegpt(("human", "a"), ("gpt", "b"), ("human", "c")), Dropped("ends with the user")),
        (sharegpt(("human", "a"), ("gpt", " ")), Dropped("an empty turn")),
        (sharegpt(("human", "a"), ("system", "s"), ("gpt", "b")), Dropped("a system turn inside the dialogue")),
        (sharegpt(("human", "a"), ("tool", "b")), Dropped("a turn by neither user nor assistant")),
    ],
)  # fmt: skip
def test_sharegpt(tmp_path: Path, row: Any, expected: Any) -> None:
    assert outcomes(tmp_path, "sharegpt", [row]) == [expected]


def hh(chosen: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": "\n\nHuman: a\n\nAssistant: never this"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (hh("\n\nHuman: 你好\n\nAssistant: 好\n\nHuman: b?\n\nAssistant: 🙂"), talk("你好", "好", "b?", "🙂")),
        (hh('\n\nHuman: Who says "Human: x"?\n\nAssistant: He said Human: x'), talk('Who says "Human: x"?', "He said Human: x")),
        (hh("\n\nHuman: a\n\nAssistant: one\n\ntwo"), talk("a", "one\n\ntwo")),
        (hh("\n\nHuman: a\n\nAssistant: Human: b"), Dropped("a role mark inside a turn")),
        (hh("\n\nHuman: a\nAssistant: b\n\nAssistant: c"), Dropped("a role mark inside a turn")),
        (hh("\n\nHuman: a\n\nAssistant: "), Dropped("an empty turn")),
        (hh("\n\nHuman: a\n\nHuman: b\n\nAssistant: c"), Dropped("two turns of one side in a row")),
        (hh(""), Dropped("no role mark")),
        (
            {"topic": "t", "input": "The conversation between human and AI assistant.\n[|Human|] 早\n[|AI|] Hi, [|AI|] inside\n[|Human|] "},
            talk("早", "Hi, [|AI|] inside", system="The conversation between human and AI assistant."),
        ),
        ({"text": "<human>: a\n<bot>: b\n<human>: c <bot>: d\n<bot>: e"}, talk("a", "b", "c <bot>: d", "e")),
        ({"text": "Background: x\n<human>: a\n<bot>: b"}, talk("a", "b", system="Background: x")),
        (
            {"instruction": "Human:写诗 \nAssistant:好的：\n诗\nHuman:再写\nAssistant:", "input": "", "output": "又一首"},
            talk("写诗", "好的：\n诗", "再写", "又一首"),
        ),
        (
            {"instruction": "User: a\nAssistant: b", "input": "System: K\nUser: c", "output": "d"},
            talk("a", "b", "K\n\nc", "d"),
        ),
        ({"instruction": "System: K\nUser: a", "input": "", "output": "b"}, talk("K\n\na", "b")),
        ({"instruction": "User: a\nSystem: K", "input": "", "output": "b"}, Dropped("a system turn inside the dialogue")),
        ({"instruction": "Explain 'Human: x'.", "input": "i", "output": "o"}, exchange("Explain 'Human: x'.", "o", "i")),
        ({"instruction": "Human:a\nAssistant:", "input": "", "output": ""}, Dropped("an empty turn")),
    ],
)  # fmt: skip
def test_role_marks_become_turns(tmp_path: Path, row: Any, expected: Any) -> None:
    assert outcomes(tmp_path, "dialogue_text", [row]) == [expected]


def moss(*pairs: tuple[str, str], meta: str = "You are MOSS.\n") -> dict[str, Any]:
    chat = {
        f"turn_{n}": {"Human": f"<|Human|>: {asked}<eoh>\n", "Inner Thoughts": "<|Inner Thoughts|>: hm<eot>\n", "Commands": "<|Commands|>: None<eoc>\n", "Tool Responses": "<|Results|>:\nNone\n<eor>\n", "MOSS": f"<|MOSS|>: {said}<eom>\n"}
        for n, (asked, said) in enumerate(pairs, start=1)
    }  # fmt: skip
    return {"meta_instruction": meta, "num_turns": len(pairs), "chat": chat}


def test_moss_keeps_what_person_and_moss_say(tmp_path: Path) -> None:
    document = moss(("面积？", "约20<sup><|1|></sup>。"), ("<b>?", "是 🙂"))
    assert outcomes(tmp_path, "moss", document) == [talk("面积？", "约20。", "<b>?", "是 🙂", system="You are MOSS.")]
    many = moss(*[(f"q{n}", f"a{n}") for n in range(12)], meta="")
    assert outcomes(tmp_path, "moss", [many]) == [talk(*[f"{c}{n}" for n in range(12) for c in "qa"])]
    assert outcomes(tmp_path, "moss", [moss(meta="S")]) == [Dropped("no turns")]


def test_lists_of_turns(tmp_path: Path) -> None:
    assert outcomes(tmp_path, "ultrachat", [{"id": "0", "data": ["你", "我 🙂"]}, {"data": ["a"]}, {"data": []}]) == [
        talk("你", "我 🙂"), Dropped("ends with the user"), Dropped("no turns"),
    ]  # fmt: skip
    assert outcomes(tmp_path, "camel", [{"topic;": "光", "message_1": "问题", "message_2": "解"}]) == [
        exchange("问题", "解")
    ]
    play = {f"message_{n}": {"role_type": kind, "content": f"{n}"} for n, kind in ((1, "USER"), (2, "ASSISTANT"))}
    assert outcomes(tmp_path, "camel", play) == [talk("1", "2")]
    assert outcomes(tmp_path, "camel", {**play, "message_3": {"role_type": "CRITIC", "content": "3"}}) == [
        Dropped("a turn by neither user nor assistant")
    ]


def test_exchanges_of_one_dialogue_are_joined(tmp_path: Path) -> None:
    def row(dialogue: int | None, context: str) -> dict[str, Any]:
        return {"context": context, "response": f"re {context}", "dialogue_id": dialogue}

    assert outcomes(tmp_path, "prosocial", [row(1, "a"), row(1, "嗨"), row(2, "c"), row(None, "d"), row(None, "e")]) == [
        talk("a", "re a", "嗨", "re 嗨"), talk("c", "re c"), talk("d", "re d"), talk("e", "re e"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("sharegpt", {"id": 1}, "expected the key 'conversations', found id"),
        ("sharegpt", {"conversations": ["x"]}, "expected an object, found text"),
        ("sharegpt", {"conversations": [{"from": "human", "value": None}]}, "expected text in 'value', found null"),
        ("dialogue_text", {"id": 1}, "expected one of the keys chosen, instruction, input, text, found id"),
        ("dialogue_text", {"chosen": None}, "expected text in 'chosen', found null"),
        ("dialogue_text", {"instruction": "User: a"}, "expected the key 'output', found instruction"),
        ("moss", {"chat": {"first": {}}}, "expected turn_1, turn_2, … in 'chat', found 'first'"),
        ("moss", {"chat": {"turn_1": {"Human": "a"}}}, "expected the key 'MOSS', found Human"),
        ("ultrachat", {"data": ["a", 1]}, "expected text in 'data', found a number"),
        ("prosocial", {"context": "a"}, "expected the key 'response', found context"),
    ],
)  # fmt: skip
def test_a_dialogue_that_is_not_in_its_format_is_named(tmp_path: Path, name: str, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"raw\.jsonl line 1: .*{message}"):
        outcomes(tmp_path, name, [row])
