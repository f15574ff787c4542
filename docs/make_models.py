"""Makes the page of the model families out of the rows in utils/models/rows.py.

python3 docs/make_models.py               # writes models.md beside this script
python3 docs/make_models.py --out /tmp/x  # or elsewhere
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.families_page import page
from utils.models import MODELS


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make docs/models.md from the rows of the model registry.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "models.md"
    path.write_text(page(MODELS), encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
