"""Options that several commands share: their names, choices and help."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

__all__ = [
    "BatchTokens",
    "ClusterBy",
    "ClusterByOption",
    "Degap",
    "Device",
    "Distributed",
    "Duplicate",
    "ExcelSafe",
    "GeneticCode",
    "Gff",
    "HeadForm",
    "HeadsModel",
    "Identity",
    "InFile",
    "Invalid",
    "Labels",
    "Layer",
    "LongOption",
    "LongProteins",
    "MergeParts",
    "MinOrf",
    "Model",
    "Offline",
    "OnDuplicateOption",
    "OnInvalidOption",
    "OutTable",
    "Overwrite",
    "PartRecords",
    "Pool",
    "Precision",
    "PrecisionOption",
    "Quiet",
    "RayAddress",
    "ReportFile",
    "Resume",
    "Seed",
    "ShardOf",
    "Split",
    "TableShape",
    "TaskKind",
    "Threads",
    "Translate",
    "TranslateOption",
    "Verbose",
    "Workers",
]


class Precision(str, Enum):
    """Type of the backbone's matrices."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    auto = "auto"


class ClusterBy(str, Enum):
    """What finds relatives among proteins."""

    auto = "auto"
    mmseqs = "mmseqs"
    kmer = "kmer"


class LongProteins(str, Enum):
    """What to do with proteins longer than the backbone's window."""

    window = "window"
    truncate = "truncate"
    skip = "skip"
    error = "error"


class Invalid(str, Enum):
    """What to do with characters that are no amino acid."""

    x = "x"
    error = "error"
    skip = "skip"


class Duplicate(str, Enum):
    """What to do with equal ids."""

    error = "error"
    rename = "rename"


class Translate(str, Enum):
    """How nucleotides become proteins."""

    off = "off"
    auto = "auto"
    cds = "cds"
    orf = "orf"
    six_frame = "six-frame"
    genes = "genes"


class TableShape(str, Enum):
    """Form of the prediction table."""

    wide = "wide"
    long = "long"


class HeadForm(str, Enum):
    """Form of a head."""

    auto = "auto"
    linear = "linear"
    mlp = "mlp"
    nearest = "nearest"
    blend = "blend"
    light_attention = "light-attention"
    conv = "conv"


class TaskKind(str, Enum):
    """Kind of a task."""

    auto = "auto"
    multiclass = "multiclass"
    multilabel = "multilabel"
    regression = "regression"
    residue_class = "residue-class"
    residue_regression = "residue-regression"


class Split(str, Enum):
    """How validation proteins are chosen."""

    homology = "homology"
    random = "random"
    column = "column"


