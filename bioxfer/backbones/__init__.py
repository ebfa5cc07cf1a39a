"""Backbones: protein language models that turn residues into vectors.

A backbone is anything that fits the `Backbone` protocol. `load_backbone` knows
the embedded one (``compact``), the ESM-1b, ESM-1v and ESM-2 families by their
fair-esm names, and ESM, ProtT5, Ankh and ESM-C by their names on the Hugging
Face hub (`bioxfer.backbones.hub`) or as folders; `list_backbones` says which of
them are at hand.

>>> from bioxfer.backbones import list_backbones
>>> [info.name for info in list_backbones() if info.family == "ESM-2"][:2]
['esm2_t6_8M_UR50D', 'esm2_t12_35M_UR50D']
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from bioxfer.backbones.downloads import fetch_weights, mirrors
from bioxfer.backbones.hub import (
    SOURCE,
    fetch_model,
    find_folder,
    is_hub_name,
    list_models,
)
from bioxfer.backbones.weights import (
    WeightsCheck,
    check_weights,
    hub_folder,
    is_offline,
    record_of,
    sha256_of,
)
from bioxfer.errors import UnknownModelError, UsageError, WeightsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "Backbone",
    "BackboneInfo",
    "Representation",
    "WeightsCheck",
    "download_backbone",
    "find_weights",
    "has_native_bf16",
    "is_backbone_name",
    "is_folder_model",
    "list_backbones",
    "load_backbone",
    "matrix_dtype",
    "resolve_precision",
    "verify_backbone",
]


@dataclass(frozen=True, slots=True)
class Representation:
    """What a backbone says of one sequence of ``L`` residues.

    Attributes
    ----------
    residues : Tensor
        One vector for every residue at every wanted layer,
        ``(len(layers), L, D)`` float32.
    cls : Tensor
        The vector of the start token, ``(len(layers), D)`` float32.
    """

    residues: Tensor
    cls: Tensor


class Backbone(Protocol):
    """A protein language model, ready to run."""

    @property
    def name(self) -> str:
        """Name in tables, cards and messages."""
        ...

    @property
    def dim(self) -> int:
        """Width ``D`` of a residue's vector."""
        ...

    @property
    def n_layers(self) -> int:
        """Number of the last layer; 0 is the embedding, the last one stands after the final norm."""
        ...

    @property
    def window(self) -> int:
        """Residues that the model is meant to see at once."""
        ...

    @property
    def precision(self) -> str:
        """Type of the matrices, ``fp32``, ``bf16`` or ``fp16``."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits over shape and weights, the same at every precision."""
        ...

    def represent(self, sequences: Sequence[str], *, layers: Sequence[int]) -> list[Representation]:
        """Represent every residue of every sequence.

        Parameters
        ----------
        sequences : sequence of str
            Clean upper-case residues; sequence ``i`` has ``L_i`` of them.
        layers : sequence of int
            Wanted layers, 0 to ``n_layers``.

        Returns
        -------
        list of Representation
            One for each sequence, in input order, on the backbone's device.
        """
        ...


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """A backbone that `load_backbone` knows by name.

    Attributes
    ----------
    name : str
        Name to load it by.
    family : str
        ``compact``, ``ESM-1b``, ``ESM-1v``, ``ESM-2``; or ``ESM``, ``T5``, ``ESM-C`` of the hub.
    layers : int
        Number of transformer blocks.
    dim : int
        Width of a residue's vector.
    parameters : int or None
        Number of weights; None where the files would have to be read for it.
    where : {"embedded", "cached", "not here"}
        In the package, in torch.hub's cache folder, or to be downloaded first.
    size : int or None
        Bytes on this disk; None where it is not here.
    """

    name: str
    family: str
    layers: int
    dim: int
    parameters: int | None
    where: Literal["embedded", "cached", "not here"]
    size: int | None


# Name: family, blocks, width, nominal parameters. From the model table in fair-esm's README.
_ESM: dict[str, tuple[str, int, int, int]] = {
    "esm2_t6_8M_UR50D": ("ESM-2", 6, 320, 8_000_000),
    "esm2_t12_35M_UR50D": ("ESM-2", 12, 480, 35_000_000),
    "esm2_t30_150M_UR50D": ("ESM-2", 30, 640, 150_000_000),
    "esm2_t33_650M_UR50D": ("ESM-2", 33, 1280, 650_000_000),
    "esm2_t36_3B_UR50D": ("ESM-2", 36, 2560, 3_000_000_000),
    "esm2_t48_15B_UR50D": ("ESM-2", 48, 5120, 15_000_000_000),
    "esm1b_t33_650M_UR50S": ("ESM-1b", 33, 1280, 650_000_000),
    "esm1v_t33_650M_UR90S_1": ("ESM-1v", 33, 1280, 650_000_000),
    "esm1v_t33_650M_UR90S_2": ("ESM-1v", 33, 1280, 650_000_000),
    "esm1v_t33_650M_UR90S_3": ("ESM-1v", 33, 1280, 650_000_000),
    "esm1v_t33_650M_UR90S_4": ("ESM-1v", 33, 1280, 650_000_000),
    "esm1v_t33_650M_UR90S_5": ("ESM-1v", 33, 1280, 650_000_000),
}
_COMPACT = "compact"

