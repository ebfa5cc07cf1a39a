"""The commands that train, and judge what was trained: train, evaluate and pretrain."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bioxfer.cli.options import (
    BatchTokens,
    ClusterBy,
    ClusterByOption,
    Degap,
    Device,
    Duplicate,
    GeneticCode,
    Gff,
    HeadForm,
    HeadsModel,
    Identity,
    InFile,
    Invalid,
    Labels,
    Layer,
    LongOption,
    LongProteins,
    MinOrf,
    Model,
    Offline,
    OnDuplicateOption,
    OnInvalidOption,
    Overwrite,
    Precision,
    PrecisionOption,
    Quiet,
    ReportFile,
    Resume,
    Seed,
    Split,
    TaskKind,
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
    parse_sizes,
)
from bioxfer.cli.terminal import show_progress, start_messages
from bioxfer.errors import UsageError

if TYPE_CHECKING:
    from bioxfer.judgement import Judgement

__all__ = ["evaluate_command", "pretrain_command", "train_command"]


def train_command(
    source: InFile,
    out: Annotated[
        str, typer.Option("-o", "--out", metavar="FILE", help="Head to write, a .safetensors file.")
    ],
    labels: Labels = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Name of the head and of its columns; FILE's stem if not given."
        ),
    ] = None,
    task: Annotated[
        TaskKind,
        typer.Option(
            "--task",
            help="auto tells by the labels. Several of one protein (multilabel) are joined by ; or |. Of "
            "residues a label has one character each (residue-class), or one number each "
            "(residue-regression): separated by spaces, or all of one digit.",
        ),
    ] = TaskKind.auto,
    head: Annotated[
        HeadForm,
        typer.Option(
            "--head",
            help="auto chooses by cross-validation over homology clusters. light-attention also reads each "
            "residue, for more time and memory (512 bytes a residue with compact), and is no part of auto; "
            "conv labels residues.",
        ),
    ] = HeadForm.auto,
    split: Annotated[
        Split,
        typer.Option(
            "--split",
            help="Hold out whole homology clusters, random proteins, or the rows whose split column begins "
            "with val; rows that begin with dev then choose the head in place of cross-validation, and rows "
            "that begin with none of train, dev and val are left out.",
        ),
    ] = Split.homology,
    identity: Identity = 0.3,
    cluster_by: ClusterByOption = ClusterBy.auto,
    valid: Annotated[
        float,
        typer.Option("--valid", min=0.01, max=0.9, metavar="SHARE", help="Share of proteins held out."),
    ] = 0.15,
    model: Model = "compact",
    layer: Layer = None,
    pool: Annotated[
        str,
        typer.Option(
            "--pool",
            metavar="POOL",
            help="mean, max, cls, start or end (first and last 32 residues), or several joined by +; of no "
            "effect on heads for residues, which read each residue.",
        ),
    ] = "mean+max",
    refit: Annotated[
        bool,
        typer.Option(
            "--refit/--no-refit",
            help="Ship weights fitted on all proteins, or on the training part alone, as the metrics are.",
        ),
    ] = True,
    abstain: Annotated[
        float | None,
        typer.Option(
            "--abstain",
            metavar="SHARE",
            help="Let the head say unknown where it is not sure, at the price of this share of its right "
            "answers, such as 0.05; it answers every protein if not given.",
        ),
    ] = None,
    families: Annotated[
        bool,
        typer.Option(
            "--families",
            help="Let the head also recognise relatives of its training proteins by their words, as homology "
            "search would; needs rows of the split dev.",
        ),
    ] = False,
    first: Annotated[
        int | None,
        typer.Option(
            "--first",
            min=1,
            metavar="N",
            help="Let the head read only the first N residues of each protein, in training and ever after.",
        ),
    ] = None,
    sizes: Annotated[
        str,
        typer.Option(
            "--sizes",
            metavar="N,N,...",
            help="Numbers of training proteins for a learning curve, such as 50,200,800: heads that learnt "
            "from so few, three of each size, are judged on the same held-out proteins. It tells whether "
            "more labels would help.",
        ),
    ] = "",
    licence: Annotated[
        str, typer.Option("--licence", metavar="TEXT", help="Licence of the labels, for the card.")
    ] = "",
    intended_use: Annotated[
        str, typer.Option("--intended-use", metavar="TEXT", help="What the head is for, for the card.")
    ] = "",
    limits: Annotated[
        list[str] | None,
        typer.Option("--limit", metavar="TEXT", help="A known limit, for the card; may be repeated."),
    ] = None,
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
    seed: Seed = 0,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a head on labelled proteins, and say honestly how good it is.

    The card goes into the head's file and its summary to standard output: metrics on held-out proteins with
    95% intervals over homology clusters, beside the majority, composition, dipeptide and nearest-neighbour
    baselines.
    """
    start_messages(quiet=quiet, verbose=verbose)
    from bioxfer.output import check_output
    from bioxfer.pooling import parse_pool

    if not out.endswith(".safetensors"):
        raise UsageError(f"a head is a .safetensors file, not {out!r}; change the suffix")
    inputs = [source, *given_files([labels, model, gff])]
    check_output(out, inputs=inputs, overwrite=overwrite)
    check_report_file(report, others=[*inputs, out], overwrite=overwrite)
    parse_pool(pool)
    curve_sizes = parse_sizes(sizes)
    from bioxfer.cards import describe_card
    from bioxfer.training import read_labelled, train_on_records

    records = read_labelled(
        source,
        labels,
        on_duplicate=on_duplicate.value,
        translation=as_translation(translate, genetic_code, min_orf, gff, degap=degap),
    )
    load = backbone_loader(model, device=device, offline=offline, threads=threads)
    with open_cache(resume) as cache, show_progress(quiet=quiet) as progress:
        trained = train_on_records(
            records,
            load(precision.value),
            name=name or Path(out).stem,
            data_source=", ".join(Path(path).name for path in (source, labels) if path is not None),
            task=task.value,
            head=head.value,
            split=split.value,
            identity=identity,
            cluster_by=cluster_by.value,
            valid=valid,
            refit=refit,
            abstain=abstain,
            families=families,
            first=first,
            sizes=curve_sizes,
            layer=layer,
            pool=pool,
            licence=licence,
            intended_use=intended_use,
            limits=limits or (),
            long=long.value,
            on_invalid=on_invalid.value,
            degap=degap,
            batch_tokens=batch_tokens,
            cache=cache,
            fp32=partial(load, "fp32", again=True),
            seed=seed,
            threads=threads,
            progress=progress,
        )
    trained.save(out)
    if report is not None:
        from bioxfer.report import report_head

        report_head(trained).save(report)
    typer.echo(describe_card(trained.card))


