"""The command that moves what was learnt: transfer."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bioxfer.cli.options import (
    BatchTokens,
    ClusterBy,
    ClusterByOption,
    Degap,
    Device,
    Duplicate,
    GeneticCode,
    Identity,
    InFile,
    Invalid,
    Labels,
    Layer,
    LongOption,
    LongProteins,
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
    Threads,
    Translate,
    TranslateOption,
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

__all__ = ["transfer_command"]


class Form(str, Enum):
    """Form of the head of the target alone."""

    auto = "auto"
    linear = "linear"
    mlp = "mlp"
    nearest = "nearest"
    blend = "blend"


class Target(str, Enum):
    """Kind of the target's task."""

    auto = "auto"
    multiclass = "multiclass"
    multilabel = "multilabel"
    regression = "regression"


class Trunk(str, Enum):
    """What source and target share."""

    adapter = "adapter"
    lora = "lora"


def transfer_command(
    target: InFile,
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            metavar="FILE",
            help="Table id,sequence,label of a source task; with a split column, its rows whose split begins "
            "with train. May be repeated.",
        ),
    ],
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
        Target,
        typer.Option("--task", help="Of the target; auto tells by the labels, as for the sources."),
    ] = Target.auto,
    head: Annotated[
        Form,
        typer.Option(
            "--head",
            help="Of the target alone; auto chooses by cross-validation over homology clusters, and lets the "
            "other ways mix in neighbours' votes too.",
        ),
    ] = Form.auto,
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
            help="mean, max, cls, start or end (first and last 32 residues), or several joined by +.",
        ),
    ] = "mean+max",
    lam: Annotated[
        str,
        typer.Option(
            "--lam",
            metavar="auto|λ",
            help="Weight λ of the target's loss in the joint training, above 0; auto compares 0.3, 1 and 3 "
            "on target proteins left out, and is 1 with --trunk lora.",
        ),
    ] = "auto",
    trunk: Annotated[
        Trunk,
        typer.Option(
            "--trunk",
            help="What both tasks share: a layer on the frozen vectors, or low-rank changes inside the "
            "backbone, written beside the head as its stem and .adapter.safetensors.",
        ),
    ] = Trunk.adapter,
    rank: Annotated[int, typer.Option("--rank", min=1, metavar="R", help="Of low-rank changes.")] = 8,
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, metavar="N", help="Of low-rank changes, at most.")
    ] = 5,
    sizes: Annotated[
        str,
        typer.Option(
            "--sizes",
            metavar="N,N,...",
            help="Numbers of target proteins on the learning curve, beside all of them; empty for none. Not "
            "with --trunk lora.",
        ),
    ] = "16,64,256",
    draws: Annotated[
        int, typer.Option("--draws", min=1, metavar="N", help="Training sets drawn at each of these sizes.")
    ] = 3,
    curve: Annotated[
        str | None,
        typer.Option("--curve", metavar="FILE", help="Table of the learning curve, .csv or another."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="The trunk and the points of the learning curve, or the low-rank changes, are kept there; "
            "a second run goes on from them.",
        ),
    ] = None,
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
    resume: Resume = True,
    overwrite: Overwrite = False,
    offline: Offline = False,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Move what source tasks teach to a target, and tell whether that helped.

    Three heads for the target are compared on the same held-out proteins: from the target alone; sequential,
    where a trunk is trained on the sources and only a classifier on the target; and joint, where both are
    trained at once with L = L_src + λ·L_tar. The best by proteins of the training part becomes the head; the
    verdict (helped, no difference, hurt) goes by the held-out ones, with paired 95% intervals over homology
    clusters. Source proteins that resemble one that judges or chooses are left out.
    """
    start_messages(quiet=quiet, verbose=not quiet)
    from bioxfer.output import TableWriter, check_output, table_format
    from bioxfer.pooling import parse_pool

    if not out.endswith(".safetensors"):
        raise UsageError(f"a head is a .safetensors file, not {out!r}; change the suffix")
    inputs = [target, *source, *given_files([labels, model])]
    adapter = f"{out.removesuffix('.safetensors')}.adapter.safetensors" if trunk is Trunk.lora else None
    for path in given_files([out, adapter, curve]):
        check_output(path, inputs=inputs, overwrite=overwrite)
    if checkpoint is not None:
        check_output(checkpoint, inputs=[*inputs, *given_files([out, adapter, curve])], overwrite=True)
    if curve is not None:
        if trunk is Trunk.lora:
            raise UsageError("low-rank changes take too long for a learning curve; leave --curve out")
        table_format(curve)
    check_report_file(
        report, others=[*inputs, *given_files([out, adapter, curve, checkpoint])], overwrite=overwrite
    )
    parse_pool(pool)
    from bioxfer.cards import describe_card
    from bioxfer.curves import CURVE_COLUMNS, curve_rows
    from bioxfer.training import read_labelled, train_on_records
    from bioxfer.transfer_data import Source, TransferOptions, keep_training_rows

    translation = as_translation(translate, genetic_code, degap=degap)
    if translation.several:
        raise UsageError(
            f"--translate {translate.value} makes several proteins of one sequence, which the labels of a "
            "source table cannot tell apart; use cds, orf or auto"
        )
    records = read_labelled(target, labels, on_duplicate=on_duplicate.value, translation=translation)
    others = []
    for path in source:
        rows = read_labelled(path, None, on_duplicate=on_duplicate.value, translation=translation)
        others.append(Source(Path(path).name, keep_training_rows(Path(path).name, rows)))
    options = TransferOptions(
        sources=others,
        lam=lam,
        trunk=trunk.value,
        sizes=parse_sizes(sizes),
        draws=draws,
        rank=rank,
        epochs=epochs,
        checkpoint=checkpoint,
        backbone=model,
        adapter=adapter,
        precision=precision.value,
        device=device,
        offline=offline,
    )
    options.check()  # before a model loads
    load = backbone_loader(model, device=device, offline=offline, threads=threads)
    with open_cache(resume) as cache, show_progress(quiet=quiet) as progress:
        trained = train_on_records(
            records,
            load(precision.value),
            name=name or Path(out).stem,
            data_source=", ".join(Path(path).name for path in (target, labels) if path is not None),
            task=task.value,
            head=head.value,
            split=split.value,
            identity=identity,
            cluster_by=cluster_by.value,
            valid=valid,
            transfer=options,
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
    if adapter is not None and trained.backbone != Path(adapter).stem:
        Path(adapter).unlink(missing_ok=True)  # of a head that stood here before
    if curve is not None:
        with TableWriter(curve, CURVE_COLUMNS, overwrite=overwrite) as table:
            table.write(curve_rows(trained.card["transfer"]["curve"]))
    if report is not None:
        from bioxfer.report import report_head

        report_head(trained).save(report)
    typer.echo(describe_card(trained.card))
