"""The shape of a compact backbone, and whether what a file states of it can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HEAD_WIDTH", "CompactConfig", "parse_config"]

HEAD_WIDTH = 64


@dataclass(frozen=True, slots=True)
class CompactConfig:
    """Shape of a compact backbone.

    Attributes
    ----------
    width : int
        Width of the residual stream, a multiple of 64.
    layers : int
        Number of blocks.
    kernel : int
        Residues that the depthwise convolution of each block sees, odd.
    attention : tuple of int
        Blocks that attend, counted from 1; the others mix by convolution alone.
    window : int
        Residues seen at once; training showed it crops up to this length.
    """

    width: int = 256
    layers: int = 6
    kernel: int = 9
    attention: tuple[int, ...] = (3, 5)
    window: int = 1022


def parse_config(shape: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CompactConfig:
    """Hold a stated shape against the tensors, before a model of it takes memory.

    Raises
    ------
    KeyError, TypeError, ValueError
        It is no shape, or not theirs.
    """
    config = CompactConfig(**{**shape, "attention": tuple(shape["attention"])})
    width, layers, kernel = sizes = config.width, config.layers, config.kernel
    if not all(type(n) is int and 0 < n < 2**31 for n in (*sizes, config.window, *config.attention)):
        raise ValueError(f"{str(shape)[:200]} is no shape")
    least = layers * width * (9 * width + kernel)  # numbers of blocks that do not attend
    if width % HEAD_WIDTH or kernel % 2 == 0 or least > sum(t.numel() for t in tensors.values()):
        raise ValueError(f"not {layers} layers of width {width} and kernel {kernel}")
    return config
