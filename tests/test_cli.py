import argparse
import importlib
import io
import sys

import pytest

from utils import cli


def parser_of(*, model_type: str | None = "tiny") -> cli.Parser:
    parser = cli.Parser("What it does.\n\n    python3 script.py\n")
    cli.add_model_flags(parser, model_type=model_type)
    cli.add_generation_flags(parser)
    return parser


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        parser_of().parse_args(arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modle_type", "llama"], "unrecognized arguments: --modle_type llama; did you mean --model_type"),
        (["--model_type", "lama"], "did you mean llama"),
        (["--model", "llama"], "unrecognized arguments: --model llama"),
        (["--top_p", "0"], "argument --top_p: '0' is not a number above 0 and up to 1"),
        (["--temperature", "-1"], "'-1' is not a number above 0"),
        (["--temperature", "inf"], "'inf' is not a number above 0"),
        (["--do_sample", "maybe"], "'maybe' is not true or false"),
        (["--max_new_tokens", "1.5"], "'1.5' is not a whole number of 1 or more"),
        (["--top_k", "-1"], "'-1' is not a whole number of 0 or more"),
        (["--quantization_bit", "3"], "invalid choice: 3"),
    ],
)
def test_wrong_flags_and_values_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(arguments, capsys)


def test_both_spellings_of_the_local_rank_are_taken() -> None:
    assert parser_of().parse_args(["--local-rank=1"]).local_rank == 1
    assert parser_of().parse_args(["--local_rank", "1"]).local_rank == 1


def test_the_seeds_generation_parameters_are_the_defaults() -> None:
    settings = cli.generation_settings(parser_of().parse_args([]))
    seeds = {
        "top_p": 0.9,
        "temperature": 1.0,
        "do_sample": True,
        "no_repeat_ngram_size": 6,
        "repetition_penalty": 1.8,
    }
    assert seeds.items() <= settings.items()


def test_greedy_has_no_sampling_and_no_penalties() -> None:
    flags = parser_of().parse_args(["--greedy", "--max_new_tokens", "9"])
    settings = cli.generation_settings(flags)
    assert (settings["do_sample"], settings["num_beams"], settings["max_new_tokens"]) == (False, 1, 9)
    assert (settings["repetition_penalty"], settings["no_repeat_ngram_size"]) == (1.0, 0)


def test_without_sampling_the_sampling_parameters_are_not_sent() -> None:
    settings = cli.generation_settings(parser_of().parse_args(["--do_sample", "false", "--num_beams", "4"]))
    assert not {"top_p", "temperature", "top_k"} & settings.keys()
    assert (settings["num_beams"], settings["repetition_penalty"]) == (4, 1.8)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (cli.fraction, {"0": 0.0, "0.5": 0.5}, ["1", "-0.1", "x"]),
        (cli.rows_or_share, {"0": 0.0, "0.2": 0.2, "2000": 2000.0}, ["1.5", "-1", "nan"]),
        (cli.natural_int, {"0": 0, "7": 7}, ["-1", "1.0"]),
        (cli.switch, {"true": True, "No": False, "1": True}, ["y"]),
    ],
)
def test_types(kind: cli.Callable[[str], object], good: dict[str, object], bad: list[str]) -> None:
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="is not"):
            kind(text)


def test_help_shows_the_commands_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser_of().parse_args(["--help"])
    shown = capsys.readouterr().out
    assert "    python3 script.py\n" in shown
    assert "--local_rank" not in shown
    for name, (default, _, explanation) in cli.GENERATION.items():
        assert f"--{name}" in shown
        assert explanation.split()[0] in shown
        assert f"(default: {default})" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("bad row"), 1, "error: bad row\n"),
        (FileNotFoundError("no file"), 1, "error: no file\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_what_a_person_can_mend_is_one_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @cli.reports_errors
    def main(argv: object = None) -> int:
        raise error

    assert main([]) == code
    assert capsys.readouterr().err == message


def test_what_an_output_cannot_write_is_written_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="gbk", write_through=True))

    @cli.reports_errors
    def main(argv: object = None) -> int:
        sys.stdout.write("⟦你好⟧ 😀\n")
        return 0

    assert main() == 0
    assert written.getvalue().decode("gbk").strip() == r"\u27e6你好\u27e7 \U0001f600"


def test_a_package_that_is_not_installed_is_named_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    @cli.reports_errors
    def main(argv: object = None) -> int:
        importlib.import_module("nobody_has_this")
        return 0

    assert main() == 1
    said = capsys.readouterr().err
    assert f"error: nobody_has_this is not installed for {sys.executable}: activate the environment" in said
    assert "source .venv/bin/activate" in said


def test_a_module_of_ours_that_is_not_there_is_a_bug() -> None:
    @cli.reports_errors
    def main(argv: object = None) -> int:
        importlib.import_module("utils.nothing")
        return 0

    with pytest.raises(ModuleNotFoundError):
        main()


def test_a_bug_keeps_its_traceback() -> None:
    @cli.reports_errors
    def main(argv: object = None) -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        main([])


def test_another_process_says_which_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @cli.reports_errors
    def main(argv: object = None) -> int:
        raise ValueError("x")

    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main([]) == 1
    assert capsys.readouterr().err == "[process 1] error: x\n"


def test_colour_needs_a_terminal_and_no_objection(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert cli.use_color(Terminal())
    assert not cli.use_color(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not cli.use_color(Terminal())
