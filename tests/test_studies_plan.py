"""The commands of a study: what they are, when they are done, and when they are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TINY_BASE
from studies import QUESTIONS, ROWS, experiment_text, write_rows

import evaluate
import uniform_finetune
from utils.settings import resolve
from utils.studies import plan
from utils.studies.experiment import read
from utils.studies.plan import Plan, make


def planned(folder: Path, old: str = "", new: str = "", **fields: str) -> Plan:
    """The plan of a small experiment in `folder`, with a text of its file replaced."""
    data, questions = folder / "d.jsonl", folder / "q.jsonl"
    if not data.exists():
        write_rows(data, ROWS)
        write_rows(questions, QUESTIONS)
    text = experiment_text(TINY_BASE, data, questions, **fields)
    assert old in text
    (folder / "e.toml").write_text(text.replace(old, new), encoding="utf-8")
    return make(read(folder / "e.toml"), folder / "e.toml", folder / "out")


def test_every_variant_and_seed_is_a_line_and_the_base_is_one(tmp_path: Path) -> None:
    found = planned(tmp_path)
    assert {(line.variant, line.seed) for line in found.lines} == {
        *((name, seed) for name in ("all", "cn") for seed in (1, 2)),
        ("base", None),
    }
    assert [line.positions for line in found.lines] == sorted((line.positions for line in found.lines), reverse=True)
    assert found.base_bytes == (TINY_BASE / "model.safetensors").stat().st_size
    assert found.unseen == {"all": 4, "cn": 2}


def test_the_scripts_take_its_commands(tmp_path: Path) -> None:
    for line in planned(tmp_path).lines:
        for command in line.commands:
            script, *flags = command.argv
            if command.trains:
                chosen = resolve(uniform_finetune.make_parser().parse_args(flags))
                assert (chosen.max_steps, chosen.seed) == (2, line.seed)
                assert chosen.output_dir == command.directory
            else:
                assert script == "evaluate.py"
                asked = evaluate.make_parser().parse_args(flags)
                assert asked.result_dir == command.directory
                who = asked.model_name_or_path if line.seed is None else asked.lora_dir
                assert who == str(TINY_BASE if line.training is None else line.training.directory)


def test_variants_have_the_same_steps_and_trained_tokens(tmp_path: Path) -> None:
    shares = planned(tmp_path, trained_tokens="trained_tokens = 1_000", steps="steps = 8").shares
    tokens = [share.trained_tokens(8) for share in shares.values()]
    assert all(token == pytest.approx(1000, rel=0.04) for token in tokens)


def test_planning_twice_is_the_same_plan_and_says_so(tmp_path: Path) -> None:
    first = planned(tmp_path)
    for line in first.lines:
        for command in line.commands:
            command.note()
    second = planned(tmp_path)
    assert [line.commands for line in first.lines] == [line.commands for line in second.lines]
    assert second.lines_for_people()[-2] == "2 variants, 2 seeds, 2 steps: 4 runs, 5 evaluations; 0 of them done"
    assert second.lines_for_people()[-1] == "none of 6 training rows repeats a question that is asked"


def note_all(found: Plan) -> None:
    for line in found.lines:
        for command in line.commands:
            command.note()


def test_changed_data_are_refused_and_named(tmp_path: Path) -> None:
    note_all(planned(tmp_path))
    write_rows(tmp_path / "d.jsonl", [*ROWS[:3], {**ROWS[3], "output": "答案是8。"}])
    with pytest.raises(ValueError, match=r"was made for another experiment; what has changed: .*cn-1-1\.jsonl.*Choose"):
        planned(tmp_path)


def test_changed_questions_are_refused_and_named(tmp_path: Path) -> None:
    note_all(planned(tmp_path))
    write_rows(tmp_path / "q.jsonl", QUESTIONS[:3])
    with pytest.raises(ValueError, match=r"answers.*was made for another experiment; what has changed: .*q\.jsonl"):
        planned(tmp_path)


def test_a_changed_flag_is_refused_and_named(tmp_path: Path) -> None:
    note_all(planned(tmp_path))
    with pytest.raises(ValueError, match=r"what has changed: the command: --learning_rate 0\.5\. Choose"):
        planned(tmp_path, flags="learning_rate = 0.5")


def test_a_seed_or_a_variant_more_is_not_another_experiment(tmp_path: Path) -> None:
    note_all(planned(tmp_path))
    assert len(planned(tmp_path, seeds="seeds = [1, 2, 3]").lines) == 7


def test_a_broken_note_says_what_to_delete(tmp_path: Path) -> None:
    found = planned(tmp_path)
    note_all(found)
    record = found.lines[0].commands[0].record
    record.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"\.study\.json is broken .*delete it and "):
        planned(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "lerning_rate = 0.1",
            r"variants\.all: unrecognized arguments: --lerning_rate 0\.1; did you mean --learning_r",
        ),
        ('peft_type = "loraa"', r"variants\.all: argument --peft_type: .*'loraa'"),
        ("warmup_steps = -1", r"variants\.all: argument --warmup_steps: '-1' is not a whole number of 0 or more"),
        ("adalora_tinit = 5", r"variants\.all: .*adalora_tinit"),
    ],
)
def test_a_flag_that_training_would_not_take_is_refused_before_anything_is_trained(
    tmp_path: Path, flags: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, flags=flags)


def test_a_training_that_was_cut_off_goes_on_or_starts_again(tmp_path: Path) -> None:
    (command,) = [line.commands[0] for line in planned(tmp_path).lines if (line.variant, line.seed) == ("all", 1)]
    assert command.going_on() == command.argv
    command.directory.mkdir(parents=True)
    (command.directory / "training_log.jsonl").touch()
    assert command.going_on() == (*command.argv, "--overwrite")
    assert not command.is_done
    (command.directory / "run.json").write_text(json.dumps({}), encoding="utf-8")
    assert command.is_done


def test_flags_of_a_file_become_those_of_a_command() -> None:
    given = {"packing": True, "fsdp": False, "lora_r": 4, "lora_target_modules": ["q", "v"], "learning_rate": 3e-4}
    assert plan.words(given) == [
        *("--packing", "--lora_r", "4", "--lora_target_modules", "q", "v", "--learning_rate", "0.0003"),
    ]
