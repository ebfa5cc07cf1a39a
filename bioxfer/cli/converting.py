"""The command that turns stored embeddings into another kind of file: convert."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from bioxfer.cli.options import ExcelSafe, Overwrite, Quiet, Verbose
from bioxfer.cli.terminal import report_records, show_progress, start_messages

__all__ = ["convert_command"]


class StoredPool(str, Enum):
    """What of a protein's embeddings to take."""

    mean = "mean"
    bos = "bos"
    residues = "residues"


def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A folder of fair-esm's .pt files, a .h5 of UniProt, biotrainer or bio_embeddings, or what "
            "embed wrote: .h5, .h5ad, .npz, .parquet, .csv, .tsv.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="File to write: .h5, .h5ad, .npz, .parquet, .csv, .tsv, .csv.gz, .tsv.gz or .csv.xz; - is "
            "CSV to stdout. One vector per residue goes to .h5, .npz or .parquet.",
        ),
    ],
    layer: Annotated[
        int | None,
        typer.Option("--layer", metavar="N", help="Layer to take, where the .pt files hold several."),
    ] = None,
    pool: Annotated[
        StoredPool | None,
        typer.Option(
            "--pool",
            help="What to take, where the .pt files hold several: mean vectors, those of the token before "
            "the first residue (cls here), or one for each residue. mean of a file of residues averages it.",
        ),
    ] = None,
    fasta: Annotated[
        str | None,
        typer.Option(
            "--fasta",
            metavar="FILE",
            help="Sequences whose order and lengths to take: one row for each, skipped if it is not in IN; "
            "what is in IN alone is left out. Without it the order is IN's, of a folder that of the labels.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    excel_safe: ExcelSafe = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn stored embeddings into another kind of file.

    Rows stream from IN to FILE, with their ids, lengths, statuses and messages where IN has them. A head
    reads only vectors of its own backbone; other estimators read any, through bioxfer.read_embeddings.
    """
    start_messages(quiet=quiet, verbose=verbose)
    from bioxfer.exchange import convert_embeddings

    with show_progress(quiet=quiet) as progress:
        statuses = convert_embeddings(
            source,
            out,
            layer=layer,
            pool=None if pool is None else pool.value,
            fasta=fasta,
            excel_safe=excel_safe,
            overwrite=overwrite,
            progress=progress,
        )
    report_records(statuses, source=source, out=out)
