"""Flags that several scripts share, each defined once, and the types of their values.

Knows: argparse, and the names in the registries. Does not know what a script does with a value. A flag left out is
None where its value comes from the model's row; the script prints what it was resolved to.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Protocol, TextIO

from utils import VERSION
from utils.models import MODELS
from utils.templates import TEMPLATES


class Parser(argparse.ArgumentParser):
    """Strict: no abbreviations, and an unknown flag names the nearest one."""

    def __init__(self, doc: str | None = None, usage: str = "%(prog)s [flags]", **options: Any) -> None:
        title, _, epilog = (doc or "").partition("\n\n")
        settings: dict[str, Any] = {"description": title, "epilog": epilog} | options
        super().__init__(
            usage=usage,  # thirty lines of usage would hide the error that follows them
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )
        self.add_argument("--version", action="version", version=f"Alpaca-CoT {VERSION}")

    def error(self, message: str) -> NoReturn:
        """Exits with 2, having said `explained(message)`."""
        super().error(self.explained(message))

    def explained(self, message: str) -> str:
        """The message of an error with the nearest flag, or the nearest value of a choice."""
        choice = re.match(r"argument \S+: invalid choice: '(?P<value>[^']*)' \(choose from (?P<known>.*)\)", message)
        unknown = re.match(r"unrecognized arguments: (?P<value>-[^\s=]+)", message)
        near: list[str] = []
        if choice:
            near = difflib.get_close_matches(choice["value"], re.findall(r"[\w.\-]+", choice["known"]), n=2)
        elif unknown:
            parsers: list[argparse.ArgumentParser] = [self]
            for action in self._actions:
                if isinstance(action, argparse._SubParsersAction):
                    parsers += action.choices.values()
            flags = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
            near = difflib.get_close_matches(unknown["value"], sorted(flags), n=2)
        return message + (f"; did you mean {' or '.join(near)}?" if near else "")


def positive_int(text: str) -> int:
    """A whole number of 1 or more."""
    return _number(text, int, lambda value: value >= 1, "a whole number of 1 or more")


def natural_int(text: str) -> int:
    """A whole number of 0 or more."""
    return _number(text, int, lambda value: value >= 0, "a whole number of 0 or more")


def positive_float(text: str) -> float:
    """A number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def fraction(text: str) -> float:
    """A number from 0 to 1, 1 excluded."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number from 0 up to, but not including, 1")


def probability(text: str) -> float:
    """A number above 0 and up to 1."""
    return _number(text, float, lambda value: 0 < value <= 1, "a number above 0 and up to 1")


def rows_or_share(text: str) -> float:
    """A number of rows, or a share of them below 1."""
    return _number(
        text,
        float,
        lambda value: value >= 0 and (value < 1 or value == int(value)),
        "a number of rows, or a share below 1",
    )


def memory_size(text: str) -> int:
    """`80GB`, `80G` or `80GiB` → bytes, of 2^30 in each case: what is sold as 80 GB has 81,920 MiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([mg])(?:i?b)?", text.lower())
    size = int(float(found[1]) * {"m": 2**20, "g": 2**30}[found[2]]) if found else 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 80GB or 24GB")
    return size


def switch(text: str) -> bool:
    """`true` or `false`, as in `--do_sample false`."""
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return values[text.lower()]


