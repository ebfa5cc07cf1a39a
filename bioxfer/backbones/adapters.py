"""Adapters: small changes of low rank to a backbone's matrices, and their file.

A linear layer's matrix ``W: (E, D)`` becomes ``W + scale B A`` with ``A: (r, D)`` and ``B: (E, r)`` (Hu et
al., ICLR 2022, arXiv:2106.09685). Only A and B are kept; the base they change is named, and known by its
fingerprint. On loading they are added to its matrices once, in float32, so an adapted backbone runs as fast
as its base. `bioxfer.lora` trains adapters.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bioxfer.backbones import (
    Backbone,
    find_weights,
    is_backbone_name,
    is_folder_model,
    matrix_dtype,
    resolve_precision,
)
from bioxfer.backbones.compact import BOS, EOS, CompactBackbone, CompactModel, read_compact, tokenize
from bioxfer.backbones.esm import TRAINED_RESIDUES, EsmBackbone, EsmEncoder, tokenize_esm
from bioxfer.backbones.fairesm import read_esm
from bioxfer.backbones.hub import find_folder
from bioxfer.backbones.packing import AdaptedLinear
from bioxfer.backbones.weights import fingerprint as fingerprint_of
from bioxfer.errors import FingerprintError, UsageError, WeightsError
from bioxfer.metadata import parse_metadata
from bioxfer.output import publish

__all__ = ["Adapter", "BaseModel", "is_adapter", "load_adapted", "load_adapter", "read_base"]

ADAPTED = ("qkv", "out", "up", "down")
"""The linear layers of a block that an adapter changes."""

METADATA_KEY = "bioxfer-lora"
_FORMAT = 1

Matrices = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class BaseModel:
    """A backbone's model in float32 as its file has it, before matrices are rounded or packed.

    Attributes
    ----------
    model : CompactModel or EsmEncoder
        Without gradients; ``model(pack, layers=...)`` gives hidden states.
    source : str
        Name, or path of the weights file.
    name : str
        Name for tables and cards.
    fingerprint : str
        As the backbone has it.
    tokenize : callable
        Turns residues ``(L,)`` into tokens ``(L + 2,)``, start and end included.
    """

    model: CompactModel | EsmEncoder
    source: str
    name: str
    fingerprint: str
    tokenize: Callable[[str], Tensor]

    @property
    def dim(self) -> int:
        """Width ``D`` of a residue's vector."""
        return self.model.config.width

    @property
    def n_layers(self) -> int:
        """Number of the last layer."""
        return self.model.config.layers

    @property
    def window(self) -> int:
        """Residues that the model is meant to see at once."""
        config = self.model.config
        if isinstance(self.model, CompactModel):
            return self.model.config.window
        limit: int | None = getattr(config, "max_tokens", None)
        return TRAINED_RESIDUES if limit is None else limit - 2

    def linear_layers(self) -> dict[str, nn.Linear]:
        """Give the layers that an adapter changes, by name."""
        found = {}
        for number, block in enumerate(self.model.blocks):
            for part in ADAPTED:
                if (linear := getattr(block, part)) is not None:
                    found[f"blocks.{number}.{part}"] = linear
        return found

    def attach(self, matrices: Matrices, *, scale: float) -> None:
        """Put trainable changes beside the layers of these names, in place."""
        for name, linear in self.linear_layers().items():
            block, part = name.rsplit(".", 1)
            setattr(
                self.model.get_submodule(block), part, AdaptedLinear(linear, *matrices[name], scale=scale)
            )

    def round_matrices(self, precision: str) -> None:
        """Give matrices the type of a resolved precision; norms, biases and embeddings stay float32."""
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = module.weight.data.to(matrix_dtype(precision))

    def finish(self, *, name: str, fingerprint: str, precision: str, device: str) -> Backbone:
        """Make a backbone of the model, which belongs to it from then on."""
        precision = resolve_precision(precision, device=device)
        if isinstance(self.model, CompactModel):
            backbone = CompactBackbone(self.model, name=name, precision=precision, device=device)
            backbone.fingerprint = fingerprint
            return backbone
        self.round_matrices(precision)
        return EsmBackbone(self.model.to(device), name=name, precision=precision, fingerprint=fingerprint)


