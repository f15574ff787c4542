from pathlib import Path

from huggingface_hub import ModelCard
from test_runinfo import make_run

from utils import plots, report, runinfo


def test_the_plot_is_a_png_of_both_curves(tmp_path: Path) -> None:
    log = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0},
        {"step": 2, "eval_loss": 1.5},
        {"step": 2, "train_runtime": 1},
    ]
    plots.loss(log, tmp_path / "loss.png", "tiny on cot")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_publishing_writes_run_json_last_and_names_everything(tmp_path: Path) -> None:
    (tmp_path / "training_log.jsonl").write_text('{"step": 1, "loss": 2.0}\n\n{"step": 2, "loss": 1.0}\n')
    lines = report.publish(make_run(), tmp_path)
    assert lines[0].startswith(
        "adapter verified: 4 tensors read back into a fresh base; largest logit difference 0.0e+00"
    )
    assert lines[1] == "train_loss 0.5000  (9 trained tokens in 1:05)"
    assert lines[-1] == f"ask it: python3 generate.py --lora_dir {tmp_path} --greedy"
    assert runinfo.read(tmp_path) == make_run()
    assert (tmp_path / "loss.png").is_file()


def test_the_card_says_what_was_trained_on_what() -> None:
    card = report.model_card(make_run())
    assert ModelCard(card).data.to_dict() == {
        "base_model": "some/base",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "alpaca-cot"],
    }
    assert f"| alpaca | 3 | not stated | `{'0' * 64}` |" in card
    assert "- alpaca: 3 rows read, 2 trained on (0 of them copies), 0 held out; 5 of 20 tokens carry loss" in card
    assert "- alpaca, dropped: 1: an answer is empty" in card
    assert "- a note" in card
    assert "template `alpaca`, sha256 `0123456789abcdef…`" in card
    assert "- train_loss: 0.5" in card
    assert "| model_type | llama |" in card
