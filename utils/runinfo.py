"""`run.json`: what a run was, kept beside its adapter so that every other script needs only the directory.

Knows: the fields, how to write and read them, and where runs lie. Does not know how a run is made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from utils import VERSION

NAME = "run.json"
MERGED = "merge.json"
"""Beside it where the run was merged into its base (`utils.merging`)."""
FORMAT = 1
METHOD = "lora"
"""The method of a run that does not name it: the first ones knew no other."""
SAVED_MODELS = Path("saved_models")
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers")
# What a run writes: the first ones show that a directory holds a run, all of them are a run's to delete.
TRACES = (NAME, "adapter_config.json", "training_log.jsonl", "checkpoint-*")
FILES = (
    *TRACES,
    MERGED,
    "adapter_model.safetensors",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "README.md",
    "loss.png",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "ice_text.model",
    "row_ids.jsonl",
)


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """One fine-tuning run."""

    settings: dict[str, Any]
    """Every flag, resolved (`utils.settings`)."""
    base_fingerprint: str
    """sha256 of the base's configuration and of its tensors' names and shapes."""
    template_hash: str
    stop_token_ids: list[int]
    """Ids that end an answer."""
    sources: list[dict[str, Any]]
    """Name, path, rows, shape, sha256 and licence of each part of the data."""
    ledger: dict[str, Any]
    world_size: int
    metrics: dict[str, float]
    trained_tokens: int
    verified: dict[str, Any]
    """What the check of the saved adapter measured."""
    versions: dict[str, str]
    commit: str | None
    started: str
    """ISO 8601, UTC."""
    seconds: float
    kept: str = ""
    """Which of the run's states this is, and why, for people."""
    format: int = FORMAT

    @property
    def model_type(self) -> str:
        """The family, a row of `utils.models`."""
        return self.settings["model_type"]

    @property
    def method(self) -> str:
        """What was trained, a row of `utils.methods`."""
        return self.settings.get("peft_type", METHOD)

    @property
    def base(self) -> str:
        """Hub id or path that the base was loaded from."""
        return self.settings["model_name_or_path"]

    @property
    def data(self) -> list[str]:
        """`--data`, as given."""
        return self.settings["data"]


def write(run: RunInfo, directory: Path) -> Path:
    """Writes `run.json` whole or not at all: to a temporary name first, then renamed."""
    path = directory / NAME
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(asdict(run), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def read(directory: Path) -> RunInfo:
    """The run in `directory`.

    Raises:
        FileNotFoundError: no `run.json` there.
        ValueError: it is not one that this version wrote.
    """
    path = directory / NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} holds no {NAME}: it is not a run of uniform_finetune.py, or the run did not finish"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}); train the run again") from error
    needed = {f.name for f in fields(RunInfo) if f.default is MISSING}
    if not isinstance(values, dict) or values.get("format") != FORMAT or not needed <= values.keys():
        raise ValueError(f"{path} was not written by this version (format {FORMAT} is expected)")
    return RunInfo(**{f.name: values[f.name] for f in fields(RunInfo) if f.name in values})


def default_directory(model: str, data_name: str, method: str = METHOD) -> Path:
    """`saved_models/<model>_<data>`, where `model` is the last part of its id or path; then the method, unless it is
    the usual one."""
    name = f"{Path(model.rstrip('/')).name}_{data_name}"
    return SAVED_MODELS / (name if method == METHOD else f"{name}_{method}")


def find(model_type: str, data: Sequence[str]) -> list[Path]:
    """The finished runs below `saved_models/` of this family on this data, newest first; a run before its merged
    copy, which began when it did."""
    found = []
    for path in SAVED_MODELS.glob(f"*/{NAME}"):
        try:
            run = read(path.parent)
        except ValueError:
            continue  # another version's run is not an answer; naming it with --lora_dir says why
        if run.model_type == model_type and run.data == list(data):
            is_merged = (path.parent / MERGED).exists()
            found.append((run.started, not is_merged, path.parent))
    return [directory for *_, directory in sorted(found, reverse=True)]


def has_run(directory: Path) -> bool:
    """Whether a run has written to `directory`."""
    return any(next(directory.glob(trace), None) for trace in TRACES)


def is_ours(directory: Path) -> bool:
    """Whether what lies in `directory` is a run's, finished or not, and no plain adapter."""
    return any(next(directory.glob(trace), None) for trace in TRACES if trace != "adapter_config.json")


def clear(directory: Path) -> None:
    """Deletes what a run wrote to `directory`, `run.json` first; files of other names stay."""
    for pattern in FILES:
        for path in directory.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def versions() -> dict[str, str]:
    """Our own version, and the installed one of each library that shapes a result."""
    found = {"alpaca-cot": VERSION}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(repository: Path) -> str | None:
    """The commit of `repository`, with `+` where files differ from it; None outside git."""
    git = ["git", "-C", str(repository)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
