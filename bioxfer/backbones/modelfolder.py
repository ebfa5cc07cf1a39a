"""The files of a model in Hugging Face's layout: ``config.json``, and weights in one file or in shards.

Both may be a stranger's. Every value of a config that is asked for is checked, what asks for something else
than is computed is refused by its name, and of weights tensors alone are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bioxfer.backbones.fairesm import is_plain, read_restricted
from bioxfer.backbones.weights import check_weights
from bioxfer.errors import WeightsError
from bioxfer.metadata import parse_metadata

__all__ = ["WIDEST", "ModelConfig", "ModelWeights", "weight_files"]

MODEL_TYPES = ("esm", "t5", "esmc")
WIDEST = 1 << 20
"""The largest whole number that is taken from a config."""

_NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which they are looked for


def weight_files(folder: Path) -> list[Path]:
    """List the files of a model's weights: one, or an index and its shards.

    Raises
    ------
    WeightsError
        If there are none, or a shard is missing.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [index, *(folder / shard for shard in _shards(index))]
    raise WeightsError(f"{folder}: holds no weights ({' or '.join(_WEIGHTS)}, or shards with their index)")


def _shards(index: Path) -> list[str]:
    """Names of the files that an index speaks of; all of them are there."""
    try:
        table = json.loads(index.read_bytes())["weight_map"]
        shards = sorted({str(shard) for shard in table.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index}: cannot be read ({error}); fetch it again") from error
    for shard in shards:
        # A name with a folder could point anywhere.
        if re.fullmatch(r"[\w-][\w.-]{0,200}\.(safetensors|bin)", shard) is None:
            raise WeightsError(f"{index}: {shard[:80]!r} is no name of a shard; the index is damaged")
        if not (index.parent / shard).is_file():
            raise WeightsError(f"{index.parent}: {shard} is missing, one of {len(shards)} shards; fetch it")
    if not shards:
        raise WeightsError(f"{index}: names no shards; fetch it again")
    return shards


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A ``config.json``, of which every value that is asked for is checked."""

    place: Path
    values: Mapping[str, Any]
    model_type: str

    @classmethod
    def read(cls, folder: Path) -> ModelConfig:
        """Read it, and refuse what cannot be computed here whatever else it says."""
        place = folder / "config.json"
        try:
            values = parse_metadata(place.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WeightsError(f"{place}: cannot be read ({reason}); fetch the model again") from error
        found = values.get("model_type")
        if "auto_map" in values:
            raise WeightsError(
                f"{place}: names program code of its own (auto_map), which is never run, and without which "
                f"nobody knows what {found!r} computes; take a model that needs none"
            )
        if found not in MODEL_TYPES:
            raise WeightsError(
                f"{place}: model_type {found!r} is not read; those that are: esm (ESM-2, ESM-1b, ESM-1v), "
                "t5 (ProtT5, ProstT5, Ankh) and esmc (ESM-C)"
            )
        config = cls(place, values, found)
        for key in ("is_folding_model", "add_cross_attention", "is_decoder"):
            if config.flag(key):
                raise config.refusal(key)
        for key in ("quantization_config", "rope_scaling"):
            if values.get(key) is not None:
                raise config.refusal(key)
        return config

    def refusal(self, key: str, *, reads: str = "") -> WeightsError:
        """Say that a value cannot be honoured."""
        what = f"; {reads}" if reads else ""
        value = json.dumps(self.values.get(key))[:80]
        return WeightsError(f"{self.place}: {key} {value} is not computed here{what}; take another model")

    def count(self, key: str, default: int | None = None, *, most: int = WIDEST) -> int:
        """Read a whole number from 1 on."""
        value = self.values.get(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.refusal(key, reads=f"it is a whole number from 1 to {most}")
        return value

    def number(self, key: str, default: float) -> float:
        """Read a number above 0."""
        value = self.values.get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e9:
            raise self.refusal(key, reads="it is a number above 0")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Read yes or no; null is no."""
        value = self.values.get(key, default)
        if value is not None and type(value) is not bool:
            raise self.refusal(key, reads="it is true or false")
        return bool(value)

    def text(self, key: str, default: str, *, among: Sequence[str]) -> str:
        """Read one of some words."""
        value = self.values.get(key, default)
        if value not in among:
            raise self.refusal(key, reads=f"what is: {', '.join(among)}")
        return str(value)


class ModelWeights(Mapping[str, Tensor]):
    """Weights by name, read from their files when they are asked for."""

    def __init__(self, place: Path, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self.place = place
        self._readers = readers

    @classmethod
    def open(cls, folder: Path, *, prefix: str, unused: tuple[str, ...]) -> ModelWeights:
        """Open all files of a folder.

        Parameters
        ----------
        folder : Path
            See `load_folder`.
        prefix : str
            What the names begin with where the encoder is part of a model with a head; left out.
        unused : tuple of str
            What the names of such heads begin with; they are left out.
        """
        readers: dict[str, Callable[[], Tensor]] = {}
        for path in weight_files(folder):
            if path.suffix == ".safetensors":
                found = _open_safetensors(path)
            elif path.suffix == ".bin":
                found = _open_checkpoint(path)
            else:
                continue
            readers |= {name.removeprefix(prefix): reader for name, reader in found.items()}
        return cls(folder, {name: r for name, r in readers.items() if not name.startswith(unused)})

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._readers:
            raise WeightsError(f"{self.place}: lacks the weights {name}; it is not whole")
        found = self._readers[name]()
        if found.dtype not in _NUMBERS or not is_plain(found):
            raise WeightsError(
                f"{self.place}: {name} is no array of float32, float16, bfloat16 or float64 numbers (but "
                f"{found.dtype}); take a model that is not quantised"
            )
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def only(self, names: set[str]) -> ModelWeights:
        """Keep those of these names; refuse others, which would have a part in what the model computes."""
        if foreign := self._readers.keys() - names:
            raise WeightsError(
                f"{self.place}: holds {len(foreign)} weights that are not computed with here, such as "
                f"{min(foreign)}; take another model"
            )
        return self


def _open_safetensors(path: Path) -> dict[str, Callable[[], Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        path.open("rb").close()  # safetensors calls a file that it may not read a missing one
        file: Any = safe_open(path, framework="pt")
        names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            found: Tensor = file.get_tensor(name)
            return found

        return read

    return {name: reader(name) for name in names}


def _open_checkpoint(path: Path) -> dict[str, Callable[[], Tensor]]:
    checkpoint = read_restricted(check_weights(path).path, remedy="take the model's safetensors")
    if not isinstance(checkpoint, dict) or not all(
        isinstance(name, str) and isinstance(weight, Tensor) for name, weight in checkpoint.items()
    ):
        raise WeightsError(f"{path}: is no table of weights; take the model's safetensors")

    def reader(weight: Tensor) -> Callable[[], Tensor]:
        return lambda: weight

    return {name: reader(weight) for name, weight in checkpoint.items()}
