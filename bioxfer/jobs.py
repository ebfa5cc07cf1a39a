"""Jobs: what `bioxfer embed` and `predict` are asked to do, in plain values that can be sent.

A job reads its records, loads its backbone and heads once, and writes any of the records with them: all for
one output, those of a part for one shard, or part after part in a worker of `bioxfer.distributed`.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from bioxfer.backbones import Backbone, load_backbone
from bioxfer.cache import EmbeddingCache
from bioxfer.embedding import Long, embed_records, resolve_layer
from bioxfer.genes import Translation, find_origins
from bioxfer.io import OnDuplicate, iter_proteins
from bioxfer.prediction import Shape, find_head, list_heads, load_heads, name_backbone, write_predictions
from bioxfer.rows import Batch, Head
from bioxfer.sequences import OnInvalid, SequenceRecord
from bioxfer.shards import (
    Input,
    Mark,
    Shard,
    Tally,
    find_finished,
    finish_part,
    name_mark,
    name_part,
    sum_file,
    take,
)
from bioxfer.vectors import write_vectors

__all__ = ["Done", "EmbedJob", "Job", "Loaded", "PredictJob", "make_shard", "prepare_part"]

logger = logging.getLogger("bioxfer")

Progress = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """What both commands are asked.

    Attributes
    ----------
    source, out : str
        Input and output.
    model : str or None
        The backbone; that of the heads if not given.
    device, threads, precision, offline
        How to load it, see `load_backbone`.
    batch_tokens, long, on_invalid, degap
        See `embed_records`.
    on_duplicate, translation
        See `iter_proteins`.
    excel_safe
        See `TableWriter`.
    origins : bool
        Whether a table says where proteins are written; `begin` finds out.
    """

    source: str
    out: str
    model: str | None = None
    device: str = "cpu"
    threads: int | None = None
    precision: str = "fp32"
    offline: bool = False
    batch_tokens: int | None = None
    long: Long = "window"
    on_invalid: OnInvalid = "x"
    on_duplicate: OnDuplicate = "error"
    degap: bool = False
    translation: Translation = field(default_factory=Translation)
    excel_safe: bool = False
    origins: bool = False

    name = ""  # of the command

    def read(self) -> Iterator[SequenceRecord]:
        """Read the records, translated and with their ids checked."""
        return iter_proteins(self.source, self.translation, on_duplicate=self.on_duplicate)

    def begin(self) -> tuple[Job, Iterator[SequenceRecord]]:
        """Read the first record, and give the job that knows of `origins`, and all records."""
        origins, records = find_origins(self.read(), self.translation)
        return replace(self, origins=origins), records

    @abstractmethod
    def load(self) -> Loaded:
        """Load backbone and heads."""

    def describe(self) -> dict[str, Any]:
        """Say what decides the output's bytes, besides the input and what `load` finds."""
        from bioxfer import __version__

        how = self.translation
        return {
            "command": self.name,
            "version": __version__,
            "long": self.long,
            "on_invalid": self.on_invalid,
            "on_duplicate": self.on_duplicate,
            "degap": self.degap,
            "translate": how.how,
            "genetic_code": how.genetic_code,
            "min_orf": how.min_orf,
            "gff": how.gff is not None,
            "origins": self.origins,
            "excel_safe": self.excel_safe,
        }

    def command_line(self) -> str:
        """Word the command that asks for this, as a shell reads it."""
        how = self.translation
        words = ["bioxfer", self.name, self.source, "-o", self.out]
        values = {each.name: (getattr(self, each.name), each.default) for each in fields(self)}
        for name in ("source", "out", "translation", "origins"):
            del values[name]
        values |= {
            "translate": (how.how, "off"),
            "genetic_code": (how.genetic_code, 1),
            "min_orf": (how.min_orf, Translation().min_orf),
            "gff": (how.gff, None),
        }
        for name, (value, usual) in values.items():
            option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
            if value is True:
                words.append(option)
            elif value != usual and value is not None:
                many = value if isinstance(value, tuple) else (value,)
                words += [word for each in many for word in (option, str(each))]
        return shlex.join(words)

    def _load_backbone(self, name: str) -> tuple[Backbone, Callable[[], Backbone]]:
        load = partial(load_backbone, name, device=self.device, offline=self.offline)
        backbone = load(precision=self.precision, threads=self.threads)
        logger.debug(
            "backbone %s (%s), %s on %s",
            backbone.name,
            backbone.fingerprint,
            backbone.precision,
            self.device,
        )
        return backbone, partial(load, precision="fp32")


