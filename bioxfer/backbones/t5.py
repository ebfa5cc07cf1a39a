"""Encoders of the T5 kind: ProtT5, ProstT5, Ankh.

ProtT5 (Elnaggar et al. 2021, doi:10.1109/TPAMI.2021.3095381), ProstT5 (Heinzinger et al. 2024,
doi:10.1093/nargab/lqae150) and Ankh (Elnaggar et al. 2023, arXiv:2301.06568) are T5 models (Raffel et al.
2020, arXiv:1910.10683) whose encoder is read: pre-norm blocks without biases, norms that only scale, logits
that are not divided by the head's width, and a bias by the distance of two tokens in their place, which all
blocks share. ProtT5's feed-forward layer has one matrix and a ReLU; Ankh's has two and a GELU.

Hidden states equal transformers' ``T5EncoderModel`` within 1e-5 relative in float32. Sequences are packed
without padding, and only blocks up to the highest wanted layer run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bioxfer.backbones.kernels import FastLinear
from bioxfer.backbones.packing import Pack

__all__ = ["ACTIVATIONS", "T5Config", "T5Encoder", "distance_buckets", "t5_names"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
"""The functions between the feed-forward matrices, by their names in a ``config.json``."""


@dataclass(frozen=True, slots=True)
class T5Config:
    """Shape of a T5 encoder.

    Attributes
    ----------
    layers : int
        Number of transformer blocks.
    width : int
        Width ``D`` of the residual stream.
    ffn_width : int
        Width of the feed-forward layer.
    heads : int
        Attention heads ``H`` of each block.
    head_width : int
        Width ``K`` of one of them; ``H K`` need not be ``D``.
    vocabulary : int
        Rows of the embedding.
    buckets : int
        Distances that the bias tells apart.
    max_distance : int
        From here on they are one.
    activation : str
        One of `ACTIVATIONS`.
    gated : bool
        Whether a second matrix gates the feed-forward layer.
    norm_eps : float
        What is added to the mean square.
    """

    layers: int
    width: int
    ffn_width: int
    heads: int
    head_width: int
    vocabulary: int
    buckets: int
    max_distance: int
    activation: str
    gated: bool
    norm_eps: float


class ScaleNorm(nn.Module):
    """Divides by the root mean square, and scales; nothing is subtracted or added."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Norm ``x: (T, D)``."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class T5Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.activate = ACTIVATIONS[config.activation]
        self.norm_attention = ScaleNorm(config.width, config.norm_eps)
        self.qkv = FastLinear(config.width, 3 * inner)
        self.out = FastLinear(inner, config.width)
        self.norm_feedforward = ScaleNorm(config.width, config.norm_eps)
        self.gate = FastLinear(config.width, config.ffn_width) if config.gated else None
        self.up = FastLinear(config.width, config.ffn_width)
        self.down = FastLinear(config.ffn_width, config.width)

    def forward(self, x: Tensor, pack: Pack, bias: Tensor) -> Tensor:
        """Transform packed tokens ``x: (T, D)``; ``bias: (1, H, P, P)`` is added to the logits."""
        matrix_type = self.qkv.dtype
        h = self.qkv(self.norm_attention(x).to(matrix_type)).view(len(x), 3, self.heads, -1)
        attended = []
        for start, count, length in pack.groups:
            group = h[start : start + count * length].unflatten(0, (count, length))  # (N, L, 3, H, K)
            q, k, v = (part.transpose(1, 2) for part in group.unbind(2))
            near = bias[..., :length, :length]
            # T5 was trained without torch's factor.
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=near, scale=1.0)
            attended.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
        x = x + self.out(torch.cat(attended))
        h = self.norm_feedforward(x).to(matrix_type)
        wide = self.activate(self.up(h) if self.gate is None else self.gate(h))
        change: Tensor = self.down(wide if self.gate is None else wide * self.up(h))
        return x + change


