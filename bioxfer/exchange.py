"""Read stored embeddings, and convert them from one kind of file to another.

A file's kind is told by its suffix, as `bioxfer.vectors` writes them; a folder is one of fair-esm's. Heads
read only vectors of their own backbone (its fingerprint), so none reads those of other tools; any estimator
of scikit-learn does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from bioxfer.containers.fairesm import CUT_AT, open_fairesm
from bioxfer.containers.h5ad import open_h5ad
from bioxfer.containers.hdf5 import accession_of, open_hdf5
from bioxfer.containers.npz import open_npz
from bioxfer.containers.parquet import open_parquet
from bioxfer.containers.stored import RESIDUES, UNKNOWN, Stored, mean_of, to_means
from bioxfer.containers.tables import open_table
from bioxfer.embedding import EmbeddedRecord
from bioxfer.embeddings import Embeddings
from bioxfer.engine import Vector
from bioxfer.errors import DuplicateIdError, FormatError, InputError, UsageError
from bioxfer.ids import SeenIds
from bioxfer.io import iter_sequences
from bioxfer.lines import table_suffix
from bioxfer.output import check_output
from bioxfer.pooling import parse_pool
from bioxfer.sequences import SequenceRecord, clean_protein
from bioxfer.vectors import check_vector_format, write_vectors

__all__ = ["convert_embeddings", "open_embeddings", "read_embeddings"]

logger = logging.getLogger(__name__)

_NAMED = 3  # ids listed in a message before it says "..."


@contextlib.contextmanager
def open_embeddings(
    path: str | os.PathLike[str], *, layer: int | None = None, pool: str | None = None
) -> Iterator[Stored]:
    """Open stored embeddings; their records are read as they are asked for.

    Parameters
    ----------
    path : path
        ``.npz``, ``.h5``, ``.hdf5``, ``.h5ad``, ``.parquet``, ``.csv``, ``.tsv`` (compressed, too), or a
        folder of fair-esm's ``.pt`` files.
    layer : int, optional
        Of a folder that holds several.
    pool : str, optional
        What to read where there are several: ``mean``, ``cls`` (or ``bos``), ``residues``; ``mean`` of a
        file of residues is made of these.

    Raises
    ------
    InputError
        If there is no such file, or it is of no known kind; `FormatError` if it is damaged,
        `DuplicateIdError` if two records have one id.
    UsageError
        If a layer or pooling is to be chosen, or is not there.
    """
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    if not os.path.exists(name):
        raise InputError(f"no such file or folder: {name}; check the name")
    with contextlib.ExitStack() as stack:
        if os.path.isdir(name):
            stored = stack.enter_context(open_fairesm(name, layer=layer, pool=pool))
        elif suffix == ".npz":
            stored = stack.enter_context(open_npz(name))
        elif suffix == ".h5ad":
            stored = stack.enter_context(open_h5ad(name))
        elif suffix in (".h5", ".hdf5"):
            stored = stack.enter_context(open_hdf5(name))
        elif suffix == ".parquet":
            stored = stack.enter_context(open_parquet(name))
        elif table_suffix(name):
            stored = stack.enter_context(open_table(name))
        else:
            remedy = "give the folder it lies in" if suffix == ".pt" else "choose one of these"
            raise InputError(
                f"{name}: embeddings are read from .npz, .h5, .h5ad, .parquet, .csv, .tsv and folders of .pt "
                f"files; {remedy}"
            )
        if layer is not None and (told := stored.facts.get("layer")) != layer:
            what = "does not tell its layer" if told is None else f"is of layer {told}, not {layer}"
            raise UsageError(f"{name}: {what}; leave --layer out")
        pool = "cls" if pool == "bos" else pool
        if pool == "mean" and stored.pool == RESIDUES:
            stored = to_means(stored)
        if pool not in (None, stored.pool):
            raise UsageError(f"{name}: holds {stored.pool}, not {pool}; leave --pool out")
        # Those that are found by their ids are looked at as they are read.
        yield stored if stored.find is not None else replace(stored, rows=partial(_once, stored))


def _once(stored: Stored) -> Iterator[EmbeddedRecord]:
    """Read the records, and refuse a second one of an id."""
    with SeenIds() as seen:
        for number, row in enumerate(stored.rows(), start=1):
            if (first := seen.line_of(row.record.id)) is not None:
                raise DuplicateIdError(
                    f"{stored.source}: records {first} and {number} have the id {row.record.id!r}; every "
                    "protein needs its own"
                )
            seen.add(row.record.id, number)
            yield row


def read_embeddings(
    path: str | os.PathLike[str], *, layer: int | None = None, pool: str | None = None
) -> Embeddings:
    r"""Read stored embeddings, ours or those of other tools.

    Parameters
    ----------
    path : path
        What `bioxfer embed` wrote (``.npz``, ``.h5``, ``.h5ad``, ``.parquet``, ``.csv``, ``.tsv``), a ``.h5``
        of UniProt, biotrainer or bio_embeddings, or a folder of fair-esm's ``.pt`` files.
    layer : int, optional
        Of a folder that holds several.
    pool : {"mean", "cls", "bos", "residues"}, optional
        Of a folder that holds several; ``mean`` of a file of residues is made of these.

    Returns
    -------
    Embeddings
        One row for each record, in the file's order; a folder's by label. Of a file of residues, ``vectors``
        are their means. A length or layer that the file does not tell is -1, a model ``unknown``.

    Raises
    ------
    BioxferError
        As `open_embeddings` raises; nothing is ever unpickled, and no other file opened.

    Examples
    --------
    >>> import bioxfer as bx
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "v.csv")
    ...     size = path.write_text("id,length,status,message,mean_0\na,5,ok,,0.5\nb,0,skipped,empty,\n")
    ...     found = bx.read_embeddings(path)
    >>> found.ids, found.statuses, found.vectors[0].tolist()
    (['a', 'b'], ['ok', 'skipped'], [0.5])
    """
    with open_embeddings(path, layer=layer, pool=pool) as stored:
        per_residue = stored.pool == RESIDUES
        rows = list(stored.rows())
        joined = "mean" if per_residue else stored.pool
        width = stored.width * len(parse_pool(joined))
        vectors = np.full((len(rows), width), np.nan, dtype=np.float32)
        for place, row in enumerate(rows):
            vector = row.vector(joined) if row.residues is None else mean_of(row.residues)
            if vector is not None:
                vectors[place] = vector
            row.pooled = None
        return Embeddings(
            ids=[row.record.id for row in rows],
            lengths=[row.length for row in rows],
            statuses=[row.status for row in rows],
            messages=[row.message for row in rows],
            vectors=vectors,
            model=str(stored.facts.get("model", "unknown")),
            layer=int(stored.facts.get("layer", UNKNOWN)),
            pool=joined,
            fingerprint=str(stored.facts.get("fingerprint", "")),
            residues=[row.residues for row in rows] if per_residue else None,
        )


def convert_embeddings(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layer: int | None = None,
    pool: str | None = None,
    fasta: str | os.PathLike[str] | None = None,
    excel_safe: bool = False,
    overwrite: bool = True,
    progress: Callable[[int], object] | None = None,
) -> Counter[str]:
    """Write stored embeddings as another kind of file; rows stream from one to the other.

    Parameters
    ----------
    source : path
        What `open_embeddings` opens.
    out : path
        What `write_vectors` writes; ``-`` is a CSV to standard output.
    layer, pool : optional
        See `open_embeddings`.
    fasta : path, optional
        Sequences whose order and lengths to take, one row for each. One whose id is not there gets a row with
        status ``skipped``; an entry that is no sequence's is left out, and the log says how many. Where an
        id is not there, UniProt's accession of it may be.
    excel_safe, overwrite : bool, optional
        See `write_vectors`.
    progress : callable, optional
        Called with 1 for each row.

    Returns
    -------
    Counter
        Records by status.

    Raises
    ------
    InputError
        If the source or the FASTA cannot be read, or they do not belong together.
    BioxferError
        As `open_embeddings` and `write_vectors` raise.
    """
    given = [source, *([] if fasta is None else [fasta])]
    check_output(out, inputs=[each for each in given if os.path.isfile(each)], overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        stored = stack.enter_context(open_embeddings(source, layer=layer, pool=pool))
        per_residue = stored.pool == RESIDUES
        check_vector_format(out, per_residue=per_residue)
        rows = stored.rows() if fasta is None else _in_order(stored, fasta, stack)
        if not stored.width:
            first = next(rows, None)
            if first is not None:
                raise FormatError(f"{stored.source}: holds no vector, so there is nothing to convert")

        def counted() -> Iterator[EmbeddedRecord]:
            unknown = 0
            for row in rows:
                unknown += row.length == UNKNOWN
                yield row
                if progress is not None:
                    progress(1)
            if unknown:
                logger.warning(
                    "%s does not tell the length of %d protein%s; --fasta fills it in",
                    *(stored.source, unknown, "" if unknown == 1 else "s"),
                )

        facts = stored.facts | {"pool": stored.pool}
        return write_vectors(
            out,
            counted(),
            pool="mean" if per_residue else stored.pool,
            width=stored.width,
            facts=facts,
            per_residue=per_residue,
            origins=stored.origins and fasta is None,
            excel_safe=excel_safe,
            overwrite=overwrite,
        )


def _in_order(
    stored: Stored, fasta: str | os.PathLike[str], stack: contextlib.ExitStack
) -> Iterator[EmbeddedRecord]:
    """Read the records in the order of a FASTA."""
    if os.fspath(fasta) == "-" or (os.path.exists(fasta) and not os.path.isfile(fasta)):
        raise InputError("the file of --fasta is read twice, which a stream does not allow; name a file")
    places: dict[str, str]
    if stored.find is not None and stored.read is not None:
        places, read = dict(stored.find()), stored.read
    else:
        shelf = stack.enter_context(contextlib.closing(_Shelf(stored)))
        places, read = {name: name for name in shelf.rows}, shelf.read
    if not places:
        raise InputError(f"{stored.source}: holds no records, so none is in {os.fspath(fasta)}")
    accessions = Counter(map(accession_of, places))
    by_accession = {accession_of(name): name for name in places if accessions[accession_of(name)] == 1}
    ids = [record.id for record in iter_sequences(fasta)]
    used: dict[str, str] = {}
    entries: dict[str, str] = {}
    for identifier in ids:
        entry = identifier if identifier in places else by_accession.get(accession_of(identifier))
        if entry is not None:
            other = used.setdefault(entry, identifier)
            if other != identifier:
                raise DuplicateIdError(
                    f"{os.fspath(fasta)}: {other!r} and {identifier!r} are both the entry {entry!r} of "
                    f"{stored.source}; keep one of them"
                )
            entries[identifier] = entry
    left = [name for name in places if name not in used]
    if ids and not used:
        raise InputError(
            f"none of the {len(ids)} ids of {os.fspath(fasta)} is in {stored.source}: there they are "
            f"{_some(left)}, here {_some(ids)}; ids must be equal letter by letter"
        )
    if left:
        logger.warning(
            "%d of %d entries of %s are not in %s and left out (%s)",
            len(left),
            len(places),
            stored.source,
            os.fspath(fasta),
            _some(left),
        )
    return (
        _with_sequence(stored, record, None if (key := entries.get(record.id)) is None else read(places[key]))
        for record in iter_sequences(fasta)
    )


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def _with_sequence(stored: Stored, record: SequenceRecord, row: EmbeddedRecord | None) -> EmbeddedRecord:
    """Give a record the id and length that its FASTA tells."""
    length = len(clean_protein(record, degap=True).residues)
    if row is None:
        note = f"not in {os.path.basename(os.path.normpath(stored.source))}"
        return EmbeddedRecord(record, length, "skipped", note)
    known = row.length if row.residues is None or row.status == "truncated" else len(row.residues)
    row.record = replace(row.record, id=record.id)
    if known > length or (known < length and known != UNKNOWN and row.status not in ("ok", "skipped")):
        raise InputError(
            f"{record.place}: has {length} residues, but {known} in {stored.source}; those are another's"
        )
    if known not in (length, UNKNOWN) and row.status == "ok":
        row.status = "truncated"
        row.message = "; ".join(filter(None, (row.message, f"{known} of {length} residues are represented")))
    elif known == UNKNOWN and length > CUT_AT and os.path.isdir(stored.source) and row.status == "ok":
        row.message = f"{length} residues, of which fair-esm's extract.py may have read {CUT_AT} alone"
    row.length = length
    return row


@dataclass(slots=True)
class _Kept:
    row: EmbeddedRecord
    offset: int
    shape: tuple[int, ...]


class _Shelf:
    """Records of a file that can be read only from its start; their numbers lie in a temporary file."""

    def __init__(self, stored: Stored) -> None:
        # Unnamed, so that nothing of it is left whatever happens.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._pool = stored.pool
        self.rows: dict[str, _Kept] = {}
        for row in stored.rows():
            numbers = row.residues if row.pooled is None else row.vector(self._pool)
            offset = self._file.tell()
            if numbers is not None:
                self._file.write(np.ascontiguousarray(numbers).data)
            row.residues = row.pooled = None
            self.rows[row.record.id] = _Kept(row, offset, () if numbers is None else numbers.shape)

    def read(self, identifier: str) -> EmbeddedRecord:
        """Give a record its numbers again."""
        kept = self.rows[identifier]
        row = replace(kept.row)
        if kept.shape:
            self._file.seek(kept.offset)
            size = int(np.prod(kept.shape)) * np.dtype(np.float32).itemsize
            numbers: Vector = np.frombuffer(self._file.read(size), np.float32).reshape(kept.shape)
            if self._pool == RESIDUES:
                row.residues = numbers
            else:
                parts = parse_pool(self._pool)
                row.pooled = dict(zip(parts, np.split(numbers, len(parts)), strict=True))
        return row

    def close(self) -> None:
        self._file.close()
