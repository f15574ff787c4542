"""How fast a file of questions is answered: this project's engine beside transformers' own ways, on the same prompts.

    python3 benchmarks/predict_throughput.py                    # all contestants
    python3 benchmarks/predict_throughput.py --contestants ours file_order --rows 128

The work: the first 512 questions of GSM8K's test in the Alpaca prompt, a random Llama of 110 million parameters with a
LoRA adapter on queries and values, greedy, 128 new tokens, fp32, batches of 32. The prompts are cut into quarters, and
the contestants take each quarter in turn, so that all see the same weather on the machine; a rate is that of all
quarters together. One at a time is measured on a few rows of each quarter.

`alone` are rows that this project decodes one by one, to be compared with the same rows in batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import environment
from contestants import material

NEW_TOKENS, QUARTERS = 128, 4
GREEDY = {"do_sample": False, "num_beams": 1, "max_new_tokens": NEW_TOKENS}
Answers = list[list[int]]


def questions(rows: int) -> list[dict[str, str]]:
    """The first questions of GSM8K's test."""
    path = material.DATA / "eval" / "gsm8k_test.jsonl"
    with path.open(encoding="utf-8") as file:
        found = [{"instruction": json.loads(line)["question"], "input": ""} for line in file]
    return found[:rows]


def adapted(folder: Path) -> tuple[Any, Any]:
    """(the base with a random adapter of rank 8, its tokenizer)."""
    import torch

    from utils import adapters, loading
    from utils.models import get_model

    base = loading.choose(str(material.base(folder, "110m")), get_model("llama"), precision="fp32")
    torch.manual_seed(0)
    model = adapters.attach_lora(base.load(), material.TARGETS["110m"], r=8, alpha=16, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval(), base.tokenizer()


def engine(model: Any, tokenizer: Any, batch_size: int) -> Callable[[Sequence[list[int]]], Answers]:
    """Ours."""
    from utils import generation
    from utils.decoding import Batch, Row
    from utils.stopping import Ends

    def run(prompts: Sequence[list[int]]) -> Answers:
        ends = Ends(ids=[tokenizer.eos_token_id])
        rows = [Row(prompt=ids, ends=ends, max_new_tokens=NEW_TOKENS, seed=0) for ids in prompts]
        for members in generation.batches([len(ids) for ids in prompts], batch_size, GREEDY, None):
            batch = Batch(model, tokenizer, GREEDY)
            batch.add([rows[i] for i in members])
            while batch.rows:
                batch.run()
        return [row.new for row in rows]

    return run


def file_order(model: Any, tokenizer: Any, batch_size: int) -> Callable[[Sequence[list[int]]], Answers]:
    """transformers' `generate` on batches as the rows come, padded on the left."""
    import torch

    def run(prompts: Sequence[list[int]]) -> Answers:
        found: Answers = []
        for start in range(0, len(prompts), batch_size):
            batch = {"input_ids": [list(ids) for ids in prompts[start : start + batch_size]]}
            given = tokenizer.pad(batch, padding_side="left", return_tensors="pt")
            with torch.no_grad():
                output = model.generate(**given, **GREEDY, pad_token_id=tokenizer.pad_token_id)
            found += output[:, given["input_ids"].shape[1] :].tolist()
        return [until(ids, tokenizer.eos_token_id) for ids in found]

    return run


def pipeline(model: Any, tokenizer: Any) -> Callable[[Sequence[list[int]]], Answers]:
    """transformers' pipeline, one prompt at a time: the original project's way."""
    from transformers import pipeline as make

    answers = make("text-generation", model=model, tokenizer=tokenizer, device="cpu")

    def run(prompts: Sequence[list[int]]) -> Answers:
        found: Answers = []
        for ids in prompts:
            text = tokenizer.decode(ids, skip_special_tokens=True)
            (given,) = answers(text, return_tensors=True, **GREEDY)
            found.append(until(given["generated_token_ids"][len(ids) :], tokenizer.eos_token_id))
        return found

    return run


def continuous(model: Any, tokenizer: Any) -> Callable[[Sequence[list[int]]], Answers]:
    """transformers' continuous batching."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    decoding = GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    batching = ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=512)

    def run(prompts: Sequence[list[int]]) -> Answers:
        found = model.generate_batch(
            [list(ids) for ids in prompts],
            generation_config=decoding,
            continuous_batching_config=batching,
            progress_bar=False,
        )
        by_prompt = {tuple(each.prompt_ids): list(each.generated_tokens) for each in found.values()}
        return [until(by_prompt[tuple(ids)], tokenizer.eos_token_id) for ids in prompts]

    return run


def until(ids: Sequence[int], end: int) -> list[int]:
    """Up to the first `end`, which is kept, as the engine counts."""
    return list(ids[: ids.index(end) + 1]) if end in ids else list(ids)


def contestants(folder: Path, batch_size: int) -> tuple[dict[str, Any], Any]:
    """Each by its name: (what answers, rows of a quarter that it takes: None is all); and the tokenizer."""
    from utils import folding

    beside, tokenizer = adapted(folder)
    merged = folding.merge_layers(adapted(folder)[0]).eval()
    return {
        "ours": (engine(merged, tokenizer, batch_size), None),
        "ours, adapter beside": (engine(beside, tokenizer, batch_size), None),
        "file_order": (file_order(beside, tokenizer, batch_size), None),
        "file_order, merged": (file_order(merged, tokenizer, batch_size), None),
        "pipeline": (pipeline(beside, tokenizer), 4),
        "continuous": (continuous(merged, tokenizer), None),
    }, tokenizer


def figures(seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all quarters of one contestant."""
    seconds = sum(each["seconds"] for each in seen)
    tokens = sum(each["tokens"] for each in seen)
    rates = [each["tokens"] / each["seconds"] for each in seen]
    return {
        "rows": sum(each["rows"] for each in seen),
        "new_tokens_per_second": round(tokens / seconds, 1),
        "median_of_quarters": round(statistics.median(rates), 1),
        "seconds": round(seconds, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", nargs="+", metavar="NAME")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--result", default="predict_throughput", help="name of the file of results")
    parser.add_argument("--alone", type=int, default=64, help="rows decoded one by one, to be compared")
    parser.add_argument("--environments", type=Path, default=Path("~/.cache/alpaca_cot_benchmarks").expanduser())
    flags = parser.parse_args()

    from utils import distributed, loading
    from utils.encode import encode_prompt
    from utils.templates import get_template

    loading.quiet_libraries()
    threads, _ = distributed.set_threads()
    everyone, tokenizer = contestants(flags.environments, flags.batch_size)
    asked = questions(flags.rows)
    prompts = [encode_prompt(record, get_template("alpaca"), tokenizer) for record in asked]
    size = -(-len(prompts) // QUARTERS)
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in flags.contestants or everyone}
    answers: dict[str, dict[int, list[int]]] = {name: {} for name in seen}
    for start in range(0, len(prompts), size):
        for name in seen:
            run, limit = everyone[name]
            rows = list(range(start, min(start + size, len(prompts))))[: limit or size]
            started = time.perf_counter()
            try:
                found = run([prompts[row] for row in rows])
            except Exception as error:  # one that cannot run here is listed with its reason
                seen[name].append({"error": f"{type(error).__name__}: {error}"[:200]})
                continue
            seconds = time.perf_counter() - started
            answers[name].update(zip(rows, found, strict=True))
            seen[name].append({"rows": len(rows), "tokens": sum(map(len, found)), "seconds": seconds})
            print(f"{name}: {len(rows)} rows, {seconds:.1f} s", flush=True)
    results = summary(seen, answers)
    if flags.alone and "ours" in answers:
        results["alone"] = alone(everyone["ours"][0], prompts, answers["ours"], flags.alone)
    results["conditions"] = {
        "rows": len(prompts),
        "new_tokens": NEW_TOKENS,
        "batch_size": flags.batch_size,
        "threads": threads,
    }
    results["conditions"]["prompt_tokens_median"] = statistics.median(map(len, prompts))
    environment.write(flags.result, ["python3", *sys.argv], results)
    return 0


def summary(
    seen: Mapping[str, Sequence[Mapping[str, Any]]], answers: Mapping[str, Mapping[int, list[int]]]
) -> dict[str, Any]:
    """Rates, ours against each, and how many rows have the same ids as ours."""
    results: dict[str, Any] = {"contestants": {}}
    for name, quarters in seen.items():
        failed = next((each["error"] for each in quarters if "error" in each), None)
        results["contestants"][name] = {"error": failed} if failed else figures(quarters)
    ours = results["contestants"].get("ours", {}).get("new_tokens_per_second")
    for name, each in results["contestants"].items():
        if ours and "new_tokens_per_second" in each:
            same = sum(ids == answers["ours"][row] for row, ids in answers[name].items())
            each["ours_by_it"] = round(ours / each["new_tokens_per_second"], 2)
            each["rows_as_ours"] = f"{same} of {len(answers[name])}"
    return results


def alone(
    run: Callable[[Sequence[list[int]]], Answers],
    prompts: Sequence[list[int]],
    together: Mapping[int, list[int]],
    rows: int,
) -> dict[str, Any]:
    """Rows spread over the file, one by one, against the same rows in batches."""
    chosen = [row * len(prompts) // rows for row in range(min(rows, len(prompts)))]
    started, same = time.perf_counter(), 0
    for done, row in enumerate(chosen, start=1):
        same += run([prompts[row]])[0] == together[row]
        if done % 16 == 0:
            print(f"alone: {same} of {done} rows the same, {time.perf_counter() - started:.0f} s", flush=True)
    return {"rows": len(chosen), "identical": same, "seconds": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    sys.exit(main())
