"""From a matrix to a vector: the ways to make one vector of a protein."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bioxfer.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["POOLS", "TERMINUS", "parse_pool", "pool_residues"]

POOLS = ("mean", "max", "cls", "start", "end")
"""Ways to make one vector of a protein; ``+`` joins several, as in ``"mean+max"``."""

TERMINUS = 32
"""Residues that the poolings ``start`` and ``end`` average: where sorting signals sit."""


def parse_pool(pool: str) -> tuple[str, ...]:
    """Split a pooling such as ``"mean+max"`` into its parts.

    Raises
    ------
    UsageError
        If a part is not one of `POOLS`, or comes twice.

    Examples
    --------
    >>> parse_pool("mean+max")
    ('mean', 'max')
    """
    names = tuple(pool.split("+"))
    for name in names:
        if name not in POOLS:
            raise UsageError(
                f"'{name}' in '{pool}' is no pooling; choose {', '.join(POOLS)}, or several joined by +"
            )
    if len(set(names)) < len(names):
        raise UsageError(f"the pooling '{pool}' names one part twice; name each once")
    return names


def pool_residues(residues: Tensor, cls: Tensor, pool: str) -> Tensor:
    """Make one vector of a protein, in float32.

    Half precision would overflow on the sum over a long protein (F15 of titin:
    35,000 residues of value 2 exceed 65,504).

    Parameters
    ----------
    residues : Tensor
        ``(L, D)`` with ``L >= 1``.
    cls : Tensor
        The token before the first residue, ``(D,)``.
    pool : str
        One of `POOLS`.

    Returns
    -------
    Tensor
        ``(D,)`` float32.
    """
    x = residues.float()
    if pool == "mean":
        return x.mean(0)
    if pool == "max":
        return x.amax(0)
    if pool == "cls":
        return cls.float()
    if pool == "start":
        return x[:TERMINUS].mean(0)
    if pool == "end":
        return x[-TERMINUS:].mean(0)
    raise UsageError(f"'{pool}' is no pooling; choose {', '.join(POOLS)}")
