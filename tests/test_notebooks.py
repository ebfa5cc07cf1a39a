"""Notebooks: they run offline from a copy of data/, and say what their committed outputs say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import notebooks
import pytest

pytest.importorskip("matplotlib")
nbformat = pytest.importorskip("nbformat", reason="no nbformat here; pip install 'bioxfer[test]'")
for needed in ("nbclient", "ipykernel"):
    pytest.importorskip(needed, reason=f"no {needed} here; pip install 'bioxfer[test]'")

DATA = Path(__file__).parent.parent / "data"
NAMES = ("first_head", "is_transfer_helping")
_LARGEST = 400_000  # bytes of a notebook
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_FLOAT = 0.03  # processors round otherwise, and a peptide on the border may change sides
_COUNT = 0.05  # of a count
# of a machine: a folder, or an object's place in memory
_PLACE = re.compile(r"/(?:home|root|tmp|usr|opt|work|Users|private|var|mnt)/|[A-Z]:\\|0x[0-9a-f]{6,}")


def read(name: str) -> Any:
    return nbformat.read(DATA / f"{name}.ipynb", as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Any) -> list[str]:
    """What a reader reads below a cell: text that was printed, and results without their tags."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream":
            found.append(output.text)
        elif "text/html" in output.data:
            html = re.sub(r"<style.*?</style>", "", output.data["text/html"], flags=re.S)
            found.append(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)))
        elif "image/png" not in output.data:
            found.append(output.data["text/plain"])
    return found


def differ(old: str, new: str) -> str:
    """Name the first difference in words, or in a number beyond its tolerance; nothing if there is none."""
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return f"{old!r} is now {new!r}"
    for was, now in zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True):
        size = _FLOAT if "." in was else max(2.0, _COUNT * abs(float(was)))
        if abs(float(was) - float(now)) > size:
            return f"{was} is now {now} in {new!r}"
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebooks_are_whole_and_small(name):
    path = DATA / f"{name}.ipynb"
    assert path.stat().st_size < _LARGEST
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs or "def " in cell.source for cell in cells)
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 1
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds <= {"stream", "execute_result", "display_data"}
    assert all(output.get("name") != "stderr" for cell in cells for output in cell.outputs)
    for cell in notebook.cells:
        for text in (cell.source, *(texts(cell) if cell.cell_type == "code" else ())):
            assert not _PLACE.search(text), text


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_run_offline_and_find_what_they_found(name, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in DATA.iterdir():
        if path.suffix != ".md":
            shutil.copy(path, folder)
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    before = {path.name for path in folder.iterdir()}
    fresh = notebooks.execute(folder / f"{name}.ipynb")
    assert {path.name for path in folder.iterdir()} == before
    for old, new in zip(code(read(name)), code(fresh), strict=True):
        assert new.execution_count == old.execution_count
        for was, now in zip(texts(old), texts(new), strict=True):
            assert not differ(was, now)
        drawn = [[sorted(o.get("data", {})) for o in cell.outputs] for cell in (old, new)]
        assert drawn[0] == drawn[1]


def test_what_is_printed_in_pieces_is_one_text(tmp_path):
    """A kernel under load sends a line and its end as two messages."""
    pieces = (
        "import time\nfor text in 'one', ' line', '\\n':\n"
        "    print(text, end='', flush=True)\n    time.sleep(0.5)"
    )
    path = tmp_path / "pieces.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(pieces)]), path)
    assert texts(code(notebooks.execute(path))[0]) == ["one line\n"]


def test_differences_are_seen():
    assert not differ("helped, +0.051 of 762", "helped, +0.049 of 761")
    assert "helped" in differ("helped, +0.051", "no difference, +0.051")
    assert "0.151" in differ("accuracy 0.151", "accuracy 0.101")
    assert "100" in differ("100 peptides", "90 peptides")


def test_the_peptides_are_as_their_page_says():
    """Ids are those of the labels, each peptide is there once, and all are natural residues."""
    import bioxfer

    records = bioxfer.read_sequences(DATA / "peptides.fasta")
    labels = dict(line.split(",") for line in (DATA / "peptides.csv").read_text().splitlines()[1:])
    assert [record.id for record in records] == list(labels)
    assert sorted(labels.values()) == ["antimicrobial"] * 800 + ["other"] * 800
    cancer = bioxfer.read_sequences(DATA / "anticancer.csv")
    assert len(cancer) == 826
    for rows in (records, cancer):
        assert len({record.sequence for record in rows}) == len(rows)
        assert set("".join(record.sequence for record in rows)) <= set("ACDEFGHIKLMNPQRSTVWY")
    assert all(10 <= len(record.sequence) <= 60 for record in records)
    both = {record.sequence for record in records} & {record.sequence for record in cancer}
    told = (DATA / "README.md").read_text(encoding="utf-8")
    assert f"{len(both)} peptides are in both" in told
