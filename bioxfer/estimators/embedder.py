"""Sequences to vectors, as a scikit-learn transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import TransformerMixin

from bioxfer.estimators.proteins import OnBackbone, Proteins, embed_proteins, read_proteins
from bioxfer.pooling import parse_pool
from bioxfer.sequences import SequenceRecord

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone

__all__ = ["SequenceEmbedder"]


class SequenceEmbedder(TransformerMixin, OnBackbone):  # type: ignore[misc]
    """Turn sequences into vectors.

    Parameters
    ----------
    model : str or Backbone
        Backbone, as in `bioxfer.embedding.embed`.
    layer : int, optional
        Layer to read; the last if not given.
    pool : str
        How residues are pooled, such as ``"mean"`` or ``"mean+max"``.
    first : int, optional
        Read only that many residues of each protein, from its start.
    precision, device, threads, cache
        As in `bioxfer.embedding.embed`.

    Examples
    --------
    >>> from bioxfer import SequenceEmbedder
    >>> vectors = SequenceEmbedder(pool="mean").fit_transform(["MKTAYIAKQR", "GGSWWPPEED"])
    >>> len(vectors)
    2
    """

    def __init__(
        self,
        model: str | Backbone = "compact",
        *,
        layer: int | None = None,
        pool: str = "mean",
        first: int | None = None,
        precision: str = "fp32",
        device: str = "cpu",
        threads: int | None = None,
        cache: str | None = None,
    ) -> None:
        self.model = model
        self.layer = layer
        self.pool = pool
        self.first = first
        self.precision = precision
        self.device = device
        self.threads = threads
        self.cache = cache

    def fit(self, X: Proteins, y: object = None) -> SequenceEmbedder:
        """Learn nothing; the backbone is trained already."""
        read_proteins(X)
        return self

    def transform(self, X: Proteins) -> npt.NDArray[np.float32]:
        """Embed sequences.

        Parameters
        ----------
        X : sequence of str or SequenceRecord
            N proteins.

        Returns
        -------
        ndarray (N, F)
            One vector for each protein.

        Raises
        ------
        InputError
            A protein has no vector (an empty sequence, say), which scikit-learn could not carry.
        """
        return embed_proteins(self, read_proteins(X), pool=self.pool, first=self.first).vectors

    def get_feature_names_out(self, input_features: object = None) -> npt.NDArray[np.object_]:
        """Name the columns ``(F,)``, such as ``mean0``, which `set_output` wants for a pandas table."""
        pools = parse_pool(self.pool)
        one = embed_proteins(self, [SequenceRecord("one", "M")], pool=self.pool, first=self.first)
        width = one.vectors.shape[1] // len(pools)
        return np.array([f"{pool}{place}" for pool in pools for place in range(width)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        """Say that no fit is needed."""
        return True

    def __sklearn_tags__(self) -> Any:
        """Say that no fit is needed, and that vectors are float32 whatever goes in."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        return tags
