"""A study's report as Markdown and as one HTML file that needs no other.

Knows: files, and the templates beside this module, which make both pages from the same tables. Does not know what a
table says (`tables`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils import outputs
from utils.studies import pictures, tables
from utils.studies.pictures import CELLS, CURVES

JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"
TEMPLATES = Path(__file__).parent


def publish(findings: Mapping[str, Any], directory: Path) -> list[Path]:
    """Writes the JSON, both pictures and both pages to `directory`, each whole or not at all."""
    with outputs.atomic(directory / JSON) as file:
        file.write(json.dumps(findings, indent=1, ensure_ascii=False) + "\n")
    pictures.draw(findings, directory)
    images = {name: directory / name for name in (CELLS, CURVES)}
    for name, sources in (
        (MARKDOWN, {key: path.name for key, path in images.items()}),
        (HTML, {key: _embedded(path) for key, path in images.items()}),
    ):
        with outputs.atomic(directory / name) as file:
            file.write(page(findings, f"{name}.jinja", sources))
    return [directory / name for name in (MARKDOWN, HTML, JSON)]


def page(findings: Mapping[str, Any], template: str, images: Mapping[str, str]) -> str:
    """One page; `images`: by picture, what stands for it in the page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=".html" in template,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    environment.globals["zip"] = zip
    return environment.get_template(template).render(**tables.tables(findings), images=images)


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table, or in a line."""
    return " ".join(text.replace("|", "\\|").split())
