"""Checkpoints of fair-esm: ESM-1b, ESM-1v and ESM-2 read from files, or taken over from a model.

The package fair-esm is not imported, so another package of the import name
``esm`` does no harm.
"""

from __future__ import annotations

import argparse
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bioxfer.backbones import matrix_dtype, resolve_precision
from bioxfer.backbones.esm import ALPHABET, MASK, NORM_EPS, PAD, EsmBackbone, EsmConfig, EsmEncoder
from bioxfer.backbones.weights import fingerprint as fingerprint_of
from bioxfer.errors import BioxferError, UsageError, WeightsError

__all__ = ["build_esm", "from_fairesm", "is_plain", "load_esm", "read_esm", "read_restricted"]


def load_esm(path: str | Path, *, precision: str = "fp32", device: str = "cpu") -> EsmBackbone:
    """Load a checkpoint of fair-esm.

    The file's hash is not looked at here, see `bioxfer.backbones.load_backbone`.
    The contact regression that fair-esm asks for beside it is not needed.

    Parameters
    ----------
    path : str or Path
        A ``.pt`` file as fair-esm publishes it; its name names the backbone.
    precision : {"fp32", "bf16", "fp16", "auto"}, optional
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
    precision = resolve_precision(precision, device=device)
    encoder, fingerprint = read_esm(path, matrices=matrix_dtype(precision))
    return EsmBackbone(encoder.to(device), name=Path(path).stem, precision=precision, fingerprint=fingerprint)


def read_esm(path: str | Path, *, matrices: torch.dtype = torch.float32) -> tuple[EsmEncoder, str]:
    """Read the model that `load_esm` runs, and its fingerprint; it raises what that does.

    Parameters
    ----------
    path : str or Path
        A ``.pt`` file as fair-esm publishes it.
    matrices : torch.dtype, optional
        Type of the matrices.
    """
    path = Path(path)
    checkpoint = read_restricted(path, remedy="give a checkpoint as fair-esm publishes it")
    weights = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in weights.items()
    ):
        raise WeightsError(f"{path}: holds no model; give a checkpoint as fair-esm publishes it")
    # fairseq's names: "encoder.sentence_encoder.layers.0...", "encoder.lm_head...", "encoder_layers".
    state = {name.rpartition("encoder.")[2]: weight for name, weight in weights.items()}
    options = {str(key).removeprefix("encoder_"): value for key, value in _read_options(checkpoint).items()}
    heads = options.get("attention_heads")
    if type(heads) is not int or heads < 1:
        raise WeightsError(
            f"{path}: does not say how many attention heads there are; it is no ESM checkpoint"
        )
    return build_esm(
        state,
        heads=heads,
        token_dropout=bool(options.get("token_dropout", False)),
        clear_mask="embed_positions.weight" in state,  # as fair-esm does when it loads the older families
        place=str(path),
        matrices=matrices,
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
    precision : {"fp32", "bf16", "fp16", "auto"}, optional
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
    precision = resolve_precision(precision, device=device)
    encoder, fingerprint = build_esm(
        model.state_dict(),
        heads=heads,
        token_dropout=bool(getattr(source, "token_dropout", False)),
        place=kind,
        matrices=matrix_dtype(precision),
    )
    return EsmBackbone(encoder.to(device), name=name, precision=precision, fingerprint=fingerprint)


def read_restricted(path: Path, *, remedy: str, error: type[BioxferError] = WeightsError) -> Any:
    """Read tensors and plain values from a ``.pt`` file, and run nothing that it says.

    Parameters
    ----------
    path : Path
        The file; tensors of a zipped one are mapped into memory, not read.
    remedy : str
        What to do if it is refused, the end of the message.
    error : type of BioxferError, optional
        What to raise.

    Raises
    ------
    WeightsError
        Or ``error``, if the file cannot be read or holds anything else; and for any
        file where torch is older than 2.10.
    """
    # Restricted loading itself could be made to run code: CVE-2025-32434, CVE-2026-24747.
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < (2, 10):
        raise error(
            f"{path}: torch {torch.__version__} cannot read .pt files safely; pip install 'torch>=2.10'"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as failure:
        raise error(f"{path}: cannot be read ({failure.strerror}); check the path") from failure
    except MemoryError:
        raise
    except Exception as failure:  # a damaged or hostile file can fail in any way
        lines = str(failure).splitlines() or [type(failure).__name__]
        reason = next((line.strip() for line in lines if "unsupported" in line.lower()), lines[0])
        raise error(
            f"{path}: refused, it is damaged or holds more than tensors and plain values ({reason}); {remedy}"
        ) from failure


def _read_options(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Training options; ESM-2 keeps them under "cfg", the older families under "args"."""
    config = checkpoint.get("cfg")
    for options in (config.get("model") if isinstance(config, dict) else None, checkpoint.get("args")):
        if isinstance(options, argparse.Namespace):
            return vars(options)
        if isinstance(options, dict):
            return options
    return {}