InFile = Annotated[
    str,
    typer.Argument(
        metavar="IN",
        help="FASTA, FASTQ, GenBank, or CSV/TSV with id,sequence; may be compressed; - is stdin.",
    ),
]
OutTable = Annotated[
    str,
    typer.Option(
        "-o",
        "--out",
        metavar="FILE",
        help="Table to write: .csv, .tsv, .csv.gz, .tsv.gz, .csv.xz or .parquet; - is CSV to stdout.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Backbone: compact, a fair-esm name, a weights file, or of the Hugging Face hub (ESM, ProtT5, "
        "Ankh, ESM-C) owner/name@COMMIT or a folder.",
    ),
]
HeadsModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FILE",
        help="Weights of the head's backbone, where they are not found by the name it states.",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", help="Processor threads; all cores if not given."),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="fp32 is exact; bf16 is faster where the device has it (vectors keep a cosine of 0.9999), and "
        "auto takes it there; fp16 is for GPUs.",
    ),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens",
        min=1,
        metavar="N",
        help="Tokens run at once; more need more memory. 2048 on a processor core, 32768 on a GPU.",
    ),
]
LongOption = Annotated[
    LongProteins,
    typer.Option(
        "--long",
        help="Proteins longer than the backbone's window: stitch overlapping windows, cut the end off, "
        "leave the row empty, or stop.",
    ),
]
OnInvalidOption = Annotated[
    Invalid,
    typer.Option(
        "--on-invalid",
        help="Characters that are no amino acid: make them X and count them, stop, or leave the row empty.",
    ),
]
OnDuplicateOption = Annotated[
    Duplicate,
    typer.Option("--on-duplicate", help="A second record with the same id: stop, or call it ID_2, ID_3, ..."),
]
Degap = Annotated[bool, typer.Option("--degap", help="Remove the gaps - and . of an alignment.")]
TranslateOption = Annotated[
    Translate,
    typer.Option(
        "--translate",
        help="How nucleotides are read. cds: from the first to the last; orf: the longest open reading frame "
        "of both strands; six-frame: each of --min-orf residues or more; genes: Prodigal's gene calls (extra "
        "genes); auto: by each record's letters, proteins as they are, else cds or orf. GenBank's coding "
        "sequences are read as annotated.",
    ),
]
MinOrf = Annotated[
    int,
    typer.Option(
        "--min-orf", min=1, metavar="N", help="Residues of the shortest open reading frame of six frames."
    ),
]
Gff = Annotated[
    str | None,
    typer.Option(
        "--gff", metavar="FILE", help="GFF3 with the coding sequences (CDS) on the nucleotides of IN."
    ),
]
GeneticCode = Annotated[
    int,
    typer.Option(
        "--genetic-code",
        metavar="N",
        help="NCBI's number: 1 standard, 2 vertebrate mitochondria, 11 bacteria, ... "
        "Gene calls bring their own.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        help="Keep finished work in a cache (folder: BIOXFER_CACHE), so that a second or a killed run does "
        "nothing twice.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
ReportFile = Annotated[
    str | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Page to write beside: one .html file with figures, which loads nothing from elsewhere; needs "
        "bioxfer[report].",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", envvar="BIOXFER_OFFLINE", help="Open no socket.")]
ExcelSafe = Annotated[
    bool, typer.Option("--excel-safe", help="Put ' before text that a spreadsheet would run as a formula.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of everything random.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
Layer = Annotated[
    int | None,
    typer.Option("--layer", metavar="N", help="Layer to read: 0 is the embedding, -1 the last (default)."),
]
Pool = Annotated[
    str,
    typer.Option(
        "--pool",
        metavar="POOL",
        help="mean, max, cls, start or end (first and last 32 residues), or several joined by +.",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels", metavar="FILE", help="CSV/TSV with id,label[,split]; not needed if IN has a label column."
    ),
]
ClusterByOption = Annotated[
    ClusterBy,
    typer.Option(
        "--cluster-by",
        help="What finds relatives: the program mmseqs, or a k-mer search of our own; auto takes mmseqs "
        "where it is installed. A column cluster of the table takes its place.",
    ),
]
Identity = Annotated[
    float,
    typer.Option(
        "--identity",
        min=0.05,
        max=1.0,
        metavar="SHARE",
        help="Proteins with this share of identical residues are relatives.",
    ),
]
ShardOf = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Make only the I-th of N parts, OUT-0000I-of-0000N, with a mark (.json) beside it when it is "
        "finished; a finished one stays as it is. For job arrays: every job reads IN and writes beside OUT. "
        "bioxfer merge joins them.",
    ),
]
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="Have workers make the parts, through Ray (extra ray). IN, OUT, --model and --head must be on a "
        "file system that every machine sees under the same name. A second run goes on with what is missing.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        metavar="N",
        help="Of --distributed: processes, each with a model of its own; one a machine or GPU if not given. "
        "They share the cores, if --threads does not give each a number.",
    ),
]
PartRecords = Annotated[
    int | None,
    typer.Option(
        "--part-records", min=1, metavar="N", help="Of --distributed: records of a part; 5000 if not given."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        help="Of --distributed: a Ray cluster that runs already, or auto for this machine's; if not given, "
        "one is started here for as long as it takes.",
    ),
]
MergeParts = Annotated[
    bool, typer.Option("--merge", help="Of --distributed: join the parts to OUT, and remove them.")
]
