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
from torch import Tensor, nn

__all__ = [
    "AdaptedLinear",
    "Groups",
    "Pack",
    "attend",
    "attend_varied",
    "pack_tokens",
    "project",
    "rotary_tables",
    "rotate",
]

Groups = Sequence[tuple[int, int, int]]
"""``(start, count, length)`` of each run of equally long sequences."""


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
    starts : Tensor
        First token of each sequence and the end of the last one, ``(N + 1,)`` int64, on the processor.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    lengths: tuple[int, ...]
    groups: tuple[tuple[int, int, int], ...]
    order: tuple[int, ...]
    starts: Tensor

    def unpack(self, x: Tensor) -> list[Tensor]:
        """Cut ``x: (T, ...)`` into one tensor per sequence, in input order; what fills up is left out."""
        parts = torch.split(x[: sum(self.lengths)], list(self.lengths))
        restored: list[Tensor] = [x] * len(parts)
        for place, part in zip(self.order, parts, strict=True):
            restored[place] = part
        return restored


def pack_tokens(
    sequences: Sequence[Tensor], *, device: torch.device | str = "cpu", multiple: int = 1
) -> Pack:
    """Lay token sequences end to end, grouped by length.

    Parameters
    ----------
    sequences : sequence of Tensor
        Token numbers of each sequence, each ``(L_i,)`` with ``L_i >= 1``.
    device : torch.device or str, optional
        Where the pack is to lie.
    multiple : int, optional
        Fill up to a multiple of so many tokens. The filling is a group of its own,
        of tokens 0 at place 0, and none of the sequences that are unpacked.
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
    starts = F.pad(sizes.cumsum(0), (1, 0))
    segments = torch.repeat_interleave(torch.arange(len(lengths)), sizes)
    positions = torch.arange(start) - starts[segments]
    tokens = torch.cat([sequences[i] for i in order]).long()
    if idle := -start % multiple:
        tokens, positions = F.pad(tokens, (0, idle)), F.pad(positions, (0, idle))
        segments = F.pad(segments, (0, idle), value=len(lengths) - 1)
        groups.append((start, 1, idle))
    return Pack(
        tokens=_send(tokens, device),
        positions=_send(positions, device),
        segments=_send(segments, device),
        lengths=lengths,
        groups=tuple(groups),
        order=tuple(order),
        starts=starts,
    )


def _send(x: Tensor, device: torch.device | str) -> Tensor:
    """Copy to a device without waiting for it; a GPU fetches by itself what lies in pinned memory."""
    if torch.device(device).type != "cuda":
        return x.to(device)
    try:
        pinned = x.pin_memory()
    except RuntimeError:  # where a process may not lock memory
        return x.to(device)
    return pinned.to(device, non_blocking=True)


def project(x: Tensor, linear: nn.Linear) -> Tensor:
    """Apply a linear layer whose bias is kept in float32, whatever the type of its matrix.

    Parameters
    ----------
    x : Tensor
        ``(T, D)`` in the type of the matrix.
    linear : Linear
        From ``D`` to ``E``.

    Returns
    -------
    Tensor
        ``(T, E)``.
    """
    y = F.linear(x, linear.weight, linear.bias.to(linear.weight.dtype))
    return linear.change(x, y) if isinstance(linear, AdaptedLinear) else y


class AdaptedLinear(nn.Linear):
    """A linear layer with a trainable change of low rank to its matrix: ``W + scale B A``.

    The matrix is left as it is (Hu et al., ICLR 2022, arXiv:2106.09685). Read it through `project`.

    Parameters
    ----------
    linear : Linear
        From ``D`` to ``E``; its weights are shared.
    a, b : Tensor
        ``(r, D)`` and ``(E, r)`` float32.
    scale : float
        Factor on the change.
    """

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor, *, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.scale = scale

    def change(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the change to the layer's result ``y: (T, E)`` for ``x: (T, D)``."""
        return torch.addmm(y, F.linear(x, self.a.to(x.dtype)), self.b.t().to(x.dtype), alpha=self.scale)


def attend(q: Tensor, k: Tensor, v: Tensor, groups: Groups, *, scale: float) -> Tensor:
    """Softmax attention of every sequence over itself, with torch.

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
    if _varied(q) and scale == q.shape[-1] ** -0.5:
        return attend_varied(q, k, v, groups)
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


def _varied(q: Tensor) -> bool:
    """Tell whether FlashAttention is there for these: NVIDIA from Ampere on, half precision, such heads."""
    return (
        q.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 256
        and not q.requires_grad
    )


def attend_varied(q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
    """Attend sequences of any lengths in one call of FlashAttention (Dao 2023, arXiv:2307.08691).

    For a GPU and half precision; parameters and result as those of `attend`, with the usual
    factor ``K ** -0.5``.
    """
    from torch.nn.attention.varlen import varlen_attn

    lengths = [length for _, count, length in groups for _ in range(count)]
    bounds = _send(F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int(), q.device)
    most = max(lengths)
    attended = varlen_attn(q, k, v, bounds, bounds, most, most)
    assert isinstance(attended, Tensor)
    return attended


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
