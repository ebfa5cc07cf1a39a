"""How predict and embed run: here, as one part of several, or by workers; and merge, which joins parts."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from bioxfer.cli.options import Gff, Overwrite, Quiet, Verbose
from bioxfer.cli.preparing import open_cache
from bioxfer.cli.terminal import report_records, show_progress, start_messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from bioxfer.jobs import Job, Loaded

__all__ = ["Ran", "Spread", "merge_command", "run_job"]

log = logging.getLogger("bioxfer")


@dataclass(frozen=True)
class Spread:
    """Options that decide where a job runs; see `bioxfer.cli.options`."""

    shard: str | None = None
    distributed: bool = False
    workers: int | None = None
    part_records: int | None = None
    ray_address: str | None = None
    merge: bool = False

    def check(
        self,
        source: str,
        out: str,
        *,
        inputs: Sequence[str],
        report: str | None,
        offline: bool,
        overwrite: bool,
    ) -> None:
        """Refuse what contradicts, and an output that cannot be written, before the work starts."""
        from bioxfer.errors import UsageError
        from bioxfer.output import check_output
        from bioxfer.shards import check_parts, parse_shard

        given = {
            "--workers": self.workers,
            "--part-records": self.part_records,
            "--ray-address": self.ray_address,
            "--merge": self.merge or None,
        }
        stray = [name for name, value in given.items() if value is not None]
        if stray and not self.distributed:
            raise UsageError(f"{stray[0]} is for --distributed; add that, or leave it out")
        if self.shard is None and not self.distributed:
            check_output(out, inputs=[source, *inputs], overwrite=overwrite)
            return
        if self.shard is not None and self.distributed:
            raise UsageError("--shard makes one part and --distributed all of them; leave one of the two out")
        if report is not None:
            raise UsageError(
                "--report shows all proteins together, which parts are not; predict without --shard and "
                "--distributed, or leave it out"
            )
        shard = None if self.shard is None else parse_shard(self.shard)
        check_parts(out, shard=shard, inputs=[source, *inputs])
        if self.distributed and (source == "-" or (os.path.exists(source) and not os.path.isfile(source))):
            raise UsageError(
                "with --distributed every worker reads IN, which a stream does not allow; name a file"
            )
        if self.distributed and offline and self.ray_address is not None:
            raise UsageError(
                "--ray-address needs the network, which --offline forbids; leave one of the two out"
            )
        if self.merge:
            check_output(out, inputs=[source, *inputs], overwrite=overwrite)


class Ran(NamedTuple):
    """What became of a job: its records by status, where they are, and how many the input held."""

    statuses: Counter[str]
    place: str
    records: int


def run_job(
    job: Job,
    spread: Spread,
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    loaded_then: Callable[[Loaded], object] = lambda loaded: None,
) -> Ran:
    """Run a job where it is to be run; ``loaded_then`` is given what was loaded, unless workers load it."""
    if spread.distributed:
        return _run_distributed(job, spread, overwrite=overwrite, quiet=quiet)
    from bioxfer.jobs import make_shard
    from bioxfer.shards import parse_shard

    job, records = job.begin()
    loaded = job.load()
    loaded_then(loaded)
    with open_cache(resume) as cache, show_progress(quiet=quiet) as progress:
        if spread.shard is None:
            ahead = os.path.isfile(job.source)
            statuses = loaded.write(
                records, job.out, cache=cache, ahead=ahead, overwrite=overwrite, progress=progress
            )
            return Ran(statuses, job.out, sum(statuses.values()))
        shard = parse_shard(spread.shard)
        done = make_shard(loaded, shard, records, cache=cache, overwrite=overwrite, progress=progress)
    return Ran(Counter(done.mark.statuses), done.part, done.mark.input.records)


def _run_distributed(job: Job, spread: Spread, *, overwrite: bool, quiet: bool) -> Ran:
    from bioxfer.distributed import PART_RECORDS, distribute

    block = spread.part_records or PART_RECORDS
    # Ray writes notes to standard output, whatever it is told.
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        show_progress(quiet=quiet) as progress,
    ):
        statuses = distribute(
            job,
            workers=spread.workers,
            part_records=block,
            address=spread.ray_address,
            overwrite=overwrite,
            progress=progress,
        )
    if spread.merge:
        from bioxfer.merging import merge_parts
        from bioxfer.shards import Shard, name_part

        # By name: those of an earlier division may lie beside.
        count = max(1, -(-sum(statuses.values()) // block))
        parts = [name_part(job.out, Shard(number, count)) for number in range(1, count + 1)]
        merge_parts(job.out, parts, overwrite=overwrite, delete_parts=True)
    else:
        log.info("the parts lie beside %s; bioxfer merge -o %s joins them", job.out, shlex.quote(job.out))
    return Ran(statuses, job.out, sum(statuses.values()))


def merge_command(
    out: Annotated[
        str,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="File to write, of the parts' format; text tables may be compressed otherwise.",
        ),
    ],
    part: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART]...",
            help="All parts, in any order; if none is given, those beside FILE that bear its name.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--input", metavar="IN", help="Compare with the records of this file, one by one."),
    ] = None,
    gff: Gff = None,
    delete_parts: Annotated[
        bool, typer.Option("--delete-parts", help="Remove parts and marks when FILE is there.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Join the parts that predict or embed made with --shard or --distributed, in the order of their input.

    FILE appears whole or not at all, as one process would have written it. Before that: every part is there
    once, finished and unchanged, was made for the same request from the same input, and holds as many
    records as fall to it; and every id is there once.
    """
    start_messages(quiet=quiet, verbose=verbose)
    from bioxfer.merging import merge_parts

    statuses = merge_parts(
        out, part or None, source=source, gff=gff, overwrite=overwrite, delete_parts=delete_parts
    )
    report_records(statuses, source="the input", out=out)
