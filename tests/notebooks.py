"""Executes notebooks: for the tests in a copy, and in place by ``make notebooks``.

python tests/notebooks.py data/first_head.ipynb ...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

TIMEOUT = 900  # seconds of a cell; on an idle machine the slowest takes about 20


def execute(path: Path) -> Any:
    """Run all cells in a kernel of this Python, in the notebook's folder, with no network allowed.

    Returns
    -------
    nbformat.NotebookNode
        With fresh outputs, and nothing that differs between two equal runs (times, names of cells).
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,  # the kernel cuts what is printed into messages as its clock says
    )
    client.execute(env={**os.environ, "BIOXFER_OFFLINE": "1", "MPLBACKEND": "agg"})
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}  # not the version of whoever ran it
    return notebook


def main() -> None:
    import nbformat

    for name in sys.argv[1:]:
        notebook = execute(Path(name).resolve())
        nbformat.write(notebook, name)
        print(name)


if __name__ == "__main__":
    main()
