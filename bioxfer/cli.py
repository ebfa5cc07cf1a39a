"""The command line: parses, calls one function, prints."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bioxfer import __version__
from bioxfer.errors import BioxferError, UsageError
from bioxfer.options import (
    BatchTokens,
    Degap,
    Device,
    Duplicate,
    ExcelSafe,
    HeadForm,
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
    OutTable,
    Overwrite,
    Precision,
    PrecisionOption,
    Quiet,
    Resume,
    Seed,
    Split,
    TableShape,
    TaskKind,
    Threads,
    Verbose,
)

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone
    from bioxfer.cache import EmbeddingCache

app = typer.Typer(
    name="bioxfer",
    help="Transfer learning on protein sequences: FASTA in, CSV out, offline, on an ordinary CPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 ok, 2 usage, 3 bad input, 4 some records failed (the table is complete "
    "all the same), 130 and 143 on signals.",
)
models_app = typer.Typer(
    help="The backbones: list, download, verify.", no_args_is_help=True, rich_markup_mode=None
)
heads_app = typer.Typer(help="The heads: list, show.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")
app.add_typer(heads_app, name="heads")

log = logging.getLogger("bioxfer")

SOME_FAILED = 4


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)
    ] = False,
) -> None:
    if version:
        typer.echo(f"bioxfer {__version__}")
        raise typer.Exit


@app.command("predict")
def predict_command(
    source: InFile,
    out: OutTable,
    head: Annotated[
        list[str] | None,
        typer.Option(
            "--head", help="Ready head or head file; may be repeated. All ready heads if not given."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Weights of the heads' backbone, if they are not found by its name."),
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Add one column per class.")] = False,
    shape: Annotated[
        TableShape, typer.Option("--format", help="One row per protein, or id,head,rank,label,score rows.")
    ] = TableShape.wide,
    device: Device = "cpu",
    threads: Threads = None,
    precision: PrecisionOption = Precision.fp32,
    batch_tokens: BatchTokens = None,
    long: LongOption = LongProteins.window,
    on_invalid: OnInvalidOption = Invalid.x,
    on_duplicate: OnDuplicateOption = Duplicate.error,
    degap: Degap = False,
    resume: Resume = True,
    overwrite: Overwrite = False,
    offline: Offline = False,
    excel_safe: ExcelSafe = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Predict function or structure class of every protein.

    Columns: id, length, status, message; then, for each head, its label, the calibrated score, the nearest
    training protein with its similarity, and a flag (in-domain or far). One row per record, in input order.
    """
    _start_logging(quiet, verbose)
    from bioxfer.output import check_output, table_format

    table_format(out)
    check_output(out, inputs=[source], overwrite=overwrite)
    from bioxfer.prediction import load_heads, write_predictions

    heads = load_heads(head or None)
    load = _loader(model or heads[0].backbone, device=device, offline=offline, threads=threads)
    with _cache(resume) as cache, _progress(quiet) as progress:
        summary = write_predictions(
            source,
            out,
            heads,
            load(precision.value),
            on_duplicate=on_duplicate.value,
            shape=shape.value,
            probabilities=probabilities,
            long=long.value,
            on_invalid=on_invalid.value,
            degap=degap,
            batch_tokens=batch_tokens or _default_batch_tokens(),
            cache=cache,
            fp32=lambda: load("fp32"),
            excel_safe=excel_safe,
            overwrite=overwrite,
            progress=progress,
        )
    log.info("%s", summary)
    _exit_for(summary.statuses["failed"])