def read_base(name_or_path: str | os.PathLike[str], *, offline: bool = False) -> BaseModel:
    """Read the model of a backbone, to be changed.

    Parameters
    ----------
    name_or_path : str or path
        As for `bioxfer.backbones.load_backbone`.
    offline : bool, optional
        Open no socket.

    Raises
    ------
    UsageError
        It is an adapter itself.
    UnknownModelError, OfflineError, WeightsError
        As `load_backbone` raises.
    """
    source = os.fspath(name_or_path)
    if is_folder_model(source):
        from bioxfer.backbones.huggingface import read_esm_folder

        name, folder = find_folder(source, offline=offline)
        encoder, fingerprint = read_esm_folder(folder)
        # By its commit, since what the bare name means may change.
        return BaseModel(encoder, name or source, name or folder.resolve().name, fingerprint, tokenize_esm)
    path = find_weights(source, offline=offline)
    if path.suffix != ".safetensors":
        encoder, fingerprint = read_esm(path)
        return BaseModel(encoder, source, path.stem, fingerprint, tokenize_esm)
    if is_adapter(path):
        raise UsageError(f"{source} is an adapter itself and cannot be adapted again; adapt its base")
    compact, _ = read_compact(path)
    fingerprint = fingerprint_of(asdict(compact.config), compact.state_dict())
    return BaseModel(compact.requires_grad_(False).eval(), source, path.stem, fingerprint, _tokenize_compact)


