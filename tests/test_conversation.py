import json
from pathlib import Path
from typing import Any

import pytest

from utils import formats, readers
from utils.conversation import DIALOGUES, Conversation, Exchange, Room, asks_instructions
from utils.templates import TEMPLATES, render_prompt, to_messages

EXCHANGES = [Exchange(question=f"问题 {i} 👋", answer="答" * 10) for i in range(6)]


def count(record: Any) -> int:
    """A token a character."""
    return sum(len(turn["content"]) for turn in to_messages(record))


def talk(number: int = 6, **more: Any) -> Conversation:
    return Conversation(exchanges=EXCHANGES[:number], **more)


def test_all_is_sent_where_there_is_no_limit_or_enough_room() -> None:
    for room in (None, Room(context=1000, longest_answer=10)):
        prompt = talk().prompt("又？", count, room)
        assert prompt.forgotten == 0
        assert prompt.tokens == 6 * 16 + 2
        assert [turn["role"] for turn in prompt.record["conversation"]] == ["user", "assistant"] * 6 + ["user"]


def test_the_oldest_exchanges_go_first_and_whole_and_the_system_message_stays() -> None:
    conversation = talk(system="sys")
    for context in range(21, 130):
        prompt = conversation.prompt("又？", count, Room(context=context, longest_answer=10))
        turns = prompt.record["conversation"]
        assert turns[0] == {"role": "system", "content": "sys"}
        kept = EXCHANGES[prompt.forgotten :]
        assert [turn["content"] for turn in turns[1::2]] == [*(each.question for each in kept), "又？"]
        assert prompt.tokens + 10 <= context
        more = count(conversation.record("又？", max(prompt.forgotten - 1, 0))) + 10
        assert prompt.forgotten == 0 or more > context, "nothing is forgotten without need"


def test_what_was_forgotten_does_not_come_back() -> None:
    assert talk(forgotten=4).prompt("又？", count, Room(context=1000, longest_answer=10)).forgotten == 4
    assert talk(forgotten=6).before_last().forgotten == 5


@pytest.mark.parametrize(
    ("question", "longest", "message"),
    [
        ("好" * 95, 10, "takes 95 tokens .* 10 are kept .* context of 100. Shorten it, or /set max_new_tokens 5$"),
        ("好" * 100, 10, "takes 100 tokens .* Shorten it$"),
        ("x" * 10_000, 512, "takes 10000 tokens .* 50 are kept for the answer"),
    ],
)
def test_a_question_that_does_not_fit_alone_is_refused_with_the_numbers(
    question: str, longest: int, message: str
) -> None:
    conversation = talk()
    with pytest.raises(ValueError, match=message):
        conversation.prompt(question, count, Room(context=100, longest_answer=longest))
    assert conversation == talk()


def test_an_answer_longer_than_the_context_leaves_half_of_it_to_questions() -> None:
    prompt = talk().prompt("x" * 50, count, Room(context=100, longest_answer=512))
    assert (prompt.forgotten, prompt.tokens) == (6, 50)


@pytest.mark.parametrize(("text", "message"), [("a\0b", "NUL"), ("a\udce4", "half a character"), ("\ud83d", "half")])
def test_text_that_cannot_be_sent_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"this question: .*{message}"):
        talk().prompt(text, count, None)


def test_a_first_question_is_asked_as_the_model_was_trained(tokenizer: Any) -> None:
    def text(conversation: Conversation) -> str:
        record = conversation.prompt("你好", count, None).record
        return "".join(segment.text for segment in render_prompt(record, TEMPLATES["alpaca"], tokenizer))

    assert text(talk(0)).endswith("### Instruction:\n你好\n\n### Response:")
    assert text(talk(0, asks_instructions=False)).endswith("### Human:\n你好\n\n### Assistant:")
    assert text(talk(0, system="Be brief.")) == "Be brief.\n\n### Human:\n你好\n\n### Assistant:"
    assert text(talk(1)).endswith(f"{'答' * 10}\n\n### Human:\n你好\n\n### Assistant:")


@pytest.mark.parametrize("name", ["chat.json", "新.jsonl"])
def test_what_is_saved_can_be_trained_on_and_loaded(name: str, tmp_path: Path) -> None:
    conversation = talk(system="系统", forgotten=3)
    conversation.save(tmp_path / name)
    (row,) = readers.read_rows(tmp_path / name)
    assert row.shape == "conversation"
    assert len(row.record["conversation"]) == 13, "what is no longer sent, too"
    assert [value for _, value in formats.read(tmp_path / name)] == [row.record]
    assert Conversation.load(tmp_path / name) == talk(system="系统")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_is_never_written_over(tmp_path: Path) -> None:
    place = tmp_path / "chat.json"
    place.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already, and is left as it is: name another file"):
        talk().save(place)
    assert place.read_text() == "mine"
    with pytest.raises(ValueError, match=r"the ending '.txt' is not one of .json, .jsonl"):
        talk().save(tmp_path / "chat.txt")
    with pytest.raises(ValueError, match="nothing to save: the conversation is empty"):
        talk(0).save(tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == [place]


def test_other_shapes_are_loaded_and_several_records_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "records.jsonl"
    record = {"instruction": "Add.", "input": "1 2", "output": "3"}
    place.write_text(json.dumps(record))
    loaded = Conversation.load(place, asks_instructions=False)
    assert loaded.exchanges == [Exchange(question="Add.\n\n1 2", answer="3")]
    assert not loaded.asks_instructions
    place.write_text(f"{json.dumps(record)}\n" * 2)
    with pytest.raises(ValueError, match="holds more than one record"):
        Conversation.load(place)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Conversation.load(tmp_path / "gone.json")
    place.write_text('{"conversation": [{"role": "user", "content": "你好"}]}')
    with pytest.raises(ValueError, match="beginning with user and ending with assistant"):
        Conversation.load(place)


def test_dialogues_alone_make_a_model_that_knows_no_instructions() -> None:
    for name, shape in readers.SHAPES.items():
        raw = {key: [] for key in shape.keys}
        assert ("conversation" in shape.to_record(raw)) == (name in DIALOGUES), name
    assert not asks_instructions([{"shape": "messages"}, {"shape": "ShareGPT"}])
    assert asks_instructions([{"shape": "messages"}, {"shape": "question/answer"}])
    assert asks_instructions([])
