"""scikit-learn's face of bioxfer: sequences in, vectors or predictions out.

The estimators keep scikit-learn's rules, so ``clone``, ``Pipeline``, ``GridSearchCV`` and ``cross_val_score``
work on them. ``X`` is a list, array or pandas Series of sequences, or a list of `SequenceRecord`. Pass
`bioxfer.clusters.HomologyKFold` as ``cv``: a random split puts relatives on both sides.

What they refuse is a `bioxfer.errors.BioxferError` and, as scikit-learn asks, a ``ValueError`` too.
"""

from __future__ import annotations

from bioxfer.estimators.annotation import AnnotationTransfer
from bioxfer.estimators.embedder import SequenceEmbedder
from bioxfer.estimators.predictors import SequenceClassifier, SequenceRegressor
from bioxfer.estimators.residues import ResidueClassifier, ResidueRegressor

__all__ = [
    "AnnotationTransfer",
    "ResidueClassifier",
    "ResidueRegressor",
    "SequenceClassifier",
    "SequenceEmbedder",
    "SequenceRegressor",
]
