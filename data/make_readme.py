"""Makes the page of the catalogue and its pictures out of data/datasets.toml.

python3 data/make_readme.py               # writes README.md and the two PNGs beside this script
python3 data/make_readme.py --out /tmp/x  # or elsewhere
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.catalog import read_catalog
from utils.catalog_page import bubble, page, pie


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make data/README.md and the plots of sizes from the catalogue.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        catalog = read_catalog()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "README.md").write_text(page(catalog), encoding="utf-8")
    bubble(catalog, args.out / "sizes_bubble.png")
    pie(catalog, args.out / "sizes_pie.png")
    for name in ("README.md", "sizes_bubble.png", "sizes_pie.png"):
        print(args.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