_OPTIONS = {"heads": "head", "shape": "format"}  # where the command line calls it otherwise


class Loaded(ABC):
    """A job with its backbone and heads at hand."""

    job: Job
    backbone: Backbone
    fp32: Callable[[], Backbone]

    @abstractmethod
    def write(
        self,
        records: Iterable[SequenceRecord],
        out: str,
        *,
        cache: EmbeddingCache | None = None,
        ahead: bool = False,
        overwrite: bool = True,
        progress: Progress | None = None,
    ) -> Counter[str]:
        """Write records to a file of the job's format, and count them by status."""

    def request(self) -> dict[str, Any]:
        """Say everything that decides the output's bytes, besides the input."""
        found = {**self.job.describe(), **self._facts(), "precision": self.backbone.precision}
        return dict(json.loads(json.dumps(found)))  # as it comes back from a mark

    @abstractmethod
    def _facts(self) -> dict[str, Any]: ...


# --- embed -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EmbedJob(Job):
    """What `bioxfer embed` is asked: see `embed_records` and `write_vectors`."""

    layer: int | None = None
    pool: str = "mean"
    per_residue: bool = False

    name = "embed"

    def load(self) -> LoadedEmbed:
        """Load the backbone, and find the layer.

        Raises
        ------
        BioxferError
            As `load_backbone` and `resolve_layer` raise.
        """
        backbone, fp32 = self._load_backbone(self.model or "compact")
        return LoadedEmbed(self, backbone, fp32)


class LoadedEmbed(Loaded):
    """An `EmbedJob` with its backbone at hand."""

    def __init__(self, job: EmbedJob, backbone: Backbone, fp32: Callable[[], Backbone]) -> None:
        self.job: EmbedJob = job
        self.backbone = backbone
        self.fp32 = fp32
        self.layer = resolve_layer(backbone, job.layer)

    def _facts(self) -> dict[str, Any]:
        return {
            "model": self.backbone.name,
            "fingerprint": self.backbone.fingerprint,
            "layer": self.layer,
            "pool": "residues" if self.job.per_residue else self.job.pool,
        }

    def request(self) -> dict[str, Any]:
        """Say what decides the output's bytes, its width included; see `Loaded`."""
        return {**super().request(), "width": self.backbone.dim}

    def write(
        self,
        records: Iterable[SequenceRecord],
        out: str,
        *,
        cache: EmbeddingCache | None = None,
        ahead: bool = False,
        overwrite: bool = True,
        progress: Progress | None = None,
    ) -> Counter[str]:
        """Write vectors; see `Loaded`."""
        job = self.job
        return write_vectors(
            out,
            embed_records(
                records,
                self.backbone,
                layer=self.layer,
                pools=() if job.per_residue else (job.pool,),
                per_residue=job.per_residue,
                long=job.long,
                on_invalid=job.on_invalid,
                degap=job.degap,
                batch_tokens=job.batch_tokens,
                cache=cache,
                ahead=ahead,
                fp32=self.fp32,
                progress=progress,
            ),
            pool=job.pool,
            width=self.backbone.dim,
            facts={**self._facts(), "precision": self.backbone.precision},
            per_residue=job.per_residue,
            origins=job.origins,
            excel_safe=job.excel_safe,
            overwrite=overwrite,
        )


# --- predict -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PredictJob(Job):
    """What `bioxfer predict` is asked: see `predict_rows`."""

    heads: tuple[str, ...] = ()
    shape: Shape = "wide"
    probabilities: bool = False
    coverage: float | None = None

    name = "predict"

    def load(self) -> LoadedPredict:
        """Load heads and backbone.

        Raises
        ------
        BioxferError
            As `load_heads` and `load_backbone` raise.
        """
        heads = load_heads(self.heads or None)
        backbone, fp32 = self._load_backbone(self.model or name_backbone(heads[0]))
        return LoadedPredict(self, heads, backbone, fp32)


