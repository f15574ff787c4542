import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from conftest import REPOSITORY

from utils.families_page import page
from utils.models import MODELS, MOVED


def row(text: str, name: str) -> list[str]:
    """The cells of a family's line in the first table."""
    (line,) = [line for line in text.split("## Sizes")[0].split("\n") if line.startswith(f"| `{name}` |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_committed_page_is_the_registrys() -> None:
    written = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
    assert written == page(MODELS), "run python3 docs/make_models.py"


def test_every_family_has_a_line_with_its_facts() -> None:
    text = page(MODELS)
    for name, spec in MODELS.items():
        cells = row(text, name)
        assert cells[2:6] == [
            f"`{spec.template}`",
            " ".join(f"`{target}`" for target in spec.lora_target_modules),
            spec.attention,
            ", ".join(map(str, spec.quantization_bits)),
        ]
        assert all(f"`{native}`" in cells[1] for native in spec.native)
        assert cells[-2:] == [spec.license, spec.note]


def test_every_size_has_a_line_that_links_to_its_checkpoint() -> None:
    sizes = page(MODELS).split("## Sizes")[1].split("\n")
    for name, spec in MODELS.items():
        lines = [line for line in sizes if line.startswith(f"| `{name}` |")]
        assert len(lines) == len(spec.checkpoints)
        assert all(line.endswith(f"| {'gated' if spec.gated else ''} |") for line in lines)
        for size, checkpoint in spec.checkpoints.items():
            link = f"[{checkpoint}](https://huggingface.co/{checkpoint})" if name != "tiny" else "`assets/tiny_base`"
            assert any(f"| `{size}` | {link} |" in line for line in lines)


def test_no_place_of_this_machine_is_on_the_page() -> None:
    assert str(REPOSITORY) not in page(MODELS)


def test_what_needs_its_own_code_says_why_and_what_does_not_is_not_listed() -> None:
    text = page(MODELS)
    remote = {name: spec for name, spec in MODELS.items() if spec.remote_code}
    listed = [line for line in text.split("\n") if line.startswith("- `")]
    assert listed == [f"- `{name}`: {spec.remote_code}." for name, spec in remote.items()]
    assert {row(text, name)[1] for name in remote} == {"its own code only"}


def test_ids_that_are_gone_stand_beside_what_holds_their_weights() -> None:
    text = page(MODELS)
    for old, new in MOVED.items():
        assert f"| `{old}` | [{new}](" in text


def test_a_cell_cannot_break_a_table() -> None:
    lines = page(MODELS).split("\n")
    pipes = {line.count("|") for line in lines if line.startswith("| `")}
    assert pipes == {11, 5, 3}


def test_no_families_make_a_page_and_other_words_are_shown_as_they_are() -> None:
    assert "| family |" in page({})
    assert "own code" not in page({})
    text = page({"羊驼": replace(MODELS["llama"], note="骆驼 🦙", gated=True)})
    assert row(text, "羊驼")[-1] == "骆驼 🦙"
    assert "| `羊驼` | `65b` | [huggyllama/llama-65b](https://huggingface.co/huggyllama/llama-65b) | gated |" in text


def test_the_script_writes_the_page(tmp_path: Path) -> None:
    script = REPOSITORY / "docs" / "make_models.py"
    command = [sys.executable, str(script), "--out", str(tmp_path / "新 x")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str(tmp_path / "新 x" / "models.md")
    assert (tmp_path / "新 x" / "models.md").read_text(encoding="utf-8") == page(MODELS)