@app.command("embed")
def embed_command(
    source: InFile,
    out: Annotated[
        str,
        typer.Option(
            "-o", "--out", help="File to write: .h5, .npz, .parquet, .csv, .tsv, .csv.gz; - is CSV to stdout."
        ),
    ],
    model: Model = "compact",
    layer: Layer = None,
    pool: Annotated[
        str,
        typer.Option(
            "--pool",
            help="mean, max, cls, start or end (first and last 32 residues), or several joined by +.",
        ),
    ] = "mean",
    per_residue: Annotated[
        bool, typer.Option("--per-residue", help="Write one (L, D) matrix per protein instead; .h5 or .npz.")
    ] = False,
    device: Device = "cpu",
    threads: Threads = None,
    precision: PrecisionOption = Precision.fp32,
    batch_tokens: BatchTokens = None,
    long: LongOption = LongProteins.window,
    on_invalid: OnInvalidOption = Invalid.x,
    on_duplicate: OnDuplicateOption = Duplicate.error,
    degap: Degap = False,
    resume: Resume = True,
    overwrite: Overwrite = False,
    offline: Offline = False,
    excel_safe: ExcelSafe = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn every protein into one vector, or one vector per residue."""
    _start_logging(quiet, verbose)
    from bioxfer.output import check_output
    from bioxfer.vectors import check_vector_format, write_vectors

    check_vector_format(out, per_residue=per_residue)
    check_output(out, inputs=[source], overwrite=overwrite)
    from bioxfer.embedding import embed_records, parse_pool, resolve_layer
    from bioxfer.io import iter_sequences

    parse_pool(pool)
    records = iter_sequences(source, on_duplicate=on_duplicate.value)
    load = _loader(model, device=device, offline=offline, threads=threads)
    backbone = load(precision.value)
    number = resolve_layer(backbone, layer)
    with _cache(resume) as cache, _progress(quiet) as progress:
        statuses = write_vectors(
            out,
            embed_records(
                records,
                backbone,
                layer=number,
                pools=(pool,),
                per_residue=per_residue,
                long=long.value,
                on_invalid=on_invalid.value,
                degap=degap,
                batch_tokens=batch_tokens or _default_batch_tokens(),
                cache=cache,
                fp32=lambda: load("fp32"),
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
            excel_safe=excel_safe,
            overwrite=overwrite,
        )
    if not statuses:
        log.warning("%s holds no sequence; the output is empty", source)
    log.info("%s", ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())))
    _exit_for(statuses["failed"])


@app.command("train")
def train_command(
    source: InFile,
    out: Annotated[str, typer.Option("-o", "--out", help="Head to write, .safetensors.")],
    labels: Labels = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the head and of its columns; the file's stem if not given."),
    ] = None,
    task: Annotated[TaskKind, typer.Option("--task", help="auto tells by the labels.")] = TaskKind.auto,
    head: Annotated[
        HeadForm, typer.Option("--head", help="auto chooses by cross-validation over homology clusters.")
    ] = HeadForm.auto,
    split: Annotated[
        Split,
        typer.Option(
            "--split",
            help="Hold out whole homology clusters, random proteins, or those the split column says.",
        ),
    ] = Split.homology,
    identity: Annotated[
        float,
        typer.Option("--identity", min=0.05, max=1.0, help="Proteins at least this similar are relatives."),
    ] = 0.3,
    valid: Annotated[
        float, typer.Option("--valid", min=0.01, max=0.9, help="Share of proteins held out.")
    ] = 0.15,
    model: Model = "compact",
    layer: Layer = None,
    pool: Annotated[
        str, typer.Option("--pool", help="mean, max, cls, start or end, or several joined by +.")
    ] = "mean+max",
    refit: Annotated[
        bool,
        typer.Option(
            "--refit/--no-refit",
            help="Ship weights fitted on all proteins, or on the training part alone, as the metrics are.",
        ),
    ] = True,
    licence: Annotated[str, typer.Option("--licence", help="Licence of the labels, for the card.")] = "",
    intended_use: Annotated[str, typer.Option("--intended-use", help="For the card.")] = "",
    device: Device = "cpu",
    threads: Threads = None,
    precision: PrecisionOption = Precision.fp32,
    batch_tokens: BatchTokens = None,
    long: LongOption = LongProteins.window,
    on_invalid: OnInvalidOption = Invalid.x,
    on_duplicate: OnDuplicateOption = Duplicate.error,
    degap: Degap = False,
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
    _start_logging(quiet, verbose)
    from bioxfer.output import check_output

    if not out.endswith(".safetensors"):
        raise UsageError(f"a head is a .safetensors file, not {out!r}; change the suffix")
    check_output(out, inputs=[source, *([labels] if labels else [])], overwrite=overwrite)
    from bioxfer.training import describe_card, train_from_files

    load = _loader(model, device=device, offline=offline, threads=threads)
    with _cache(resume) as cache, _progress(quiet) as progress:
        trained = train_from_files(
            source,
            labels,
            load(precision.value),
            name=name or Path(out).stem,
            task=task.value,
            head=head.value,
            split=split.value,
            identity=identity,
            valid=valid,
            refit=refit,
            layer=layer,
            pool=pool,
            licence=licence,
            intended_use=intended_use,
            long=long.value,
            on_invalid=on_invalid.value,
            on_duplicate=on_duplicate.value,
            degap=degap,
            batch_tokens=batch_tokens or _default_batch_tokens(),
            cache=cache,
            seed=seed,
            threads=threads,
            progress=progress,
        )
    trained.save(out)
    typer.echo(describe_card(trained.card))


@app.command("evaluate")
def evaluate_command(
    head: Annotated[str, typer.Argument(help="Ready head or head file.")],
    source: InFile,
    labels: Labels = None,
    out: Annotated[str, typer.Option("-o", "--out", help="Table of metrics; - is stdout.")] = "-",
    model: Annotated[
        str | None,
        typer.Option("--model", help="Weights of the head's backbone, if they are not found by its name."),
    ] = None,
    identity: Annotated[
        float,
        typer.Option("--identity", min=0.05, max=1.0, help="Proteins at least this similar are relatives."),
    ] = 0.3,
    device: Device = "cpu",
    threads: Threads = None,
    precision: PrecisionOption = Precision.fp32,
    batch_tokens: BatchTokens = None,
    long: LongOption = LongProteins.window,
    on_invalid: OnInvalidOption = Invalid.x,
    on_duplicate: OnDuplicateOption = Duplicate.error,
    degap: Degap = False,
    resume: Resume = True,
    overwrite: Overwrite = False,
    offline: Offline = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a head on labelled proteins, with 95% intervals over homology clusters.

    Columns: metric, value, low, high.
    """
    _start_logging(quiet, verbose)
    from bioxfer.output import TableWriter, check_output

    check_output(out, inputs=[source, *([labels] if labels else [])], overwrite=overwrite)
    from bioxfer.prediction import load_head
    from bioxfer.training import evaluate_from_files

    trained = load_head(head)
    load = _loader(model or trained.backbone, device=device, offline=offline, threads=threads)
    with _cache(resume) as cache, _progress(quiet) as progress:
        rows = evaluate_from_files(
            trained,
            source,
            labels,
            load(precision.value),
            identity=identity,
            long=long.value,
            on_invalid=on_invalid.value,
            on_duplicate=on_duplicate.value,
            degap=degap,
            batch_tokens=batch_tokens or _default_batch_tokens(),
            cache=cache,
            seed=seed,
            threads=threads,
            progress=progress,
        )
    with TableWriter(out, ["metric", "value", "low", "high"], overwrite=overwrite) as table:
        table.write(rows)


@app.command("pretrain")
def pretrain_command(
    corpus: Annotated[
        list[str], typer.Argument(help="FASTA, or text with one sequence a line (.txt, .txt.xz).")
    ],
    out: Annotated[str, typer.Option("-o", "--out", help="Weights to write, .safetensors.")],
    valid: Annotated[
        str | None, typer.Option("--valid", help="Held-out proteins for the perplexity.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="Labelled table id,sequence,label of a source task; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="Table of test proteins; source rows that resemble one are left out."),
    ] = None,
    lam: Annotated[
        float, typer.Option("--lam", min=0.0, help="Weight λ of the source tasks in L = L_mlm + λ·ΣL_source.")
    ] = 0.5,
    source_share: Annotated[
        float,
        typer.Option("--source-share", min=0.0, max=1.0, help="Share of crops that come from source tables."),
    ] = 0.25,
    width: Annotated[
        int, typer.Option("--width", min=64, help="Width of the model, a multiple of 64.")
    ] = 256,
    layers: Annotated[int, typer.Option("--layers", min=1, help="Transformer blocks.")] = 5,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0.0, help="Training time; the schedule follows the clock."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Training steps, instead of --minutes.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=64, help="Tokens of one step.")] = 8192,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", min=0.0, help="Peak of the schedule.")
    ] = 2e-3,
    optimizer: Annotated[
        str, typer.Option("--optimizer", help="muon or adamw, for the matrices inside the blocks.")
    ] = "muon",
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="State to keep, and to go on from if it is there.")
    ] = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train a backbone: masked residues, and source tasks beside them."""
    _start_logging(quiet, True)
    from bioxfer.output import check_output

    check_output(out, inputs=[*corpus, *([valid] if valid else [])], overwrite=overwrite)
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
            minutes=minutes,
            steps=steps,
            batch_tokens=batch_tokens,
            learning_rate=learning_rate,
            optimizer=optimizer,
            lam=lam,
            source_share=source_share,
            seed=seed,
        ),
        valid=valid,
        sources=source or (),
        exclude=exclude or (),
        checkpoint=checkpoint,
    )
    for key, value in card.get("validation", {}).items():
        typer.echo(f"{key}\t{value:.6g}")


@models_app.command("list")
def models_list() -> None:
    """List the backbones and say which are at hand."""
    from bioxfer.backbones import list_backbones

    typer.echo("name\tfamily\tlayers\twidth\tparameters\twhere")
    for info in list_backbones():
        typer.echo(
            f"{info.name}\t{info.family}\t{info.layers}\t{info.dim}\t"
            f"{info.parameters / 1e6:.1f}M\t{info.where}"
        )


@models_app.command("download")
def models_download(
    name: Annotated[str, typer.Argument(help="A name of `bioxfer models list`.")],
    base_url: Annotated[str | None, typer.Option("--base-url", help="Mirror to fetch NAME.pt from.")] = None,
    sha256: Annotated[str | None, typer.Option("--sha256", help="Hash that the file must have.")] = None,
    into: Annotated[Path | None, typer.Option("--into", help="Folder; torch.hub's if not given.")] = None,
    offline: Offline = False,
) -> None:
    """Download the weights of a backbone and check them."""
    from bioxfer.backbones import download_backbone
    from bioxfer.backbones.weights import PUBLISHER

    typer.echo(
        download_backbone(name, into=into, offline=offline, base_url=base_url or PUBLISHER, sha256=sha256)
    )


@models_app.command("verify")
def models_verify(
    name: Annotated[str, typer.Argument(help="A name of `bioxfer models list`, or a weights file.")],
    sha256: Annotated[str | None, typer.Option("--sha256", help="Hash that the file must have.")] = None,
) -> None:
    """Check the weights of a backbone."""
    from bioxfer.backbones import verify_backbone

    check = verify_backbone(name, sha256=sha256)
    known = "as stated or recorded" if check.known else "seen for the first time, now recorded"
    typer.echo(f"{check.path}\t{check.sha256}\t{known}")


@models_app.command("show")
def models_show(
    name: Annotated[
        str, typer.Argument(help="compact, or weights that `bioxfer pretrain` wrote.")
    ] = "compact",
) -> None:
    """Print the card of a compact backbone."""
    import json

    from bioxfer.backbones.compact import read_card

    typer.echo(json.dumps(read_card(None if name == "compact" else name), indent=2, ensure_ascii=False))


@heads_app.command("list")
def heads_list() -> None:
    """List the ready heads."""
    from bioxfer.prediction import list_heads, load_head

    typer.echo("name\ttask\tkind\tclasses\tbackbone\tpool")
    for name in list_heads():
        head = load_head(name)
        typer.echo(f"{name}\t{head.task.name}\t{head.kind}\t{len(head.labels)}\t{head.backbone}\t{head.pool}")


@heads_app.command("show")
def heads_show(
    name: Annotated[str, typer.Argument(help="Ready head or head file.")],
    as_json: Annotated[bool, typer.Option("--json", help="The whole card as JSON.")] = False,
) -> None:
    """Print the card of a head."""
    import json

    from bioxfer.prediction import load_head
    from bioxfer.training import describe_card

    card = load_head(name).card
    typer.echo(json.dumps(card, indent=2, ensure_ascii=False) if as_json else describe_card(card))


def _start_logging(quiet: bool, verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("bioxfer: %(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)


def _loader(name: str, *, device: str, offline: bool, threads: int | None) -> Callable[[str], Backbone]:
    from bioxfer.backbones import load_backbone

    def load(precision: str) -> Backbone:
        return load_backbone(name, precision=precision, device=device, offline=offline, threads=threads)

    return load


def _default_batch_tokens() -> int:
    from bioxfer.engine import BATCH_TOKENS

    return BATCH_TOKENS


@contextlib.contextmanager
def _cache(resume: bool) -> Iterator[EmbeddingCache | None]:
    if not resume:
        yield None
        return
    from bioxfer.cache import EmbeddingCache, default_cache_path

    cache = EmbeddingCache(default_cache_path())
    try:
        yield cache
    finally:
        cache.close()


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int], None]]:
    """Count records on the terminal; say nothing where standard error is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    import time

    done, start = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done
        done += count
        rate = done / max(time.monotonic() - start, 1e-9)
        sys.stderr.write(f"\r{done} proteins, {rate:.0f} a second ")
        sys.stderr.flush()

    try:
        yield advance
    finally:
        if done:
            sys.stderr.write("\n")


def _exit_for(failed: int) -> None:
    if failed:
        log.error("%d records failed; their rows say why", failed)
        raise typer.Exit(SOME_FAILED)


def _raise_terminated(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Terminated


class _Terminated(BaseException):
    """SIGTERM came: temporary files are removed on the way out."""


def main() -> None:
    """Run the command line and turn errors into one sentence and an exit code."""
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        sys.exit(app(standalone_mode=False))
    except BioxferError as error:
        _leave(f"bioxfer: {error}", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _leave("bioxfer: interrupted; the same command goes on where it stopped", 130)
    except _Terminated:
        _leave("bioxfer: terminated; the same command goes on where it stopped", 143)
    except BrokenPipeError:
        # The reader has had enough; nothing is left to flush to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        show = getattr(error, "show", None)  # click's usage errors print themselves
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))


def _leave(sentence: str, code: int) -> None:
    print(sentence, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
