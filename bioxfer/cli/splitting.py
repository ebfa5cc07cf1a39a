"""The command that splits by homology, and audits splits."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from bioxfer.cli.options import (
    ClusterBy,
    ClusterByOption,
    Degap,
    Duplicate,
    ExcelSafe,
    GeneticCode,
    Gff,
    Identity,
    InFile,
    MinOrf,
    OnDuplicateOption,
    Overwrite,
    Quiet,
    Seed,
    Threads,
    Translate,
    TranslateOption,
    Verbose,
)
from bioxfer.cli.preparing import as_translation, given_files
from bioxfer.cli.terminal import start_messages
from bioxfer.errors import UsageError

__all__ = ["split_command"]

log = logging.getLogger("bioxfer")


def split_command(
    source: InFile,
    out: Annotated[
        str,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="Table to write: .csv, .tsv, .csv.gz, .tsv.gz, .csv.xz or .parquet; - is CSV to stdout.",
        ),
    ] = "-",
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="CSV/TSV with id,label, whose classes are balanced between the parts; not needed if IN has "
            "a label column. Records without a label are split all the same.",
        ),
    ] = None,
    identity: Identity = 0.3,
    cluster_by: ClusterByOption = ClusterBy.auto,
    valid: Annotated[
        float | None,
        typer.Option(
            "--valid", min=0.0, max=0.99, metavar="SHARE", help="Share of the part valid; 0.15 if not given."
        ),
    ] = None,
    test: Annotated[
        float | None,
        typer.Option(
            "--test",
            min=0.0,
            max=0.99,
            metavar="SHARE",
            help="Share of a part test, which `bioxfer train` never reads.",
        ),
    ] = None,
    dev: Annotated[
        float | None,
        typer.Option(
            "--dev",
            min=0.0,
            max=0.99,
            metavar="SHARE",
            help="Share of a part dev, on which `bioxfer train` then chooses the head.",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option("--folds", min=2, metavar="K", help="Number folds from 1 to K instead."),
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option(
            "--audit",
            metavar="COLUMN",
            help="Split nothing; tell what the split in this column leaks, of the label file or else of IN.",
        ),
    ] = None,
    degap: Degap = False,
    on_duplicate: OnDuplicateOption = Duplicate.error,
    translate: TranslateOption = Translate.off,
    genetic_code: GeneticCode = 1,
    min_orf: MinOrf = 30,
    gff: Gff = None,
    threads: Threads = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    excel_safe: ExcelSafe = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Split proteins so that relatives stay together, or audit a split for leaks.

    One row per record, in input order. Columns: id, label (where there are any), cluster, and split (train,
    dev, valid, test) or fold. `bioxfer train IN --labels FILE --split column` reads the table as it is.
    Relatives are joined into clusters, and no cluster lies in two parts; sizes, class counts and what the
    split leaks are told on standard error.

    With --audit, rows are the held-out proteins that training gives away: id, split, nearest_id,
    nearest_split, identity, coverage, kind (identical; near-identical, from 90% identity over 90%; relative,
    from --identity over half of the shorter protein). Parts that begin with train are training, dev counts
    as known to what comes after it, and folds are held out from one another.
    """
    start_messages(quiet=quiet, verbose=verbose)
    from bioxfer.audits import audit_split, read_parts
    from bioxfer.output import TableWriter, check_output, table_format
    from bioxfer.splitting import describe_partition, read_to_split, split_records

    table_format(out)
    check_output(out, inputs=[source, *given_files([labels, gff])], overwrite=overwrite)
    shares = {"--valid": valid, "--test": test, "--dev": dev}
    for name, given in (shares | {"--folds": folds}).items():
        if audit is not None and given is not None:
            raise UsageError(f"--audit judges a split and makes none; leave {name} out")
        if folds is not None and name != "--folds" and given is not None:
            raise UsageError(f"--folds cuts all proteins into equal parts; leave {name} out")
    if audit is not None and labels is None and source == "-":
        raise UsageError("--audit reads IN twice, which standard input does not allow; name a file")
    translation = as_translation(translate, genetic_code, min_orf, gff, degap=degap)
    records = read_to_split(
        source,
        labels if audit is None else None,
        on_duplicate=on_duplicate.value,
        translation=translation,
    )
    if audit is not None:
        parts = read_parts(source if labels is None else labels, audit, records)
        judged = audit_split(
            records, parts, identity=identity, cluster_by=cluster_by.value, degap=degap, threads=threads
        )
        with TableWriter(
            out,
            ["id", "split", "nearest_id", "nearest_split", "identity", "coverage", "kind"],
            overwrite=overwrite,
            excel_safe=excel_safe,
        ) as table:
            table.write(judged.rows())
        _tell(judged.describe())
        return
    partition = split_records(
        records,
        folds=folds,
        valid=0.15 if valid is None else valid,
        test=test or 0.0,
        dev=dev or 0.0,
        identity=identity,
        cluster_by=cluster_by.value,
        degap=degap,
        seed=seed,
        threads=threads,
    )
    columns: dict[str, list[str]] = {"id": [record.id for record in records]}
    if any(record.label for record in records):
        columns["label"] = [record.label or "" for record in records]
    columns |= {"cluster": partition.clusters, partition.column: partition.parts}
    with TableWriter(out, list(columns), overwrite=overwrite, excel_safe=excel_safe) as table:
        table.write(zip(*columns.values(), strict=True))
    _tell(describe_partition(partition, records))
    judged = audit_split(
        records, partition.parts, identity=identity, cluster_by=cluster_by.value, degap=degap, threads=threads
    )
    _tell(judged.describe())


def _tell(text: str) -> None:
    for line in text.splitlines():
        log.info("%s", line)