log = logging.getLogger("bioxfer")


def load_backbone(
    name_or_path: str | Path,
    *,
    precision: str = "fp32",
    device: str = "cpu",
    offline: bool = False,
    threads: int | None = None,
) -> Backbone:
    """Load a backbone by name or from a file.

    Parameters
    ----------
    name_or_path : str or Path
        ``compact``, a fair-esm name such as ``esm2_t6_8M_UR50D``, a fair-esm
        checkpoint (``.pt``), weights that `bioxfer.pretrain` made, or an adapter
        of `bioxfer.lora` (both ``.safetensors``); a name of the Hugging Face hub,
        ``owner/name@COMMIT``, or without the commit where one is pinned; or a
        folder that holds such a model. What is not in torch.hub's cache folder is
        downloaded to it, see `download_backbone`.
    precision : {"fp32", "bf16", "fp16", "auto"}, optional
        Type of the matrices, see `resolve_precision`.
    device : str, optional
        Where to run, in torch's words: ``cpu``, ``cuda``, ``cuda:1``.
    offline : bool, optional
        Open no socket; so does ``BIOXFER_OFFLINE=1``.
    threads : int, optional
        Processor threads that torch uses from now on, in this whole process.

    Raises
    ------
    UnknownModelError
        If there is no such name.
    OfflineError
        If weights would have to be downloaded and the network is forbidden.
    WeightsError
        If a weights file is missing, damaged, foreign or unsafe.
    FingerprintError
        If an adapter meets a base that is not its own.
    UsageError
        If precision, device or threads cannot be had.
    """
    wanted = os.fspath(name_or_path)
    _check_known(wanted)
    resolved = resolve_precision(precision, device=device)
    if threads is not None:
        _set_threads(threads)
    if is_folder_model(wanted):
        from bioxfer.backbones.huggingface import load_folder

        name, folder = find_folder(wanted, offline=offline)
        return load_folder(folder, name=name, precision=resolved, device=device)
    record = record_of(Path(wanted))
    recorded = is_backbone_name(wanted) or record.exists()
    path = find_weights(wanted, offline=offline)
    if path.suffix != ".safetensors":
        from bioxfer.backbones.fairesm import load_esm

        try:
            return load_esm(path, precision=resolved, device=device)
        except WeightsError:
            if not recorded:  # else the right file would later be refused for not being this one
                record.unlink(missing_ok=True)
            raise

    from bioxfer.backbones.adapters import is_adapter, load_adapted
    from bioxfer.backbones.compact import load_compact

    if is_adapter(path):
        return load_adapted(path, precision=resolved, device=device, offline=offline)
    return load_compact(None if wanted == _COMPACT else path, precision=resolved, device=device)


def is_backbone_name(text: str) -> bool:
    """Tell whether `load_backbone` knows this as a name and not as a file."""
    return text in (_COMPACT, *_ESM) or is_hub_name(text)


def is_folder_model(text: str) -> bool:
    """Tell whether this names a model of several files: one of the hub, or a folder."""
    # A folder that happens to be called compact does not take the embedded backbone's place.
    return text not in (_COMPACT, *_ESM) and (is_hub_name(text) or os.path.isdir(text))


def find_weights(name_or_path: str | Path, *, offline: bool = False) -> Path:
    """Find the weights file of a backbone; parameters and errors as those of `load_backbone`."""
    wanted = os.fspath(name_or_path)
    _check_known(wanted)
    if is_backbone_name(wanted):
        return download_backbone(wanted, offline=offline)
    path = _existing(wanted)
    return path if path.suffix == ".safetensors" else check_weights(path).path


def list_backbones() -> list[BackboneInfo]:
    """List the backbones that have a name, and say which are at hand."""
    return [*_list_embedded(), *_list_esm(), *_list_hub()]


