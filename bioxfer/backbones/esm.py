"""ESM-1b, ESM-1v and ESM-2: architecture, inference and fair-esm's checkpoints.

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
and value come from one product, no logits are made, and blocks above the
highest wanted layer do not run. The package fair-esm is not imported, so
another package of the import name ``esm`` does no harm.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bioxfer.backbones import Representation, resolve_precision
from bioxfer.backbones.kernels import ROWS, Kernels, Scratch, load_kernels
from bioxfer.backbones.packing import Pack, attend, pack_tokens, project, rotate
from bioxfer.backbones.weights import fingerprint
from bioxfer.errors import SequenceError, UsageError, WeightsError

__all__ = ["ALPHABET", "EsmBackbone", "EsmConfig", "EsmEncoder", "from_fairesm", "load_esm"]

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
    """

    layers: int
    width: int
    ffn_width: int
    heads: int
    max_tokens: int | None
    norm_embedding: bool
    token_dropout: bool


class EsmBlock(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.up = nn.Linear(width, config.ffn_width)
        self.down = nn.Linear(config.ffn_width, width)

    def forward(self, x: Tensor, pack: Pack, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """Transform packed tokens ``x: (T, D)``; ``turn`` holds the rotary tables, if there are any."""
        matrix_type = self.qkv.weight.dtype
        h = project(self.norm_attention(x).to(matrix_type), self.qkv).unflatten(1, (3 * self.heads, -1))
        qk, v = h.split((2 * self.heads, self.heads), dim=1)  # (T, 2 H, K), (T, H, K)
        if turn is not None:
            # In float32, for up to a third less error than in bf16 (8M shape, L = 900).
            qk = rotate(qk.float(), *turn).to(matrix_type)
        q, k = qk.chunk(2, dim=1)
        attended = attend(q, k, v, pack, scale=q.shape[-1] ** -0.5)
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
        (rows, width), matrix_type = x.shape, self.qkv.weight.dtype

        def product(h: Tensor, linear: nn.Linear, name: str) -> Tensor:
            out = scratch.take(name, rows, linear.out_features, matrix_type)
            return torch.mm(h, linear.weight.t(), out=out)

        h = scratch.take("h", rows, width, matrix_type)
        kernels.add_norm(x, change, bias, self.norm_attention, h)
        qkv = product(h, self.qkv, "wide")
        kernels.attend(qkv, self.qkv.bias, turn, pack, heads=self.heads, out=h)
        change = product(h, self.out, "change")
        kernels.add_norm(x, change, self.out.bias, self.norm_feedforward, h)
        wide = kernels.gelu_(product(h, self.up, "wide"), self.up.bias)
        return product(wide, self.down, "change"), self.down.bias


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
        self.embedding = nn.Embedding(len(ALPHABET), width)
        if config.max_tokens is None:
            # As the checkpoint has them, like fair-esm: one that stores half precision rounds them too.
            self.register_buffer("frequencies", torch.empty(width // config.heads // 2))
        else:
            self.positions = nn.Embedding(PAD + 1 + config.max_tokens, width)
        if config.norm_embedding:
            self.norm_embedding = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(EsmBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self._scratch = Scratch()

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
        kernels = load_kernels(device=x.device)
        if kernels is not None and kernels.fits(self.config.width // self.config.heads):
            return self._run(x, pack, turn, layers=layers, kernels=kernels)
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

    Made by `load_esm` or `from_fairesm`.

    Parameters
    ----------
    encoder : EsmEncoder
        The model with its weights, at its precision and on its device.
    name : str
        Name shown in tables and cards.
    precision : {"fp32", "bf16"}
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
        states = self.represent_tokens([_tokenize(sequence) for sequence in sequences], layers=layers)
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


def _tokenize(sequence: str) -> Tensor:
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


def load_esm(path: str | Path, *, precision: str = "fp32", device: str = "cpu") -> EsmBackbone:
    """Load a checkpoint of fair-esm.

    The file's hash is not looked at here, see `bioxfer.backbones.load_backbone`.
    The contact regression that fair-esm asks for beside it is not needed.

    Parameters
    ----------
    path : str or Path
        A ``.pt`` file as fair-esm publishes it; its name names the backbone.
    precision : {"fp32", "bf16", "auto"}, optional
        Type of the matrices, see `bioxfer.backbones.resolve_precision`.
    device : str, optional
        Where to run.

    Raises
    ------
    WeightsError
        If the file cannot be read, holds objects other than tensors and plain
        values, or is no model of this family; and for any file where torch is
        older than 2.10.
    """
    path = Path(path)
    checkpoint = _read_checkpoint(path)
    weights = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items()
    ):
        raise WeightsError(f"{path}: holds no model; give a checkpoint as fair-esm publishes it")
    # fairseq's names: "encoder.sentence_encoder.layers.0...", "encoder.lm_head...", "encoder_layers".
    state = {name.rpartition("encoder.")[2]: weight for name, weight in weights.items()}
    options = {key.removeprefix("encoder_"): value for key, value in _read_options(checkpoint).items()}
    heads = options.get("attention_heads")
    if not isinstance(heads, int) or heads < 1:
        raise WeightsError(
            f"{path}: does not say how many attention heads there are; it is no ESM checkpoint"
        )
    return _build(
        state,
        heads=heads,
        token_dropout=bool(options.get("token_dropout", False)),
        clear_mask="embed_positions.weight" in state,  # as fair-esm does when it loads the older families
        name=path.stem,
        place=str(path),
        precision=precision,
        device=device,
    )


def from_fairesm(
    model: nn.Module,
    *,
    name: str = "fair-esm",
    precision: str = "fp32",
    device: str = "cpu",
) -> EsmBackbone:
    """Take over a model that fair-esm built; its weights are copied.

    Parameters
    ----------
    model : torch.nn.Module
        An ``esm.ESM2`` or an ``esm.ProteinBertModel`` of the kind ESM-1b.
    name : str, optional
        Name of the backbone.
    precision : {"fp32", "bf16", "auto"}, optional
        Type of the matrices, see `bioxfer.backbones.resolve_precision`.
    device : str, optional
        Where to run.

    Raises
    ------
    UsageError
        If the model is none of fair-esm's, such as one of the package ``esm``
        by EvolutionaryScale, which has the same import name.
    WeightsError
        If it is one of fair-esm's other models.
    """
    source = getattr(model, "args", model)  # ProteinBertModel keeps its options in .args, ESM2 in itself
    heads = getattr(source, "attention_heads", None)
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if not isinstance(heads, int) or not hasattr(model, "embed_tokens"):
        raise UsageError(
            f"{kind} is no ESM-1b, ESM-1v or ESM-2 of fair-esm; if EvolutionaryScale's package, also "
            f"imported as 'esm', stands in its place, run: pip uninstall esm && pip install fair-esm==2.0.0"
        )
    return _build(
        model.state_dict(),
        heads=heads,
        token_dropout=bool(getattr(source, "token_dropout", False)),
        name=name,
        place=kind,
        precision=precision,
        device=device,
    )


def _read_checkpoint(path: Path) -> Any:
    """Read tensors and plain values, and run nothing that the file says."""
    # Restricted loading itself could be made to run code: CVE-2025-32434, CVE-2026-24747.
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < (2, 10):
        raise WeightsError(
            f"{path}: torch {torch.__version__} cannot read .pt files safely; pip install 'torch>=2.10'"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged or hostile file can fail in any way
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line.strip() for line in lines if "unsupported" in line.lower()), lines[0])
        raise WeightsError(
            f"{path}: refused, it is damaged or holds more than tensors and plain values ({reason}); "
            f"give a checkpoint as fair-esm publishes it"
        ) from error


def _read_options(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Training options; ESM-2 keeps them under "cfg", the older families under "args"."""
    config = checkpoint.get("cfg")
    for options in (config.get("model") if isinstance(config, dict) else None, checkpoint.get("args")):
        if isinstance(options, argparse.Namespace):
            return vars(options)
        if isinstance(options, dict):
            return options
    return {}


def _build(
    state: Mapping[str, Tensor],
    *,
    heads: int,
    token_dropout: bool,
    name: str,
    place: str,
    clear_mask: bool = False,
    precision: str,
    device: str,
) -> EsmBackbone:
    """Make a backbone of weights under fair-esm's names."""
    unused = ("lm_head.", "contact_head.")
    state = {key: weight.detach() for key, weight in state.items() if not key.startswith(unused)}
    config = _read_config(state, heads=heads, token_dropout=token_dropout, place=place)
    expected = _fairesm_names(config)
    if missing := expected - state.keys():
        raise WeightsError(f"{place}: lacks {len(missing)} weights such as {min(missing)}; it is not whole")
    if foreign := state.keys() - expected:
        raise WeightsError(
            f"{place}: holds {len(foreign)} weights that ESM-1b, ESM-1v and ESM-2 do not have, such as "
            f"{min(foreign)}; other models cannot be loaded"
        )
    if clear_mask or config.token_dropout:  # which never reads that row; so the fingerprint must not either
        state["embed_tokens.weight"] = state["embed_tokens.weight"].clone()
        state["embed_tokens.weight"][MASK] = 0
    turns = [weight for key, weight in state.items() if key.endswith("rot_emb.inv_freq")]
    if not all(torch.equal(weight, turns[0]) for weight in turns):
        raise WeightsError(f"{place}: rotary frequencies differ between layers; it is damaged")
    precision = resolve_precision(precision, device=device)
    with torch.device("meta"):
        encoder = EsmEncoder(config)
    matrices = torch.bfloat16 if precision == "bf16" else torch.float32
    try:
        encoder.load_state_dict(_fuse(state, config, matrices=matrices), assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(f"{place}: weights do not fit together ({reason}); it is not whole") from error
    return EsmBackbone(
        encoder.requires_grad_(False).eval().to(device),
        name=name,
        precision=precision,
        fingerprint=fingerprint(asdict(config), state),
    )


def _read_config(state: Mapping[str, Tensor], *, heads: int, token_dropout: bool, place: str) -> EsmConfig:
    """Read the shape of a model off its weights."""
    numbers = [int(key.split(".")[1]) for key in state if re.match(r"layers\.\d+\.", key)]
    try:
        tokens, width = state["embed_tokens.weight"].shape
        ffn_width = state["layers.0.fc1.weight"].shape[0]
        learned = state.get("embed_positions.weight")
        config = EsmConfig(
            layers=max(numbers) + 1,
            width=width,
            ffn_width=ffn_width,
            heads=heads,
            max_tokens=None if learned is None else learned.shape[0] - PAD - 1,
            norm_embedding="emb_layer_norm_before.weight" in state,
            token_dropout=token_dropout,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(
            f"{place}: is no ESM-1b, ESM-1v or ESM-2 (no {error}); it cannot be loaded"
        ) from error
    if tokens != len(ALPHABET):
        raise WeightsError(
            f"{place}: is no ESM-1b, ESM-1v or ESM-2 ({tokens} tokens instead of {len(ALPHABET)}); "
            f"it cannot be loaded"
        )
    if width % heads:
        raise WeightsError(f"{place}: width {width} cannot be shared among {heads} heads; it is not whole")
    return config


def _fairesm_names(config: EsmConfig) -> set[str]:
    """Names of all weights that fair-esm has for such a model, its heads aside."""
    modules = ["emb_layer_norm_after"]
    if config.norm_embedding:
        modules.append("emb_layer_norm_before")
    parts = ["self_attn_layer_norm", "final_layer_norm", "fc1", "fc2"]
    parts += [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
    modules += [f"layers.{i}.{part}" for i in range(config.layers) for part in parts]
    names = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    names.add("embed_tokens.weight")
    if config.max_tokens is None:
        names.update(f"layers.{i}.self_attn.rot_emb.inv_freq" for i in range(config.layers))
    else:
        names.add("embed_positions.weight")
    return names


def _fuse(state: Mapping[str, Tensor], config: EsmConfig, *, matrices: torch.dtype) -> dict[str, Tensor]:
    """Copy weights from fair-esm's names to those of `EsmEncoder`, query, key and value into one."""
    fused = {"embedding.weight": _copy(state["embed_tokens.weight"])}
    if config.max_tokens is None:
        fused["frequencies"] = _copy(state["layers.0.self_attn.rot_emb.inv_freq"])
    else:
        fused["positions.weight"] = _copy(state["embed_positions.weight"])
    for kind in ("weight", "bias"):
        fused[f"norm.{kind}"] = _copy(state[f"emb_layer_norm_after.{kind}"])
        if config.norm_embedding:
            fused[f"norm_embedding.{kind}"] = _copy(state[f"emb_layer_norm_before.{kind}"])
        for i in range(config.layers):
            ours, theirs = f"blocks.{i}", f"layers.{i}"
            qkv = [state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            dtype = matrices if kind == "weight" else torch.float32
            fused[f"{ours}.qkv.{kind}"] = torch.cat([part.to(dtype) for part in qkv])
            fused[f"{ours}.out.{kind}"] = _copy(state[f"{theirs}.self_attn.out_proj.{kind}"], dtype)
            fused[f"{ours}.up.{kind}"] = _copy(state[f"{theirs}.fc1.{kind}"], dtype)
            fused[f"{ours}.down.{kind}"] = _copy(state[f"{theirs}.fc2.{kind}"], dtype)
            fused[f"{ours}.norm_attention.{kind}"] = _copy(state[f"{theirs}.self_attn_layer_norm.{kind}"])
            fused[f"{ours}.norm_feedforward.{kind}"] = _copy(state[f"{theirs}.final_layer_norm.{kind}"])
    return fused


def _copy(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    # Always a copy: a checkpoint is mapped into memory and may change on disk.
    return weight.to(dtype, copy=True)
