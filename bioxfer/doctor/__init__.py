"""What a support ticket should say: what is installed, what is here, whether it is sound, what it will do.

Facts only; the command line puts them into lines. Nothing is written, no socket
is opened, and a check that fails is a finding like any other. Of the
environment only variables that change what bioxfer does are told, and the home
folder is written ``~``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from bioxfer.doctor import installation, settings, soundness
from bioxfer.doctor.findings import Finding, Value, Verdict, hide_home
from bioxfer.errors import BioxferError

__all__ = ["Finding", "Value", "Verdict", "examine"]


def examine(*, quick: bool = False) -> list[Finding]:
    """Look at everything; the order is that of the checks.

    Parameters
    ----------
    quick : bool, optional
        Do not read large files through: downloaded weights and the whole cache.
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("bioxfer", installation.see_installation),
        ("processor", installation.see_processor),
        ("memory", installation.see_memory),
        ("packages", installation.see_packages),
        ("package esm", installation.see_esm),
        ("torch", installation.see_torch),
        ("kernels", installation.see_kernels),
        ("precision", installation.see_precision),
        ("backbone compact", soundness.see_embedded),
        ("heads", soundness.see_heads),
        ("backbones", functools.partial(soundness.see_downloaded, quick=quick)),
        ("self-test", soundness.see_self_test),
        ("cache", functools.partial(soundness.see_cache, quick=quick)),
        ("disk", soundness.see_disks),
        ("mmseqs", installation.see_mmseqs),
        ("network", settings.see_network),
        ("environment", settings.see_environment),
    ]
    found: list[Finding] = []
    for name, check in checks:
        try:
            found.extend(check())
        except Exception as error:  # whatever is broken here, the rest is worth knowing all the more
            told = str(error) if isinstance(error, BioxferError) else f"{type(error).__name__}: {error}"
            found.append(Finding(name, "problem", f"could not be examined: {hide_home(told)}"))
    return found
