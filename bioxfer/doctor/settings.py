"""What the user has set: the environment, and whether and where weights are fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator

from bioxfer.doctor.findings import Finding, hide_home

__all__ = ["VARIABLES", "see_environment", "see_network"]

VARIABLES = (
    "BIOXFER_CACHE",
    "BIOXFER_KERNELS",
    "BIOXFER_MIRRORS",
    "BIOXFER_OFFLINE",
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "TMPDIR",
    "TORCH_HOME",
    "XDG_CACHE_HOME",
)
"""Environment variables that change what bioxfer does."""


def see_network() -> Iterator[Finding]:
    """Tell whether the network may be used, and what for."""
    from bioxfer.backbones.downloads import mirrors, without_secrets
    from bioxfer.backbones.hub import HUB
    from bioxfer.backbones.weights import is_offline

    offline = is_offline()
    places = ", ".join(without_secrets(place) for place in (*mirrors(), HUB))
    fact = "forbidden (BIOXFER_OFFLINE)" if offline else "allowed, and used to download weights alone"
    yield Finding("network", "ok", f"{fact}; weights come from {places}", values={"offline": offline})


def see_environment() -> Iterator[Finding]:
    """Tell the variables that change what bioxfer does."""
    from bioxfer.backbones.downloads import without_secrets

    for name in VARIABLES:
        value = os.environ.get(name)
        if value is not None:
            if name == "BIOXFER_MIRRORS":
                value = ", ".join(without_secrets(place.strip()) for place in value.split(","))
            told = hide_home(value)
            yield Finding(f"variable {name}", "ok", told or "empty", values={"value": told})
    for name in sorted(os.environ):
        if name.startswith("BIOXFER_") and name not in (*VARIABLES, "BIOXFER_SHARED"):
            fact = "means nothing to bioxfer"  # its value is not told: nobody knows what it is
            yield Finding(f"variable {name}", "note", fact, f"unset it; known are {', '.join(VARIABLES[:4])}")
