import errno
from pathlib import Path

import pytest

from utils.checkpoints import begin, full_disk_explained, newest, to_resume


def make(directory: Path, *steps: int, cut: int | None = None) -> None:
    for step in steps:
        (directory / f"checkpoint-{step}").mkdir()
        if step != cut:
            (directory / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")


def test_the_newest_is_by_number_and_whole(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    make(tmp_path, 5, 20, 100, cut=100)
    assert newest(tmp_path) == tmp_path / "checkpoint-20"


def test_which_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    assert to_resume(tmp_path, None, {}) is None
    with pytest.raises(ValueError, match="holds no whole checkpoint; --overwrite starts anew"):
        to_resume(tmp_path, "", {})
    make(tmp_path, 5, 9, cut=9)
    assert to_resume(tmp_path, "", {}) == tmp_path / "checkpoint-5"
    assert to_resume(tmp_path, str(tmp_path / "checkpoint-5"), {}) == tmp_path / "checkpoint-5"
    with pytest.raises(ValueError, match="checkpoint-9: no trainer_state.json, so not a whole checkpoint"):
        to_resume(tmp_path, str(tmp_path / "checkpoint-9"), {})


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_explained_and_the_cut_checkpoint_removed(tmp_path: Path, error: Exception) -> None:
    make(tmp_path, 5, 9, cut=9)
    with (
        pytest.raises(
            OSError, match=r"is full \(.* free; a checkpoint takes about 3 MB\).*checkpoint-5 is whole: make room"
        ),
        full_disk_explained(tmp_path, 3 * 1024 * 1024),
    ):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_full_disk_before_the_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no checkpoint was finished"), full_disk_explained(tmp_path, 1):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    make(tmp_path, 9, cut=9)
    with pytest.raises(ValueError, match="^else$"), full_disk_explained(tmp_path, 1):
        raise ValueError("else")
    assert (tmp_path / "checkpoint-9").is_dir()


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    plan = {"peft_type": "lora", "lora_r": 8, "lora_target_modules": ["q_proj"]}
    begin(tmp_path, plan, overwrite=False)
    assert to_resume(tmp_path, "", plan) == tmp_path / "checkpoint-5"
    for change, message in (
        ({**plan, "lora_r": 4}, "it was trained with --lora_r 8, now it is 4: give the same"),
        ({"peft_type": "prompt", "num_virtual_tokens": 20}, "trained with --peft_type lora, now it is prompt"),
        ({**plan, "pissa_niter": 16}, "trained with --pissa_niter None, now it is 16"),
    ):
        with pytest.raises(ValueError, match=message):
            to_resume(tmp_path, "", change)
