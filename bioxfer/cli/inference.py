"""The commands that use what is trained: predict and embed."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated

import typer

from bioxfer.cli.options import (
    BatchTokens,
    Degap,
    Device,
    Duplicate,
    ExcelSafe,
    GeneticCode,
    Gff,
    HeadsModel,
    InFile,
    Invalid,
    Layer,
    LongOption,
    LongProteins,
    MinOrf,
    Model,
    Offline,
    OnDuplicateOption,
    OnInvalidOption,
    OutTable,
    Overwrite,
    Pool,
    Precision,
    PrecisionOption,
    Quiet,
    ReportFile,
    Resume,
    TableShape,
    Threads,
    Translate,
    TranslateOption,
    Verbose,
)
from bioxfer.cli.preparing import (
    as_translation,
    backbone_loader,
    check_report_file,
    given_files,
    open_cache,
)
from bioxfer.cli.terminal import report_records, show_progress, start_messages

__all__ = ["embed_command", "predict_command"]


def predict_command(
    source: InFile,
    out: OutTable,
    head: Annotated[
        list[str] | None,
        typer.Option(
            "--head",
            metavar="HEAD",
            help="Name of a ready head, or a head file; may be repeated. All ready heads if not given.",
        ),
    ] = None,
    model: HeadsModel = None,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Add one column per class to a wide table, except for heads for residues; a head that says "
            "unknown fills them too.",
        ),
    ] = False,
    coverage: Annotated[
        float | None,
        typer.Option(
            "--coverage",
            metavar="SHARE",
            help="Add a column with the labels among which the true one is in this share of proteins like "
            "the training data, such as 0.9; of a number two, its least and largest value. Where no --head "
            "is given, heads that cannot make such sets go without.",
        ),
    ] = None,
    shape: Annotated[
        TableShape,
        typer.Option(
            "--format",
            help="One row per protein; or one per protein, head and class (of heads for residues, one per "
            "residue).",
        ),
    ] = TableShape.wide,
    report: ReportFile = None,
    device: Device = "cpu",
    threads: Threads = None,
    precision: PrecisionOption = Precision.fp32,
    batch_tokens: BatchTokens = None,
    long: LongOption = LongProteins.window,
    on_invalid: OnInvalidOption = Invalid.x,
    on_duplicate: OnDuplicateOption = Duplicate.error,
    degap: Degap = False,
    translate: TranslateOption = Translate.off,
    genetic_code: GeneticCode = 1,
    min_orf: MinOrf = 30,
    gff: Gff = None,
    resume: Resume = True,
    overwrite: Overwrite = False,
    offline: Offline = False,
    excel_safe: ExcelSafe = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Predict with trained heads, such as the structure class or the place in the cell of every protein.

    One row per record, in input order. Columns: id, length, status (ok, windowed, truncated, skipped,
    failed), message; with --translate or --gff also source, strand, start, end, frame and genetic_code; then,
    for each head, its label, the calibrated score, the nearest training protein
    with its cosine similarity, and a flag (in-domain or far); with --coverage also its label set, likeliest
    first. A long table has head, rank, label and score
    instead; where a head says unknown, that is a row of rank 0, without a score, before its classes. The
    label of a head for residues has one character per residue, or one number, separated by spaces (? where
    the end was cut off); its score is the mean over residues, and empty for numbers; a long table then has
    position and residue too.
    """
    start_messages(quiet=quiet, verbose=verbose)
    from bioxfer.io import iter_proteins
    from bioxfer.output import check_output, table_format

    table_format(out)
    check_output(out, inputs=[source, *given_files([*(head or ()), gff])], overwrite=overwrite)
    check_report_file(
        report, others=[source, out, *given_files([model, gff, *(head or ())])], overwrite=overwrite
    )
    translation = as_translation(translate, genetic_code, min_orf, gff)
    records = iter_proteins(source, translation, on_duplicate=on_duplicate.value)
    from bioxfer.prediction import load_heads, name_backbone, write_predictions

    heads = load_heads(head or None)
    noted = None
    if report is not None:
        from bioxfer.report import PredictionReport

        noted = PredictionReport(heads)
    load = backbone_loader(model or name_backbone(heads[0]), device=device, offline=offline, threads=threads)
    with open_cache(resume) as cache, show_progress(quiet=quiet) as progress:
        statuses = write_predictions(
            records,
            out,
            heads,
            load(precision.value),
            shape=shape.value,
            probabilities=probabilities,
            coverage=coverage,
            sets_where_possible=not head,
            long=long.value,
            on_invalid=on_invalid.value,
            degap=degap,
            batch_tokens=batch_tokens,
            cache=cache,
            ahead=os.path.isfile(source),
            fp32=partial(load, "fp32", again=True),
            origins=translation.traced,
            excel_safe=excel_safe,
            overwrite=overwrite,
            progress=progress,
            watch=None if noted is None else noted.watch,
        )
    if noted is not None and report is not None:
        noted.page(source="standard input" if source == "-" else os.path.basename(source)).save(report)
    report_records(statuses, source=source, out=out)


