"""Labelled proteins as a head reads them: one vector each, and their residues where those are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bioxfer.attention_fitting import Matrices, gather_matrices
from bioxfer.backbones import Backbone
from bioxfer.cache import EmbeddingCache
from bioxfer.embedding import Long, embed_records
from bioxfer.engine import Vector
from bioxfer.errors import InputError
from bioxfer.heads import TrainedHead
from bioxfer.sequences import OnInvalid, SequenceRecord

__all__ = ["Represented", "represent"]


@dataclass(frozen=True, slots=True)
class Represented:
    """N proteins and what a head reads of them.

    Attributes
    ----------
    records : list of SequenceRecord
        As they were given.
    residues : list of str
        The N proteins after cleaning.
    features : ndarray (N, F)
        A vector for each, NaN where there is none.
    matrices : Matrices, optional
        Their residues, if they were asked for.
    """

    records: list[SequenceRecord]
    residues: list[str]
    features: npt.NDArray[np.float32]
    matrices: Matrices | None = None

    @property
    def labels(self) -> list[str]:
        """The N labels."""
        return [record.label or "" for record in self.records]


def represent(
    records: Sequence[SequenceRecord],
    backbone: Backbone,
    *,
    layer: int,
    pool: str,
    first: int | None,
    long: Long,
    on_invalid: OnInvalid,
    degap: bool,
    batch_tokens: int | None,
    cache: EmbeddingCache | None,
    fp32: Callable[[], Backbone] | None,
    progress: Callable[[int], object] | None,
    head: TrainedHead | None = None,
    keep: bool = False,
) -> Represented:
    """Make of each record what a head reads.

    Parameters
    ----------
    records : sequence of SequenceRecord
        N labelled proteins.
    backbone, layer, first, long, on_invalid, degap, batch_tokens, cache, fp32, progress
        See `bioxfer.embedding.embed_records`.
    pool : str
        How residues are pooled.
    head : TrainedHead, optional
        What the vectors are for; for none yet, if not given.
    keep : bool, optional
        Keep the residues' matrices, in half precision.

    Raises
    ------
    InputError
        No record has a vector.
    """
    vectors: list[Vector | None] = []
    sequences: list[str] = []

    def rows() -> Iterator[Vector | None]:
        for row in embed_records(
            records,
            backbone,
            layer=layer,
            pools=(pool,),
            per_residue=keep or (head is not None and head.attention is not None),
            first=first,
            long=long,
            on_invalid=on_invalid,
            degap=degap,
            batch_tokens=batch_tokens,
            cache=cache,
            fp32=fp32,
            progress=progress,
        ):
            vector = row.vector(pool)
            vectors.append(vector if vector is None or head is None else head.join(vector, row.residues))
            sequences.append(row.sequence)
            yield row.residues

    matrices: Matrices | None = None
    if keep:
        matrices = gather_matrices(rows(), most=sum(len(record.sequence[:first]) for record in records))
    else:
        deque(rows(), maxlen=0)
    width = next((len(vector) for vector in vectors if vector is not None), 0)
    if not width:
        raise InputError(
            f"none of {len(vectors)} records could be embedded; look at them with `bioxfer embed`"
        )
    features = np.full((len(vectors), width), np.nan, dtype=np.float32)
    for place, vector in enumerate(vectors):
        if vector is not None:
            features[place] = vector
    return Represented(list(records), sequences, features, matrices)
