"""The commands that use what is trained: predict and embed."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from bioxfer.cli.options import (
    BatchTokens,
    Degap,
    Device,
    Distributed,
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
    MergeParts,
    MinOrf,
    Model,
    Offline,
    OnDuplicateOption,
    OnInvalidOption,
    OutTable,
    Overwrite,
    PartRecords,
    Pool,
    Precision,
    PrecisionOption,
    Quiet,
    RayAddress,
    ReportFile,
    Resume,
    ShardOf,
    TableShape,
    Threads,
    Translate,
    TranslateOption,
    Verbose,
    Workers,
)
from bioxfer.cli.preparing import as_translation, check_report_file, given_files
from bioxfer.cli.spreading import Spread, run_job
from bioxfer.cli.terminal import report_records, start_messages

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
    shard: ShardOf = None,
    distributed: Distributed = False,
    workers: Workers = None,
    part_records: PartRecords = None,
    ray_address: RayAddress = None,
    merge: MergeParts = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Predict with trained heads, such as the structure class or the place in the cell of every protein.

    One row per record, in input order. Columns: id, length, status (ok, windowed, truncated, skipped,
    failed), message; of nucleotides (--translate, --gff, GenBank) also source, strand, start, end, frame
    and genetic_code; then, for each head, its label, the calibrated score, the nearest training protein
    with its cosine similarity, and a flag (in-domain or far); with --coverage also its label set, likeliest
    first. A long table has head, rank, label and score
    instead; where a head says unknown, that is a row of rank 0, without a score, before its classes. The
    label of a head for residues has one character per residue, or one number, separated by spaces (? where
    the end was cut off); its score is the mean over residues, and empty for numbers; a long table then has
    position and residue too.
    """
    start_messages(quiet=quiet, verbose=verbose)
    from bioxfer.output import table_format

    table_format(out)
    spread = Spread(shard, distributed, workers, part_records, ray_address, merge)
    inputs = given_files([*(head or ()), gff])
    spread.check(source, out, inputs=inputs, report=report, offline=offline, overwrite=overwrite)
    check_report_file(report, others=[source, out, *given_files([model]), *inputs], overwrite=overwrite)
    translation = as_translation(translate, genetic_code, min_orf, gff, degap=degap)
    from bioxfer.jobs import Loaded, LoadedPredict, PredictJob

    job = PredictJob(
        source=source,
        out=out,
        model=model,
        device=device,
        threads=threads,
        precision=precision.value,
        offline=offline,
        batch_tokens=batch_tokens,
        long=long.value,
        on_invalid=on_invalid.value,
        on_duplicate=on_duplicate.value,
        degap=degap,
        translation=translation,
        excel_safe=excel_safe,
        heads=tuple(head or ()),
        shape=shape.value,
        probabilities=probabilities,
        coverage=coverage,
    )
    noted = None

    def note(loaded: Loaded) -> None:
        nonlocal noted
        if report is not None and isinstance(loaded, LoadedPredict):
            from bioxfer.report import PredictionReport

            noted = PredictionReport(loaded.heads)
            loaded.watch = noted.watch

    ran = run_job(job, spread, resume=resume, overwrite=overwrite, quiet=quiet, loaded_then=note)
    if noted is not None and report is not None:
        noted.page(source="standard input" if source == "-" else os.path.basename(source)).save(report)
    report_records(ran.statuses, source=source, out=ran.place, whole=ran.records)


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
    shard: ShardOf = None,
    distributed: Distributed = False,
    workers: Workers = None,
    part_records: PartRecords = None,
    ray_address: RayAddress = None,
    merge: MergeParts = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn every protein into one vector, or into one vector per residue.

    A table has the columns id, length, status, message, mean_0, mean_1, ... (.parquet one column embedding
    of lists); .npz, .h5 and .h5ad keep the same beside the arrays. Of nucleotides (--translate, --gff,
    GenBank) a table or .h5ad also says source, strand, start, end, frame and genetic_code. A record without
    a vector (skipped or failed) has empty cells, or NaN.
    """
    start_messages(quiet=quiet, verbose=verbose)
    from bioxfer.pooling import parse_pool
    from bioxfer.vectors import check_vector_format

    check_vector_format(out, per_residue=per_residue)
    spread = Spread(shard, distributed, workers, part_records, ray_address, merge)
    spread.check(source, out, inputs=given_files([gff]), report=None, offline=offline, overwrite=overwrite)
    parse_pool(pool)
    translation = as_translation(translate, genetic_code, min_orf, gff, degap=degap)
    from bioxfer.jobs import EmbedJob

    job = EmbedJob(
        source=source,
        out=out,
        model=model,
        device=device,
        threads=threads,
        precision=precision.value,
        offline=offline,
        batch_tokens=batch_tokens,
        long=long.value,
        on_invalid=on_invalid.value,
        on_duplicate=on_duplicate.value,
        degap=degap,
        translation=translation,
        excel_safe=excel_safe,
        layer=layer,
        pool=pool,
        per_residue=per_residue,
    )
    ran = run_job(job, spread, resume=resume, overwrite=overwrite, quiet=quiet)
    report_records(ran.statuses, source=source, out=ran.place, whole=ran.records)
