"""Light attention: a learned way to make one vector of a protein's residues.

After Stärk, Dallago, Heinzinger and Rost, Bioinformatics Advances 2021. Two convolutions read the residues.
What the first says of each residue is a value; what the second says, in softmax over the protein, is how much
that value counts. The weighted sums of the values, and their largest, are the vector. This is the part that a
saved head needs; `bioxfer.attention_training` learns the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bioxfer.errors import FingerprintError, HeadFileError, UsageError

__all__ = ["AttentionPool"]

Floats = npt.NDArray[np.float32]

_BLOCK = 4096  # residues of which the products of all taps are held at once, some 20 MB


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPool:
    """What `pool` needs to make a vector of residues.

    Attributes
    ----------
    mean : ndarray (D,)
        Subtracted from each residue; beyond a protein's ends the convolutions see this residue.
    value, attention : ndarray (H, K, D)
        Weights of the two convolutions for H channels and an odd number K of neighbouring residues, the scale
        of residues folded in.
    bias : ndarray (H,)
        Of the values; one of the attention would cancel in the softmax.
    """

    mean: Floats
    value: Floats
    attention: Floats
    bias: Floats

    @property
    def width(self) -> int:
        """Width D of the matrices it reads."""
        return len(self.mean)

    @property
    def n_features(self) -> int:
        """Length 2H of the vector it makes."""
        return 2 * len(self.bias)

    def pool(self, residues: npt.NDArray[Any]) -> Floats:
        """Make one vector of a protein.

        Parameters
        ----------
        residues : ndarray (L, D)
            Residues as the backbone made them, one or more.

        Returns
        -------
        ndarray (2H,)
            The weighted sums of the values, then their largest.

        Raises
        ------
        FingerprintError
            The residues have another width than those it was trained on.
        UsageError
            There are none.
        """
        found = np.asarray(residues)
        if found.ndim != 2 or found.shape[1] != self.width:
            raise FingerprintError(
                f"light attention was trained on residues of width {self.width} and cannot read an array of "
                f"shape {found.shape}; give the matrix of its own backbone and layer"
            )
        if not len(found):
            raise UsageError("a protein of 0 residues has no vector; leave it out")
        seen = self._convolve(found)
        channels = len(self.bias)
        values, scores = seen[:, :channels] + self.bias, seen[:, channels:]
        weights = np.exp(scores - scores.max(axis=0))
        weighted = (weights * values).sum(axis=0) / weights.sum(axis=0)
        return np.concatenate([weighted, values.max(axis=0)]).astype(np.float32)

    def extend(self, vector: npt.NDArray[Any], residues: npt.NDArray[Any] | None) -> Floats:
        """Put the vector of `pool` behind an ordinary pooled vector ``(F,)``: ``(F + 2H,)``.

        Raises
        ------
        UsageError
            No residues were given.
        """
        if residues is None:
            raise UsageError("this head reads each residue; embed its proteins with per_residue=True")
        return np.concatenate([vector, self.pool(residues)]).astype(np.float32)

    def _convolve(self, residues: npt.NDArray[Any]) -> Floats:
        """Compute values, without bias, and attention before softmax, side by side: ``(L, 2H)``."""
        weight = np.concatenate([self.value, self.attention])
        taps, half = weight.shape[1], weight.shape[1] // 2
        table = weight.reshape(-1, taps * self.width).T
        total = len(residues)
        out = np.empty((total, len(weight)), dtype=np.float32)
        for first in range(0, total, _BLOCK):
            last = min(first + _BLOCK, total)
            low, high = max(0, first - half), min(total, last + half)
            x = np.zeros((last - first + 2 * half, self.width), dtype=np.float32)
            at = low - first + half
            x[at : at + high - low] = residues[low:high].astype(np.float32) - self.mean
            windows = np.lib.stride_tricks.sliding_window_view(x, taps, axis=0).transpose(0, 2, 1)
            out[first:last] = windows.reshape(last - first, -1) @ table
        return out

    def to_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return arrays that `from_tensors` reads back."""
        return {
            "mean": self.mean,
            "value": self.value,
            "attention": self.attention,
            "bias": self.bias,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> AttentionPool:
        """Read what `to_tensors` wrote.

        Raises
        ------
        HeadFileError
            An array is missing, or has the wrong type, shape or values.
        """
        names = ("mean", "value", "attention", "bias")
        if set(tensors) != set(names):
            wrong = ", ".join(sorted(set(tensors) ^ set(names)))
            raise HeadFileError(f"arrays of the light attention are missing or foreign: {wrong}")
        for name in names:
            array = tensors[name]
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise HeadFileError(f"the light attention's {name} holds what are no finite float32 numbers")
        shape = tensors["value"].shape
        if len(shape) != 3 or 0 in shape or shape[1] % 2 == 0:
            raise HeadFileError(f"values of shape {shape} are no convolution of odd width")
        for name, expected in (("attention", shape), ("mean", shape[2:]), ("bias", shape[:1])):
            if tensors[name].shape != expected:
                raise HeadFileError(
                    f"the light attention's {name} of shape {tensors[name].shape} is not {expected}"
                )
        return cls(**{name: tensors[name] for name in names})
