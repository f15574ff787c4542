from typing import Any

from conftest import RECORDS

from utils.encode import encode_rows
from utils.preview import GREEN, histogram, marked
from utils.readers import Row
from utils.templates import TEMPLATES


def test_trained_tokens_are_marked(tokenizer: Any) -> None:
    row = Row(record=RECORDS[1], origin="records.json row 2")
    (encoded,), _, _ = encode_rows([row], TEMPLATES["alpaca"], tokenizer, cutoff_len=512, truncation="drop")
    plain = marked(encoded, tokenizer, color=False)
    assert plain.startswith(
        f"── records.json row 2 · {len(encoded.input_ids)} tokens, {encoded.num_targets} trained\n<s>"
    )
    assert plain.endswith("### Response:⟦Hello, world 🌏</s>⟧")
    assert "你好，世界 🌏" in plain
    coloured = marked(encoded, tokenizer, color=True)
    assert f"{GREEN}Hello, world 🌏</s>" in coloured
    assert "⟦" not in coloured


def test_the_histogram_counts_every_row() -> None:
    lines = histogram([5, 5, 6, 40, 100], bins=4)
    assert sum(int(line.split()[1].replace(",", "")) for line in lines) == 5
    assert max(lines, key=lambda line: line.count("█")) == lines[0]
    assert lines[-1].split()[0].endswith("100")


def test_one_length() -> None:
    (line,) = histogram([7, 7])
    assert line.split()[:2] == ["7–7", "2"]