def embed_command(
    source: InFile,
    out: Annotated[
        str,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="File to write: .h5, .h5ad, .npz, .parquet, .csv, .tsv, .csv.gz, .tsv.gz or .csv.xz; - is "
            "CSV to stdout.",
        ),
    ],
    model: Model = "compact",
    layer: Layer = None,
    pool: Pool = "mean",
    per_residue: Annotated[
        bool,
        typer.Option(
            "--per-residue", help="Write one (L, D) matrix per protein instead; .h5, .npz or .parquet."
        ),
    ] = False,
    device: Device = "cpu",
    threads: Threads = None,
    precision: PrecisionOption = Precision.fp32,
    batch_tokens: BatchTokens = None,
    long: LongOption = LongProteins.window,
    on_invalid: OnInvalidOption = Invalid.x,
    on_duplicate: OnDuplicateOption = Duplicate.error,
    degap: Degap = False,
    translate: TranslateOption = Translate.off,
    genetic_code: GeneticCode = 1,
    min_orf: MinOrf = 30,
    gff: Gff = None,
    resume: Resume = True,
    overwrite: Overwrite = False,
    offline: Offline = False,
    excel_safe: ExcelSafe = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn every protein into one vector, or into one vector per residue.

    A table has the columns id, length, status, message, mean_0, mean_1, ... (.parquet one column embedding
    of lists); .npz, .h5 and .h5ad keep the same beside the arrays. With --translate or --gff a table or
    .h5ad also says source, strand, start, end, frame and genetic_code. A record without a vector (skipped
    or failed) has empty cells, or NaN.
    """
    start_messages(quiet=quiet, verbose=verbose)
    from bioxfer.io import iter_proteins
    from bioxfer.output import check_output
    from bioxfer.pooling import parse_pool
    from bioxfer.vectors import check_vector_format, write_vectors

    check_vector_format(out, per_residue=per_residue)
    check_output(out, inputs=[source, *given_files([gff])], overwrite=overwrite)
    parse_pool(pool)
    translation = as_translation(translate, genetic_code, min_orf, gff)
    records = iter_proteins(source, translation, on_duplicate=on_duplicate.value)
    from bioxfer.embedding import embed_records, resolve_layer

    load = backbone_loader(model, device=device, offline=offline, threads=threads)
    backbone = load(precision.value)
    number = resolve_layer(backbone, layer)
    with open_cache(resume) as cache, show_progress(quiet=quiet) as progress:
        statuses = write_vectors(
            out,
            embed_records(
                records,
                backbone,
                layer=number,
                pools=() if per_residue else (pool,),
                per_residue=per_residue,
                long=long.value,
                on_invalid=on_invalid.value,
                degap=degap,
                batch_tokens=batch_tokens,
                cache=cache,
                ahead=os.path.isfile(source),
                fp32=partial(load, "fp32", again=True),
                progress=progress,
            ),
            pool=pool,
            width=backbone.dim,
            facts={
                "model": backbone.name,
                "fingerprint": backbone.fingerprint,
                "layer": number,
                "pool": "residues" if per_residue else pool,
                "precision": backbone.precision,
            },
            per_residue=per_residue,
            origins=translation.traced,
            excel_safe=excel_safe,
            overwrite=overwrite,
        )
    report_records(statuses, source=source, out=out)