class T5Encoder(nn.Module):
    """The encoder of a T5 model.

    Parameters
    ----------
    config : T5Config
        Shape of the model.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        rows = torch.empty(config.vocabulary, config.width)
        self.embedding = nn.Embedding(config.vocabulary, config.width, _weight=rows)
        bias = torch.empty(config.buckets, config.heads)
        self.distance_bias = nn.Embedding(config.buckets, config.heads, _weight=bias)
        self.blocks = nn.ModuleList(T5Block(config) for _ in range(config.layers))
        self.norm = ScaleNorm(config.width, config.norm_eps)

    def forward(self, pack: Pack, *, layers: Sequence[int]) -> list[Tensor]:
        """Hidden states of packed tokens.

        Parameters
        ----------
        pack : Pack
            Tokens, each sequence with its end token.
        layers : sequence of int
            Wanted layers: 0 is the embedding, ``config.layers`` the last block
            after the final norm. Blocks above the highest one do not run.

        Returns
        -------
        list of Tensor
            ``(T, D)`` float32 for each wanted layer.
        """
        x: Tensor = self.embedding(pack.tokens)
        bias = self._bias(max(length for _, _, length in pack.groups))
        states = {0: x}
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            x = block(x, pack, bias)
            if number in layers:
                states[number] = self.norm(x) if number == self.config.layers else x
        return [states[number] for number in layers]

    def _bias(self, longest: int) -> Tensor:
        """Give what is added to the logits, ``(1, H, P, P)``; its corner is that of shorter sequences."""
        config, device = self.config, self.embedding.weight.device
        distances = torch.arange(1 - longest, longest, device=device)
        buckets = distance_buckets(distances, buckets=config.buckets, max_distance=config.max_distance)
        by_distance = self.distance_bias(buckets).t().contiguous()  # (H, 2 P - 1), from 1 - P to P - 1
        # Row i begins at distance -i, that is, i places before the middle.
        bias: Tensor = by_distance.unfold(1, longest, 1).flip(1)
        # torch's fast attention takes masks of four dimensions: 2.8 times as fast at 1,000 residues as three.
        return bias.unsqueeze(0).to(cast(T5Block, self.blocks[0]).qkv.dtype)


def distance_buckets(distances: Tensor, *, buckets: int, max_distance: int) -> Tensor:
    """Sort distances into the classes that share a bias.

    Half of them are for tokens behind, half for those ahead; of each half the first half is for one distance
    each, and the rest grow in proportion to the distance.

    Parameters
    ----------
    distances : Tensor
        Place of the token looked at, less that of the one that looks.
    buckets, max_distance : int
        As in `T5Config`.
    """
    half = buckets // 2
    exact = half // 2
    far = distances.abs()
    # In float32 and in this order, as the models were trained: elsewhere edges may fall beside another.
    grown = torch.log(far.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    coarse = (exact + grown.long()).clamp(max=half - 1)
    return torch.where(far < exact, far, coarse) + (distances > 0).long() * half


def t5_names(config: T5Config) -> dict[str, tuple[str, ...]]:
    """Name the weights in a checkpoint that make up each weight of a `T5Encoder`, one below another."""
    names: dict[str, tuple[str, ...]] = {
        "embedding.weight": ("shared.weight",),
        "distance_bias.weight": ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",),
        "norm.weight": ("encoder.final_layer_norm.weight",),
    }
    for i in range(config.layers):
        attention, feedforward = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        dense = f"{feedforward}.DenseReluDense"
        names |= {
            f"blocks.{i}.norm_attention.weight": (f"{attention}.layer_norm.weight",),
            f"blocks.{i}.qkv.weight": tuple(f"{attention}.SelfAttention.{p}.weight" for p in "qkv"),
            f"blocks.{i}.out.weight": (f"{attention}.SelfAttention.o.weight",),
            f"blocks.{i}.norm_feedforward.weight": (f"{feedforward}.layer_norm.weight",),
            f"blocks.{i}.up.weight": (f"{dense}.wi_1.weight" if config.gated else f"{dense}.wi.weight",),
            f"blocks.{i}.down.weight": (f"{dense}.wo.weight",),
        }
        if config.gated:
            names[f"blocks.{i}.gate.weight"] = (f"{dense}.wi_0.weight",)
    return names
