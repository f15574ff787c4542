"""A checkpoint's tensors as those of another class, read while transformers loads it.

Knows: which rows of which stored tensor each tensor of the class is, the files that a checkpoint is stored in, and that
nothing may be missing, left over or of another shape. Does not know any architecture; that is
`utils.architectures.rows`.

Memory: transformers is handed tensors that are read when it asks for them, one at a time, as those of a safetensors
file are. A packed tensor is read in the rows that are asked for. So there is no second copy of the weights, and bits
are reduced (8, 4) before the next tensor is read.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.architectures.rows import Architecture, Facts

LAYER = re.compile(r"\.(\d+)\.")
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where weights are looked for, in transformers' own order."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Where a tensor of the class is stored."""

    source: str
    """The stored tensor's name."""
    rows: tuple[slice, ...] = ()
    """Which of its rows, one after the other; none: all of them."""
    normalised: bool = False
    """Whether each row is divided by its length."""


class _Stored:
    """A tensor that is read, and made what the class wants, when it is indexed: all that transformers does with one."""

    def __init__(self, stored: Any, part: Part) -> None:
        self.stored, self.part = stored, part

    def __getitem__(self, _: Any) -> torch.Tensor:
        # torch.cat copies: views of one packed tensor would be saved as one by safetensors, and refused.
        rows = self.part.rows
        tensor = torch.cat([self.stored[chosen] for chosen in rows]) if rows else self.stored[...]
        if self.part.normalised:
            tensor = torch.nn.functional.normalize(tensor.float(), dim=1).to(tensor.dtype)
        return tensor


def parts(architecture: Architecture, model: Any) -> dict[str, Part]:
    """Tensor of `model`, an instance of the row's class → where a checkpoint of the row has it."""
    packed = _packed_rows(model.config, architecture.groups(model.config))
    found: dict[str, Part] = {}
    for name in model.state_dict():
        module, _, kind = name.rpartition(".")
        pattern = LAYER.sub(".*.", module, count=1)
        source = (architecture.names or {}).get(pattern, pattern)
        if layer := LAYER.search(module):
            source = source.replace(".*.", layer.group())
        renamed = pattern in (architecture.names or {})
        rows = packed.get(module.rpartition(".")[2], ()) if renamed else ()
        found[name] = Part(source=f"{source}.{kind}", rows=rows, normalised=module in architecture.normalised)
    return found


def _packed_rows(config: Any, groups: int) -> dict[str, tuple[slice, ...]]:
    """Rows of q, k and v in a tensor of `groups` groups, each of queries, then keys, then values."""
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    sizes = {
        "q_proj": heads // groups * width,
        "k_proj": key_heads // groups * width,
        "v_proj": key_heads // groups * width,
    }
    starts = {"q_proj": 0, "k_proj": sizes["q_proj"], "v_proj": sizes["q_proj"] + sizes["k_proj"]}
    step = sum(sizes.values())
    return {
        name: tuple(slice(group * step + start, group * step + start + sizes[name]) for group in range(groups))
        for name, start in starts.items()
    }