def evaluate_command(
    head: Annotated[str, typer.Argument(metavar="HEAD", help="Name of a ready head, or a head file.")],
    source: InFile,
    labels: Labels = None,
    out: Annotated[
        str,
        typer.Option(
            "-o", "--out", metavar="FILE", help="Table of metrics, .csv or another; - is CSV to stdout."
        ),
    ] = "-",
    report: ReportFile = None,
    model: HeadsModel = None,
    identity: Identity = 0.3,
    cluster_by: ClusterByOption = ClusterBy.auto,
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
    seed: Seed = 0,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a head on labelled proteins, with 95% intervals over homology clusters.

    Columns: metric, value, low, high. Proteins whose ids are among those that the head was trained on are
    counted, and warned of.
    """
    start_messages(quiet=quiet, verbose=verbose)
    from bioxfer.output import TableWriter, check_output, table_format

    table_format(out)
    inputs = [source, *given_files([head, labels, model, gff])]
    check_output(out, inputs=inputs, overwrite=overwrite)
    check_report_file(report, others=[*inputs, out], overwrite=overwrite)
    from bioxfer.prediction import load_head, name_backbone
    from bioxfer.training import evaluate_on_records, read_labelled

    trained = load_head(head)
    records = read_labelled(
        source,
        labels,
        on_duplicate=on_duplicate.value,
        translation=as_translation(translate, genetic_code, min_orf, gff, degap=degap),
    )
    judged: list[Judgement] = []
    load = backbone_loader(model or name_backbone(trained), device=device, offline=offline, threads=threads)
    with open_cache(resume) as cache, show_progress(quiet=quiet) as progress:
        rows = evaluate_on_records(
            trained,
            records,
            load(precision.value),
            identity=identity,
            cluster_by=cluster_by.value,
            long=long.value,
            on_invalid=on_invalid.value,
            degap=degap,
            batch_tokens=batch_tokens,
            cache=cache,
            fp32=partial(load, "fp32", again=True),
            seed=seed,
            threads=threads,
            progress=progress,
            watch=None if report is None else judged.append,
        )
    with TableWriter(out, ["metric", "value", "low", "high"], overwrite=overwrite) as table:
        table.write(rows)
    if report is not None:
        from bioxfer.report import report_evaluation

        name = "standard input" if source == "-" else Path(source).name
        report_evaluation(trained, judged[0], source=name).save(report)


def pretrain_command(
    corpus: Annotated[
        list[str],
        typer.Argument(metavar="CORPUS...", help="FASTA, or text with one sequence a line (.txt, .txt.xz)."),
    ],
    out: Annotated[
        str, typer.Option("-o", "--out", metavar="FILE", help="Weights to write, a .safetensors file.")
    ],
    valid: Annotated[
        str | None,
        typer.Option(
            "--valid", metavar="FILE", help="Held-out proteins for the perplexity, read like the corpus."
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="FILE[=WEIGHT]",
            help="Labelled table id,sequence,label of a source task, and a factor on its share of the "
            "tokens; may be repeated.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="FILE",
            help="Table of test proteins; source rows that resemble one are left out. With a split column, "
            "its rows whose split begins with test, val or dev. May be repeated.",
        ),
    ] = None,
    lam: Annotated[
        float,
        typer.Option("--lam", min=0.0, metavar="λ", help="Weight λ of the source tasks that label residues."),
    ] = 1.0,
    lam_proteins: Annotated[
        float,
        typer.Option(
            "--lam-proteins", min=0.0, metavar="λ", help="Weight of the source tasks that label proteins."
        ),
    ] = 0.2,
    source_share: Annotated[
        float,
        typer.Option(
            "--source-share",
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Share of the tokens that come from source tables.",
        ),
    ] = 0.85,
    source_mask_share: Annotated[
        float,
        typer.Option(
            "--source-mask-share",
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Share of the residues of source proteins that are hidden and asked for.",
        ),
    ] = 0.0,
    width: Annotated[
        int, typer.Option("--width", min=64, metavar="D", help="Width of the model, a multiple of 64.")
    ] = 256,
    layers: Annotated[int, typer.Option("--layers", min=1, metavar="N", help="Blocks.")] = 6,
    attention: Annotated[
        str | None,
        typer.Option(
            "--attention",
            metavar="N,N",
            help="Blocks that attend, from 1; the others mix neighbours alone. Those of 3 and 5 that there "
            "are, if not given.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", min=0.0, metavar="MIN", help="Training time; the schedule follows the clock."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, metavar="N", help="Training steps, instead of --minutes."),
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option("--batch-tokens", min=512, metavar="N", help="Tokens of one step.")
    ] = 8192,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", min=0.0, metavar="RATE", help="Peak of the schedule.")
    ] = 1.5e-3,
    optimizer: Annotated[
        str,
        typer.Option("--optimizer", metavar="NAME", help="muon or adamw, for the matrices in the blocks."),
    ] = "muon",
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", min=0.0, metavar="RATE", help="Decoupled, on matrices.")
    ] = 0.05,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the blocks; faster, and needs a C++ compiler.")
    ] = False,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="FILE", help="State to keep, and to go on from if it is there."),
    ] = None,
    licence: Annotated[
        str, typer.Option("--licence", metavar="TEXT", help="Licence of corpus and sources, for the card.")
    ] = "not stated",
    translate: TranslateOption = Translate.off,
    genetic_code: GeneticCode = 1,
    min_orf: MinOrf = 30,
    threads: Threads = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train a backbone on masked residues, and on source tasks beside them.

    Tells its progress on standard error and prints the validation's numbers at the end; the card in the
    weights has all others. Give either --minutes or --steps.
    """
    start_messages(quiet=quiet, verbose=not quiet)
    from bioxfer.output import check_output

    if not out.endswith(".safetensors"):
        raise UsageError(f"weights are a .safetensors file, not {out!r}; change the suffix")
    sources = [_parse_source(word) for word in source or ()]
    inputs = [*corpus, *given_files([valid]), *(path for path, _ in sources), *(exclude or ())]
    check_output(out, inputs=[*inputs, *given_files([checkpoint])], overwrite=overwrite)
    if checkpoint is not None:
        check_output(checkpoint, inputs=inputs)
    from bioxfer.pretrain import PretrainOptions, pretrain

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    card = pretrain(
        corpus,
        out,
        options=PretrainOptions(
            width=width,
            layers=layers,
            attention=None if attention is None else _parse_blocks(attention),
            minutes=minutes,
            steps=steps,
            batch_tokens=batch_tokens,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            optimizer=optimizer,
            lam=lam,
            lam_proteins=lam_proteins,
            source_share=source_share,
            source_weights=tuple(weight for _, weight in sources),
            source_mask_share=source_mask_share,
            compiled=compiled,
            seed=seed,
        ),
        translation=as_translation(translate, genetic_code, min_orf, degap=True),
        valid=valid,
        sources=[path for path, _ in sources],
        exclude=exclude or (),
        licence=licence,
        checkpoint=checkpoint,
    )
    for key, value in card.get("validation", {}).items():
        typer.echo(f"{key}\t{value:.6g}")


def _parse_source(word: str) -> tuple[str, float]:
    """Split ``FILE=WEIGHT``; a file may have an equals sign in its name."""
    path, found, tail = word.rpartition("=")
    if not found or Path(word).exists():
        return word, 1.0
    try:
        weight = float(tail)
    except ValueError:
        return word, 1.0
    if not 0 < weight < float("inf"):
        raise UsageError(f"--source {word}: the weight {tail} is not above 0; give a number such as 1.5")
    return path, weight


def _parse_blocks(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError as error:
        raise UsageError(f"--attention {text}: name blocks by numbers such as 3,5") from error
