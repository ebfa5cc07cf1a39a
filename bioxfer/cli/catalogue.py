"""The sub-commands ``bioxfer models`` and ``bioxfer heads``: what is here, where from, and how good."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from bioxfer.cli.options import Offline, Overwrite
from bioxfer.cli.preparing import given_files
from bioxfer.cli.terminal import EXIT_CODES, show_download, start_messages
from bioxfer.quoting import printable

__all__ = ["heads_app", "models_app"]

models_app = typer.Typer(
    help="The backbones: list, show, download, verify.", rich_markup_mode=None, epilog=EXIT_CODES
)
heads_app = typer.Typer(help="The heads: list, show, plot.", rich_markup_mode=None, epilog=EXIT_CODES)

_Sha256 = Annotated[str | None, typer.Option("--sha256", metavar="HEX", help="Hash that the file must have.")]
_Head = Annotated[str, typer.Argument(metavar="HEAD", help="Name of a ready head, or a head file.")]


class Picture(str, Enum):
    """What can be drawn of a card."""

    reliability = "reliability"
    learning_curve = "learning-curve"
    baselines = "baselines"
    confusion = "confusion"
    numbers = "numbers"
    identity = "identity"


@models_app.command("list", epilog=EXIT_CODES)
def list_models() -> None:
    """List the backbones and say which are at hand.

    Columns: name, family, layers, width, parameters, where (embedded in the package, cached on this disk, or
    not here yet).
    """
    from bioxfer.backbones import list_backbones

    typer.echo("name\tfamily\tlayers\twidth\tparameters\twhere")
    for info in list_backbones():
        typer.echo(
            f"{info.name}\t{info.family}\t{info.layers}\t{info.dim}\t"
            f"{'' if info.parameters is None else f'{info.parameters / 1e6:.1f}M'}\t{info.where}"
        )


@models_app.command("show", epilog=EXIT_CODES)
def show_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]",
            help="compact, weights or an adapter of bioxfer's, or a model of the Hugging Face hub that is "
            "here (owner/name, or a folder).",
        ),
    ] = "compact",
) -> None:
    """Print the card of a compact backbone or an adapter, or what a model of the hub is, as JSON."""
    import json

    from bioxfer.backbones import is_folder_model
    from bioxfer.backbones.adapters import is_adapter, load_adapter
    from bioxfer.backbones.compact import read_card
    from bioxfer.backbones.huggingface import describe_folder

    if name == "compact":
        card = read_card()
    elif is_folder_model(name):
        card = describe_folder(name)
    else:
        card = load_adapter(name).card if is_adapter(name) else read_card(name)
    typer.echo(printable(json.dumps(card, indent=2, ensure_ascii=False)))


@models_app.command("download", epilog=EXIT_CODES)
def download_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name of bioxfer models list, or of the Hugging Face hub: owner/name@COMMIT, or "
            "owner/name, which is then pinned to its present commit.",
        ),
    ],
    base_url: Annotated[
        list[str] | None,
        typer.Option(
            "--base-url",
            metavar="PLACE",
            help="Mirror that holds NAME.pt, a web address or a folder here; for a name of the hub a web "
            "address that answers as it does. May be repeated, and they are "
            "tried in turn. If not given: those that BIOXFER_MIRRORS lists (commas between), then the "
            "publisher.",
        ),
    ] = None,
    sha256: _Sha256 = None,
    into: Annotated[
        Path | None, typer.Option("--into", metavar="DIR", help="Folder; torch.hub's if not given.")
    ] = None,
    offline: Offline = False,
) -> None:
    """Download the weights of a backbone, check them, and print where they lie.

    A download that was interrupted goes on where it stopped when the same command is given again.
    """
    start_messages(quiet=False)
    from bioxfer.backbones import download_backbone

    with show_download(name) as progress:
        place = download_backbone(
            name,
            into=into,
            offline=offline,
            base_url=base_url or (),
            sha256=sha256,
            progress=progress,
        )
    typer.echo(place)


@models_app.command("verify", epilog=EXIT_CODES)
def verify_model(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A name of bioxfer models list, a weights file or a folder."),
    ],
    sha256: _Sha256 = None,
) -> None:
    """Check the weights of a backbone, and print each file, its sha256 and whether that was known before."""
    start_messages(quiet=False)
    from bioxfer.backbones import is_folder_model, verify_backbone
    from bioxfer.backbones.huggingface import verify_folder

    several = is_folder_model(name) and sha256 is None
    for check in verify_folder(name) if several else [verify_backbone(name, sha256=sha256)]:
        known = "as stated or recorded" if check.known else "nothing to hold it against"
        typer.echo(f"{check.path}\t{check.sha256}\t{known}")


@heads_app.command("list", epilog=EXIT_CODES)
def list_ready_heads() -> None:
    """List the ready heads.

    Columns: name, task, kind, classes (0 for a number), backbone, pool, first (how many residues of a protein
    the head reads), threshold (confidence below which it says unknown; none if it answers always).
    """
    from bioxfer.heads import TrainedHead
    from bioxfer.prediction import list_heads, load_head

    typer.echo("name\ttask\tkind\tclasses\tbackbone\tpool\tfirst\tthreshold")
    for name in list_heads():
        head = load_head(name)
        first = head.first if isinstance(head, TrainedHead) else None
        threshold = head.threshold if isinstance(head, TrainedHead) else 0.0
        cells = [name, head.task.name, head.kind, len(head.labels), head.backbone, head.pool, first or "all"]
        typer.echo("\t".join(map(str, [*cells, f"{threshold:.3f}" if threshold else "none"])))


@heads_app.command("show", epilog=EXIT_CODES)
def show_head(
    name: _Head,
    as_json: Annotated[bool, typer.Option("--json", help="The whole card, as JSON.")] = False,
) -> None:
    """Print the card of a head: data, split, metrics, baselines, calibration, limits."""
    import json

    from bioxfer.cards import describe_card
    from bioxfer.prediction import load_head

    card = load_head(name).card
    as_text = printable(json.dumps(card, indent=2, ensure_ascii=False)) if as_json else describe_card(card)
    typer.echo(as_text)


@heads_app.command("plot", epilog=EXIT_CODES)
def plot_head(
    name: _Head,
    out: Annotated[
        str, typer.Option("-o", "--out", metavar="FILE", help="Picture to write: .png, .svg or .pdf.")
    ],
    what: Annotated[
        Picture,
        typer.Option(
            "--what",
            help="How often answers of each probability were right; how good each way of transfer is with "
            "so many labelled proteins (of a head that bioxfer transfer trained); the head beside simple "
            "methods; which class was taken for which; said against true numbers; or how good it is by "
            "identity to its training proteins.",
        ),
    ] = Picture.reliability,
    overwrite: Overwrite = False,
) -> None:
    """Draw the card of a head; needs bioxfer[report]."""
    start_messages(quiet=False)
    from bioxfer.output import check_output
    from bioxfer.prediction import load_head
    from bioxfer.report import check_plot, save_plot

    check_plot(out)
    check_output(out, inputs=given_files([name]), overwrite=overwrite)
    save_plot(load_head(name).card, out, what=what.value)
