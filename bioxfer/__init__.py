"""Transfer learning on protein and gene sequences: FASTA in, CSV out.

>>> import bioxfer as bx
>>> records = bx.read_sequences("data/demo.fasta")
>>> table = bx.predict(records, heads=["structure_class"])
>>> len(table) == len(records)
True

Names are loaded when they are first used, so that ``import bioxfer`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bioxfer.audits import audit_split
    from bioxfer.backbones import list_backbones, load_backbone
    from bioxfer.clusters import HomologyKFold, cluster_sequences, homology_split
    from bioxfer.embedding import Embeddings, embed
    from bioxfer.errors import BioxferError
    from bioxfer.estimators import (
        AnnotationTransfer,
        ResidueClassifier,
        ResidueRegressor,
        SequenceClassifier,
        SequenceEmbedder,
        SequenceRegressor,
    )
    from bioxfer.exchange import read_embeddings
    from bioxfer.genes import Translation, translate, translate_cds
    from bioxfer.heads import TrainedHead
    from bioxfer.io import iter_sequences, read_labels, read_sequences
    from bioxfer.prediction import list_heads, load_head, predict
    from bioxfer.residues import ResidueHead
    from bioxfer.sequences import Origin, SequenceRecord

__version__ = "0.6.0"

_HOMES = {
    "AnnotationTransfer": "estimators",
    "BioxferError": "errors",
    "Embeddings": "embedding",
    "HomologyKFold": "clusters",
    "Origin": "sequences",
    "ResidueClassifier": "estimators",
    "ResidueHead": "residues",
    "ResidueRegressor": "estimators",
    "SequenceClassifier": "estimators",
    "SequenceEmbedder": "estimators",
    "SequenceRecord": "sequences",
    "SequenceRegressor": "estimators",
    "TrainedHead": "heads",
    "Translation": "genes",
    "audit_split": "audits",
    "cluster_sequences": "clusters",
    "embed": "embedding",
    "homology_split": "clusters",
    "iter_sequences": "io",
    "list_backbones": "backbones",
    "list_heads": "prediction",
    "load_backbone": "backbones",
    "load_head": "prediction",
    "predict": "prediction",
    "read_embeddings": "exchange",
    "read_labels": "io",
    "read_sequences": "io",
    "translate": "genes",
    "translate_cds": "genes",
}

__all__ = [
    "AnnotationTransfer",
    "BioxferError",
    "Embeddings",
    "HomologyKFold",
    "Origin",
    "ResidueClassifier",
    "ResidueHead",
    "ResidueRegressor",
    "SequenceClassifier",
    "SequenceEmbedder",
    "SequenceRecord",
    "SequenceRegressor",
    "TrainedHead",
    "Translation",
    "__version__",
    "audit_split",
    "cluster_sequences",
    "embed",
    "homology_split",
    "iter_sequences",
    "list_backbones",
    "list_heads",
    "load_backbone",
    "load_head",
    "predict",
    "read_embeddings",
    "read_labels",
    "read_sequences",
    "translate",
    "translate_cds",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bioxfer' has no attribute {name!r}")
    found = getattr(import_module(f"bioxfer.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