def download_backbone(
    name: str,
    *,
    into: str | Path | None = None,
    offline: bool = False,
    base_url: str | Sequence[str] = (),
    sha256: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Make sure that the weights of a backbone are on this disk, and sound.

    A file that is there and fits its recorded sha256 is left as it is; one
    that does not is fetched again. See `bioxfer.backbones.weights` for what
    the record can and cannot promise.

    Parameters
    ----------
    name : str
        Name of the backbone. One of the hub without a commit is pinned to the present one.
    into : str or Path, optional
        Folder for the weights; torch.hub's cache folder, which fair-esm
        shares, if not given.
    offline : bool, optional
        Open no socket; so does ``BIOXFER_OFFLINE=1``.
    base_url : str or sequence of str, optional
        Folders that hold ``NAME.pt``, tried in turn: web addresses, or paths of
        this machine. If not given, those of ``BIOXFER_MIRRORS``, separated by
        commas, and then the publisher's. For a name of the hub, web addresses that
        answer as it does.
    sha256 : str, optional
        The hash that the file must have, for those who know it.
    progress : callable, optional
        Called with bytes so far and, where known, bytes in all.

    Returns
    -------
    Path
        The weights file, or the folder of a model of the hub.

    Raises
    ------
    UnknownModelError
        If there is no such name.
    OfflineError
        If the network is needed and forbidden.
    WeightsError
        If the file cannot be fetched or stays damaged.
    OutputError
        If it cannot be written.
    """
    if name == _COMPACT:
        from bioxfer.backbones.compact import COMPACT_WEIGHTS

        return COMPACT_WEIGHTS
    places = [base_url] if isinstance(base_url, str) else list(base_url)
    if is_hub_name(name):
        if sha256 is not None:
            raise UsageError(
                "a model of the hub has several files, whose hashes the hub states; give its commit"
            )
        return fetch_model(name, into=into, offline=offline, base_url=places, progress=progress).folder
    if name not in _ESM:
        raise _unknown(name)
    target = Path(into if into is not None else hub_folder()) / f"{name}.pt"
    if os.path.isfile(target):
        try:
            return check_weights(target, sha256=sha256).path
        except WeightsError as damage:
            if is_offline(offline):
                raise
            log.warning("%s; fetching it again", damage)
    places = [f"{folder.rstrip('/')}/{target.name}" for folder in mirrors(places)]
    return fetch_weights(places, target, sha256=sha256, offline=offline, progress=progress).path


def verify_backbone(name_or_path: str | Path, *, sha256: str | None = None) -> WeightsCheck:
    """Check the weights of a backbone that is on this disk.

    Parameters
    ----------
    name_or_path : str or Path
        A name or a weights file, as for `load_backbone`.
    sha256 : str, optional
        The hash that the file must have, for those who know it.

    Returns
    -------
    WeightsCheck
        The file, its hash, and whether there was one to hold it against; the last
        one of a model of several files.

    Raises
    ------
    UnknownModelError
        If there is no such name.
    WeightsError
        If the file is missing or damaged.
    """
    wanted = os.fspath(name_or_path)
    _check_known(wanted)
    if is_folder_model(wanted):
        return _verify_folder(wanted, sha256=sha256)
    if wanted in _ESM:
        path = hub_folder() / f"{wanted}.pt"
        if not path.is_file():
            raise WeightsError(f"{path} is not here; run: bioxfer models download {wanted}")
        return check_weights(path, sha256=sha256)
    if wanted.endswith(".pt"):
        return check_weights(_existing(wanted), sha256=sha256)

    from bioxfer.backbones.adapters import is_adapter, load_adapter
    from bioxfer.backbones.compact import COMPACT_WEIGHTS, read_compact
    from bioxfer.backbones.shipped import SHIPPED, read_shipped

    path = COMPACT_WEIGHTS if wanted == _COMPACT else _existing(wanted)
    # small enough to look at every shape and value
    if is_adapter(path):
        load_adapter(path)
    else:
        read_compact(path)
    found = sha256_of(path)
    if sha256 is not None and sha256.strip().lower() != found:
        raise WeightsError(f"{path}: sha256 is {found}, but {sha256} was asked for; fetch the file again")
    if path != SHIPPED / "compact.safetensors":
        return WeightsCheck(path=path, sha256=found, known=sha256 is not None)
    if read_shipped().files.get(path.name) != found:
        raise WeightsError(
            f"{path}: sha256 is {found}, and the package came with another; install bioxfer again"
        )
    return WeightsCheck(path=path, sha256=found, known=True)


def _verify_folder(wanted: str, *, sha256: str | None) -> WeightsCheck:
    from bioxfer.backbones.huggingface import verify_folder

    if sha256 is not None:
        raise UsageError(f"{wanted} has several files, whose hashes are in its {SOURCE}; leave --sha256 out")
    return verify_folder(wanted)[-1]


def resolve_precision(precision: str, *, device: str = "cpu") -> Literal["fp32", "bf16", "fp16"]:
    """Decide the type of a backbone's matrices.

    Parameters
    ----------
    precision : {"fp32", "bf16", "fp16", "auto"}
        ``bf16`` keeps matrices in bfloat16 and the residual stream, norms and
        softmax in float32; a protein's mean vector then has a cosine of 0.9999 or
        more with that of fp32. ``fp16``, for GPUs alone, does the same with three
        bits more and a range that outliers of large models may leave; such proteins
        are computed again in fp32. ``auto`` takes bf16 where the device multiplies
        its matrices natively (AMX, AVX512-BF16, Arm's BF16 extension, CUDA from
        Ampere on), and fp32 elsewhere, where bf16 would be the slower one.
    device : str, optional
        Where the backbone is to run.

    Raises
    ------
    UsageError
        If there is no such precision or no such device.
    """
    if precision not in ("fp32", "bf16", "fp16", "auto"):
        raise UsageError(f"precision {precision!r} does not exist; choose fp32, bf16, fp16 or auto")
    kind = _device_type(device)
    if precision == "fp16" and kind != "cuda":
        raise UsageError(f"precision fp16 needs a GPU, and the device is {device!r}; choose bf16 or fp32")
    if precision == "auto":
        if not has_native_bf16(kind):
            return "fp32"
        log.info(
            "precision auto: bf16, whose vectors have a cosine of 0.9999 or more with those of fp32; "
            "--precision fp32 is exact"
        )
        return "bf16"
    return "bf16" if precision == "bf16" else "fp16" if precision == "fp16" else "fp32"


def matrix_dtype(precision: str) -> torch.dtype:
    """Type of the matrices at a resolved precision."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _device_type(device: str) -> str:
    """Type of a device that torch has at hand."""
    import torch

    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"device {device!r} cannot be used ({reason}); choose cpu or a device here"
        ) from error
    return place.type


