"""ESM-1b, ESM-1v and ESM-2: architecture and inference.

The models are those of Rives et al. 2021 (doi:10.1073/pnas.2016239118, ESM-1b),
Meier et al. 2021 (doi:10.1101/2021.07.09.450648, ESM-1v) and Lin et al. 2023
(doi:10.1126/science.ade2574, ESM-2). They are pre-norm transformer encoders
and differ in three things only, all of which a checkpoint shows by its keys:

========  ==========================  ==================  ==========
family    positions                   norm on embedding   residues
========  ==========================  ==================  ==========
ESM-1b    learned, 1024 tokens        yes                 1022
ESM-1v    learned, 1024 tokens        no                  1022
ESM-2     rotary                      no                  no limit
========  ==========================  ==================  ==========

Every hidden state equals fair-esm's within 1e-5 relative in float32. The
calculation is another one: sequences are packed without padding, query, key
and value come from one product, no logits are made, blocks above the highest
wanted layer do not run, and on a processor all but the products is done by
compiled kernels (`bioxfer.backbones.kernels`). Checkpoints are read by
`bioxfer.backbones.fairesm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bioxfer.backbones import Representation
from bioxfer.backbones.kernels import ROWS, Kernels, Product, Scratch, load_kernels
from bioxfer.backbones.packing import Pack, attend, pack_tokens, project, rotate
from bioxfer.errors import SequenceError, UsageError

__all__ = ["ALPHABET", "EsmBackbone", "EsmConfig", "EsmEncoder", "tokenize_esm"]

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"
ALPHABET = ("<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, ".", "-", "<null_1>", "<mask>")
"""Tokens in the order of their numbers; fair-esm's "ESM-1b" alphabet."""

CLS, PAD, EOS, MASK = (ALPHABET.index(token) for token in ("<cls>", "<pad>", "<eos>", "<mask>"))
NO_TOKEN = 255
_TOKEN_OF_BYTE = np.full(256, NO_TOKEN, dtype=np.uint8)
_TOKEN_OF_BYTE[np.frombuffer(RESIDUES.encode(), dtype=np.uint8)] = [ALPHABET.index(r) for r in RESIDUES]

# Longest crop in training, 1024 tokens less start and end. ESM-2 computes beyond it, untrained.
TRAINED_RESIDUES = 1022
# Share of tokens that were <mask> in training: 15 % chosen, 80 % of those masked (Rives et al. 2021).
TRAINED_MASK_RATIO = 0.15 * 0.8
NORM_EPS = 1e-5  # torch's own, which fair-esm leaves as it is


@dataclass(frozen=True, slots=True)
class EsmConfig:
    """Shape of an ESM model.

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
    max_tokens : int or None
        Learned positions; None for rotary ones.
    norm_embedding : bool
        Whether a norm stands between embedding and first block.
    token_dropout : bool
        Whether the embedding is rescaled by the share of masked tokens.
    norm_eps : float
        What the norms add to the variance.
    """

    layers: int
    width: int
    ffn_width: int
    heads: int
    max_tokens: int | None
    norm_embedding: bool
    token_dropout: bool
    norm_eps: float = NORM_EPS


