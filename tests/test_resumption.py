"""What a checkpoint is of, what another run may differ in, and what is said where it may not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import RECORDS

from utils import checkpoints, dataset, methods
from utils.catalog import parse_mixture
from utils.dataset import TrainingData
from utils.methods import schedule
from utils.resumption import CHANGEABLE, OF_ROWS, differences, digest, identity, to_resume
from utils.settings import Settings
from utils.templates import TEMPLATES


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.json").write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    others = [{"instruction": f"q{i}", "input": "", "output": f"答案 {i}"} for i in range(12)]
    (folder / "b.json").write_text(json.dumps(others, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def build(files: Path, tokenizer: Any) -> Any:
    def built(*parts: str, seed: int = 0, **options: Any) -> TrainingData:
        chosen = {"cutoff_len": 512, "truncation": "drop", "val_set_size": 4, **options}
        mixture = parse_mixture(f"{files}/{part}" for part in parts)
        return dataset.build(mixture, TEMPLATES["alpaca"], tokenizer, seed=seed, **chosen)

    return built


@pytest.fixture(scope="module")
def data(build: Any) -> TrainingData:
    return build("a.json", "b.json")


def settings(*flags: str) -> Settings:
    from uniform_finetune import make_parser
    from utils.settings import resolve

    return resolve(make_parser().parse_args(["--model_type", "llama", *flags]))


def identity_of(data: TrainingData, *flags: str, **facts: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"base": "a" * 64, "prompt": "b" * 64, "world_size": 1, "precision": "fp32"}
    return identity(settings(*flags), data, **(given | facts))


def kept(found: Mapping[str, Any]) -> dict[str, Any]:
    """As a checkpoint gives it back."""
    return json.loads(json.dumps(found, sort_keys=True))


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_run_is_itself_after_it_was_written_down(method: str, data: TrainingData) -> None:
    chosen = settings("--peft_type", method)
    facts = {"base": "a", "prompt": "b", "world_size": 2, "precision": "bf16"}
    now = identity(replace(chosen, peft_options=dict(schedule(chosen.method, 90).options)), data, **facts)
    assert differences(kept(now), now) == ([], [])
    longer = identity(replace(chosen, peft_options=dict(schedule(chosen.method, 9000).options)), data, **facts)
    assert differences(kept(now), longer) == ([], []), "a run may grow"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_r", "4"], "it was trained with --lora_r 8, now it is 4"),
        (["--lora_alpha", "2"], "it was trained with --lora_alpha 16, now it is 2"),
        (["--lora_dropout", "0"], "it was trained with --lora_dropout 0.05, now it is 0.0"),
        (["--peft_type", "rslora"], "it was trained with --peft_type lora, now it is rslora"),
        (["--seed", "7"], "it was trained with --seed 42, now it is 7"),
        (["--batch_size", "64"], "it was trained with --batch_size 128, now it is 64"),
        (
            ["--lora_target_modules", "q_proj"],
            "it was trained with --lora_target_modules q_proj v_proj, now it is q_proj",
        ),
    ],
)
def test_what_must_be_as_it_was(flags: list[str], message: str, data: TrainingData) -> None:
    assert differences(kept(identity_of(data)), identity_of(data, *flags)) == ([message], [])


def test_another_method_names_each_of_its_options(data: TrainingData) -> None:
    before, after = identity_of(data), identity_of(data, "--peft_type", "prompt")
    fixed, _ = differences(kept(before), after)
    assert "it was trained with --peft_type lora, now it is prompt" in fixed
    assert "it was trained with --lora_r 8, now it is None" in fixed
    assert "it was trained with --num_virtual_tokens None, now it is 20" in fixed


def test_another_base_and_another_prompt(data: TrainingData) -> None:
    changed = identity_of(data, base="c" * 64, prompt="d" * 64)
    assert differences(kept(identity_of(data)), changed) == (
        [
            "it was trained with another base (aaaaaaaaaaaa…, now cccccccccccc…)",
            "it was trained with another prompt (bbbbbbbbbbbb…, now dddddddddddd…)",
        ],
        [],
    )


@pytest.mark.parametrize(
    ("flags", "facts", "message"),
    [
        ([], {"world_size": 4}, "it was trained with 1 processes, now there are 4 (every step trains the same rows, with other dropout"),
        ([], {"precision": "bf16"}, "it was trained with --precision fp32, now it is bf16 (every step trains the same rows, in other"),
        (["--max_tokens_per_batch", "999"], {}, "--max_tokens_per_batch None, now it is 999 (every step trains the same rows"),
        (["--per_gpu_train_batch_size", "2"], {}, "--per_gpu_train_batch_size None, now it is 2 (every step"),
        (["--packing"], {}, "--packing False, now it is True (every step"),
        (["--quantization_bit", "4"], {}, "--quantization_bit None, now it is 4 (the adapter goes on beside other weights"),
        (["--attn_implementation", "eager"], {}, "--attn_implementation None, now it is eager (every step"),
        (["--gradient_checkpointing", "on"], {}, "--gradient_checkpointing auto, now it is on (every step"),
        (["--liger_kernel"], {}, "--liger_kernel False, now it is True"),
        (["--torch_compile"], {}, "--torch_compile False, now it is True"),
        (["--fsdp"], {}, "--fsdp False, now it is True"),
    ],
)  # fmt: skip
def test_what_may_be_changed_says_what_the_change_does(
    flags: list[str], facts: dict[str, Any], message: str, data: TrainingData
) -> None:
    fixed, changeable = differences(kept(identity_of(data)), identity_of(data, *flags, **facts))
    assert fixed == []
    (said,) = changeable
    assert message in said


def test_everything_changeable_is_compared(data: TrainingData) -> None:
    assert set(CHANGEABLE) <= identity_of(data).keys()


def test_learning_rate_length_and_places_are_not_compared(data: TrainingData) -> None:
    other = ["--learning_rate", "1", "--epochs", "9", "--output_dir", "x", "--save_steps", "3", "--eval_steps", "2"]
    assert differences(kept(identity_of(data)), identity_of(data, *other)) == ([], [])


@pytest.mark.parametrize(
    ("options", "flags", "why"),
    [
        ({"val_set_size": 5}, ["--val_set_size", "5"], "--val_set_size 4.0, now 5.0"),
        ({"cutoff_len": 40}, ["--cutoff_len", "40"], "--cutoff_len 512, now 40"),
        ({}, ["--bad_rows", "drop"], None),
    ],
)
def test_other_rows_are_named_with_their_reason(
    options: dict[str, Any], flags: list[str], why: str | None, build: Any, data: TrainingData
) -> None:
    before = identity_of(data, "--val_set_size", "4")
    after = identity_of(build("a.json", "b.json", **options), "--val_set_size", "4", *flags)  # the last one counts
    expected = [] if why is None else [f"it was trained on other rows: {why}"]
    assert differences(kept(before), after) == (expected, []), "a flag that changes no row is no difference"


def test_other_files_are_named_with_their_hashes(build: Any, data: TrainingData) -> None:
    (said,), _ = differences(kept(identity_of(data)), identity_of(build("b.json")))
    sha = [each["sha256"][:12] for each in data.sources]
    assert said == (
        f"it was trained on other rows: --data a.json (8 rows, sha256 {sha[0]}…) b.json (12 rows, "
        f"sha256 {sha[1]}…), now b.json (12 rows, sha256 {sha[1]}…)"
    )


def test_the_same_files_otherwise_repeated(build: Any, data: TrainingData) -> None:
    (said,), _ = differences(kept(identity_of(data)), identity_of(build("a.json*2", "b.json")))
    assert said == (
        "it was trained on other rows: the files are the same, so they were split, repeated or encoded otherwise (:N, "
        "*W, or another version)"
    )


def test_flags_that_decide_rows_are_all_named(data: TrainingData) -> None:
    assert identity_of(data)["of rows"].keys() == {"data", *OF_ROWS}


def test_the_digest_is_of_rows_order_split_and_repeats(build: Any, data: TrainingData) -> None:
    assert digest(data) == digest(build("a.json", "b.json"))
    backwards = SimpleNamespace(
        **{name: getattr(data.train, name)[::-1] for name in ("parts", "rows", "lengths", "targets")}
    )
    others = {
        "split": build("a.json", "b.json", seed=1),
        "size of the split": build("a.json", "b.json", val_set_size=5),
        "order of files": build("b.json", "a.json"),
        "order of rows": replace(data, train=backwards),  # pyright: ignore[reportArgumentType]
        "held out and trained on changed places": replace(data, train=data.validation, validation=data.train),
        "repeats": build("a.json*2", "b.json"),
        "number of rows": build("a.json", "b.json:11"),
        "content": build("a.json", "b.json", cutoff_len=40),
    }
    digests = {name: digest(other) for name, other in others.items()} | {"itself": digest(data)}
    assert len(set(digests.values())) == len(digests), digests


def saved(directory: Path, found: Mapping[str, Any], *steps: int) -> None:
    for step in steps:
        with checkpoints.writing(directory, step, {"identity": found}) as folder:
            (folder / "trainer_state.json").write_text("{}")


NOW = {"peft_type": "lora", "lora_r": 8, "rows": "a", "world_size": 1, "precision": "fp32", "of rows": {}}


def test_which_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    assert to_resume(tmp_path, None, NOW) is None
    with pytest.raises(
        ValueError, match=r"^--resume_from_checkpoint: .* holds no whole checkpoint; --overwrite starts"
    ):
        to_resume(tmp_path, "", NOW)
    saved(tmp_path, NOW, 5, 9)
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text("[]")
    said: list[str] = []
    assert to_resume(tmp_path, "", NOW, say=said.append) == tmp_path / "checkpoint-5"
    assert said == [
        f"{tmp_path / 'checkpoint-9'} is passed over: trainer_state.json is damaged: its sha256 is not the one it was "
        "written with"
    ]
    assert to_resume(tmp_path / "new", str(tmp_path / "checkpoint-5"), NOW) == tmp_path / "checkpoint-5"


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ("checkpoint-9", "trainer_state.json is missing"),
        ("checkpoint-7", "there is no such folder"),
        ("copy", "it is of step 5: a folder of another name than checkpoint-5 is not read"),
        (".", "it has no manifest.json: it was not finished, or another program wrote it"),
    ],
)
def test_the_one_that_was_named_is_not_replaced_by_another(wish: str, why: str, tmp_path: Path) -> None:
    saved(tmp_path, NOW, 5, 9)
    (tmp_path / "checkpoint-9" / "trainer_state.json").unlink()
    saved(tmp_path / "other", NOW, 5)
    (tmp_path / "other" / "checkpoint-5").rename(tmp_path / "copy")
    with pytest.raises(ValueError) as raised:  # noqa: PT011 — the whole text follows
        to_resume(tmp_path, str(tmp_path / wish), NOW)
    path = tmp_path / wish
    assert str(raised.value) == (
        f"--resume_from_checkpoint {path}: {why}; without a value, the newest whole one is taken"
    )


def test_what_may_be_changed_is_refused_and_with_a_flag_said(tmp_path: Path) -> None:
    saved(tmp_path, NOW, 5)
    now = {**NOW, "world_size": 2, "precision": "bf16"}
    processes = f"it was trained with 1 processes, now there are 2 ({CHANGEABLE['world_size']})"
    arithmetic = f"it was trained with --precision fp32, now it is bf16 ({CHANGEABLE['precision']})"
    with pytest.raises(ValueError, match="give the same, or --resume_anyway to go on all the same$") as raised:
        to_resume(tmp_path, "", now)
    assert f"checkpoint-5: {arithmetic}; {processes}: give" in str(raised.value)
    said: list[str] = []
    assert to_resume(tmp_path, "", now, anyway=True, say=said.append) == tmp_path / "checkpoint-5"
    assert said == [f"--resume_anyway: {arithmetic}", f"--resume_anyway: {processes}"]


@pytest.mark.parametrize("anyway", [False, True])
def test_what_may_not_be_changed_is_refused_in_any_case(anyway: bool, tmp_path: Path) -> None:
    saved(tmp_path, NOW, 5)
    said: list[str] = []
    with pytest.raises(
        ValueError,
        match=r"checkpoint-5: it was trained with --lora_r 8, now it is 4; it was trained with 1 processes.*: give the "
        r"same, or another --output_dir$",
    ):
        to_resume(tmp_path, "", {**NOW, "lora_r": 4, "world_size": 2}, anyway=anyway, say=said.append)
    assert said == []
