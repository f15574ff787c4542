"""Makes the pictures of the page in docs/web.md and the READMEs out of what it shows today, in a real browser.

    python3 docs/make_page_pictures.py --lora_dir saved_models/my_run               # docs/web_*.png
    python3 docs/make_page_pictures.py --lora_dir saved_models/my_run --out /tmp/x  # elsewhere

The run is one of the bundled base on `cot_sample`. It needs requirements-dev.txt and Chromium (`apt install chromium`).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
WIDTH = 1120


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The address of a web.py of its own."""
    command = [
        sys.executable,
        str(ROOT / "web.py"),
        "--lora_dir",
        str(run.resolve()),
        "--port",
        "0",
        "--greedy",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    yield f"{found.group()}/"
                    break
            else:
                sys.exit("web.py ended without saying where it listens")
        finally:
            process.terminate()


def chat(tab: Any) -> None:
    tab.locator("#chat-question textarea").fill(
        "Start with the number 2. Add 1. Then add 4 more. In which digit does the result end?"
    )
    tab.locator("#chat-question textarea").press("Enter")
    tab.locator("#chat-status", has_text="tokens/s").wait_for()


def compare(tab: Any) -> None:
    tab.locator("#compare-question textarea").fill(
        "The dial shows 3. Turn it up 4. Turn it down 6. Which digit does the dial show now?"
    )
    tab.locator("#compare-steps input").check()
    tab.locator("#compare-send").click()
    tab.get_by_text("tokens/s").nth(3).wait_for()  # two models, asked twice


def data(tab: Any) -> None:
    for _ in range(2):
        tab.locator("#data-after").click()
        tab.wait_for_timeout(500)
    tab.get_by_text("cot_sample 第 3 条").wait_for()
    tab.get_by_text("回答的语言").wait_for()


# Name, language, height and what is done; a tab has the name of its picture.
PICTURES = (("chat", "en", 640, chat), ("compare", "en", 1000, compare), ("data", "zh", 960, data))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the pictures of the page.")
    parser.add_argument("--lora_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    flags = parser.parse_args(argv)

    from playwright.sync_api import sync_playwright

    from utils.page.texts import say

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with served(flags.lora_dir) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, language, height, act in PICTURES:
            tab = browser.new_page(viewport={"width": WIDTH, "height": height}, locale=language)
            tab.goto(f"{address}?lang={language}")
            tab.locator("#chat-send", has_text=say("do.send", language)).wait_for()
            tab.get_by_role("tab", name=say(f"tab.{name}", language), exact=True).click()
            act(tab)
            tab.screenshot(path=flags.out / f"web_{name}.png")
            print(flags.out / f"web_{name}.png")
            tab.close()
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
