"""Runs quickstart.ipynb from its first cell to its last, and stores what the cells show.

python3 examples/execute_quickstart.py    # some minutes on a CPU; in an environment with requirements-dev.txt

Paths that the scripts print are stored, too: run it in a place whose path may be read by anyone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")


def executed(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in `folder`; the first cell that fails ends it.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message quotes the cell and its output.
    """
    content = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        content,
        timeout=None,
        kernel_name="python3",  # of this Python, whatever the notebook was last opened with
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def main() -> int:
    nbformat.write(executed(NOTEBOOK, NOTEBOOK.parent), NOTEBOOK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
