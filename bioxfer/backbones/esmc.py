"""ESM-C: architecture and inference.

ESM Cambrian (EvolutionaryScale 2024) is a pre-norm transformer encoder with rotary positions, layer norms on
queries and keys, a gated feed-forward layer (SwiGLU), no biases but in the two norms of a block, and
residual branches divided by the root of the number of blocks over 36.

Hidden states equal transformers' ``EsmcModel`` within 1e-5 relative in float32. Sequences are packed without
padding, and only blocks up to the highest wanted layer run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bioxfer.backbones.kernels import FastLinear
from bioxfer.backbones.packing import Pack, attend, rotate

__all__ = ["EsmcConfig", "EsmcEncoder", "esmc_names"]

NORM_EPS = 1e-5  # torch's own, which ESM-C leaves as it is
UNSCALED_LAYERS = 36  # blocks whose branches are added as they are


@dataclass(frozen=True, slots=True)
class EsmcConfig:
    """Shape of an ESM-C model.

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
    vocabulary : int
        Rows of the embedding.
    rotary_base : float
        Base of the frequencies of the rotary positions.
    """

    layers: int
    width: int
    ffn_width: int
    heads: int
    vocabulary: int
    rotary_base: float


class EsmcBlock(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: EsmcConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.share = (config.layers / UNSCALED_LAYERS) ** -0.5
        self.norm_attention = nn.LayerNorm(width, eps=NORM_EPS)
        self.qkv = FastLinear(width, 3 * width)
        self.norm_q = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.norm_k = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.out = FastLinear(width, width)
        self.norm_feedforward = nn.LayerNorm(width, eps=NORM_EPS)
        self.gate_up = FastLinear(width, 2 * config.ffn_width)
        self.down = FastLinear(config.ffn_width, width)

    def forward(self, x: Tensor, pack: Pack, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Transform packed tokens ``x: (T, D)``; ``turn`` holds cosines and sines, ``(T, 1, K)``."""
        matrix_type = self.qkv.dtype
        q, k, v = self.qkv(self.norm_attention(x).to(matrix_type)).chunk(3, dim=1)

        q, k = self.norm_q(q.float()), self.norm_k(k.float())
        q, k, v = (h.view(len(x), self.heads, -1) for h in (q, k, v))  # (T, H, K)
        q, k = (rotate(h, *turn).to(matrix_type) for h in (q, k))
        attended = attend(q, k, v, pack.groups, scale=q.shape[-1] ** -0.5)
        x = x + self.out(attended.flatten(1)) * self.share
        gate, up = self.gate_up(self.norm_feedforward(x).to(matrix_type)).chunk(2, dim=1)
        x = x + self.down(F.silu(gate) * up) * self.share
        return x


class EsmcEncoder(nn.Module):
    """The transformer of ESM-C, without its language-model head.

    Parameters
    ----------
    config : EsmcConfig
        Shape of the model.
    """

    def __init__(self, config: EsmcConfig) -> None:
        super().__init__()
        self.config = config
        rows = torch.empty(config.vocabulary, config.width)
        self.embedding = nn.Embedding(config.vocabulary, config.width, _weight=rows)
        self.blocks = nn.ModuleList(EsmcBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS, bias=False)

    def forward(self, pack: Pack, *, layers: Sequence[int]) -> list[Tensor]:
        """Hidden states of packed tokens.

        Parameters
        ----------
        pack : Pack
            Tokens, each sequence between its ``<cls>`` and ``<eos>``.
        layers : sequence of int
            Wanted layers: 0 is the embedding, ``config.layers`` the last block
            after the final norm. Blocks above the highest one do not run.

        Returns
        -------
        list of Tensor
            ``(T, D)`` float32 for each wanted layer.
        """
        x: Tensor = self.embedding(pack.tokens)
        turn = self._rotary(pack)
        states = {0: x}
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            x = block(x, pack, turn)
            if number in layers:
                states[number] = self.norm(x) if number == self.config.layers else x
        return [states[number] for number in layers]

    def _rotary(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Cosines and sines for each token, ``(T, 1, K)``."""
        width = self.config.width // self.config.heads
        exponents = torch.arange(0, width, 2, device=pack.positions.device).float() / width
        frequencies = 1.0 / self.config.rotary_base**exponents
        angles = torch.outer(pack.positions.float(), frequencies).repeat(1, 2).unsqueeze(1)
        return angles.cos(), angles.sin()


def esmc_names(config: EsmcConfig) -> dict[str, tuple[str, ...]]:
    """Name the weights in a checkpoint that make up each weight of an `EsmcEncoder`, one below another."""
    names: dict[str, tuple[str, ...]] = {
        "embedding.weight": ("embed_tokens.weight",),
        "norm.weight": ("norm.weight",),
    }
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        for kind in ("weight", "bias"):
            names[f"{ours}.norm_attention.{kind}"] = (f"{theirs}.input_layernorm.{kind}",)
            names[f"{ours}.norm_feedforward.{kind}"] = (f"{theirs}.post_attention_layernorm.{kind}",)
        names |= {
            f"{ours}.qkv.weight": tuple(f"{theirs}.self_attn.{part}_proj.weight" for part in "qkv"),
            f"{ours}.norm_q.weight": (f"{theirs}.self_attn.q_norm.weight",),
            f"{ours}.norm_k.weight": (f"{theirs}.self_attn.k_norm.weight",),
            f"{ours}.out.weight": (f"{theirs}.self_attn.o_proj.weight",),
            f"{ours}.gate_up.weight": tuple(f"{theirs}.mlp.{part}_proj.weight" for part in ("gate", "up")),
            f"{ours}.down.weight": (f"{theirs}.mlp.down_proj.weight",),
        }
    return names