def build_esm(
    state: Mapping[str, Tensor],
    *,
    heads: int,
    token_dropout: bool,
    place: str,
    clear_mask: bool = False,
    matrices: torch.dtype,
    norm_eps: float = NORM_EPS,
) -> tuple[EsmEncoder, str]:
    """Make a model of weights under fair-esm's names, and its fingerprint.

    Parameters
    ----------
    state : mapping of str to Tensor
        The weights; those of heads are left out.
    heads : int
        Attention heads.
    token_dropout : bool
        Whether the embedding is rescaled by the share of masked tokens.
    place : str
        Where they come from, for messages.
    clear_mask : bool, optional
        Whether the embedding of ``<mask>`` is taken as zeros.
    matrices : torch.dtype
        Type of the matrices.
    norm_eps : float, optional
        What the norms add to the variance.

    Raises
    ------
    WeightsError
        If the weights are no whole model of this family.
    """
    unused = ("lm_head.", "contact_head.")
    state = {key: weight.detach() for key, weight in state.items() if not key.startswith(unused)}
    if strange := [key for key, weight in state.items() if not is_plain(weight)]:
        raise WeightsError(f"{place}: {strange[0]!r} is no array of numbers of its own; it is damaged")
    config = replace(
        _read_config(state, heads=heads, token_dropout=token_dropout, place=place), norm_eps=norm_eps
    )
    expected = _fairesm_names(config)
    if missing := expected - state.keys():
        raise WeightsError(f"{place}: lacks {len(missing)} weights such as {min(missing)}; it is not whole")
    if foreign := state.keys() - expected:
        raise WeightsError(
            f"{place}: holds {len(foreign)} weights that ESM-1b, ESM-1v and ESM-2 do not have, such as "
            f"{min(foreign)}; other models cannot be loaded"
        )
    for key, weight in state.items():
        if not math.isfinite(float(weight.float().abs().amax())):
            raise WeightsError(f"{place}: {key} holds numbers that are not finite; it is damaged")
    if clear_mask or config.token_dropout:  # which never reads that row; so the fingerprint must not either
        state["embed_tokens.weight"] = state["embed_tokens.weight"].clone()
        state["embed_tokens.weight"][MASK] = 0
    turns = [weight for key, weight in state.items() if key.endswith("rot_emb.inv_freq")]
    if not all(torch.equal(weight, turns[0]) for weight in turns):
        raise WeightsError(f"{place}: rotary frequencies differ between layers; it is damaged")
    with torch.device("meta"):
        encoder = EsmEncoder(config)
    try:
        encoder.load_state_dict(_fuse(state, config, matrices=matrices), assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(f"{place}: weights do not fit together ({reason}); it is not whole") from error
    shape = asdict(config)
    if norm_eps == NORM_EPS:  # as of every model of fair-esm's, whose fingerprints do not name it
        del shape["norm_eps"]
    return encoder.requires_grad_(False).eval(), fingerprint_of(shape, state)


def is_plain(weight: Tensor) -> bool:
    """Tell whether each number of a weight lies in memory; a view of one can be larger than that."""
    dense = weight.layout == torch.strided and weight.device.type != "meta"
    return dense and weight.is_floating_point() and 0 < weight.nbytes <= weight.untyped_storage().nbytes()


def _read_config(state: Mapping[str, Tensor], *, heads: int, token_dropout: bool, place: str) -> EsmConfig:
    """Read the shape of a model off its weights."""
    numbers = [int(found[1]) for key in state if (found := re.match(r"layers\.([0-9]{1,4})\.", key))]
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
    if config.layers > len(state):  # before so many names are made
        raise WeightsError(f"{place}: lacks weights of {config.layers} layers; it is not whole")
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