def check(architecture: Architecture, name: str, model: Any, stored: Mapping[str, Sequence[int]]) -> dict[str, Part]:
    """`parts`, of which each is in `stored` (name → shape) as it must be; what a class only keeps as a buffer may be
    absent, for it is computed.

    Raises:
        ValueError: a tensor is missing, left over, or of another shape, with its name in the checkpoint.
    """
    wanted = parts(architecture, model)
    needed = {wanted[parameter].source for parameter, _ in model.named_parameters()}
    cause = f"cannot read {name!r} as {architecture.model_class}"
    if missing := sorted(needed - stored.keys()):
        raise ValueError(f"{cause}: its weights have no {_list(missing)}: download it again, and whole")
    ends = tuple(architecture.derived)
    spare = sorted(key for key in stored.keys() - {part.source for part in wanted.values()} if not key.endswith(ends))
    if spare:
        raise ValueError(f"{cause}: nothing there takes {_list(spare)}: the checkpoint is of another kind")
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    expected: dict[str, list[int]] = {}
    for key, part in wanted.items():
        rows = expected[part.source][0] if part.source in expected else 0
        expected[part.source] = [rows + shapes[key][0], *shapes[key][1:]]
    for source, shape in expected.items():
        if source in stored and list(stored[source]) != shape:
            raise ValueError(
                f"{cause}: {source} has the shape {list(stored[source])} where config.json asks for {shape}: the two "
                "are not of one checkpoint"
            )
    return {key: part for key, part in wanted.items() if part.source in stored}


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load(architecture: Architecture, name: str, facts: Facts, origin: Mapping[str, Any], **options: Any) -> Any:
    """The checkpoint `name` (hub id or directory) as an instance of the row's class.

    Args:
        facts: its `config.json`.
        origin: `revision` and `local_files_only`, as `from_pretrained` takes them.
        options: what else the class's `from_pretrained` is to be told: `dtype`, `device_map`, `quantization_config`.

    Raises:
        ValueError: `config.json` or the tensors are not of the row's kind.
        OSError: the weights cannot be had.
    """
    config, model_class = architecture.configuration(facts), architecture.native_class()
    origin = {key: value for key, value in origin.items() if key in ("revision", "local_files_only")}
    empty = architecture.empty(config)
    with _opened(_files(name, origin)) as stored:
        shapes = {key: _shape(tensor) for key, tensor in stored.items()}
        wanted = check(architecture, name, empty, shapes)
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict={key: _Stored(stored[part.source], part) for key, part in wanted.items()},
            output_loading_info=True,
            **options,
        )
    unread = {key for key in report["missing_keys"] if key in wanted} | set(report["unexpected_keys"])
    if unread:
        raise ValueError(f"cannot read {name!r}: transformers did not take {_list(sorted(unread))}")
    model.name_or_path = model.config.name_or_path = name
    _read_generation_config(model, name, origin)
    return model


def _shape(tensor: Any) -> Sequence[int]:
    return tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape


def _files(name: str, origin: Mapping[str, Any]) -> list[str]:
    """The local paths of the files that hold the weights; downloads them if need be."""
    from transformers.utils.hub import cached_file

    for candidate in FILES:
        path = cached_file(name, candidate, _raise_exceptions_for_missing_entries=False, **origin)
        if path is None:
            continue
        if not candidate.endswith(".json"):
            return [path]
        try:
            names = sorted(set(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} lists no shards of weights: download it again") from error
        return [shard for shard in (cached_file(name, shard, **origin) for shard in names) if shard is not None]
    raise FileNotFoundError(f"{name!r} has no weights: none of {', '.join(FILES)}")


@contextmanager
def _opened(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Name → stored tensor of all files, mapped into memory, not read; pickled files may hold tensors only."""
    stored: dict[str, Any] = {}
    with ExitStack() as stack:
        for path in paths:
            try:
                stored.update(_tensors(path, stack))
            except MemoryError:
                raise
            except Exception as error:  # of a dozen kinds: torch's unpickler reads whatever bytes it is given
                raise ValueError(_refusal(path, error)) from error
        yield stored


def _tensors(path: str, stack: ExitStack) -> dict[str, Any]:
    from safetensors import safe_open

    if path.endswith(".safetensors"):
        file = stack.enter_context(safe_open(path, framework="pt"))
        return {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 — it is no mapping
    # Files of before torch 1.6 cannot be mapped.
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise TypeError("no mapping of names to tensors")
    return found


def _refusal(path: str, error: Exception) -> str:
    """Why `path` was not read, without torch's own words: they advise to switch off what keeps a pickle from running
    code. Raises `OSError` where not even the file's beginning can be read."""
    if "unsupported global" in str(error).lower():
        return f"{path} asks to run code as it is read, and is refused: take a repository that has safetensors"
    with open(path, "rb") as file:
        begins = file.read(16)
    return f"{path} is not a whole file of tensors (it begins with {begins!r}): download it again"


def _read_generation_config(model: Any, name: str, origin: Mapping[str, Any]) -> None:
    """The checkpoint's own, where it has one: transformers looks for it only where it was given a name."""
    from transformers import GenerationConfig
    from transformers.utils.hub import cached_file

    if cached_file(name, "generation_config.json", _raise_exceptions_for_missing_entries=False, **origin):
        model.generation_config = GenerationConfig.from_pretrained(name, **origin)