def _tokenize_compact(sequence: str) -> Tensor:
    return torch.from_numpy(np.concatenate(([BOS], tokenize(sequence), [EOS])).astype(np.uint8))


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Changes of low rank to the matrices of one backbone.

    Attributes
    ----------
    base : str
        Name or weights file of the backbone that they change.
    base_fingerprint : str
        Its fingerprint.
    scale : float
        Factor on ``B A``.
    matrices : mapping of str to (Tensor, Tensor)
        ``A: (r, D)`` and ``B: (E, r)``, float32, for each layer, such as ``blocks.0.up``.
    card : dict
        How they were trained.
    """

    base: str
    base_fingerprint: str
    scale: float
    matrices: Matrices
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Rank ``r`` of every change."""
        return next(iter(self.matrices.values()))[0].shape[0]

    @property
    def fingerprint(self) -> str:
        """16 hex digits over base and changes: the fingerprint of the adapted backbone."""
        return fingerprint_of({"base": self.base_fingerprint, "scale": self.scale}, self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{layer}.{letter}": matrix.detach().to("cpu", torch.float32).contiguous()
            for layer, pair in self.matrices.items()
            for letter, matrix in zip("ab", pair, strict=True)
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the adapter, the same bytes for the same adapter; whole or not at all.

        The base is not written. One that is a file is noted by its place as seen from the adapter's folder.

        Parameters
        ----------
        path : path
            A ``.safetensors`` file; `bioxfer.backbones.load_backbone` reads it.

        Raises
        ------
        UsageError
            The name has another suffix.
        OutputError
            It cannot be written.
        """
        from safetensors.torch import save

        if Path(path).suffix != ".safetensors":
            raise UsageError(f"an adapter cannot be written to {path}; give a name that ends in .safetensors")
        tensors = self._tensors()
        header = {
            "format": _FORMAT,
            "base": self.base if is_backbone_name(self.base) else _seen_from(Path(path).parent, self.base),
            "base_fingerprint": self.base_fingerprint,
            "scale": self.scale,
            "card": self.card,
        }
        header["sha256"] = _digest(header, tensors)
        data = save(tensors, metadata={METADATA_KEY: _to_json(header)})
        with publish(path) as temporary:
            temporary.write_bytes(data)

    def backbone(
        self,
        *,
        name: str | None = None,
        precision: str = "fp32",
        device: str = "cpu",
        offline: bool = False,
    ) -> Backbone:
        """Load the base and add the changes to its matrices.

        Parameters
        ----------
        name : str, optional
            Of the adapted backbone; ``BASE+lora`` if not given.
        precision, device, offline
            As for `bioxfer.backbones.load_backbone`.

        Raises
        ------
        FingerprintError
            The base is another one than the changes were trained on.
        WeightsError
            The changes do not fit its layers.
        """
        base = read_base(self.base, offline=offline)
        label = name or f"{base.name}+lora"
        if base.fingerprint != self.base_fingerprint:
            raise FingerprintError(
                f"adapter {label!r} changes {base.name} ({self.base_fingerprint}), and {self.base} is "
                f"{base.fingerprint}; give the base that it was trained on, or train it anew"
            )
        layers = base.linear_layers()
        if strange := set(layers) ^ set(self.matrices):
            raise WeightsError(
                f"adapter {label!r} and its base {base.name} do not have the same layers ({min(strange)}); "
                f"get or train the adapter anew"
            )
        for layer, (a, b) in self.matrices.items():
            weight = layers[layer].weight
            if (b.shape[0], a.shape[1]) != tuple(weight.shape):
                raise WeightsError(
                    f"adapter {label!r}: {layer} changes a matrix of {b.shape[0]} by {a.shape[1]}, and that "
                    f"of {base.name} is {weight.shape[0]} by {weight.shape[1]}; get or train the adapter anew"
                )
            weight.data += self.scale * (b.float() @ a.float())
        return base.finish(name=label, fingerprint=self.fingerprint, precision=precision, device=device)


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file says that it is an adapter."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter and check all of it, its base aside.

    Parameters
    ----------
    path : path
        A file that `Adapter.save` wrote.

    Raises
    ------
    WeightsError
        The file cannot be read, is damaged or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = parse_metadata((file.metadata() or {})[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stated = header.pop("sha256")
        if stated != _digest(header, tensors):
            raise ValueError("its content does not have the sha256 it states")
        return _parse(header, tensors, folder=Path(path).parent)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{path}: damaged or no bioxfer adapter ({error or type(error).__name__}); get or train it anew"
        ) from error


def load_adapted(
    path: str | os.PathLike[str], *, precision: str = "fp32", device: str = "cpu", offline: bool = False
) -> Backbone:
    """Load the backbone that an adapter file makes of its base; it has the file's name.

    Parameters
    ----------
    path : path
        A file that `Adapter.save` wrote.
    precision, device, offline
        As for `bioxfer.backbones.load_backbone`.

    Raises
    ------
    WeightsError
        The adapter or its base is missing, damaged or foreign.
    FingerprintError
        The base is another one than the adapter was trained on.
    """
    adapter = load_adapter(path)
    if not is_backbone_name(adapter.base) and not Path(adapter.base).exists():
        raise WeightsError(f"{path}: its base {Path(adapter.base).name} is not beside it; put it there")
    return adapter.backbone(name=Path(path).stem, precision=precision, device=device, offline=offline)


def _parse(header: Mapping[str, Any], tensors: Mapping[str, Tensor], *, folder: Path) -> Adapter:
    """Make an adapter of checked bytes; a `ValueError` says what is wrong with them."""
    if header.get("format") != _FORMAT:
        raise ValueError(f"format {header.get('format')!r} is not {_FORMAT}, the one this version reads")
    base, scale, card = header["base"], header["scale"], header["card"]
    if not isinstance(base, str) or not isinstance(header["base_fingerprint"], str):
        raise ValueError("it names no base")
    if not isinstance(scale, float) or not math.isfinite(scale) or not isinstance(card, dict):
        raise ValueError(f"scale {scale!r} is no finite number, or the card no JSON object")
    layers = sorted({name.rpartition(".")[0] for name in tensors})
    if not layers or set(tensors) != {f"{layer}.{letter}" for layer in layers for letter in "ab"}:
        raise ValueError("its matrices do not come in pairs")
    matrices = {layer: (tensors[f"{layer}.a"], tensors[f"{layer}.b"]) for layer in layers}
    sound = all(t.ndim == 2 and t.dtype == torch.float32 for t in tensors.values())
    if not sound or len({size for a, b in matrices.values() for size in (a.shape[0], b.shape[1])}) != 1:
        raise ValueError("its matrices are not float32 of one rank")
    for (a, b), layer in zip(matrices.values(), layers, strict=True):
        if not 1 <= a.shape[0] <= min(a.shape[1], b.shape[0]):
            raise ValueError(f"rank {a.shape[0]} of {layer} is out of range")
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise ValueError(f"{layer} holds numbers that are not finite")
    if not is_backbone_name(base):
        base = str(_found_from(folder, base))
    return Adapter(base, header["base_fingerprint"], scale, matrices, card)


def _seen_from(folder: Path, file: str) -> str:
    try:
        seen = Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        seen = Path(file).name
    # A folder of models/mine would be read as a name of the hub.
    return seen if seen.startswith(".") or seen.endswith((".pt", ".safetensors")) else f"./{seen}"


def _found_from(folder: Path, noted: str) -> Path:
    """Where a base is: at its noted place, or beside the adapter if both were moved."""
    place = folder / noted
    return place if place.exists() else folder / Path(noted).name


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Hash everything that an adapter file says."""
    found = hashlib.sha256(_to_json(header).encode())
    for name in sorted(tensors):
        values = tensors[name].numpy()
        found.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        found.update(values.tobytes())
    return found.hexdigest()


def _to_json(header: Mapping[str, Any]) -> str:
    return json.dumps(header, sort_keys=True, allow_nan=False, separators=(",", ":"))
