"""Every command in the documents parses, every link leads somewhere, and the two READMEs say the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

import evaluate
import generate
import merge
import predict
import prepare_data
import server
import study
import uniform_finetune
import web
from utils import catalog, collection
from utils.cli import Parser
from utils.settings import resolve

PARSERS = {
    "uniform_finetune.py": uniform_finetune.make_parser,
    "generate.py": generate.make_parser,
    "evaluate.py": evaluate.make_parser,
    "merge.py": merge.make_parser,
    "predict.py": predict.make_parser,
    "web.py": web.make_parser,
    "prepare_data.py": prepare_data.make_parser,
    "server.py": server.make_parser,
    "study.py": study.make_parser,
}
DOCUMENTS = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / "examples").glob("*.sh"),
        REPOSITORY / "data" / "README.md",
    ]
)
SCRIPTS = [REPOSITORY / name for name in PARSERS]


def commands(path: Path) -> list[str]:
    """The commands in a document's code blocks (a script's docstring, a shell file), continued lines joined."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"```(?:bash|sh)?\n(.*?)```", text, flags=re.DOTALL))
    elif path.suffix == ".py":
        text = text.split('"""')[1].replace("\\\\\n", "\\\n")
    text = re.sub(r"\\\n\s*", " ", text)
    return [line.strip() for line in text.splitlines() if re.match(r"\s*(python3?|torchrun|make|bash) ", line)]


def script_and_arguments(command: str) -> tuple[str, list[str]] | None:
    """The script of ours that a command runs and its arguments; None for other programs."""
    words = shlex.split(command, comments=True)
    for at, word in enumerate(words):
        if word in PARSERS:
            return word, words[at + 1 :]
    return None


ALL = [(path, command) for path in [*DOCUMENTS, *SCRIPTS] for command in commands(path)]


def test_there_are_commands_in_every_document_that_teaches_some() -> None:
    for name in ("README.md", "CN_README.md", *PARSERS):
        assert any(path.name == name for path, _ in ALL), name


@pytest.mark.parametrize(("path", "command"), ALL, ids=lambda value: str(value)[:70])
def test_every_command_parses(path: Path, command: str) -> None:
    found = script_and_arguments(command)
    if found is None:
        words = shlex.split(command, comments=True)
        targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), command
        else:
            assert any((REPOSITORY / word).exists() for word in words[1:]), command
        return
    script, arguments = found
    parser: Parser = PARSERS[script]()
    values = parser.parse_args(arguments)
    for expression in getattr(values, "data", None) or []:
        catalog.parse_mixture([expression])
    if script == "prepare_data.py":
        check_keys(values)
    if script == "uniform_finetune.py":
        resolve(values)


def check_keys(values: Any) -> None:
    """What a command of prepare_data.py names is in the catalogue."""
    rows = catalog.read_catalog()
    match values.command:
        case "show":
            assert values.given in rows
        case "fetch":
            assert set(values.given) <= set(rows)
        case "convert":
            assert values.converter or values.given[0] in rows
        case "list":
            assert collection.chosen(rows, **{name: getattr(values, name) for name in collection.FILTERS})
        case _:
            catalog.parse_mixture(values.given)


SEEDS = [
    command
    for command in commands(REPOSITORY / "README.md")
    if any(f"--model_type {family}" in command for family in ("llama", "bloom", "chatglm"))
    and "--device_memory" not in command
    and "--lora_dir" not in command
] + ["python3 generate.py --size 7 --data alpaca-belle-cot"]  # the seeds' English page, from before --model_type


