"""What all contestants train: three random bases with the real LLaMA tokenizer, and the first global batches of FLAN's
chains of thought, in the project's own order.

Knows: the project's own way from a raw file to encoded rows, and the shapes of the bases. Does not know contestants.
Everything lies in a cache folder; what takes long is made once.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import environment

DATA = Path(os.environ.get("ALPACA_COT_REAL_DATA", environment.REPOSITORY.parent / "shared" / "data"))
CUTOFF, SEED = 512, 42
VOCABULARY = 32000

BASES: dict[str, dict[str, Any]] = {
    "20m": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 4},
    "110m": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 14, "num_attention_heads": 10},
    "bloom": {"hidden_size": 160, "n_layer": 4, "n_head": 5, "vocab_size": 250_880},
}
"""Llama of 21 and 110 million parameters, head and embeddings apart; BLOOM of 41 million, 40 of them its vocabulary."""
TARGETS = {"20m": ["q_proj", "v_proj"], "110m": ["q_proj", "v_proj"], "bloom": ["query_key_value"]}
MODEL_TYPES = {"20m": "llama", "110m": "llama", "bloom": "bloom"}


def base(folder: Path, name: str) -> Path:
    """The directory of a base with its tokenizer, whose files every environment reads; the same weights every time."""
    directory = folder / f"base-{name}"
    if (directory / "made").is_file():
        return directory
    import torch
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

    directory.mkdir(parents=True, exist_ok=True)
    model_file = DATA / "checkpoints" / "llama.tokenizer.model"
    if not model_file.is_file():
        raise FileNotFoundError(f"{model_file}: the real data is not here; set ALPACA_COT_REAL_DATA")
    shutil.copy(model_file, directory / "tokenizer.model")
    declared = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    written = directory / "tokenizer_config.json"
    written.write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **declared}))
    AutoTokenizer.from_pretrained(directory).save_pretrained(directory)
    torch.manual_seed(0)
    shape: dict[str, Any] = BASES[name] | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if name == "bloom":
        model: Any = BloomForCausalLM(BloomConfig(**shape))
    else:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape))
    model.save_pretrained(directory)
    (directory / "made").write_text(str(sum(parameter.numel() for parameter in model.parameters())))
    return directory


def records(folder: Path) -> Path:
    """All of FLAN's sets that are here, converted as `prepare_data.py convert` does, in one file."""
    from utils import conversion

    raws = sorted((DATA / "raw").glob("flan_cot_*.tsv"))
    if not raws:
        raise FileNotFoundError(f"{DATA / 'raw'} holds no flan_cot_*.tsv: set ALPACA_COT_REAL_DATA")
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "cot.jsonl"
    conversion.convert_files("flan_cot_tsv", raws, out)
    return out


def mixture(folder: Path) -> Any:
    """All the rows, encoded: `dataset.TrainingData`."""
    from utils import catalog, dataset, loading
    from utils.models import get_model
    from utils.templates import get_template

    chosen = loading.choose(str(base(folder, "20m")), get_model("llama"), precision="fp32", quantization_bit=16)
    return dataset.build(
        catalog.parse_mixture([str(records(folder))]),
        get_template("alpaca"),
        chosen.tokenizer(),
        cutoff_len=CUTOFF,
        truncation="drop",
        val_set_size=0,
        seed=SEED,
    )


def rows(folder: Path, *, global_batch: int, steps: int) -> Path:
    """A file of the first `steps` global batches of the first epoch: `{"batches": [[{"input_ids", "labels"}]]}`."""
    import numpy

    from utils.batching import EpochPlan
    from utils.outputs import atomic

    data = mixture(folder)
    longest = int(numpy.argmax(data.train.lengths))  # it is in the first step of every run
    plan = EpochPlan(len(data.train), global_batch, seed=SEED, epoch=0, first=longest)
    batches = [[data.train[row] for row in plan[step]] for step in range(steps)]
    found = [[{"input_ids": row.input_ids, "labels": row.labels} for row in batch] for batch in batches]
    about = {"rows": len(data.train), "tokens": int(data.train.lengths.sum()), "trained": int(data.train.targets.sum())}
    out = folder / f"rows-{global_batch}x{steps}.json"
    with atomic(out) as file:
        file.write(json.dumps({"mixture": about, "batches": found}))
    return out
