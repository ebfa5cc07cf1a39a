"""Long proteins: overlapping windows, and one representation stitched from theirs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["stitch_windows", "window_starts"]


def window_starts(length: int, window: int, overlap: int) -> tuple[int, ...]:
    """Lay the fewest windows over a protein, evenly.

    Parameters
    ----------
    length : int
        Residues of the protein.
    window : int
        Residues of each window.
    overlap : int
        Residues that neighbouring windows share at least, fewer than `window`.

    Returns
    -------
    tuple of int
        First residue of each window, from 0; a single 0 if the protein fits.
        The last window ends with the protein.

    Examples
    --------
    >>> window_starts(2500, window=1022, overlap=255)
    (0, 739, 1478)
    """
    if length <= window:
        return (0,)
    gaps = -(-(length - window) // (window - overlap))
    return tuple(number * (length - window) // gaps for number in range(gaps + 1))


def stitch_windows(parts: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """Join the representations of overlapping windows into one.

    Neighbours are cross-faded: over the residues they share, the weight of the
    one falls in a straight line while that of the other rises. Residues near
    the edge of a window lack context on one side and so count least. The
    weights of each residue sum to 1.

    Parameters
    ----------
    parts : sequence of Tensor
        ``(W, D)`` of each window.
    starts : sequence of int
        First residue of each window, ascending, the first one 0.

    Returns
    -------
    Tensor
        ``(L, D)`` float32, ``L`` being where the last window ends.
    """
    if len(parts) == 1:
        return parts[0].float()
    window, width = parts[0].shape
    stitched = parts[0].new_zeros(starts[-1] + window, width, dtype=torch.float32)
    total = stitched.new_zeros(len(stitched), 1)
    shared = [before + window - after for before, after in pairwise(starts)]
    steps = torch.arange(1, window + 1, device=stitched.device, dtype=torch.float32)
    for part, start, left, right in zip(parts, starts, [0, *shared], [*shared, 0], strict=True):
        weight = (steps / (left + 1)).clamp(max=1) * (steps.flip(0) / (right + 1)).clamp(max=1)
        weight = weight.unsqueeze(1)
        stitched[start : start + window].addcmul_(part.float(), weight)
        total[start : start + window] += weight
    return stitched.div_(total)
