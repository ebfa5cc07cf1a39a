"""What is in the package: the sha256 of its weights and heads, and what the embedded backbone must compute.

``weights/shipped.json`` is written with every edition of them, by
``benchmarks/train_ready_heads.py``, and read by ``bioxfer doctor`` and
``bioxfer models verify compact``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from bioxfer.backbones.weights import sha256_of
from bioxfer.errors import WeightsError

__all__ = ["SHIPPED", "Shipped", "first_numbers", "read_shipped", "record_shipped"]

SHIPPED = Path(__file__).parent.parent / "weights"
"""Folder of the embedded weights and the ready heads."""

# The chains of human insulin and the cyclotide kalata B1: short, and known to every reader.
PROBES = ("GIVEQCCTSICSLYQLENYCN", "FVNQHLCGSHLVEALYLVCGERGFFYTPKT", "GLPVCGETCVGGTCNTPGCTCSWPVCTRN")
_NUMBERS = 8  # first numbers of each probe's mean vector


@dataclass(frozen=True, slots=True)
class Shipped:
    """The record.

    Attributes
    ----------
    files : dict of str to str
        The sha256 of each file, by its path below the folder of the weights.
    probes : dict of str to tuple of float
        The first numbers of the mean vector of some proteins, last layer, float32.
    """

    files: dict[str, str]
    probes: dict[str, tuple[float, ...]]


def read_shipped(folder: Path = SHIPPED) -> Shipped:
    """Read the record.

    Raises
    ------
    WeightsError
        If it is missing or damaged.
    """
    path = folder / "shipped.json"
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        files = {str(name): str(digest) for name, digest in read["files"].items()}
        probes = {str(protein): tuple(map(float, some)) for protein, some in read["probes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path}: the record of the package's weights cannot be read ({error}); install bioxfer again"
        ) from error
    if not files or not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in files.values()):
        raise WeightsError(f"{path}: the record of the package's weights is damaged; install bioxfer again")
    return Shipped(files=files, probes=probes)


def record_shipped(folder: Path = SHIPPED) -> Path:
    """Write the record anew, from the files as they are; return its path."""
    from bioxfer.output import publish

    files = {
        path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*.safetensors"))
    }
    record = {"files": files, "probes": first_numbers(PROBES, weights=folder / "compact.safetensors")}
    path = folder / "shipped.json"
    with publish(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def first_numbers(
    proteins: tuple[str, ...], *, weights: Path = SHIPPED / "compact.safetensors"
) -> dict[str, tuple[float, ...]]:
    """Compute what `Shipped.probes` holds."""
    from bioxfer.backbones.compact import load_compact

    backbone = load_compact(weights)
    found = backbone.represent(proteins, layers=[backbone.n_layers])
    means = [each.residues[0].mean(dim=0)[:_NUMBERS].tolist() for each in found]
    return {
        protein: tuple(float(f"{x:.8g}") for x in some) for protein, some in zip(proteins, means, strict=True)
    }