def has_native_bf16(device_type: str) -> bool:
    """Tell whether a device multiplies bfloat16 natively; of emulation nothing is gained."""
    import torch

    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    # oneDNN also says yes to a processor that only has AVX512, where it emulates bf16.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _set_threads(threads: int) -> None:
    import torch

    if threads < 1:
        raise UsageError(f"{threads} threads cannot compute; give 1 or more")
    torch.set_num_threads(threads)


def _check_known(wanted: str) -> None:
    if is_backbone_name(wanted) or wanted.endswith((".pt", ".safetensors")) or os.path.isdir(wanted):
        return
    raise _unknown(wanted)


def _unknown(name: str) -> UnknownModelError:
    names = [_COMPACT, *_ESM]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? There are" if close else "there are"
    return UnknownModelError(
        f"backbone {name!r} does not exist; {hint} {', '.join(names)}, "
        f"files that end in .pt (fair-esm) or .safetensors (bioxfer), and models of the Hugging Face hub, as "
        f"owner/name@COMMIT or a folder"
    )


def _existing(path: str) -> Path:
    place = Path(path)
    if not place.is_file():
        raise WeightsError(f"{path}: there is no such weights file; check the path")
    return place


def _list_embedded() -> list[BackboneInfo]:
    from safetensors import safe_open

    from bioxfer.backbones.compact import COMPACT_WEIGHTS

    if not COMPACT_WEIGHTS.is_file():
        return []
    with safe_open(COMPACT_WEIGHTS, framework="np") as file:
        config = json.loads(file.metadata()["config"])
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return [
        BackboneInfo(
            name=_COMPACT,
            family="compact",
            layers=config["layers"],
            dim=config["width"],
            parameters=parameters,
            where="embedded",
            size=COMPACT_WEIGHTS.stat().st_size,
        )
    ]


def _list_hub() -> list[BackboneInfo]:
    models, infos = list_models(), []
    if models:  # to read them takes torch
        from bioxfer.backbones.huggingface import summarize
    for model in models:
        try:
            told = summarize(model.folder)
        except WeightsError as error:
            log.warning("%s", error)
            continue
        size = sum(file.stat().st_size for file in model.folder.iterdir() if file.is_file())
        name = model.name if model.pinned else model.label
        infos.append(
            BackboneInfo(name, told.family, told.layers, told.dim, told.parameters, where="cached", size=size)
        )
    return infos


def _list_esm() -> list[BackboneInfo]:
    folder = hub_folder()
    infos = []
    for name, (family, layers, dim, parameters) in _ESM.items():
        path = folder / f"{name}.pt"
        size = path.stat().st_size if os.path.isfile(path) else None  # or closed to this user
        infos.append(
            BackboneInfo(
                name=name,
                family=family,
                layers=layers,
                dim=dim,
                parameters=parameters,
                where="not here" if size is None else "cached",
                size=size,
            )
        )
    return infos