@pytest.mark.parametrize("command", SEEDS, ids=lambda command: command[:80])
def test_without_network_the_seeds_commands_reach_the_model_and_say_what_to_do(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = script_and_arguments(command)
    assert found is not None
    script, arguments = found
    module = {"uniform_finetune.py": uniform_finetune, "generate.py": generate}[script]
    assert module.main(arguments) == 1
    message = capsys.readouterr().err
    assert "cannot load '" in message
    assert "Give a local directory to --model_name_or_path; or name a mirror with HF_ENDPOINT" in message
    assert "HF_TOKEN" in message
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_no_adapter_is_said_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seeds' commands with `--lora_dir xxx`, word for word."""
    monkeypatch.chdir(tmp_path)
    asked = [command for command in commands(REPOSITORY / "README.md") if "--lora_dir xxx" in command]
    assert len(asked) >= 2
    for command in asked:
        found = script_and_arguments(command)
        assert found is not None
        assert {"predict.py": predict, "server.py": server, "web.py": web}[found[0]].main(found[1]) == 1
        assert "there is no directory xxx" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", [command for command in commands(REPOSITORY / "README.md") if "--device_memory" in command]
)
def test_without_network_a_question_about_memory_is_answered(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = script_and_arguments(command)
    assert found is not None
    assert uniform_finetune.main(found[1]) == 0
    assert ": it fits (" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_seeds_commands_are_in_the_readme() -> None:
    text = re.sub(r"(\\|\s)+", " ", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    for part in (
        "uniform_finetune.py --model_type llama --model_name_or_path decapoda-research/llama-7b-hf --data alpaca-belle-cot",
        "uniform_finetune.py --model_type chatglm --model_name_or_path THUDM/chatglm-6b --data alpaca-belle-cot",
        "uniform_finetune.py --model_type bloom --model_name_or_path bigscience/bloomz-7b1-mt --data alpaca-belle-cot",
        "python3 -m torch.distributed.launch --nproc_per_node 4",
        "python3 generate.py --data alpaca-belle-cot --model_type llama",
        "python3 generate.py --data alpaca-belle-cot --model_type chatglm",
        "python3 generate.py --data alpaca-belle-cot --model_type bloom",
        "python3 predict.py --model_type chatglm --data for_dict_data --lora_dir xxx --result_dir yyy",
        "python3 server.py --model_type chatglm --lora_dir xxx",
        "python3 web.py --model_type chatglm --lora_dir xxx",
    ):
        assert part in text, part


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.suffix == ".md"], ids=lambda p: p.name)
def test_every_link_to_a_file_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_two_readmes_say_the_same() -> None:
    english, chinese = (REPOSITORY / "README.md", REPOSITORY / "CN_README.md")
    uncommented = [[command.partition("  #")[0].strip() for command in commands(path)] for path in (english, chinese)]
    assert uncommented[0] == uncommented[1]
    structure = [
        [len(mark) for mark in re.findall(r"^(#+) ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)]
        for path in (english, chinese)
    ]
    assert structure[0] == structure[1]
    numbers = [
        sorted(set(re.findall(r"(\d(?:[\d,.]*\d)?) ?%", path.read_text(encoding="utf-8"))))
        for path in (english, chinese)
    ]  # with a blank before the sign in English and without in Chinese, as is the custom
    assert numbers[0] == numbers[1]


def test_the_readmes_table_of_data_has_every_dataset_of_the_collection() -> None:
    rows = catalog.read_catalog()
    for name in ("README.md", "CN_README.md"):
        table = (REPOSITORY / name).read_text(encoding="utf-8").partition("docs/conversions.md)")[2].partition("![")[0]
        named = set(re.findall(r"`(\w+)`", table))
        assert named <= rows.keys(), named - rows.keys()
        assert {key for key, row in rows.items() if row.status in ("collected", "in progress")} <= named


def test_no_chinese_word_is_broken_by_the_end_of_a_line() -> None:
    """Markdown shows the end of a line as a blank, which Chinese does not have between two characters."""
    text = (REPOSITORY / "CN_README.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    han = r"[\u3400-\u9fff]"
    broken = rf"^(?![#|]).*{han}\n *{han}"  # what begins a list, a row or a heading begins with no such character
    assert re.findall(broken, "所以它\n说", flags=re.MULTILINE)
    assert not re.findall(broken, prose, flags=re.MULTILINE)


def test_every_requirement_is_bounded_and_says_why() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (REPOSITORY / name).read_text().splitlines():
            if line and not line.startswith("#"):
                assert re.fullmatch(r"[\w\-\[\]]+>=[\d.]+(,<[\d.]+)?\s+# \w.+", line), line


def test_every_requirement_is_pinned_within_its_range() -> None:
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line)
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (REPOSITORY / name).read_text().splitlines():
            if line and not line.startswith("#"):
                requirement = Requirement(line.partition("#")[0].strip())
                assert requirement.specifier.contains(pins[requirement.name]), line
