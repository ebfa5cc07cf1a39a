"""Options that several commands share: their names, choices and help."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

__all__ = [
    "BatchTokens",
    "Degap",
    "Device",
    "Duplicate",
    "ExcelSafe",
    "HeadForm",
    "InFile",
    "Invalid",
    "Labels",
    "Layer",
    "LongOption",
    "LongProteins",
    "Model",
    "Offline",
    "OnDuplicateOption",
    "OnInvalidOption",
    "OutTable",
    "Overwrite",
    "Precision",
    "PrecisionOption",
    "Quiet",
    "Resume",
    "Seed",
    "Split",
    "TableShape",
    "TaskKind",
    "Threads",
    "Verbose",
]


class Precision(str, Enum):
    """Type of the backbone's matrices."""

    fp32 = "fp32"
    bf16 = "bf16"
    auto = "auto"


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


class TaskKind(str, Enum):
    """Kind of a task."""

    auto = "auto"
    multiclass = "multiclass"
    regression = "regression"


class Split(str, Enum):
    """How validation proteins are chosen."""

    homology = "homology"
    random = "random"
    column = "column"


InFile = Annotated[
    str,
    typer.Argument(metavar="IN", help="FASTA, or CSV/TSV with id,sequence; may be compressed; - is stdin."),
]
OutTable = Annotated[
    str,
    typer.Option(
        "-o", "--out", help="Table to write; its suffix chooses format and compression; - is stdout."
    ),
]
Model = Annotated[str, typer.Option("--model", help="Backbone: compact, a fair-esm name, or a weights file.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Processor threads; all cores if not given.")
]
PrecisionOption = Annotated[
    Precision, typer.Option("--precision", help="fp32 is exact; bf16 is faster where the processor has it.")
]
BatchTokens = Annotated[
    int | None, typer.Option("--batch-tokens", min=1, help="Tokens run at once; more need more memory.")
]
LongOption = Annotated[
    LongProteins,
    typer.Option(
        "--long",
        help="Proteins longer than the backbone's window; window stitches overlapping windows.",
    ),
]
OnInvalidOption = Annotated[
    Invalid,
    typer.Option("--on-invalid", help="Characters that are no amino acid: x makes them X and counts them."),
]
OnDuplicateOption = Annotated[
    Duplicate, typer.Option("--on-duplicate", help="A second record with the same id.")
]
Degap = Annotated[bool, typer.Option("--degap", help="Remove the gaps - and . of an alignment.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        help="Keep finished work in a cache, so that a second or a killed run does nothing twice.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Offline = Annotated[bool, typer.Option("--offline", envvar="BIOXFER_OFFLINE", help="Open no socket.")]
ExcelSafe = Annotated[
    bool, typer.Option("--excel-safe", help="Put ' before text that a spreadsheet would run as a formula.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
Layer = Annotated[
    int | None, typer.Option("--layer", help="Layer to read: 0 is the embedding, -1 the last (default).")
]
Labels = Annotated[
    str | None,
    typer.Option("--labels", help="CSV/TSV with id,label[,split]; not needed if IN has a label column."),
]