class EsmBlock(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.products: dict[str, Product] = {}
        self.norm_attention = nn.LayerNorm(width, eps=config.norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_feedforward = nn.LayerNorm(width, eps=config.norm_eps)
        self.up = nn.Linear(width, config.ffn_width)
        self.down = nn.Linear(config.ffn_width, width)

    def forward(self, x: Tensor, pack: Pack, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """Transform packed tokens ``x: (T, D)``; ``turn`` holds the rotary tables, if there are any."""
        matrix_type = self.qkv.weight.dtype
        h = project(self.norm_attention(x).to(matrix_type), self.qkv).view(len(x), 3 * self.heads, -1)
        qk, v = h[:, : 2 * self.heads], h[:, 2 * self.heads :]  # (T, 2 H, K), (T, H, K)
        if turn is not None:
            # In float32, for up to a third less error than in bf16 (8M shape, L = 900).
            qk = rotate(qk.float(), *turn).to(matrix_type)
        q, k = qk.chunk(2, dim=1)
        attended = attend(q, k, v, pack.groups, scale=q.shape[-1] ** -0.5)
        x = x + project(attended.flatten(1), self.out)
        h = project(self.norm_feedforward(x).to(matrix_type), self.up)
        return x + project(F.gelu(h), self.down)

    def run(
        self,
        x: Tensor,
        change: Tensor | None,
        bias: Tensor | None,
        pack: Pack,
        turn: tuple[Tensor, Tensor] | None,
        *,
        kernels: Kernels,
        scratch: Scratch,
    ) -> tuple[Tensor, Tensor]:
        """Do what `forward` does, with compiled kernels and in place.

        Parameters
        ----------
        x : Tensor
            Packed tokens, ``(T, D)``, without what the block before has to add to them.
        change, bias : Tensor or None
            That addition, ``(T, D)`` and ``(D,)``; the first norm makes it.
        pack, turn, kernels, scratch
            Sequences, rotary tables, functions and room.

        Returns
        -------
        tuple of Tensor
            What this block has to add, likewise.
        """
        (rows, width), products = x.shape, self.products

        def product(h: Tensor, name: str, room: str) -> Tensor:
            layer = products[name]
            return layer(h, out=scratch.take(room, rows, layer.width, h.dtype))

        h = scratch.take("h", rows, width, products["qkv"].dtype)
        kernels.add_norm(x, change, bias, self.norm_attention, h)
        qkv = product(h, "qkv", "wide")
        kernels.attend(qkv, self.qkv.bias, turn, pack, heads=self.heads, out=h)
        change = product(h, "out", "change")
        kernels.add_norm(x, change, self.out.bias, self.norm_feedforward, h)
        wide = kernels.gelu_(product(h, "up", "wide"), self.up.bias)
        return product(wide, "down", "change"), self.down.bias


class EsmEncoder(nn.Module):
    """The transformer of the ESM family, without its language-model head.

    Parameters
    ----------
    config : EsmConfig
        Shape of the model.
    """

    frequencies: Tensor

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        # Given weights, since to draw random ones on the meta device torch loads its compiler, for a second.
        self.embedding = nn.Embedding(len(ALPHABET), width, _weight=torch.empty(len(ALPHABET), width))
        if config.max_tokens is None:
            # As the checkpoint has them, like fair-esm: one that stores half precision rounds them too.
            self.register_buffer("frequencies", torch.empty(width // config.heads // 2))
        else:
            places = PAD + 1 + config.max_tokens
            self.positions = nn.Embedding(places, width, _weight=torch.empty(places, width))
        if config.norm_embedding:
            self.norm_embedding = nn.LayerNorm(width, eps=config.norm_eps)
        self.blocks = nn.ModuleList(EsmBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self._scratch = Scratch()
        self._kernels: Kernels | None = None

    def use_kernels(self) -> None:
        """Compute with compiled kernels from now on, where there are any; weights may not change any more.

        Of matrices that are packed for it only the packed form stays.
        """
        kernels = load_kernels(device=self.embedding.weight.device)
        if kernels is None or not kernels.fits(self.config.width // self.config.heads):
            return
        self._kernels = kernels
        for block in self.blocks:
            assert isinstance(block, EsmBlock)
            for name in ("qkv", "out", "up", "down"):
                linear = getattr(block, name)
                block.products[name] = product = Product(linear.weight, kernels)
                if product.is_packed:
                    linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)

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
        x = self._embed(pack)
        turn = self._rotary(pack)
        if self._kernels is not None:
            return self._run(x, pack, turn, layers=layers, kernels=self._kernels)
        if turn is not None:  # for each token, (T, 1, K)
            cos, sin = (table[pack.positions].repeat(1, 2).unsqueeze(1) for table in turn)
            turn = cos, sin
        states = {0: x}
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            x = block(x, pack, turn)
            if number in layers:
                states[number] = self.norm(x) if number == self.config.layers else x
        return [states[number] for number in layers]

    def _run(
        self,
        x: Tensor,
        pack: Pack,
        turn: tuple[Tensor, Tensor] | None,
        *,
        layers: Sequence[int],
        kernels: Kernels,
    ) -> list[Tensor]:
        states = {0: x.clone()} if 0 in layers else {}
        change: Tensor | None = None
        bias: Tensor | None = None
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            assert isinstance(block, EsmBlock)
            change, bias = block.run(x, change, bias, pack, turn, kernels=kernels, scratch=self._scratch)
            if number == self.config.layers:
                states[number] = kernels.add_norm(x, change, bias, self.norm, torch.empty_like(x))
            elif number in layers:
                states[number] = x + change + bias
        return [states[number] for number in layers]

    def _embed(self, pack: Pack) -> Tensor:
        x: Tensor = self.embedding(pack.tokens)
        if self.config.token_dropout:
            # In training masked tokens brought zeros, so the rest was the weaker by their share.
            # The mean is over all tokens of a sequence, <cls> and <eos> included.
            masked = pack.tokens == MASK
            lengths = torch.tensor(pack.lengths, device=x.device)
            observed = x.new_zeros(len(lengths)).index_add_(0, pack.segments, masked.to(x.dtype)) / lengths
            factor = (1 - TRAINED_MASK_RATIO) / (1 - observed)
            x = x.masked_fill(masked.unsqueeze(1), 0.0) * factor[pack.segments].unsqueeze(1)
        if self.config.max_tokens is not None:
            x = x + self.positions(pack.positions + PAD + 1)  # fairseq counts on from the padding's number
        if self.config.norm_embedding:
            x = self.norm_embedding(x)
        return x

    def _rotary(self, pack: Pack) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines for every place in a sequence, ``(P, K / 2)``."""
        if self.config.max_tokens is not None:
            return None
        places = torch.arange(max(pack.lengths), device=self.frequencies.device, dtype=torch.float32)
        angles = torch.outer(places, self.frequencies)
        return angles.cos(), angles.sin()


class EsmBackbone:
    """An ESM model behind the `bioxfer.backbones.Backbone` protocol.

    Made by `bioxfer.backbones.fairesm`.

    Parameters
    ----------
    encoder : EsmEncoder
        The model with its weights, at its precision and on its device.
    name : str
        Name shown in tables and cards.
    precision : {"fp32", "bf16", "fp16"}
        Type of the matrices.
    fingerprint : str
        Of the weights in float32.
    """

    concurrent = True
    """Several threads may call `represent` at once."""

    def __init__(self, encoder: EsmEncoder, *, name: str, precision: str, fingerprint: str) -> None:
        config = encoder.config
        self.name = name
        self.dim = config.width
        self.n_layers = config.layers
        self.window = TRAINED_RESIDUES if config.max_tokens is None else config.max_tokens - 2
        self.precision = precision
        self.fingerprint = fingerprint
        self.device = encoder.embedding.weight.device
        self._encoder = encoder
        encoder.use_kernels()

    def __repr__(self) -> str:
        return f"<EsmBackbone {self.name}: {self.n_layers} layers of {self.dim}, {self.precision}>"

    def represent(self, sequences: Sequence[str], *, layers: Sequence[int]) -> list[Representation]:
        """Represent every residue of every sequence.

        Parameters
        ----------
        sequences : sequence of str
            Clean upper-case residues, ``X B Z U O`` included; sequence ``i``
            has ``L_i`` of them.
        layers : sequence of int
            Wanted layers, 0 to ``n_layers``; the last one stands after the
            final norm.

        Returns
        -------
        list of Representation
            In input order; ``residues: (len(layers), L_i, D)`` and
            ``cls: (len(layers), D)``, both float32 on the model's device.

        Raises
        ------
        SequenceError
            If a sequence holds what is no residue, or is longer than the
            learned positions of ESM-1b and ESM-1v reach.
        UsageError
            If there is no such layer.
        """
        states = self.represent_tokens([tokenize_esm(sequence) for sequence in sequences], layers=layers)
        return [Representation(residues=state[:, 1:-1], cls=state[:, 0]) for state in states]

    @torch.inference_mode()
    def represent_tokens(self, tokens: Sequence[Tensor], *, layers: Sequence[int]) -> list[Tensor]:
        """Represent sequences that are tokens already, ``<mask>`` included.

        Parameters
        ----------
        tokens : sequence of Tensor
            Numbers in `ALPHABET`, ``(T_i,)`` each, between ``<cls>`` and
            ``<eos>`` and without padding.
        layers : sequence of int
            Wanted layers, 0 to ``n_layers``.

        Returns
        -------
        list of Tensor
            ``(len(layers), T_i, D)`` float32 each, in input order.
        """
        for layer in layers:
            if not 0 <= layer <= self.n_layers:
                raise UsageError(f"layer {layer} does not exist; {self.name} has layers 0 to {self.n_layers}")
        limit = self._encoder.config.max_tokens
        longest = max((len(t) for t in tokens), default=0)
        if limit is not None and longest > limit:
            raise SequenceError(
                f"a sequence of {longest - 2} residues is too long for {self.name}, whose learned positions "
                f"end at {limit - 2}; cut it into windows"
            )
        if any(bool((each == PAD).any()) for each in tokens):
            raise UsageError("tokens hold <pad>; give each sequence without padding")
        if not tokens or not layers:
            return [torch.empty(len(layers), len(t), self.dim, device=self.device) for t in tokens]
        pack = pack_tokens(tokens, device=self.device, multiple=ROWS)
        states = self._encoder(pack, layers=layers)
        return [parts.transpose(0, 1) for parts in pack.unpack(torch.stack(states, dim=1))]


def tokenize_esm(sequence: str) -> Tensor:
    """Token numbers of a sequence between ``<cls>`` and ``<eos>``, ``(L + 2,)`` uint8."""
    # One byte for each character; what is not ASCII becomes "?", which is no residue.
    tokens = _TOKEN_OF_BYTE[np.frombuffer(sequence.encode("ascii", "replace"), dtype=np.uint8)]
    foreign = np.flatnonzero(tokens == NO_TOKEN)
    if len(foreign):
        place = int(foreign[0])
        raise SequenceError(
            f"{sequence[place]!r} at {place + 1} is no residue of the ESM alphabet; "
            f"clean the sequence first, X stands for anything"
        )
    return torch.from_numpy(np.concatenate(([CLS], tokens, [EOS])).astype(np.uint8))
