"""The command line: parses, calls one function, prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from bioxfer import __version__
from bioxfer.cli.catalogue import heads_app, models_app
from bioxfer.cli.converting import convert_command
from bioxfer.cli.doctoring import doctor_command
from bioxfer.cli.inference import embed_command, predict_command
from bioxfer.cli.splitting import split_command
from bioxfer.cli.spreading import merge_command
from bioxfer.cli.terminal import EXIT_CODES, run_app
from bioxfer.cli.training import evaluate_command, pretrain_command, train_command
from bioxfer.cli.transferring import transfer_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="bioxfer",
    help="Transfer learning on protein and gene sequences: FASTA in, CSV out, offline, on an ordinary CPU.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=EXIT_CODES,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bioxfer {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass


app.command("predict", epilog=EXIT_CODES)(predict_command)
app.command("embed", epilog=EXIT_CODES)(embed_command)
app.command("convert", epilog=EXIT_CODES)(convert_command)
app.command("merge", epilog=EXIT_CODES)(merge_command)
app.command("train", epilog=EXIT_CODES)(train_command)
app.command("transfer", epilog=EXIT_CODES)(transfer_command)
app.command("evaluate", epilog=EXIT_CODES)(evaluate_command)
app.command("split", epilog=EXIT_CODES)(split_command)
app.command("pretrain", epilog=EXIT_CODES)(pretrain_command)
app.command("doctor", epilog=EXIT_CODES)(doctor_command)
app.add_typer(models_app, name="models")
app.add_typer(heads_app, name="heads")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, that of this process if none is given, and leave."""
    run_app(app, arguments)
