"""What commands do before their work: open the input, the cache and the backbone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from bioxfer.cli.options import Translate

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone
    from bioxfer.cache import EmbeddingCache
    from bioxfer.genes import Translation

__all__ = [
    "as_translation",
    "backbone_loader",
    "check_report_file",
    "given_files",
    "open_cache",
    "parse_sizes",
]

log = logging.getLogger("bioxfer")


def given_files(names: Sequence[str | None] | None) -> list[str]:
    """Keep what names a file: an output must not replace it."""
    return [name for name in names or () if name is not None]


def check_report_file(report: str | None, *, others: Sequence[str], overwrite: bool) -> None:
    """Refuse a report that cannot be written, or that would replace another file of the command."""
    if report is None:
        return
    from bioxfer.output import check_output
    from bioxfer.report import check_report

    check_report(report)
    check_output(report, inputs=others, overwrite=overwrite)


def as_translation(
    translate: Translate,
    genetic_code: int,
    min_orf: int | None = None,
    gff: str | None = None,
    *,
    degap: bool = False,
) -> Translation:
    """Put the options that make proteins of nucleotides together; what is wrong is refused here."""
    from bioxfer.genes import MIN_ORF, Translation

    shortest = MIN_ORF if min_orf is None else min_orf
    return Translation(translate.value, genetic_code, shortest, gff, degap)


def backbone_loader(name: str, *, device: str, offline: bool, threads: int | None) -> Callable[..., Backbone]:
    """Give a function that loads the backbone in a given precision, and sets the threads but not again."""
    from bioxfer.backbones import load_backbone

    def load(precision: str, *, again: bool = False) -> Backbone:
        number = None if again else threads
        backbone = load_backbone(name, precision=precision, device=device, offline=offline, threads=number)
        log.debug(
            "backbone %s (%s), %s on %s", backbone.name, backbone.fingerprint, backbone.precision, device
        )
        return backbone

    return load


def parse_sizes(text: str) -> tuple[int, ...]:
    """Read the sizes of a learning curve."""
    from bioxfer.errors import UsageError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(f"--sizes {text}: give numbers of proteins such as 16,64,256") from error


@contextlib.contextmanager
def open_cache(resume: bool) -> Iterator[EmbeddingCache | None]:
    """Open the user's cache; none without ``--resume``."""
    if not resume:
        yield None
        return
    from bioxfer.cache import EmbeddingCache, default_cache_path

    with EmbeddingCache(default_cache_path()) as cache:
        if log.isEnabledFor(logging.DEBUG):  # counting reads the whole table
            log.debug("cache %s, %d vectors", cache.path, len(cache))
        yield cache
