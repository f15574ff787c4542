"""Tiny models and tokenizers of ours, made in seconds, without network."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

# Set before any test imports them: no test reaches for a network, and parallel tokenizers warn when a test forks.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny models gain nothing from a second thread, and with this set no script measures for half a second which are free.
os.environ["OMP_NUM_THREADS"] = "1"
# Every checkpoint is flushed to the disk, at 8 ms a file (2026-11-29): in memory, where there is room, it is there at once.
_MEMORY = Path("/dev/shm")
if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))
# Kept work of this session alone: no test finds what another day's code made.
_CACHE = tempfile.TemporaryDirectory(prefix="alpaca_cot_cache_", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT"))
os.environ["ALPACA_COT_CACHE"] = _CACHE.name

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("ALPACA_COT_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
TINY_BASE = REPOSITORY / "assets" / "tiny_base"

RECORDS = [
    {"instruction": "Add one and two.", "input": "", "output": "1+2→3. So the answer is 3."},
    {"instruction": "把这句话翻译成英文。", "input": "你好，世界 🌏", "output": "Hello, world 🌏"},
    {"instruction": "What does </s> mean?", "input": "", "output": "It ends a text: </s> is EOS."},
    {"instruction": "  Keep my spaces.  ", "input": "\n", "output": " Kept. \n"},
    {"instruction": "Name a colour.", "input": "", "output": "蓝色"},
    {"instruction": "Say nothing more than ok.", "input": "", "output": "ok"},
    {"instruction": "Repeat: ### Response:", "input": "", "output": "### Response:"},
    {"instruction": "Why?", "input": "because", "output": "Because of this. 因为这个。"},
]


@pytest.fixture(scope="module", autouse=True)
def _out_of_the_collectors_sight() -> None:
    """What the libraries and the modules before have made stays anyway, and each run that a test makes collects garbage
    several times: looking through all of it was a quarter of the tests' time."""
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; a test that asks for it is skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"the real data is not here ({REAL_DATA}); set ALPACA_COT_REAL_DATA")
    return REAL_DATA


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The bundled tiny base's: byte-level BPE, with BOS and EOS."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY_BASE)


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    """The same with a ChatML-like chat template whose end of turn is a control token of its own."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(TINY_BASE)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


@pytest.fixture
def records_file(tmp_path: Path) -> Path:
    """`RECORDS` as a JSON array."""
    path = tmp_path / "records.json"
    path.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    return path


def make_base(directory: Path, model_type: str = "llama") -> Path:
    """A random base of a few thousand parameters with the bundled tokenizer."""
    import torch
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

    made = AutoTokenizer.from_pretrained(TINY_BASE)
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "vocab_size": len(made)}
    torch.manual_seed(0)
    if model_type == "llama":
        shape: dict[str, Any] = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        model: Any = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=512, **ids))
    else:
        model = BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=2, n_head=2, **ids))
    model.save_pretrained(directory)
    made.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def llama_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Llama."""
    return make_base(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def bloom_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny BLOOM."""
    return make_base(tmp_path_factory.mktemp("bloom"), "bloom")


RunScript = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_script(tmp_path: Path) -> RunScript:
    """Runs a script of the repository as a user would, in an empty folder; `launcher` comes before it."""

    def run(script: str, *arguments: object, launcher: Sequence[str] = (), **options: Any) -> Any:
        return subprocess.run(
            [sys.executable, *launcher, str(REPOSITORY / script), *map(str, arguments)],
            cwd=options.pop("cwd", tmp_path),
            capture_output=True,
            text=True,
            timeout=300,
            **options,
        )

    return run


FLAGS = [
    "--model_type",
    "llama",
    "--learning_rate",
    "1e-2",
    "--lora_dropout",
    "0",
    "--lora_target_modules",
    "all-linear",
]


def finetune(base: Path, data: Path, output: Path, *more: object) -> int:
    """Runs `uniform_finetune.py` in this process and returns its exit code."""
    arguments = [*FLAGS, "--model_name_or_path", base, "--data", data, "--output_dir", output, *more]
    import uniform_finetune

    return uniform_finetune.main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def finished(llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a random base: two epochs, validation, three checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    data = folder / "records.json"
    data.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    shape = ["--per_gpu_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--epochs", 2, "--val_set_size", 2]
    assert finetune(llama_base, data, folder / "run", *shape) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def opened(finished: Path) -> Any:
    """The finished run, ready to answer (an `utils.assistant.Assistant`)."""
    from utils.assistant import open_run

    return open_run(finished)
