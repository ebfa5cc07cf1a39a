"""Packed sequences: many proteins in one run of tokens, without padding.

The linear layers and norms of a transformer do not care where one sequence
ends and the next begins, so all tokens of a batch lie in one tensor of shape
``(T, D)``. Attention does care; sequences of equal length are neighbours in
the pack and are attended as one ``(N, H, L, K)`` call, which needs neither a
mask nor padding. A batch that was sorted by length has few such groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Pack", "attend", "pack_tokens", "rotary_tables", "rotate"]


@dataclass(frozen=True, slots=True)
class Pack:
    """Token sequences laid end to end, shortest first.

    Attributes
    ----------
    tokens : Tensor
        Token numbers, ``(T,)`` int64.
    positions : Tensor
        Place of each token in its own sequence, from 0, ``(T,)`` int64.
    segments : Tensor
        Number of the sequence that each token belongs to, in pack order, ``(T,)`` int64.
    lengths : tuple of int
        Tokens of each sequence, in pack order.
    groups : tuple of (int, int, int)
        ``(start, count, length)`` of each run of equally long sequences.
    order : tuple of int
        ``order[i]`` is the input number of the ``i``-th packed sequence.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    lengths: tuple[int, ...]
    groups: tuple[tuple[int, int, int], ...]
    order: tuple[int, ...]

    def unpack(self, x: Tensor) -> list[Tensor]:
        """Cut ``x: (T, ...)`` into one tensor per sequence, in input order."""
        parts = torch.split(x, list(self.lengths))
        restored: list[Tensor] = [x] * len(parts)
        for place, part in zip(self.order, parts, strict=True):
            restored[place] = part
        return restored


def pack_tokens(sequences: Sequence[Tensor], *, device: torch.device | str = "cpu") -> Pack:
    """Lay token sequences end to end, grouped by length.

    Parameters
    ----------
    sequences : sequence of Tensor
        Token numbers of each sequence, each ``(L_i,)`` with ``L_i >= 1``.
    device : torch.device or str, optional
        Where the pack is to lie.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    lengths = tuple(len(sequences[i]) for i in order)
    groups: list[tuple[int, int, int]] = []
    start = 0
    for length in lengths:
        if groups and groups[-1][2] == length:
            first, count, _ = groups[-1]
            groups[-1] = (first, count + 1, length)
        else:
            groups.append((start, 1, length))
        start += length
    sizes = torch.tensor(lengths)
    ends = sizes.cumsum(0)
    segments = torch.repeat_interleave(torch.arange(len(lengths)), sizes)
    positions = torch.arange(start) - (ends - sizes)[segments]
    return Pack(
        tokens=torch.cat([sequences[i] for i in order]).long().to(device),
        positions=positions.to(device),
        segments=segments.to(device),
        lengths=lengths,
        groups=tuple(groups),
        order=tuple(order),
    )


def attend(
    q: Tensor, k: Tensor, v: Tensor, groups: Sequence[tuple[int, int, int]], *, scale: float
) -> Tensor:
    """Softmax attention of every sequence over itself.

    Parameters
    ----------
    q, k, v : Tensor
        Queries, keys and values of packed tokens, ``(T, H, K)``.
    groups : sequence of (int, int, int)
        Runs of equally long sequences, see `Pack`.
    scale : float
        Factor on the logits; 1.0 where the query is scaled already.

    Returns
    -------
    Tensor
        ``(T, H, K)``.
    """
    # split, not slices: the gradient of a split is one concatenation
    sizes = [count * length for _, count, length in groups]
    parts = []
    for (_, count, length), *trio in zip(groups, *(torch.split(x, sizes) for x in (q, k, v)), strict=True):
        qg, kg, vg = (x.unflatten(0, (count, length)).transpose(1, 2) for x in trio)
        if q.requires_grad and q.device.type == "cpu":
            # torch's gradient of its fused attention is several times slower here than that of the parts
            weights = torch.softmax((qg @ kg.transpose(-1, -2)).float() * scale, dim=-1)
            out = weights.to(vg.dtype) @ vg
        else:
            out = F.scaled_dot_product_attention(qg, kg, vg, scale=scale)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def rotary_tables(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, in float32.

    The halves of a head rotate against each other with frequencies
    ``10000 ** (-2 i / width)`` (Su et al. 2021, arXiv:2104.09864, eq. 15).

    Parameters
    ----------
    positions : Tensor
        Place of each token in its sequence, ``(T,)``.
    width : int
        Width of one attention head, ``K``.

    Returns
    -------
    tuple of Tensor
        ``(T, 1, K)`` each, to be broadcast over heads.
    """
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = torch.outer(positions.float(), 10000.0**-exponents)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the head vectors ``x: (T, H, K)`` by the angles of their positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