class LoadedPredict(Loaded):
    """A `PredictJob` with its heads and their backbone at hand."""

    def __init__(
        self, job: PredictJob, heads: list[Head], backbone: Backbone, fp32: Callable[[], Backbone]
    ) -> None:
        self.job: PredictJob = job
        self.heads = heads
        self.backbone = backbone
        self.fp32 = fp32
        self.watch: Callable[[Batch], object] | None = None

    def _facts(self) -> dict[str, Any]:
        names = self.job.heads or list_heads()
        return {
            "model": self.backbone.name,
            "fingerprint": self.backbone.fingerprint,
            "heads": {
                head.name: sum_file(os.fspath(find_head(name)))
                for head, name in zip(self.heads, names, strict=True)
            },
            "sets_where_possible": not self.job.heads,
            "format": self.job.shape,
            "probabilities": self.job.probabilities,
            "coverage": self.job.coverage,
        }

    def write(
        self,
        records: Iterable[SequenceRecord],
        out: str,
        *,
        cache: EmbeddingCache | None = None,
        ahead: bool = False,
        overwrite: bool = True,
        progress: Progress | None = None,
    ) -> Counter[str]:
        """Write predictions, and show them to ``watch`` if it is set; see `Loaded`."""
        job = self.job
        return write_predictions(
            records,
            out,
            self.heads,
            self.backbone,
            shape=job.shape,
            probabilities=job.probabilities,
            coverage=job.coverage,
            sets_where_possible=not job.heads,
            long=job.long,
            on_invalid=job.on_invalid,
            degap=job.degap,
            batch_tokens=job.batch_tokens,
            cache=cache,
            ahead=ahead,
            fp32=self.fp32,
            origins=job.origins,
            excel_safe=job.excel_safe,
            overwrite=overwrite,
            progress=progress,
            watch=self.watch,
        )


# --- parts -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """A part that is there now.

    Attributes
    ----------
    part : str
        Its file.
    mark : Mark
        What it holds.
    made : bool
        Whether it was made just now, and not found finished.
    """

    part: str
    mark: Mark
    made: bool


def prepare_part(loaded: Loaded, shard: Shard, given: Input, *, overwrite: bool) -> tuple[str, Mark, bool]:
    """Name a part, and tell what its mark says, or will say, and whether it is finished.

    Parameters
    ----------
    loaded : Loaded
        The job.
    shard : Shard
        Which part.
    given : Input
        All records of the input, if they are known by now.
    overwrite : bool
        See `find_finished`, whose errors rise.
    """
    request = loaded.request()
    part = name_part(loaded.job.out, shard)
    mark = find_finished(part, request, shard, overwrite=overwrite)
    if mark is None and not overwrite and os.path.exists(part):
        trouble = "damaged" if os.path.exists(name_mark(part)) else "not finished"
        logger.info("%s is %s; it is made anew", part, trouble)
    empty = Mark(shard=shard, request=request, command=loaded.job.command_line(), input=given)
    return part, mark or empty, mark is not None


def make_shard(
    loaded: Loaded,
    shard: Shard,
    records: Iterable[SequenceRecord],
    *,
    cache: EmbeddingCache | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Done:
    """Make one part of the job's output, unless it is there.

    Parameters
    ----------
    loaded : Loaded
        The job.
    shard : Shard
        Which part.
    records : iterable of SequenceRecord
        All that `Job.read` gives.
    cache, progress
        See `embed_records`.
    overwrite : bool, optional
        Make it in any case.

    Raises
    ------
    OutputError
        It was made for another request or from another input, and `overwrite` is false.
    BioxferError
        As reading and embedding raise.
    """
    tally = Tally()
    part, mark, finished = prepare_part(loaded, shard, tally.total, overwrite=overwrite)
    if finished:
        for _ in take(records, None, tally):
            pass
        mark.check_input(part, tally.total)
        logger.info("%s is finished and stays as it is", part)
        return Done(part, mark, made=False)
    mark = finish_part(
        part,
        mark,
        lambda: loaded.write(
            take(records, shard, tally),
            part,
            cache=cache,
            ahead=os.path.isfile(loaded.job.source),
            progress=progress,
        ),
        lambda: tally.total,
    )
    return Done(part, mark, made=True)