def _number(text: str, kind: Callable[[str], Any], valid: Callable[[Any], bool], expected: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value


def add_model_flags(parser: argparse.ArgumentParser, *, model_type: str | None) -> None:
    """Which base, and how it is loaded. `model_type`: the default; None where a run says it."""
    group = parser.add_argument_group("model")
    add = group.add_argument
    add(
        "--model_type",
        choices=list(MODELS),
        default=model_type,
        help=f"family (default: {model_type or 'as the run says'})",
    )
    add("--model_name_or_path", metavar="ID", help="hub id or local directory (default: the family's)")
    add("--size", help="size of the family's default model, such as 7b (or 7), 13b")
    add("--revision", help="branch, tag or commit of the hub model")
    add("--template", choices=list(TEMPLATES), help="prompt (default: the family's, or the run's)")
    add(
        "--quantization_bit",
        type=int,
        choices=(4, 8, 16),
        help="bits of the base's weights (default: the run's; a new run: 8 on CUDA if the family allows it, else 16)",
    )
    add(
        "--precision", choices=("bf16", "fp16", "fp32"), help="of the computation (default: the best the device can do)"
    )
    add("--trust_remote_code", action="store_true", help="run Python code that the model's repository brings (off)")
    # torch.distributed.launch prepends --local-rank=N; the environment says the same, so the value is not used.
    add("--local_rank", "--local-rank", type=int, default=-1, help=argparse.SUPPRESS)


def add_lora_flag(add: Callable[..., Any], *, required: bool, several: bool) -> None:
    """Which adapter answers; `add` is a parser's or a group's `add_argument`."""
    more = "; more of them, over the same base, to be chosen from" if several else ""
    add(
        "--lora_dir",
        required=required,
        nargs="+" if several else None,
        metavar="DIR",
        help="a directory that uniform_finetune.py wrote, any adapter of peft's, or one on the hub as "
        f"OWNER/NAME/FOLDER{more}",
    )


def add_job_flags(add: Callable[..., Any], *, batch_size: int) -> None:
    """How a file of questions is answered; `add` is a group's `add_argument`. `batch_size`: the default."""
    add("--num_samples", type=positive_int, default=1, metavar="K", help="answers to each question (default: 1)")
    add(
        "--batch_size",
        type=positive_int,
        default=batch_size,
        help=f"the most answers decoded together (default: {batch_size})",
    )
    add("--retry_failed", action="store_true", help="ask the rows again that failed")


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """A server that answers in the model's place; `server_wishes` collects them."""
    add = parser.add_argument_group("server", "instead of a model here; see docs/beyond-one-machine.md").add_argument
    add("--api_base", metavar="URL", help="an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    add("--api_model", metavar="NAME", help="the model's name there (default: the only one it has)")
    add("--api_key_file", type=Path, metavar="FILE", help="holds the key (default: the environment's OPENAI_API_KEY)")
    add("--api_concurrency", type=positive_int, default=16, metavar="N", help="requests at a time (default: 16)")
    add("--api_prompt", choices=("ids", "text"), default="ids", help="how a prompt is sent (default: ids)")


def server_wishes(values: argparse.Namespace) -> dict[str, Any] | None:
    """What `add_server_flags` says, as `utils.remote.Remote` takes it; None without a server.

    Raises:
        OSError: the file of the key cannot be read.
    """
    if not values.api_base:
        return None
    return {
        "base_url": values.api_base,
        "model": values.api_model,
        "api_key": values.api_key_file.read_text(encoding="utf-8").strip() if values.api_key_file else None,
        "concurrency": values.api_concurrency,
        "prompt_form": values.api_prompt,
    }


def loading_wishes(values: argparse.Namespace) -> dict[str, Any]:
    """What `add_model_flags` says of how a run is opened, as `utils.identity.identify` takes it."""
    names = ("model_type", "size", "template", "precision", "quantization_bit", "revision", "trust_remote_code")
    return {"base": values.model_name_or_path, **{name: getattr(values, name) for name in names}}


# The original project's generation parameters, explained; every script that decodes reads this table.
GENERATION: Mapping[str, tuple[Any, Callable[[str], Any], str]] = MappingProxyType(
    {
        "top_p": (
            0.9,
            probability,
            "draw from the likeliest tokens that together have this probability (nucleus); higher is more varied",
        ),
        "temperature": (
            1.0,
            positive_float,
            "below 1 the likeliest tokens gain, and near 0 sampling becomes greedy decoding",
        ),
        "top_k": (40, natural_int, "draw from the k likeliest tokens only; 0: no limit"),
        "do_sample": (True, switch, "draw at random; false takes the likeliest token (or the best beam)"),
        "num_beams": (
            1,
            positive_int,
            "beams of beam search; 1: none. With sampling, beam-search multinomial sampling",
        ),
        "no_repeat_ngram_size": (
            6,
            natural_int,
            "no n-gram of this size occurs twice; too small hurts natural repetition, too large does nothing; 0: off",
        ),
        "repetition_penalty": (
            1.8,
            positive_float,
            "makes tokens that occurred less likely; 1: off. High values harm numbers and code",
        ),
        "max_new_tokens": (
            512,
            positive_int,
            "the longest answer, in tokens; not given: half of a smaller context at most",
        ),
    }
)


def add_generation_flags(parser: argparse.ArgumentParser) -> None:
    """The decoding parameters; `generation_settings` collects them."""
    group = parser.add_argument_group("generation")
    for name, (default, kind, explanation) in GENERATION.items():
        group.add_argument(
            f"--{name}", type=kind, default=default, metavar=str(default), help=f"{explanation} (default: {default})"
        )
    group.add_argument(
        "--greedy", action="store_true", help="the likeliest token at every step, with no sampling, beams or penalties"
    )
    group.add_argument(
        "--stop",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="texts that end an answer and are not part of it, beside the model's own end and the template's next "
        "question",
    )
    group.add_argument("--seed", type=int, default=42, help="of the sampling; each row draws by itself (default: 42)")


def generation_settings(values: argparse.Namespace) -> dict[str, Any]:
    """The decoding parameters of parsed flags, `--greedy` applied, as `generate` of transformers takes them."""
    if values.greedy:
        return greedy_settings(values.max_new_tokens)
    settings = {name: getattr(values, name) for name in GENERATION}
    if not values.do_sample:
        settings = {name: value for name, value in settings.items() if name not in ("top_p", "temperature", "top_k")}
    return settings


def greedy_settings(max_new_tokens: int) -> dict[str, Any]:
    """The likeliest token at every step; the penalties are switched off, for a model may bring its own."""
    return {
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "max_new_tokens": max_new_tokens,
    }


def use_color(stream: TextIO) -> bool:
    """Whether to colour what is written to `stream`: on a terminal, unless NO_COLOR says otherwise (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _ignore(count: int) -> None:
    """Nobody watches."""


@contextmanager
def bar(what: str, total: int | None = None, unit: str = "rows") -> Iterator[Callable[[int], object]]:
    """A progress bar on the main process's terminal, and nothing elsewhere; yields the function that is told how much
    more is done."""
    if not sys.stderr.isatty() or os.environ.get("LOCAL_RANK", "0") != "0":
        yield _ignore
        return
    from tqdm import tqdm

    scale = unit == "B"
    with tqdm(desc=what, total=total, unit=unit, unit_scale=scale, delay=0.5, dynamic_ncols=True) as shown:
        yield lambda count: shown.update(count)


def _say_anything() -> None:
    """Characters that standard output's encoding lacks, such as GBK's for `⟦`, are written by their number."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


class Main(Protocol):
    """A script's `main`: arguments (None: those of the process) in, exit code out."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def reports_errors(main: Main) -> Main:
    """Wraps a script's `main`: what a person can mend is one line and exit code 1, Ctrl-C is 130; anything else is a
    bug and keeps its traceback."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        _say_anything()
        try:
            return main(argv)
        except (ValueError, OSError) as error:
            rank = os.environ.get("LOCAL_RANK", "0")
            where = "" if rank == "0" else f"[process {rank}] "
            print(f"{where}error: {error}", file=sys.stderr, flush=True)
            return 1
        except ModuleNotFoundError as error:
            if find_spec((error.name or "utils").partition(".")[0]):
                raise  # the package is there: something in it, or in ours, is broken
            print(
                f"error: {error.name} is not installed for {sys.executable}: activate the environment that `make "
                "install` made (source .venv/bin/activate), or pip install -r requirements.txt",
                file=sys.stderr,
                flush=True,
            )
            return 1
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr, flush=True)
            return 130

    return wrapped
